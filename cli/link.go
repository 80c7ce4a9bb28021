package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"sotto/control"
	"sotto/daemon"
	"sotto/identity"
)

// need is what a command wants of the node: one that asks for less than the network works without it, and starts nothing.
type need int

const (
	needRunning need = iota // a node that runs already
	needStore               // the store: a running node, else opened here without networking
	needNetwork             // the network: a running node, else one in this process for as long as the command lasts
)

// link is the way to a node. When own is set the node runs in this process and ends with the link.
type link struct {
	*control.Client
	own  bool
	stop context.CancelFunc
	done chan error
}

// Close ends the link, and the node if it is ours; the error is why the node ended badly. A second Close does nothing.
func (l *link) Close() error {
	l.Client.Close()
	if !l.own {
		return nil
	}
	l.own = false
	l.stop()
	return <-l.done
}

// joinFor is how long a command tries to reach the process that has the home.
const joinFor = 5 * time.Second

// with runs fn on a link. Another process's node that was ending just then is no reason to fail: fn runs again on the next one, so
// it must be safe to repeat. A node of our own ends before its command only because somebody stopped it, or because it failed:
// it is not started again behind anybody's back.
func (a *app) with(ctx context.Context, want need, fn func(l *link) error) error {
	for try := 0; ; try++ {
		l, err := a.connect(ctx, want)
		if err != nil {
			return err
		}
		a.noteUnused(ctx, l.Client)
		own := l.own
		err = fn(l)
		closed := l.Close()
		switch {
		case gone(err) && own && ctx.Err() == nil && closed != nil:
			return closed
		case gone(err) && own && ctx.Err() == nil:
			return control.ErrStopped
		case !gone(err) || want == needRunning || try == 3 || ctx.Err() != nil:
			return errors.Join(err, closed)
		}
	}
}

// gone reports whether an error says that no node is there any more.
func gone(err error) bool {
	return errors.Is(err, control.ErrNoNode) || errors.Is(err, control.ErrStopping)
}

// leastPatience is what a node on a busy machine may need for its greeting, whatever --timeout says.
const leastPatience = time.Second

// patience is how long a running node may take to answer at all; 0 leaves it to control.Connect.
func (a *app) patience() time.Duration {
	if a.timeout == 0 {
		return 0
	}
	return max(a.timeout, leastPatience)
}

// dial reaches a node that runs.
func (a *app) dial(ctx context.Context, socket string) (*control.Client, error) {
	ctx, cancel := within(ctx, a.patience())
	defer cancel()
	return control.Connect(ctx, socket)
}

// connect reaches the node, or starts one if the command may; whoever loses the race for the home joins the winner.
func (a *app) connect(ctx context.Context, want need) (*link, error) {
	home, err := a.place()
	if err != nil {
		return nil, err
	}
	joining, cancel := context.WithTimeout(ctx, joinFor)
	defer cancel()
	for {
		c, err := a.dial(ctx, home.Socket)
		switch {
		case err == nil && (want != needNetwork || c.Online()):
			a.checkVersion(c)
			return &link{Client: c}, nil
		case err == nil:
			c.Close() // somebody reads the store just now; wait for the end of it
			if a.noStart {
				return nil, a.notRunning(home)
			}
		case !errors.Is(err, control.ErrNoNode):
			return nil, err
		case want == needRunning || a.noStart:
			return nil, a.notRunning(home)
		default:
			l, err := a.start(ctx, home, want)
			if err == nil || !daemon.InUse(err) {
				return l, err
			}
		}
		if err := a.clock.Wait(joining, 20*time.Millisecond); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, control.Errorf(control.ExitNoNode, "home_in_use", "End that process, or choose another home with --home.",
				"another process has %s and does not answer", home.Data)
		}
	}
}

func (a *app) notRunning(home daemon.Home) error {
	if !home.Exists() && a.socket == "" {
		return control.Errorf(control.ExitNoNode, "node_not_running", "Make one: sotto up --name NAME", "the node is not running: there is no identity in %s yet", home.Data)
	}
	return control.Errorf(control.ExitNoNode, "node_not_running", "Start it: sotto up", "the node is not running")
}

