package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"sotto/control"
	"sotto/daemon"
	"sotto/identity"
)

func (a *app) demoCommand() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use: "demo", Short: "Watch two people meet and talk, on this computer alone", Args: exactly(),
		Long: "Starts a volunteer and two people on the loopback, each with a home of their own, and lets them meet by an invite, write both ways,\n" +
			"lose one and get it back. Every step is checked against what the receiving side has on disk; exit 0 means that all held.",
		RunE: a.run(func(cmd *cobra.Command, _ []string) error { return a.demo(cmd.Context(), keep) }),
	}
	c.Flags().BoolVar(&keep, "keep", false, "leave the homes, to look at")
	return c
}

// demoLimit bounds every single step.
const demoLimit = 15 * time.Second

// stage is the demo's small world.
type stage struct {
	a         *app
	dir       string
	bootstrap []string
	relays    []string
	log       *slog.Logger
	began     time.Time
}

// actor is one person of the demo: a node in this process, driven through its socket as the commands do.
type actor struct {
	name string
	home daemon.Home
	*link
}

func (a *app) demo(ctx context.Context, keep bool) error {
	dir, err := os.MkdirTemp("", "sotto-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	s := &stage{a: a, dir: dir, log: slog.New(slog.DiscardHandler), began: a.clock.Now()}
	if a.verbose {
		s.log = slog.New(slog.NewTextHandler(a.env.Stderr, nil))
	}
	err = s.play(ctx)
	if keep {
		a.say("kept %s; look with: sotto --home %s inbox", dir, filepath.Join(dir, "alice"))
	} else if e := os.RemoveAll(dir); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	a.say("All checked against what each side has on disk, in %.1f s.", a.clock.Now().Sub(s.began).Seconds())
	return nil
}

// play runs the volunteer for as long as the scenes last.
func (s *stage) play(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- daemon.RunVolunteer(ctx, s.a.clock, s.log, func(bootstrap, relays []string) {
			s.bootstrap, s.relays = bootstrap, relays
			close(ready)
		})
	}()
	select {
	case err := <-ended:
		return fmt.Errorf("start the volunteer: %w", err)
	case <-ready:
	}
	s.step("volunteer", "runs on %s", s.bootstrap[0])
	err := s.scenes(ctx)
	stop()
	return errors.Join(err, <-ended)
}

func (s *stage) step(who, format string, args ...any) {
	_, _ = fmt.Fprintf(s.a.env.Stdout, "%5.1f s  %-9s %s\n", s.a.clock.Now().Sub(s.began).Seconds(), who, fmt.Sprintf(format, args...))
}

func (s *stage) scenes(ctx context.Context) (err error) {
	alice, err := s.enter(ctx, "Alice", "alice", true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, alice.Close()) }()
	bob, err := s.enter(ctx, "Bob", "bob", true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bob.Close()) }()
	if err := s.meet(ctx, alice, bob); err != nil {
		return err
	}
	if err := s.exchange(ctx, alice, bob); err != nil {
		return err
	}
	late, err := s.absence(ctx, alice, bob)
	if err != nil {
		return err
	}
	return s.curtain(ctx, alice, bob, late)
}

// enter starts a person's node; the first time it makes the identity.
func (s *stage) enter(ctx context.Context, name, part string, first bool) (*actor, error) {
	home, err := daemon.Locate(daemon.Where{Dir: filepath.Join(s.dir, part), Getenv: s.a.env.Getenv})
	if err != nil {
		return nil, err
	}
	cfg := daemon.DefaultConfig()
	cfg.Network = daemon.NetworkConfig{Bootstrap: s.bootstrap[:1], Relays: s.relays[:1], Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, AllowPrivate: true}
	cfg.Store = daemon.StoreConfig{Reserve: 32 << 20, Ballast: 32 << 20}
	if err := os.MkdirAll(filepath.Dir(home.Config), 0o700); err != nil {
		return nil, fmt.Errorf("make the home of %s: %w", name, err)
	}
	if err := os.WriteFile(home.Config, []byte(cfg.String()), 0o600); err != nil {
		return nil, fmt.Errorf("write the config of %s: %w", name, err)
	}
	opt := daemon.Options{Home: home, Version: s.a.env.Version, Program: s.a.env.Program, Clock: s.a.clock}
	if first {
		opt.Create = &daemon.Create{Name: name, Lock: identity.Unencrypted()}
	}
	l, err := s.a.launch(ctx, cfg, opt)
	if err != nil {
		return nil, fmt.Errorf("start %s's node: %w", name, err)
	}
	if first {
		s.step(name, "made an identity and runs from %s", filepath.Join(s.dir, part))
	}
	return &actor{name: name, home: home, link: l}, nil
}

