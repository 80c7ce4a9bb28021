package operator

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spf13/cobra"

	"sotto/internal/clock"
	"sotto/internal/fault"
	"sotto/mailbox"
	"sotto/node"
)

// keeper is the mailbox of a volunteer: a queue on disk, the server in front of it, and what it did lately. Its zero value is none.
type keeper struct {
	queue  *mailbox.Queue
	server *mailbox.Server // nil: the queue was opened by a command, and nobody serves it
	past   *history
	policy policy
}

const mib = 1 << 20

func (a *app) mailboxDir() string { return filepath.Join(a.home, "mailbox") }

func (a *app) queueConfig(m Mailbox, log *slog.Logger) mailbox.QueueConfig {
	qc := mailbox.QueueConfig{
		Dir: a.mailboxDir(), Clock: clock.FromEnv(), Fault: fault.FromEnv(), Log: log, Inspect: mailbox.InspectRecord,
		Limits: mailbox.Limits{
			Ceiling: int64(m.Quota) * mib, Boxes: m.Boxes, MaxBytes: uint64(m.BoxSize) * mib, MaxCount: uint32(m.BoxCount), KeepDays: uint16(m.KeepDays),
			Reserve: int64(m.Reserve) * mib,
			Slow:    -1, // the server turns deposits away by how many wait: a slow disk that keeps up is of use
		},
	}
	if m.Reserve == 0 {
		qc.Limits.Reserve = -1 // none; 0 would be the default
	}
	if a.env.Program != "" {
		qc.Probe = guard(a.env.Program)
	}
	return qc
}

// openMailbox opens the queue in the home and puts its server on the volunteer's service host.
func (a *app) openMailbox(c Config, key ed25519.PrivateKey, v *node.Volunteer, log *slog.Logger) (k keeper, err error) {
	m := c.Mailbox
	if !m.Enabled {
		return k, nil
	}
	qc := a.queueConfig(m, log)
	qc.Offset = v.ClockOffset
	if k.queue, err = mailbox.OpenQueue(qc); err != nil {
		return keeper{}, err
	}
	k.policy, k.past = c.policy(), newHistory(qc.Clock, k.queue)
	sc := mailbox.ServerConfig{Key: key, Put: v.PutRecord, Clock: qc.Clock, Log: log}
	sc.Terms.Mode, err = mailbox.ParseMode(m.Mode)
	sc.Terms.RegisterBits, sc.Terms.StrangerBits, sc.Terms.Note = uint8(m.RegisterBits), uint8(m.StrangerBits), m.Note
	if c.Services.Relay {
		sc.Terms.Flags = mailbox.FlagRelay
	}
	if err == nil {
		k.server, err = mailbox.NewServer(k.queue, v.Service(), c.Network, sc)
	}
	if err != nil {
		return keeper{}, errors.Join(err, k.queue.Close())
	}
	return k, nil
}

// close ends what never ran.
func (k keeper) close() error {
	if k.queue == nil {
		return nil
	}
	return k.queue.Close()
}

// run serves until ctx ends or the queue fails.
func (k keeper) run(ctx context.Context) error {
	if k.queue == nil {
		return nil
	}
	remember, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.past.run(remember)
	}()
	err := mailbox.Run(ctx, k.queue, k.server)
	stop()
	<-done
	return errors.Join(err, k.queue.Close())
}

const probeCommand = "probe-queue"

// guard looks at the queue's files in a child process first, because the engine may crash on damaged ones. The pipe stays open until the
// child has ended, so that it notices when we do; until it has, it keeps the queue locked.
func guard(program string) func(dir string, lock *os.File) error {
	return func(dir string, lock *os.File) error {
		cmd := exec.Command(program, probeCommand, dir)
		inherit(cmd, lock)
		in, err := cmd.StdinPipe()
		if err != nil {
			return fmt.Errorf("start the guard: %w", err)
		}
		var said tail
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start the guard: %w", err)
		}
		_, err = in.Write([]byte{1})
		if waited := cmd.Wait(); waited != nil {
			return fmt.Errorf("guard: %w: %s", waited, said.text)
		}
		return err
	}
}

// tail keeps the last bytes of what a child said.
type tail struct{ text []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	t.text = t.text[max(0, len(t.text)-512):]
	return len(b), nil
}

// probeQueueCommand is the guard child; people have no use for it. It ends at once when its parent does.
func (a *app) probeQueueCommand() *cobra.Command {
	return &cobra.Command{Use: probeCommand + " DIR", Hidden: true, Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
		if a.env.Stdin == nil {
			return errors.New(probeCommand + " is sotto-mailbox's own")
		}
		if _, err := io.ReadFull(a.env.Stdin, make([]byte, 1)); err != nil {
			return errors.New(probeCommand + " is sotto-mailbox's own: it is begun by serve")
		}
		go func() {
			_, _ = io.Copy(io.Discard, a.env.Stdin)
			os.Exit(exitFailed) // the engine cannot be interrupted, and a crash now is one it must survive anyway
		}()
		return mailbox.ProbeQueue(args[0])
	}}
}
