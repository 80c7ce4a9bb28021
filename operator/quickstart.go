package operator

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	manet "github.com/multiformats/go-multiaddr/net"
	"github.com/spf13/cobra"

	"sotto/internal/clock"
	"sotto/internal/disk"
)

// check is one thing that quickstart looked at.
type check struct {
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Bad  bool   `json:"bad"` // it would not serve like this
	What string `json:"what"`
	Fix  string `json:"fix,omitempty"`
}

func (c check) words() string {
	sign := "✓"
	switch {
	case c.Bad:
		sign = "✗"
	case !c.OK:
		sign = "!"
	}
	text := fmt.Sprintf("  %s %s\n", sign, c.What)
	if c.Fix != "" {
		text += "    → fix: " + c.Fix + "\n"
	}
	return text
}

// outcome is what quickstart found and did.
type outcome struct {
	Checks    []check  `json:"checks"`
	Config    string   `json:"config"`
	Wrote     bool     `json:"wrote"`
	Bootstrap []string `json:"bootstrap"`
	Mailbox   []string `json:"mailbox"`
	Next      string   `json:"next"`
}

func (a *app) quickstartCommand() *cobra.Command {
	given := defaultConfig()
	var quota string
	cmd := &cobra.Command{Use: "quickstart", Short: "Check this machine, write config.toml, say what to do next", Args: cobra.NoArgs,
		Long:    "Check ports, clock and disk, make the keys, write config.toml if there is none, and say what to do next and which\naddress to share. It may be run again at any time: it never changes a config.toml or keys that are there.",
		Example: "  sotto-mailbox quickstart --announce volunteer.example.org --quota 20GB --policy open"}
	f := cmd.Flags()
	f.StringVar(&quota, "quota", "10GiB", "disk to lend to mail, as in 20GB, 500MiB")
	f.StringVar(&given.Mailbox.Mode, "policy", given.Mailbox.Mode, "who gets a mailbox: open, invite, allowlist, closed")
	f.StringSliceVar(&given.Announce, "announce", nil, "IP address or name under which the world reaches this machine (repeatable)")
	f.IntVar(&given.Port, "port", given.Port, "UDP and TCP port of relay and mailbox")
	f.IntVar(&given.DHTPort, "dht-port", given.DHTPort, "UDP and TCP port of the DHT server")
	f.BoolVar(&given.AllowPrivate, "allow-private", false, "serve a closed network with private addresses")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		n, err := parseSize(quota)
		if err == nil {
			given.Mailbox.Quota = int(n / mib)
			err = given.check()
		}
		if err != nil {
			return failed(exitUsage, "usage", "See: sotto-mailbox quickstart --help", err)
		}
		var named []string
		for _, name := range []string{"quota", "policy", "announce", "port", "dht-port", "allow-private"} {
			if f.Changed(name) {
				named = append(named, "--"+name)
			}
		}
		return a.quickstart(cmd.Context(), given, named)
	}
	return cmd
}

// quickstart looks, writes, explains. Flags that a config.toml which is there would make void are refused, not ignored.
func (a *app) quickstart(ctx context.Context, c Config, named []string) error {
	path := filepath.Join(a.home, configName)
	o := outcome{Config: path}
	_, err := os.Lstat(path)
	switch {
	case err == nil && len(named) > 0:
		return failed(exitRefused, "config_exists", "Change it there, then: sotto-mailbox config check --home "+a.home,
			fmt.Errorf("%s is there already and is not written again, so %s would do nothing", path, strings.Join(named, " ")))
	case err == nil:
		if c, err = loadConfig(a.home); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return failed(exitFailed, "config", "Choose another directory with --home.", err)
	}
	k, err := openKeys(a.home, rand.Reader)
	if err != nil {
		return failed(exitFailed, "keys", "May you write in "+a.home+"? Run it as the user that will serve, or as root, or choose another directory with --home.", err)
	}
	if errors.Is(statOf(path), fs.ErrNotExist) {
		if err := disk.Replace(path, []byte(c.file()), func(string) {}); err != nil {
			return failed(exitFailed, "config", "May you write in "+a.home+"?", err)
		}
		o.Wrote = true
	}
	running := a.running(ctx)
	o.Checks = []check{c.checkPorts(running), checkClock(clock.FromEnv().Now()), a.checkDisk(c), c.checkAddress()}
	o.Bootstrap, o.Mailbox = c.addresses(c.DHTPort, k.dht), c.addresses(c.Port, k.service)
	o.Next = "sotto-mailbox serve --home " + a.home
	if a.home == systemHome || a.home == "/var/lib/private/sotto-mailbox" {
		o.Next = "systemctl enable --now sotto-mailbox"
	}
	if running {
		o.Next = "sotto-mailbox status --home " + a.home
	}
	bad := 0
	for _, check := range o.Checks {
		if check.Bad {
			bad++
		}
	}
	if a.json {
		err = json.NewEncoder(a.env.Stdout).Encode(o)
	} else {
		_, err = fmt.Fprint(a.env.Stdout, o.words(c))
	}
	if err == nil && bad > 0 {
		err = failed(exitFailed, "checks", "Mend what is marked ✗, then run quickstart again.", fmt.Errorf("%s", plural(bad, "check failed", "checks failed")))
	}
	return err
}

