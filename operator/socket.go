package operator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/mailbox"
)

// The volunteer's own socket: whoever may open it asks with one JSON line and is answered with one. It is 0600 in a directory of 0700. After
// the answer to a backup follows the stream.
const (
	socketName  = "status.sock"
	askTimeout  = 5 * time.Second // for the question, and for an answer to be written
	workTimeout = time.Minute     // for an answer that waits for the disk
	maxAnswer   = 4 << 20
	maxOrder    = 1 << 20
	maxAsking   = 16 // at a time
)

// order is what a command wants of the mailbox.
type order struct {
	Do      string    `json:"do"`
	Keys    [][]byte  `json:"keys,omitempty"`  // SHA-256 of a box's key
	Codes   []string  `json:"codes,omitempty"` // vouchers
	Until   time.Time `json:"until,omitzero"`
	Ceiling int64     `json:"ceiling,omitempty"`
}

// answer is what came of it.
type answer struct {
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
}

func (a *app) socket() string { return a.home + string(os.PathSeparator) + socketName }

// running tells whether a volunteer answers in this home.
func (a *app) running(ctx context.Context) bool {
	_, err := a.askStatus(ctx)
	return err == nil
}

// serveSocket answers until ctx ends; the channel closes when it no longer does.
func (a *app) serveSocket(ctx context.Context, obey func(context.Context, order) (any, error), backup func(context.Context, io.Writer) error) (<-chan struct{}, error) {
	if err := os.Remove(a.socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", a.socket())
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(a.socket(), 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	go func() {
		defer close(done)
		defer stop()
		var all errgroup.Group
		all.SetLimit(maxAsking)
		for {
			c, err := l.Accept()
			if err != nil {
				break
			}
			all.Go(func() error {
				answerOne(ctx, c, obey, backup)
				return nil
			})
		}
		_ = all.Wait()
	}()
	return done, nil
}

// answerOne reads an order and answers it; whoever asked and went away needs no answer.
func answerOne(ctx context.Context, c net.Conn, obey func(context.Context, order) (any, error), backup func(context.Context, io.Writer) error) {
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(askTimeout))
	var o order
	if err := json.NewDecoder(io.LimitReader(c, maxOrder)).Decode(&o); err != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = io.Copy(io.Discard, c)
		cancel()
	}()
	defer func() { cancel(); <-gone }()
	var said answer
	result, err := obey(ctx, o)
	if err == nil {
		said.Result, err = json.Marshal(result)
	}
	if err != nil {
		said.Error = err.Error()
	}
	if json.NewEncoder(c).Encode(said) == nil && err == nil && o.Do == orderBackup {
		_ = backup(ctx, c) // one that is cut off lacks its end
	}
}

// errNotRunning: nobody listens in this home.
var errNotRunning = errors.New("no volunteer runs")

// dial asks the running volunteer; the reader stands behind its answer.
func (a *app) dial(ctx context.Context, o order, into any, wait time.Duration) (c net.Conn, behind io.Reader, err error) {
	c, err = net.DialTimeout("unix", a.socket(), askTimeout)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil, errNotRunning
	}
	if err != nil {
		return nil, nil, err
	}
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })()
	_ = c.SetDeadline(time.Now().Add(wait))
	dec := json.NewDecoder(io.LimitReader(c, maxAnswer))
	var said answer
	if err = json.NewEncoder(c).Encode(o); err == nil {
		err = dec.Decode(&said)
	}
	switch {
	case err != nil:
		err = fmt.Errorf("the running volunteer did not answer: %w", err)
	case said.Error != "":
		err = errors.New(said.Error)
	case into != nil:
		err = json.Unmarshal(said.Result, into)
	}
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	_ = c.SetDeadline(time.Time{})
	behind = io.MultiReader(dec.Buffered(), c)
	if o.Do == orderBackup { // the end of the answer's line
		_, err = io.ReadFull(behind, make([]byte, 1))
	}
	if err != nil {
		return nil, nil, errors.Join(err, c.Close())
	}
	return c, behind, nil
}

func (a *app) askStatus(ctx context.Context) (s status, err error) {
	c, _, err := a.dial(ctx, order{Do: orderStatus}, &s, askTimeout)
	if err != nil {
		return s, err
	}
	return s, c.Close()
}

// give has an order done: by the running volunteer, or, where none runs, on the files.
func (a *app) give(ctx context.Context, o order, into any) error {
	c, _, err := a.dial(ctx, o, into, workTimeout)
	if err == nil {
		return c.Close()
	}
	if !errors.Is(err, errNotRunning) {
		return failed(exitFailed, o.Do, "See: sotto-mailbox health --home "+a.home, err)
	}
	return a.offline(ctx, func(ctx context.Context, k keeper) error {
		result, err := k.obey(ctx, o)
		if err != nil {
			return failed(exitFailed, o.Do, "", err)
		}
		b, err := json.Marshal(result)
		if err != nil || into == nil {
			return err
		}
		return json.Unmarshal(b, into)
	})
}

// offline opens the mailbox's files for one command. Nobody is served meanwhile.
func (a *app) offline(ctx context.Context, do func(context.Context, keeper) error) error {
	c, err := loadConfig(a.home)
	if err != nil {
		return err
	}
	if !mailbox.HasQueue(a.mailboxDir()) {
		return failed(exitNotUp, "no_mailbox", "Start a volunteer first: sotto-mailbox serve --home "+a.home+"   (or name its home with --home)",
			fmt.Errorf("no volunteer runs in %s, and no mailbox lies there", a.home))
	}
	log := slog.New(slog.NewTextHandler(a.env.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	q, err := mailbox.OpenQueue(a.queueConfig(c.Mailbox, log))
	if err != nil {
		hint := "See: sotto-mailbox verify " + a.mailboxDir()
		if errors.Is(err, mailbox.ErrLocked) {
			hint = "A volunteer has the mailbox open and does not answer: sotto-mailbox health --home " + a.home
		}
		return failed(exitFailed, "mailbox", hint, fmt.Errorf("no volunteer runs in %s; open its mailbox: %w", a.home, err))
	}
	run, stop := context.WithCancel(ctx)
	defer stop()
	ran := make(chan error, 1)
	go func() { ran <- q.Run(run) }()
	err = do(ctx, keeper{queue: q, policy: c.policy()})
	stop()
	return errors.Join(err, <-ran, q.Close())
}