// meet: an invite, followed; both sides must end with the same keys to compare.
func (s *stage) meet(ctx context.Context, alice, bob *actor) error {
	inv, err := alice.Invite(ctx, control.InviteParams{})
	if err != nil {
		return fmt.Errorf("alice invites: %w", err)
	}
	if !inv.Published {
		return errors.New("the invite was not stored in the DHT")
	}
	s.step("Alice", "invites: %.40s… (in the DHT, one use)", inv.Link)
	added, err := bob.Add(ctx, control.AddParams{Link: inv.Link})
	if err != nil {
		return fmt.Errorf("bob follows the invite: %w", err)
	}
	if _, err := s.a.answered(ctx, bob.link, added.Contact, demoLimit); err != nil {
		return fmt.Errorf("bob waits for alice's answer: %w", err)
	}
	theirs, err := bob.Verify(ctx, "Alice")
	if err != nil {
		return err
	}
	ours, err := alice.Verify(ctx, "Bob")
	if err != nil {
		return err
	}
	if ours.Digits != theirs.Digits {
		return errors.New("the two see different safety numbers")
	}
	s.step("Bob", "follows it; both see the same safety number: %s…", ours.Digits[:17])
	return nil
}

// exchange: a text each way, each checked where it was received.
func (s *stage) exchange(ctx context.Context, alice, bob *actor) error {
	for _, turn := range []struct {
		from, to *actor
		text     string
	}{
		{alice, bob, "Hi Bob, did the link work?"},
		{bob, alice, "It did. Nobody in between?"},
		{alice, bob, "Nobody. 你好 👋"},
	} {
		m, err := turn.from.Send(ctx, control.SendParams{To: turn.to.name, Text: turn.text})
		if err != nil {
			return fmt.Errorf("%s writes: %w", turn.from.name, err)
		}
		if _, err := turn.from.Wait(ctx, m.ID, control.StateDelivered, demoLimit); err != nil {
			return fmt.Errorf("%s waits: %w", turn.from.name, err)
		}
		if err := holds(ctx, turn.to, turn.from.name, turn.text); err != nil {
			return err
		}
		s.step(turn.from.name, "writes %q; %s has it on disk", turn.text, turn.to.name)
	}
	return nil
}

// holds checks that a person's store has a text from another, once.
func holds(ctx context.Context, who *actor, from, text string) error {
	list, err := who.Messages(ctx, control.ListParams{Conv: from, Limit: 1000, Peek: true})
	if err != nil {
		return fmt.Errorf("read what %s has: %w", who.name, err)
	}
	n := 0
	for _, m := range list {
		if m.Text == text && !m.From.Me {
			n++
		}
	}
	if n != 1 {
		return fmt.Errorf("%s has %q %d times instead of once", who.name, text, n)
	}
	return nil
}

// absence: Bob is stopped, written to, comes back, receives. Alice's restart in between proves that the outbox is on disk.
func (s *stage) absence(ctx context.Context, alice, bob *actor) (control.Message, error) {
	const text = "You were away when I wrote this."
	none := control.Message{}
	if err := bob.Close(); err != nil {
		return none, fmt.Errorf("stop bob: %w", err)
	}
	s.step("Bob", "is stopped")
	m, err := alice.Send(ctx, control.SendParams{To: "Bob", Text: text})
	if err != nil {
		return none, fmt.Errorf("alice writes: %w", err)
	}
	s.step("Alice", "writes %q; it is %s", text, m.State)
	if err := alice.Close(); err != nil {
		return none, fmt.Errorf("stop alice: %w", err)
	}
	again, err := s.enter(ctx, "Alice", "alice", false)
	if err != nil {
		return none, err
	}
	*alice = *again
	s.step("Alice", "was restarted; the message waits in her outbox")
	if again, err = s.enter(ctx, "Bob", "bob", false); err != nil {
		return none, err
	}
	*bob = *again
	s.step("Bob", "is back")
	m, err = alice.Wait(ctx, m.ID, control.StateDelivered, demoLimit)
	if err != nil {
		return none, fmt.Errorf("alice waits for bob: %w", err)
	}
	if err := holds(ctx, bob, "Alice", text); err != nil {
		return none, err
	}
	s.step("Bob", "has it on disk; Alice sees %s", m.State)
	return m, nil
}

// curtain shows the conversation as both have it, compares the two, and shows one message's way.
func (s *stage) curtain(ctx context.Context, alice, bob *actor, m control.Message) error {
	var texts [2][]string
	for i, pair := range [2][2]*actor{{alice, bob}, {bob, alice}} {
		who, with := pair[0], pair[1]
		list, err := who.Messages(ctx, control.ListParams{Conv: with.name, Limit: 1000})
		if err != nil {
			return fmt.Errorf("read what %s has: %w", who.name, err)
		}
		s.print("\nThe conversation as %s has it:", who.name)
		for _, m := range list {
			texts[i] = append(texts[i], m.Text)
			s.print("  %s", s.a.spoken(m))
		}
	}
	if len(texts[0]) != 4 || !slices.Equal(texts[0], texts[1]) {
		return fmt.Errorf("the two stores differ: %q and %q", texts[0], texts[1])
	}
	t, err := alice.Trace(ctx, m.ID)
	if err != nil {
		return fmt.Errorf("trace the message: %w", err)
	}
	s.print("\nThe way of %s, as Alice's node saw it:", shortID(m.ID))
	s.a.printTrace(s.a.env.Stdout, t)
	if len(t.Steps) == 0 {
		return errors.New("the trace is empty")
	}
	s.print("")
	return nil
}

func (s *stage) print(format string, args ...any) {
	_, _ = fmt.Fprintf(s.a.env.Stdout, format+"\n", args...)
}