// checkVersion says once that another version answers; within one major API that works.
func (a *app) checkVersion(c *control.Client) {
	if v := c.NodeVersion(); v != a.env.Version {
		a.say("note: the node runs version %s, this is %s; to renew it: sotto down, then sotto up", line(v), a.env.Version)
	}
}

// start runs a node in this process and connects to it through its socket, as everybody else does.
func (a *app) start(ctx context.Context, home daemon.Home, want need) (*link, error) {
	cfg, err := daemon.LoadConfig(home.Config)
	if err != nil {
		return nil, err
	}
	opt := daemon.Options{Home: home, Version: a.env.Version, Offline: want == needStore, Unlock: a.unlock(ctx), Program: a.env.Program, Clock: a.env.Clock}
	if !home.Exists() {
		if opt.Create, err = a.firstRun(ctx, home, want); err != nil {
			return nil, err
		}
	}
	return a.launch(ctx, cfg, opt)
}

// launch starts the node and returns when its socket answers.
func (a *app) launch(ctx context.Context, cfg daemon.Config, opt daemon.Options) (*link, error) {
	log, file, err := a.log(opt.Home, cfg)
	if err != nil {
		return nil, err
	}
	opt.Log = log
	ready := make(chan struct{})
	opt.Ready = func() { close(ready) }
	running, stop := context.WithCancel(context.WithoutCancel(ctx)) // it ends when the link is closed, after the command
	l := &link{own: true, stop: stop, done: make(chan error, 1)}
	go func() {
		err := daemon.Run(running, cfg, opt)
		_ = file.Close()
		l.done <- err
	}()
	select {
	case err := <-l.done:
		stop()
		return nil, err
	case <-ready:
	}
	if l.Client, err = control.Connect(ctx, opt.Home.Socket); err != nil {
		stop()
		return nil, errors.Join(err, <-l.done)
	}
	a.warnOfDamage(ctx, l.Client)
	if a.open != "" {
		a.say("note: the key file %s is not encrypted; whoever reads it is you", a.open)
		a.open = ""
	}
	return l, nil
}

// warnOfDamage says, also with -q, that a damaged store is read: of that the rest looks like all there ever was.
func (a *app) warnOfDamage(ctx context.Context, c *control.Client) {
	if st, err := c.Status(ctx); err == nil && st.Store.State == "damaged" {
		_, _ = fmt.Fprintln(a.env.Stderr, a.sameHome("! the database is damaged: what is shown may not be all there was   → fix: Save what can be read into a new home: sotto doctor --salvage NEW-DIRECTORY"))
	}
}

// log is the home's log file, and the terminal too with -v.
func (a *app) log(home daemon.Home, cfg daemon.Config) (*slog.Logger, interface{ Close() error }, error) {
	var also *os.File
	if a.verbose {
		also = a.env.Stderr
	}
	if also == nil { // a nil file in the interface would not be nil
		return daemon.OpenLog(home, cfg.Log.Level, nil)
	}
	return daemon.OpenLog(home, cfg.Log.Level, also)
}

// passphraseTries is how often somebody at a terminal may type the passphrase.
const passphraseTries = 3

// unlock opens the key file with the passphrase file, or by asking.
func (a *app) unlock(ctx context.Context) identity.Unlock {
	path := a.passphraseFile()
	if path == "" && !a.mayAsk() && a.passphrase == nil {
		return identity.Unlock{}
	}
	asked := 0
	return identity.Unlock{Passphrase: func() ([]byte, error) {
		if a.passphrase != nil {
			return a.passphrase, nil
		}
		var p []byte
		var err error
		if path != "" {
			p, err = daemon.ReadPassphrase(path)
		} else {
			asked++
			p, err = a.askSecret(ctx, "Passphrase: ")
		}
		if err == nil {
			a.passphrase = p
		}
		return p, err
	}, Again: func() bool {
		a.passphrase = nil
		if asked == 0 || asked >= passphraseTries {
			return false
		}
		a.say("That is the wrong passphrase.")
		return true
	}}
}

func (a *app) passphraseFile() string {
	if a.passFile != "" {
		return a.passFile
	}
	return a.env.Getenv("SOTTO_PASSPHRASE_FILE")
}