// systemHome is where the unit in packaging/ keeps its state.
const systemHome = "/var/lib/sotto-mailbox"

func statOf(path string) error {
	_, err := os.Lstat(path)
	return err
}

func (o outcome) words(c Config) string {
	var b strings.Builder
	for _, check := range o.Checks {
		b.WriteString(check.words())
	}
	verb := "kept"
	if o.Wrote {
		verb = "wrote"
	}
	home := filepath.Dir(o.Config)
	fmt.Fprintf(&b, "  %s %s\n  keys: %s and %s in %s. Whoever has them is this volunteer: keep a copy where nobody else reads it.\n", verb, o.Config, serviceKeyName, dhtKeyName, home)
	fmt.Fprintf(&b, "  policy: %s; quota %s\n  %s\n", c.policy().words(), size(int64(c.Mailbox.Quota)*mib), youCanSee)
	fmt.Fprintf(&b, "next: %s\n", o.Next)
	if len(o.Bootstrap) == 0 {
		b.WriteString("share: serve prints the address, once it knows one\n")
		return b.String()
	}
	closed := ""
	if !public(o.Bootstrap[0]) {
		closed = " and allow_private = true"
	}
	if c.Services.DHT {
		fmt.Fprintf(&b, "share: %s\n       people put bootstrap = [%q]%s under [network] in the file that \"sotto config path\" names\n", o.Bootstrap[0], o.Bootstrap[0], closed)
	}
	if c.Mailbox.Enabled {
		more := ""
		if c.Mailbox.Mode == "invite" {
			more = " --voucher CODE   (codes: sotto-mailbox clients invite)"
		}
		fmt.Fprintf(&b, "       or, for the mailbox alone: sotto mailboxes add %s%s\n", o.Mailbox[0], more)
	}
	return b.String()
}

// checkPorts tells whether the ports can be had here. Whether the world reaches them only the world can tell.
func (c Config) checkPorts(running bool) check {
	what := fmt.Sprintf("ports %d and %d, UDP and TCP", c.Port, c.DHTPort)
	if running {
		return check{Name: "ports", OK: true, What: what + ": the running volunteer has them"}
	}
	if err := c.portsFree(); err != nil {
		return check{Name: "ports", Bad: true, What: err.Error(), Fix: "end who has it, or choose others: --port, --dht-port"}
	}
	return check{Name: "ports", OK: true, What: what + ", can be had here; let them through the firewall, and through the router if there is one"}
}

// released is before any version of this program: a clock that says less is wrong.
var released = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func checkClock(now time.Time) check {
	const fix = "let the system keep the time: timedatectl set-ntp true"
	if now.Before(released) {
		return check{Name: "clock", Bad: true, What: "the clock says " + now.UTC().Format(time.DateOnly) + ", which is long ago", Fix: fix}
	}
	if synced, known := clockKept(); known && !synced {
		return check{Name: "clock", What: "nobody keeps this machine's clock right: mail is kept by days, and a wrong clock stops its upkeep", Fix: fix}
	}
	return check{Name: "clock", OK: true, What: "clock: " + now.UTC().Format("2006-01-02 15:04 UTC")}
}

// checkDisk compares what is lent with what there is; what the mailbox holds already counts as there.
func (a *app) checkDisk(c Config) check {
	free, err := disk.Free(a.home)
	if err != nil {
		return check{Name: "disk", Bad: true, What: fmt.Sprintf("disk: %v", err), Fix: "choose another directory: --home"}
	}
	if !c.Mailbox.Enabled {
		return check{Name: "disk", OK: true, What: "disk: " + size(free) + " free; no mailbox"}
	}
	lent, reserve := int64(c.Mailbox.Quota)*mib, int64(c.Mailbox.Reserve)*mib
	what := fmt.Sprintf("disk: %s free in %s; %s lent to mail, %s stay free", size(free), a.home, size(lent), size(reserve))
	switch held := sizeOf(a.mailboxDir()); {
	case free < reserve+64*mib:
		return check{Name: "disk", Bad: true, What: what + ": there is no room to begin", Fix: "free some of the disk, lower reserve in [mailbox], or choose another directory: --home"}
	case free+held < lent+reserve:
		return check{Name: "disk", What: what + ": that is more than there is, and mail will be refused when the disk is full", Fix: "sotto-mailbox quota set SIZE"}
	}
	return check{Name: "disk", OK: true, What: what}
}

