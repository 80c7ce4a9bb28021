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

// keeper is the mailbox of a volunteer: a queue on disk and the server in front of it. Its zero value is none.
type keeper struct {
	queue  *mailbox.Queue
	server *mailbox.Server
}

// openMailbox opens the queue in the home and puts its server on the volunteer's service host.
func (a *app) openMailbox(c Config, key ed25519.PrivateKey, v *node.Volunteer, log *slog.Logger) (k keeper, err error) {
	m := c.Mailbox
	if !m.Enabled {
		return k, nil
	}
	const mib = 1 << 20
	qc := mailbox.QueueConfig{
		Dir: filepath.Join(a.home, "mailbox"), Clock: clock.FromEnv(), Fault: fault.FromEnv(), Log: log, Offset: v.ClockOffset, Inspect: mailbox.InspectRecord,
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
	if k.queue, err = mailbox.OpenQueue(qc); err != nil {
		return keeper{}, err
	}
	sc := mailbox.ServerConfig{Key: key, Put: v.PutRecord, Clock: qc.Clock, Log: log}
	sc.Terms.Mode, err = mailbox.ParseMode(m.Mode)
	sc.Terms.RegisterBits, sc.Terms.StrangerBits, sc.Terms.Note = uint8(m.RegisterBits), uint8(m.StrangerBits), m.Note
	sc.Terms.Flags = mailbox.FlagRelay
	if err == nil {
		k.server, err = mailbox.NewServer(k.queue, v.Service(), c.Network, sc)
	}
	if err != nil {
		return keeper{}, errors.Join(err, k.queue.Close())
	}
	return k, nil
}

// run serves until ctx ends or the queue fails.
func (k keeper) run(ctx context.Context) error {
	if k.queue == nil {
		return nil
	}
	return errors.Join(mailbox.Run(ctx, k.queue, k.server), k.queue.Close())
}

// mailboxStatus is the mailbox's part of status. It names no box and no address.
type mailboxStatus struct {
	Boxes       int                  `json:"boxes"`
	Waiting     int                  `json:"waiting"` // envelopes
	Bytes       int64                `json:"bytes"`
	Ceiling     int64                `json:"ceiling"`
	Unaccounted int64                `json:"unaccounted"` // must be 0
	Accepted    uint64               `json:"accepted"`    // since the start, as what follows
	Fetched     uint64               `json:"fetched"`
	Acked       uint64               `json:"acked"`
	Expired     uint64               `json:"expired"`
	CommitP50   float64              `json:"commit_p50_ms"`
	CommitP99   float64              `json:"commit_p99_ms"`
	Wrong       []string             `json:"wrong,omitempty"` // what keeps it from serving, in words
	Refused     map[string]uint64    `json:"refused"`         // by the queue
	Server      mailbox.ServerStatus `json:"server"`
}

func (k keeper) status() *mailboxStatus {
	if k.queue == nil {
		return nil
	}
	q := k.queue.Stats()
	s := &mailboxStatus{
		Boxes: q.Boxes, Waiting: q.Waiting, Bytes: q.Bytes, Ceiling: q.Ceiling, Unaccounted: q.Unaccounted,
		Accepted: q.Accepted, Fetched: q.Fetched, Acked: q.Acked, Expired: q.Expired, CommitP50: q.CommitP50.Seconds() * 1000, CommitP99: q.CommitP99.Seconds() * 1000,
		Refused: q.Refused, Server: k.server.Status(),
	}
	for _, w := range []struct {
		is   bool
		what string
	}{
		{q.Failed != nil, fmt.Sprintf("a write failed, and nothing is taken until the next start: %v", q.Failed)},
		{q.Damaged > 0, fmt.Sprintf("damage was found %d times", q.Damaged)},
		{q.Unaccounted != 0, fmt.Sprintf("the accounts are %d bytes off", q.Unaccounted)},
		{q.Full, "the disk is too full to take more"},
		{q.Refusing, "takes no deposits, as it was told"},
		{!q.DrainUntil.IsZero(), "takes nothing new, and ends " + q.DrainUntil.Format("2006-01-02 15:04 UTC")},
		{q.Paused != "", q.Paused},
	} {
		if w.is {
			s.Wrong = append(s.Wrong, w.what)
		}
	}
	return s
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
