package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sotto/control"
	"sotto/daemon"
	"sotto/identity"
)

// createFlags are what a first run needs to know when nobody can be asked.
type createFlags struct {
	name                 string
	keyring, unencrypted bool
}

func (c *createFlags) register(f *pflag.FlagSet) {
	f.StringVar(&c.name, "name", "", "first run: your name, as friends see it")
	f.BoolVar(&c.keyring, "keyring", false, "first run: keep the key in the system keyring")
	f.BoolVar(&c.unencrypted, "unencrypted", false, "first run: leave the key file open to whoever can read it")
}

// firstRun asks for, or takes from the flags, what a new identity needs.
func (a *app) firstRun(ctx context.Context, home daemon.Home, want need) (*daemon.Create, error) {
	if want != needNetwork {
		return nil, daemon.ErrNoIdentity
	}
	c := &daemon.Create{Name: a.create.name}
	a.made = true
	var err error
	switch {
	case c.Name != "":
		if err := identity.CheckName(c.Name); err != nil {
			return nil, usage("Use letters and digits, at most 64 bytes.", "%v", err)
		}
	case !a.mayAsk():
		return nil, control.Errorf(control.ExitUsage, "name_missing", "Give it: sotto up --name NAME --passphrase-file FILE (or --keyring, or --unencrypted)",
			"there is no identity in %s yet, and --name is missing", home.Data)
	default:
		if c.Name, err = a.askName(ctx); err != nil {
			return nil, err
		}
	}
	c.Lock, err = a.firstLock(ctx, home)
	return c, err
}

// askName asks until there is a name that can be one.
func (a *app) askName(ctx context.Context) (string, error) {
	question := "Welcome. Your name, as friends see it: "
	for {
		name, err := a.ask(ctx, question)
		if err != nil {
			return "", err
		}
		if err = identity.CheckName(name); err == nil {
			return name, nil
		}
		a.say("%v", err)
		question = "Your name: "
	}
}

// noteUnused says that flags of a first run changed nothing, because the identity was there already.
func (a *app) noteUnused(ctx context.Context, c *control.Client) {
	if a.made {
		return
	}
	a.made = true // said once
	if name := a.create.name; name != "" {
		id, err := control.Call[control.Identity](ctx, c, "identity.show", control.None{})
		if err == nil && id.Name != name {
			a.say("note: --name was not used: the identity that is here is called %s; another one needs another --home or --profile", line(id.Name))
		}
	}
	if a.create.keyring || a.create.unencrypted {
		a.say("note: how the key is kept is chosen at the first run and was not changed; to change it: sotto identity passphrase")
	}
}

// firstLock chooses how the key file is locked. Leaving it open is never chosen for anybody.
func (a *app) firstLock(ctx context.Context, home daemon.Home) (identity.Lock, error) {
	path := a.passphraseFile()
	chosen := 0
	for _, on := range []bool{path != "", a.create.keyring, a.create.unencrypted} {
		if on {
			chosen++
		}
	}
	switch {
	case chosen > 1 && (a.create.keyring || a.create.unencrypted):
		return nil, usage("Choose one.", "--passphrase-file, --keyring and --unencrypted exclude one another")
	case a.create.unencrypted:
		a.open = home.KeyFile()
		return identity.Unencrypted(), nil
	case a.create.keyring:
		return identity.Keyring("sotto", home.Profile), nil
	case path != "":
		p, err := daemon.ReadPassphrase(path)
		a.passphrase = p
		return identity.Passphrase(p), err
	case !a.mayAsk():
		return nil, control.Errorf(control.ExitLocked, "lock_missing", "Add --passphrase-file FILE, or --keyring, or --unencrypted.",
			"how the new key is kept was not said: --passphrase-file, --keyring or --unencrypted is missing")
	}
	return a.askLock(ctx, home)
}

// askLock asks until there is a lock that holds. The system keyring is offered where there is one.
func (a *app) askLock(ctx context.Context, home daemon.Home) (identity.Lock, error) {
	keyring := identity.KeyringLikely(a.env.Getenv)
	for {
		question := "Choose a passphrase for your key: "
		if keyring {
			question = "Choose a passphrase for your key (empty: keep the key in the system keyring): "
		}
		p, err := a.askNew(ctx, question)
		if err != nil {
			return nil, err
		}
		if len(p) == 0 && keyring {
			lock := identity.Keyring("sotto", home.Profile)
			if err := identity.TryKeyring(lock); err != nil {
				a.say("The system keyring does not take the key (%v).", err)
				keyring = false
				continue
			}
			return lock, nil
		}
		if err := identity.CheckPassphrase(p); err != nil {
			a.say("%v", err)
			continue
		}
		again, err := a.askNew(ctx, "The same again: ")
		if err != nil {
			return nil, err
		}
		if string(again) == string(p) {
			a.passphrase = p
			return identity.Passphrase(p), nil
		}
		a.say("The two differ.")
	}
}

// askNew asks for a passphrase to be.
func (a *app) askNew(ctx context.Context, question string) ([]byte, error) {
	p, err := a.askSecret(ctx, question)
	if errors.Is(err, io.EOF) {
		return nil, errNoAnswer()
	}
	return p, err
}