// sizeOf adds up the files of a directory; what cannot be read counts nothing.
func sizeOf(dir string) (n int64) {
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			if info, err := e.Info(); err == nil {
				n += info.Size()
			}
		}
		return nil
	})
	return n
}

func (c Config) checkAddress() check {
	if doubts := c.doubts(); len(doubts) > 0 {
		return check{Name: "address", What: doubts[0]}
	}
	if len(c.Announce) > 0 {
		return check{Name: "address", OK: true, What: "announces " + strings.Join(c.Announce, ", ")}
	}
	hosts := interfaceHosts()
	switch {
	case len(hosts) > 0 && public(hosts[0]):
		return check{Name: "address", OK: true, What: "public address: " + strings.Trim(hosts[0], "/")}
	case c.AllowPrivate:
		return check{Name: "address", OK: true, What: "serves a closed network with private addresses"}
	}
	return check{Name: "address", What: "this machine has no public address of its own: people elsewhere cannot reach it",
		Fix: "if a router passes the ports on, announce = [\"NAME or IP\"] in " + configName + "; for a closed network allow_private = true"}
}

// interfaceHosts are the addresses of this machine as beginnings of multiaddrs, public ones first, without loopback ones.
func interfaceHosts() (hosts []string) {
	addrs, err := manet.InterfaceMultiaddrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if !manet.IsIPLoopback(a) && !manet.IsIP6LinkLocal(a) {
			hosts = append(hosts, a.String())
		}
	}
	return bestFirst(hosts)
}

// addresses are those that people can be given before anything serves: what is announced, or a public address of this machine.
func (c Config) addresses(port int, key ed25519.PrivateKey) (list []string) {
	if port == 0 {
		return nil
	}
	pub, err := crypto.UnmarshalEd25519PublicKey(key.Public().(ed25519.PublicKey))
	if err != nil {
		return nil
	}
	id, err := peer.IDFromPublicKey(pub)
	if err != nil {
		return nil
	}
	hosts := c.announced(port)
	if len(c.Announce) == 0 {
		for _, host := range interfaceHosts() {
			if public(host) || c.AllowPrivate {
				hosts = append(hosts, transports(host, port)...)
			}
		}
	}
	for _, h := range hosts {
		list = append(list, h+"/p2p/"+id.String())
	}
	return list
}

// file is the text of a config.toml that says what c does. The rest is in docs/OPERATORS.md.
func (c Config) file() string {
	quoted := make([]string, len(c.Announce))
	for i, name := range c.Announce {
		quoted[i] = strconv.Quote(name)
	}
	return fmt.Sprintf(`# sotto-mailbox. After a change: sotto-mailbox config check, then restart. Every line may be left out.

port = %d                 # UDP and TCP: relay and mailbox
dht_port = %d             # UDP and TCP: DHT server and bootstrap
announce = [%s]             # IP addresses or names under which the world reaches this machine; empty: what it finds out
peers = []                  # bootstrap addresses of other volunteers
allow_private = %t       # true for a closed network with private addresses
max_users = %d            # people served at a time

[services]
relay = true                # pass on what people behind routers say to each other
dht = true                  # keep records and answer look-ups
autonat = true              # tell people whether they can be reached

[mailbox]
enabled = true
mode = %q               # who gets a box: "open", "invite" (vouchers), "allowlist", "closed"
quota = %d               # MiB of disk in all; sotto-mailbox quota set changes it while it serves
reserve = %d               # MiB of the disk that stay free
keep_days = %d              # how long mail is kept that nobody fetches
note = ""                   # shown to people who consider this mailbox

[metrics]
listen = ""                 # "127.0.0.1:9464" for /metrics and /healthz
`, c.Port, c.DHTPort, strings.Join(quoted, ", "), c.AllowPrivate, c.MaxUsers, c.Mailbox.Mode, c.Mailbox.Quota, c.Mailbox.Reserve, c.Mailbox.KeepDays)
}

// parseSize reads 20GB, 500MiB, or MiB without a unit.
func parseSize(s string) (int64, error) {
	bad := fmt.Errorf("size %q: want a number and a unit, as in 20GB, 500MiB", s)
	at := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if at < 0 {
		at = len(s)
	}
	unit, known := map[string]float64{"": mib, "mb": 1e6, "mib": mib, "gb": 1e9, "gib": 1 << 30, "g": 1 << 30, "m": mib, "tb": 1e12, "tib": 1 << 40}[strings.ToLower(strings.TrimSpace(s[at:]))]
	n, err := strconv.ParseFloat(s[:at], 64)
	if !known || err != nil || n <= 0 || n*unit > 1<<50 {
		return 0, bad
	}
	return int64(n * unit), nil
}

// parseConfig reads the text of a config.toml over the defaults.
func parseConfig(text string) (Config, error) {
	c := defaultConfig()
	_, err := toml.Decode(text, &c)
	return c, err
}
