package control_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sotto/control"
	"sotto/internal/clock"
)

// fakeCore keeps a few messages and a log in memory. Methods that no test asks for are left to the nil Core.
type fakeCore struct {
	control.Core
	mu      sync.Mutex
	msgs    []control.Message
	log     []control.Event
	first   uint64 // events up to and including this one are gone
	cursors map[string]uint64
	changed chan struct{}
	long    string // the text of every message listed, if any is
	lists   atomic.Int32
}

func newFake() *fakeCore {
	return &fakeCore{cursors: map[string]uint64{}, changed: make(chan struct{})}
}

func (f *fakeCore) append(e control.Event) {
	e.V, e.Seq, e.At = 1, f.first+uint64(len(f.log))+1, time.Unix(1, 0).UTC()
	f.log = append(f.log, e)
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fakeCore) Send(_ context.Context, p control.SendParams) (control.Message, error) {
	if p.To != "bob" {
		return control.Message{}, control.Errorf(control.ExitNotFound, "contact_not_found", "See: sotto contacts list", "no contact called %q", p.To)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	m := control.Message{V: 1, ID: fmt.Sprintf("m%08x", len(f.msgs)+1), Text: p.Text, State: control.StateQueued, Kind: "text"}
	f.msgs = append(f.msgs, m)
	f.append(control.Event{Kind: control.EventMessage, Message: &m})
	return m, nil
}

func (f *fakeCore) settle(id, state, why string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.msgs {
		if f.msgs[i].ID == id {
			f.msgs[i].State, f.msgs[i].Why = state, why
			m := f.msgs[i]
			f.append(control.Event{Kind: control.EventReceipt, Message: &m})
		}
	}
}

func (f *fakeCore) Message(_ context.Context, id string) (control.Message, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.msgs {
		if strings.HasPrefix(m.ID, id) {
			return m, nil
		}
	}
	return control.Message{}, control.Errorf(control.ExitNotFound, "message_not_found", "See: sotto inbox", "no message %q", id)
}

func (f *fakeCore) Messages(context.Context, control.ListParams) ([]control.Message, error) {
	f.lists.Add(1)
	if f.long == "" {
		return nil, nil
	}
	return []control.Message{{V: 1, Text: f.long}}, nil
}

func (f *fakeCore) Contact(_ context.Context, name string) (control.Contact, error) {
	return control.Contact{Name: name, Verified: "no"}, nil
}

func (f *fakeCore) Contacts(context.Context) ([]control.Contact, error) {
	return []control.Contact{{Name: "bob", State: "established"}, {Name: "mallory", State: "requested"}}, nil
}

func (f *fakeCore) Inbox(context.Context) ([]control.Conversation, error) { panic("planted") }

func (f *fakeCore) Settings(context.Context) (control.Settings, error) {
	return control.Settings{V: 1}, nil
}

func (f *fakeCore) Set(_ context.Context, p control.Setting) (control.Settings, error) {
	return control.Settings{V: 1, ReadMarks: p.Value == "on"}, nil
}

func (f *fakeCore) Identity(context.Context) (control.Identity, error) {
	return control.Identity{}, errors.New("the disk is on fire")
}

func (f *fakeCore) Status(context.Context) (control.Status, error) {
	return control.Status{Name: "Alice"}, nil
}

func (f *fakeCore) Events(ctx context.Context, after uint64, limit int) ([]control.Event, error) {
	for {
		f.mu.Lock()
		changed := f.changed
		var page []control.Event
		for _, e := range f.log {
			if e.Seq > after && len(page) < limit {
				page = append(page, e)
			}
		}
		f.mu.Unlock()
		if len(page) > 0 {
			return page, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *fakeCore) Range(context.Context) (uint64, uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.log) == 0 {
		return 0, 0, nil
	}
	return f.log[0].Seq, f.log[len(f.log)-1].Seq, nil
}

func (f *fakeCore) Cursor(_ context.Context, name string) (uint64, bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	seq, ok := f.cursors[name]
	return seq, ok, nil
}

func (f *fakeCore) AckCursor(_ context.Context, name string, seq uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cursors[name] = max(seq, f.cursors[name])
	return nil
}

// node is a server over a fake core, and how to stop it.
type node struct {
	core *fakeCore
	path string
	stop context.CancelFunc
	done chan error
}

func start(t *testing.T, change ...func(*control.Config)) *node {
	t.Helper()
	n := &node{core: newFake(), path: filepath.Join(t.TempDir(), "run", "sotto.sock"), done: make(chan error, 1)}
	ctx, stop := context.WithCancel(t.Context())
	n.stop = stop
	cfg := control.Config{Version: "1.2.3", Profile: "main", Clock: clock.System{}, Log: slog.New(slog.DiscardHandler), Stop: stop}
	for _, c := range change {
		c(&cfg)
	}
	l, err := control.Listen(ctx, n.path)
	if err != nil {
		t.Fatal(err)
	}
	go func() { n.done <- control.NewServer(n.core, cfg).Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-n.done; err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) client(t *testing.T) *control.Client {
	t.Helper()
	c, err := control.Connect(t.Context(), n.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
