package operator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/spf13/cobra"

	"sotto/internal/clock"
	"sotto/node"
)

func (a *app) serveCommand() *cobra.Command {
	given := defaultConfig()
	cmd := &cobra.Command{
		Use: "serve", Short: "Run the volunteer until it is stopped", Args: cobra.NoArgs,
		Example: "  sotto-mailbox serve --announce volunteer.example.org\n  sotto-mailbox serve --listen 127.0.0.1 --allow-private        to try it on this machine",
		Long:    "Run the volunteer until it is stopped. Keys are made at the first start. What the flags say wins over\nconfig.toml in the home directory.",
	}
	given.flags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		file, err := loadConfig(a.home)
		if err != nil {
			return err
		}
		c := merge(file, given, cmd.Flags())
		if err := c.check(); err != nil {
			return failed(exitUsage, "usage", "See: sotto-mailbox serve --help", err)
		}
		return a.serve(cmd.Context(), c)
	}
	return cmd
}

// serve: keys, then the volunteer, then the status socket, then one line that says so; then until ctx ends.
func (a *app) serve(ctx context.Context, c Config) error {
	if a.running(ctx) {
		return failed(exitRefused, "running", "See: sotto-mailbox status --home "+a.home, fmt.Errorf("a volunteer runs in %s already", a.home))
	}
	k, err := openKeys(a.home, rand.Reader)
	if err != nil {
		return failed(exitFailed, "keys", "Keys are files of mode 0600 in "+a.home, err)
	}
	if err := c.portsFree(); err != nil {
		return failed(exitFailed, "port", "End who has it, perhaps another volunteer, or choose others with --port and --dht-port.", err)
	}
	log := slog.New(slog.NewTextHandler(a.env.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	v, err := node.NewVolunteer(node.VolunteerConfig{
		ServiceKey: k.service, DHTKey: k.dht, Network: c.Network,
		ServicePort: orAny(c.Port), DHTPort: orAny(c.DHTPort), Listen: c.listen(),
		AnnounceService: c.announced(c.Port), AnnounceDHT: c.announced(c.DHTPort), Peers: c.Peers,
		AllowPrivate: c.AllowPrivate, MDNS: c.MDNS, MaxUsers: c.MaxUsers, MaxRecords: c.MaxRecords,
		NoRelay: !c.Services.Relay, NoDHT: !c.Services.DHT, NoAutoNAT: !c.Services.AutoNAT,
		DataDir: filepath.Join(a.home, "records"), Clock: clock.FromEnv(), Log: log,
	})
	if err != nil {
		return failed(exitFailed, "start", "Are the ports free, and is no other volunteer running in "+a.home+"? See: sotto-mailbox config check", err)
	}
	box, err := a.openMailbox(c, k.service, v, log)
	if err != nil {
		return failed(exitFailed, "mailbox", "Its files are in "+filepath.Join(a.home, "mailbox")+". To serve without it: --mailbox=false", errors.Join(fmt.Errorf("open the mailbox: %w", err), v.Close()))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := clock.FromEnv().Now().UTC()
	now := func() status {
		return status{VolunteerStatus: v.Status(), Since: began, Services: c.Services, Mailbox: box.status()}
	}
	figures, err := listenMetrics(c.Metrics, now)
	if err != nil {
		cause := errors.Join(err, box.close(), v.Close())
		return failed(exitFailed, "metrics", "Choose another port under [metrics] in "+configName+", or end who has it.", cause)
	}
	ran := make(chan error, 1)
	go func() { ran <- a.runAll(ctx, v, box, figures) }()
	socket, err := a.serveSocket(ctx, func(ctx context.Context, o order) (any, error) {
		if o.Do == orderStatus {
			return now(), nil
		}
		return box.obey(ctx, o)
	}, box.backup)
	if err != nil {
		_, _ = fmt.Fprintf(a.env.Stderr, "sotto-mailbox: status will not work: %v\n", err)
	}
	var told sync.WaitGroup
	err = a.announce(v.Status(), c)
	if err == nil {
		told.Go(func() { a.keepNotified(ctx, clock.FromEnv()) })
		err = <-ran
	} else {
		cancel()
		err = errors.Join(err, <-ran)
	}
	cancel()
	told.Wait()
	if socket != nil {
		<-socket
	}
	if err != nil {
		return failed(exitFailed, "stopped", "", err)
	}
	return nil
}

// runAll ends everything when one part ends; the mailbox ends before the hosts it is served on.
func (a *app) runAll(ctx context.Context, v *node.Volunteer, box keeper, figures *metrics) error {
	hosts, stopHosts := context.WithCancel(context.WithoutCancel(ctx))
	defer stopHosts()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ran := make(chan error, 1)
	go func() {
		defer cancel()
		ran <- v.Run(hosts)
	}()
	shown := make(chan error, 1)
	go func() { shown <- figures.run(ctx) }() // its end ends nothing else
	err := box.run(ctx)
	if box.queue == nil {
		<-ctx.Done()
	}
	cancel()
	stopHosts()
	return errors.Join(err, <-ran, <-shown)
}

func orAny(port int) int {
	if port == 0 {
		return -1
	}
	return port
}

// announce prints the one line an operator needs: what to hand to people.
func (a *app) announce(s node.VolunteerStatus, c Config) error {
	best := bestFirst(s.Bootstrap)
	if len(best) == 0 {
		return errors.New("no address to announce: name one with --announce")
	}
	for _, doubt := range c.doubts() {
		_, _ = fmt.Fprintf(a.env.Stderr, "sotto-mailbox: %s.\n", doubt)
	}
	if !c.AllowPrivate && !public(best[0]) && len(c.Announce) == 0 {
		_, _ = fmt.Fprintln(a.env.Stderr, "sotto-mailbox: no public address found: people elsewhere cannot reach this machine.\nName one with --announce ADDRESS, or serve a closed network with --allow-private.")
	}
	closed := ""
	if !public(best[0]) { // nobody passes such an address on, or takes it from others, unless told to
		closed = " and allow_private = true"
	}
	if !c.Services.DHT {
		err := a.print(map[string]any{"event": "serving", "bootstrap": []string{}, "service": s.Service},
			"serving up to %d people, without DHT · next: sotto mailboxes add %s\n", c.MaxUsers, bestFirst(s.Service)[0])
		if err == nil && a.env.Serving != nil {
			a.env.Serving(s)
		}
		return err
	}
	err := a.print(map[string]any{"event": "serving", "bootstrap": best, "service": s.Service},
		"serving up to %d people · bootstrap: %s · next: people put bootstrap = [%q]%s under [network] in the file that \"sotto config path\" names\n",
		c.MaxUsers, strings.Join(best[:min(2, len(best))], " "), best[0], closed)
	if err == nil && a.env.Serving != nil {
		a.env.Serving(s)
	}
	return err
}

// bestFirst puts public addresses before private ones, and loopback last.
func bestFirst(addrs []string) []string {
	rank := func(s string) int {
		a, err := multiaddr.NewMultiaddr(s)
		switch {
		case err != nil || manet.IsIPLoopback(a):
			return 2
		case !manet.IsPublicAddr(a):
			return 1
		}
		return 0
	}
	out := slices.Clone(addrs)
	slices.SortStableFunc(out, func(a, b string) int { return rank(a) - rank(b) })
	return out
}

func public(s string) bool {
	a, err := multiaddr.NewMultiaddr(s)
	return err == nil && manet.IsPublicAddr(a)
}
