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
			"lose one and get it back, and talk without being there together. Every step is checked against what the receiving side has on disk; exit 0 means that all held.",
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
	part string // of the demo's directory
	home daemon.Home
	*link
}

func (a *app) demo(ctx context.Context, keep bool) error {
	if a.json {
		return usage("Leave it out: the exit code tells whether all held.", "the demo is for people and prints no JSON")
	}
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
		ended <- daemon.RunVolunteer(ctx, filepath.Join(s.dir, "mailbox"), s.a.clock, s.log, func(bootstrap, relays []string) {
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
	if s.a.quiet {
		return
	}
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
	if err := s.mailboxes(ctx, alice, bob); err != nil {
		return err
	}
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
	if err := s.held(ctx, alice, bob); err != nil {
		return err
	}
	if err := s.neverTogether(ctx, alice); err != nil {
		return err
	}
	return s.curtain(ctx, alice, bob, late)
}

// mailboxes waits until mail for each of them has a place to wait.
func (s *stage) mailboxes(ctx context.Context, people ...*actor) error {
	for _, who := range people {
		ctx, cancel := context.WithTimeout(ctx, demoLimit)
		defer cancel()
		for {
			list, err := control.Call[control.MailboxList](ctx, who.Client, "mailbox.list", control.None{})
			if err != nil {
				return fmt.Errorf("ask for %s's mailboxes: %w", who.name, err)
			}
			if slices.ContainsFunc(list.Mailboxes, func(m control.Mailbox) bool { return m.Ready }) {
				break
			}
			if err := s.a.clock.Wait(ctx, 50*time.Millisecond); err != nil {
				return fmt.Errorf("no mailbox for %s: %w", who.name, err)
			}
		}
		s.step(who.name, "has a box at the volunteer's mailbox")
	}
	return nil
}

// enter starts a person's node; the first time it makes the identity.
func (s *stage) enter(ctx context.Context, name, part string, first bool) (*actor, error) {
	home, err := daemon.Locate(daemon.Where{Dir: filepath.Join(s.dir, part), Getenv: s.a.env.Getenv})
	if err != nil {
		return nil, err
	}
	cfg := daemon.DefaultConfig()
	cfg.Network = daemon.NetworkConfig{Bootstrap: s.bootstrap[:1], Relays: s.relays[:1], Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, AllowPrivate: true, Mailboxes: identity.MaxBoxes}
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
	return &actor{name: name, part: part, home: home, link: l}, nil
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

// held: Alice and Bob talk without ever being there together; the mailbox keeps what they say.
func (s *stage) held(ctx context.Context, alice, bob *actor) error {
	for _, turn := range []struct {
		from, to *actor
		text     string
	}{
		{alice, bob, "Now neither of us waits for the other."},
		{bob, alice, "And nobody in between can read it."},
	} {
		if err := turn.to.Close(); err != nil {
			return fmt.Errorf("stop %s: %w", turn.to.name, err)
		}
		if err := s.leave(ctx, turn.from, turn.to, turn.text); err != nil {
			return err
		}
	}
	return s.back(ctx, bob)
}

// leave: a text for somebody who is away, whose writer then goes away too, until the other has come and gone.
func (s *stage) leave(ctx context.Context, from, to *actor, text string) error {
	m, err := from.Send(ctx, control.SendParams{To: to.name, Text: text})
	if err != nil {
		return fmt.Errorf("%s writes: %w", from.name, err)
	}
	if m, err = from.Wait(ctx, m.ID, control.StateHeld, demoLimit); err != nil {
		return fmt.Errorf("%s waits for a mailbox: %w", from.name, err)
	}
	if m.State != control.StateHeld || m.Held == nil || m.Held.By == 0 {
		return fmt.Errorf("what %s wrote is %s instead of held", from.name, m.State)
	}
	s.step(from.name, "writes %q while %s is away; %s until %s", text, to.name, s.a.heldBy(m), m.Held.Until.Format("2 Jan"))
	if err := from.Close(); err != nil {
		return fmt.Errorf("stop %s: %w", from.name, err)
	}
	if err := s.back(ctx, to); err != nil {
		return err
	}
	if err := s.received(ctx, to, from.name, text); err != nil {
		return err
	}
	s.step(to.name, "comes when %s has gone, and has it on disk", from.name)
	return nil
}

// back starts somebody's node again.
func (s *stage) back(ctx context.Context, who *actor) error {
	again, err := s.enter(ctx, who.name, who.part, false)
	if err == nil {
		*who = *again
	}
	return err
}

// received waits until a person's store has a text from another, once.
func (s *stage) received(ctx context.Context, who *actor, from, text string) error {
	ctx, cancel := context.WithTimeout(ctx, demoLimit)
	defer cancel()
	for {
		err := holds(ctx, who, from, text)
		if err == nil || s.a.clock.Wait(ctx, 50*time.Millisecond) != nil {
			return err
		}
	}
}

// neverTogether: Carol follows Alice's invite while Alice is away, and both talk without ever having been there together.
func (s *stage) neverTogether(ctx context.Context, alice *actor) (err error) {
	inv, err := alice.Invite(ctx, control.InviteParams{})
	if err != nil {
		return fmt.Errorf("alice invites carol: %w", err)
	}
	if err := alice.Close(); err != nil {
		return fmt.Errorf("stop alice: %w", err)
	}
	s.step("Alice", "invites Carol and is stopped")
	carol, err := s.enter(ctx, "Carol", "carol", true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, carol.Close()) }()
	if err := s.mailboxes(ctx, carol); err != nil {
		return err
	}
	if _, err := carol.Add(ctx, control.AddParams{Link: inv.Link}); err != nil {
		return fmt.Errorf("carol follows the invite: %w", err)
	}
	if err := s.leave(ctx, carol, alice, "Found your link. Are you there?"); err != nil {
		return err
	}
	if err := s.leave(ctx, alice, carol, "Never when you are, it seems."); err != nil {
		return err
	}
	return s.back(ctx, alice)
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
	if len(texts[0]) != 6 || !slices.Equal(texts[0], texts[1]) {
		return fmt.Errorf("the two stores differ: %q and %q", texts[0], texts[1])
	}
	t, err := alice.Trace(ctx, m.ID)
	if err != nil {
		return fmt.Errorf("trace the message: %w", err)
	}
	s.print("\nThe way of %s, as Alice's node saw it:", shortID(m.ID))
	if !s.a.quiet {
		s.a.printTrace(s.a.env.Stdout, t)
	}
	if len(t.Steps) == 0 {
		return errors.New("the trace is empty")
	}
	s.print("")
	return nil
}

func (s *stage) print(format string, args ...any) {
	if !s.a.quiet {
		_, _ = fmt.Fprintf(s.a.env.Stdout, format+"\n", args...)
	}
}