// begin is sotto without a command: first run if needed, then the chats; with an invite, that friend first.
func (a *app) begin(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && args[0] != "-" && !looksLikeInvite(args[0]) {
		return unknownCommand(cmd, args[0])
	}
	if len(args) > 1 {
		return usage("See: sotto --help", "too many arguments, beginning with %q", line(args[1]))
	}
	if !tty(a.env.Stdin) || !tty(a.env.Stdout) || a.noInput {
		if len(args) == 1 {
			return a.add(cmd.Context(), args[0], addOptions{})
		}
		a.say("%s", shortHelp)
		return usage("In scripts, name a command.", "there is no terminal to chat in")
	}
	name, followed := "", false
	if a.json {
		return errChatJSON()
	}
	return unlessStopped(a.with(cmd.Context(), needNetwork, func(l *link) error {
		if len(args) == 1 && !followed {
			added, err := a.follow(cmd.Context(), l, args[0], addOptions{chat: true})
			if err != nil {
				return err
			}
			name, followed = added.Contact.Name, true
		}
		return a.home0(cmd.Context(), l, &name)
	}))
}

const shortHelp = `sotto: messages between people, with nobody in between
  sotto up --name NAME     make an identity and run
  sotto invite             a link for a friend       sotto add LINK      follow a friend's
  sotto send NAME TEXT     write                     sotto read NAME     read
  sotto watch              print what arrives        sotto --help        everything`

// home0 is what a person sees first: how they are reached, whom they know, and the chats.
func (a *app) home0(ctx context.Context, l *link, name *string) error {
	st, err := l.Status(ctx)
	if err != nil {
		return err
	}
	if err := a.tellStatus(st); err != nil {
		return err
	}
	contacts, err := l.Contacts(ctx)
	if err != nil {
		return err
	}
	if len(contacts) == 0 {
		inv, err := a.newInvite(ctx, l, control.InviteParams{})
		if err != nil {
			return err
		}
		a.say("\nInvite a friend: send this link, or let them scan the code. One use, 24 hours.")
		if err := a.showInvite(inv, &inviteOptions{qr: !a.ascii}); err != nil {
			return err
		}
		a.say("Waiting… The chat opens when they have followed it; the invite stays good if you leave and come back.")
	}
	if err := a.chat(ctx, l, name, len(contacts) > 0); err != nil {
		return err
	}
	if l.own {
		a.say("Messages arrive only while sotto runs. To keep it running: sotto up")
	}
	return nil
}

func (a *app) upCommand() *cobra.Command {
	var detach bool
	c := &cobra.Command{
		Use: "up", Short: "Run the node until it is stopped",
		Long: "Runs the node in the foreground. Prints a line at once, which says what is up and what is not yet, another when a volunteer was\n" +
			"reached, and another when it is known how others reach this computer. Stops on Ctrl-C, SIGTERM or sotto down. With --detach it\n" +
			"goes on in the background, and this command returns when it answers.",
		Example: "sotto up\nsotto up --detach\nsotto up --name Alice --passphrase-file ~/pass --no-input",
		Args:    exactly(), RunE: a.run(func(cmd *cobra.Command, _ []string) error { return a.up(cmd.Context(), detach) }),
	}
	c.Flags().BoolVar(&detach, "detach", false, "go on in the background")
	a.create.register(c.Flags())
	return c
}

func (a *app) up(ctx context.Context, detach bool) error {
	home, err := a.place()
	if err != nil {
		return err
	}
	c, err := a.dial(ctx, home.Socket)
	switch {
	case err == nil:
		online := c.Online()
		c.Close()
		if online {
			return control.Errorf(control.ExitFailed, "already_running", "See: sotto status", "the node of %s runs already", home.Data)
		}
	case errors.Is(err, &control.Error{Code: "node_silent"}):
		return err // it has the home, and will not give it back
	}
	cfg, err := daemon.LoadConfig(home.Config)
	if err != nil {
		return err
	}
	opt := daemon.Options{Home: home, Version: a.env.Version, Unlock: a.unlock(ctx), Program: a.env.Program, Clock: a.env.Clock, Notify: true}
	if !home.Exists() {
		if opt.Create, err = a.firstRun(ctx, home, needNetwork); err != nil {
			return err
		}
	} else if a.create.name != "" { // a first run that was cut off has the key already
		opt.Create = &daemon.Create{Name: a.create.name}
	}
	if detach {
		return a.upDetached(ctx, cfg, opt)
	}
	return a.stayUp(ctx, cfg, opt)
}

