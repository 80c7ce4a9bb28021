package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"sotto/control"
	"sotto/daemon"
	"sotto/identity"
)

// upDetached starts the node as a process of its own and returns when it answers. Whatever must be asked is asked here; the
// passphrase goes to the child through a pipe.
func (a *app) upDetached(ctx context.Context, cfg daemon.Config, opt daemon.Options) error {
	if opt.Create != nil {
		opt.Offline, opt.Notify = true, false
		l, err := a.launch(ctx, cfg, opt) // makes the identity
		if err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	secret, err := a.secretFor(ctx, opt.Home)
	if err != nil {
		return err
	}
	args := []string{"up", "--no-input", "--profile", opt.Home.Profile, "--socket", opt.Home.Socket}
	if dir := a.homeDir(); dir != "" {
		args = append(args, "--home", dir)
	}
	if secret != nil {
		args = append(args, "--passphrase-file", "/dev/stdin")
	}
	out, err := daemon.OpenOutput(opt.Home)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command(opt.Program, args...) // not bound to ctx: it outlives this command
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = bytes.NewReader(secret), out, out, ownSession()
	cmd.Env = without(os.Environ(), "SOTTO_HOME", "SOTTO_PROFILE", "SOTTO_PASSPHRASE_FILE")
	keepFiles()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the node: %w", err)
	}
	return a.awaitChild(ctx, cmd, opt.Home, out)
}

// secretFor is the passphrase, if the key file needs one.
func (a *app) secretFor(ctx context.Context, home daemon.Home) ([]byte, error) {
	kind, err := home.Lock()
	if err != nil || kind != identity.LockPassphrase {
		return nil, err
	}
	unlock := a.unlock(ctx)
	if unlock.Passphrase == nil {
		return nil, control.Errorf(control.ExitLocked, "locked", "Give the passphrase with --passphrase-file FILE or SOTTO_PASSPHRASE_FILE.", "the key is locked with a passphrase and nobody can be asked")
	}
	if a.passphraseFile() == "" && a.passphrase == nil { // typed: a mistake is noticed here, where it can be typed again
		if _, err := daemon.OpenKeyFile(home, unlock); err != nil {
			return nil, err
		}
	}
	return unlock.Passphrase()
}

func without(env []string, names ...string) []string {
	var kept []string
	for _, v := range env {
		drop := false
		for _, n := range names {
			drop = drop || strings.HasPrefix(v, n+"=")
		}
		if !drop {
			kept = append(kept, v)
		}
	}
	return kept
}

// awaitChild returns when the node answers, or with what it said when it ended.
func (a *app) awaitChild(ctx context.Context, cmd *exec.Cmd, home daemon.Home, out io.ReaderAt) error {
	ctx, cancel := within(ctx, a.timeout)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		c, err := control.Connect(ctx, home.Socket)
		if err == nil {
			if c.NodePID() == cmd.Process.Pid {
				defer c.Close()
				return a.sayDetached(ctx, c)
			}
			c.Close()
		}
		select {
		case err := <-ended:
			return childError(err, out)
		default:
		}
		if a.clock.Wait(ctx, 20*time.Millisecond) != nil {
			return control.Errorf(control.ExitNotInTime, "not_in_time", "See: sotto status; its log is shown by: sotto config path", "the node was started (process %d) and does not answer yet", cmd.Process.Pid)
		}
	}
}

// sayDetached tells that the node answers, and how it stands in the network by now.
func (a *app) sayDetached(ctx context.Context, c *control.Client) error {
	a.noteUnused(ctx, c)
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	return a.result(a.here(st), func(io.Writer) {
		a.say("sotto runs (process %d) · %s. To stop it: sotto down", st.PID, reachLine(st.Net))
	})
}

// childError is the child's own words, with its exit code.
func childError(err error, out io.ReaderAt) error {
	said := make([]byte, 4096)
	n, _ := out.ReadAt(said, 0)
	words, hint, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(string(said[:n]), "sotto:")), "\n")
	exit := control.ExitFailed
	var status *exec.ExitError
	if errors.As(err, &status) && status.ExitCode() > 0 {
		exit = status.ExitCode()
	}
	if words == "" { // a full disk takes no last words either
		words, hint = fmt.Sprintf("it ended without a word (%v)", err), "Look at this home: sotto doctor"
	}
	return control.Errorf(exit, "node_not_started", strings.TrimSpace(hint), "the node did not start: %s", strings.TrimSpace(words))
}