// stayUp runs the node until somebody stops it. A command that only reads the store may hold the home for a moment.
func (a *app) stayUp(ctx context.Context, cfg daemon.Config, opt daemon.Options) error {
	joining, cancel := context.WithTimeout(ctx, joinFor)
	defer cancel()
	l, err := a.launch(ctx, cfg, opt)
	for daemon.InUse(err) {
		if waited := a.clock.Wait(joining, 20*time.Millisecond); waited != nil {
			return err
		}
		l, err = a.launch(ctx, cfg, opt)
	}
	if ctx.Err() != nil && l == nil {
		return nil // stopped before it had begun
	}
	if err != nil {
		return err
	}
	a.noteUnused(ctx, l.Client)
	telling, quiet := context.WithCancel(ctx)
	told := make(chan struct{})
	go func() {
		defer close(told)
		a.tellProgress(telling, l)
	}()
	select {
	case err = <-l.done:
		l.done <- nil
	case <-ctx.Done():
	}
	quiet()
	<-told
	return errors.Join(err, l.Close())
}

// The stages of a start, as people are told of them.
const (
	stageListening = iota // contacts on this network, and those with an address of ours, get through
	stageVolunteer        // a volunteer answers
	stageReachable        // and it is known how others reach us
)

func stageOf(n control.NetStatus) int {
	switch {
	case !n.Online:
		return stageListening
	case n.Reachability != "public" && n.Reachability != "relay":
		return stageVolunteer
	}
	return stageReachable
}

// progressMost is the longest pause between two looks at how far a start has come.
const progressMost = 10 * time.Second

// tellProgress prints a line at the start and one at each stage that is reached for the first time, until the last of them
// or the context's end. A node whose words nobody reads any more goes on.
func (a *app) tellProgress(ctx context.Context, l *link) {
	told, warned := -1, false
	for pause := 100 * time.Millisecond; told < stageReachable; pause = min(2*pause, progressMost) {
		st, err := l.Status(ctx)
		if err != nil {
			return // the node is ending, and tells why itself
		}
		if stage := stageOf(st.Net); stage > told || len(st.Warnings) > 0 && !warned {
			told, warned = max(told, stage), len(st.Warnings) > 0
			if a.tellStatus(st) != nil {
				return
			}
		}
		if a.clock.Wait(ctx, pause) != nil {
			return
		}
	}
}

// tellStatus is one line about the node: for people on stderr, for programs on stdout.
func (a *app) tellStatus(st control.Status) error {
	st = a.here(st)
	if a.json {
		return a.printJSON(st)
	}
	a.say("sotto runs as %s · %s", line(st.Name), reachLine(st.Net))
	for _, w := range st.Warnings {
		a.say("! %s → %s", line(w.Text), line(w.Fix))
	}
	return nil
}

// here makes the commands in a status's remedies speak of this home.
func (a *app) here(st control.Status) control.Status {
	st.Warnings = slices.Clone(st.Warnings)
	for i := range st.Warnings {
		st.Warnings[i].Fix = a.sameHome(st.Warnings[i].Fix)
	}
	return st
}

func reachLine(n control.NetStatus) string {
	how := "listening; "
	switch {
	case !n.Online && n.Named == 0:
		how += "no volunteer is named in config.toml, so only this network and the addresses in links work"
	case !n.Online:
		how += "no volunteer reached yet, so only this network and the addresses in links work"
	case n.Reachability == "public":
		how = "reachable directly"
	case n.Reachability == "relay":
		how = "reachable through a relay"
	default:
		how += "a volunteer answers; how others reach this computer is not known yet"
	}
	return fmt.Sprintf("%s · peers %d, contacts connected %d", how, n.Peers, n.Contacts)
}

func (a *app) downCommand() *cobra.Command {
	return &cobra.Command{Use: "down", Short: "Stop the running node", Args: exactly(), RunE: a.run(a.down)}
}

// down asks the node to stop and waits until it is gone, so that the next command finds the home free.
func (a *app) down(cmd *cobra.Command, _ []string) error {
	ctx, cancel := within(cmd.Context(), a.timeout)
	defer cancel()
	l, err := a.connect(ctx, needRunning)
	if e := (*control.Error)(nil); errors.As(err, &e) && e.Code == control.ErrNoNode.Code {
		return control.Errorf(e.Exit, e.Code, "There is nothing to stop.", "%s", e.Message)
	}
	if err != nil {
		return err
	}
	defer l.Client.Close()
	home, err := a.place()
	if err != nil {
		return err
	}
	if data := l.NodeData(); data != "" {
		home.Data = data // with --socket it may be the node of another home
	}
	if err := l.Stop(ctx); err != nil {
		return err
	}
	for {
		c, err := control.Connect(ctx, home.Socket)
		if errors.Is(err, control.ErrNoNode) && home.Free() {
			return a.result(map[string]bool{"stopped": true}, func(io.Writer) { a.say("stopped") })
		}
		if err == nil {
			next, online := c.NodePID(), c.Online()
			c.Close()
			if next != l.NodePID() && online { // a command that was under way goes on with a node of its own
				return a.result(map[string]any{"stopped": true, "next": next}, func(io.Writer) {
					a.say("stopped; another command has started a node of its own meanwhile (process %d)", next)
				})
			}
		}
		if err := a.clock.Wait(ctx, 10*time.Millisecond); err != nil {
			return control.Errorf(control.ExitNotInTime, "not_stopped", "See whether it still runs: sotto status", "the node (process %d) was asked to stop and has not closed its store yet", l.NodePID())
		}
	}
}
