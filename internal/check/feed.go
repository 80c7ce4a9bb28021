package check

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"sotto/control"
)

// cursor is the name under which the reader's place is kept in each node.
const cursor = "checker"

// reader reads a node's event feed over all its lives, and hands on what was called delivered.
type reader struct {
	rec  *Recorder
	home *home
	rand *rand.Rand
	tell func(sender *home, receiver, id string)

	sure, maybe uint64        // acknowledged, and perhaps acknowledged
	seen        atomic.Uint64 // number of the last event seen
}

// begin makes the reader's place at the end of the log.
func (r *reader) begin(ctx context.Context) error {
	return r.home.do(ctx, func(ctx context.Context, c *control.Client) error {
		at, err := control.Call[control.Cursor](ctx, c, "events.cursor", control.CursorParams{Cursor: cursor})
		if err == nil {
			r.sure, r.maybe = at.Seq, at.Seq
			r.seen.Store(at.Seq)
		}
		return err
	})
}

// run reads until ctx ends.
func (r *reader) run(ctx context.Context) error {
	for {
		c, err := r.home.use(ctx)
		if err != nil {
			return nil
		}
		r.stream(ctx, c)
		if pause(ctx, time.Millisecond) != nil {
			return nil
		}
	}
}

// stream reads one connection to its end: half of them go on from the place kept in the node, half from the last number seen.
func (r *reader) stream(ctx context.Context, c *control.Client) {
	p, s := control.StreamParams{Cursor: cursor}, Stream{Node: r.home.name, Least: r.sure, Most: r.maybe}
	if r.rand.IntN(2) == 0 {
		after := r.seen.Load()
		p, s.Least, s.Most = control.StreamParams{After: &after}, after, after
	}
	in, err := c.Events(ctx, p)
	if err != nil {
		if !gone(err) && ctx.Err() == nil {
			r.rec.Violate("I14", r.home.name, "", "the feed is refused: %v", err)
		}
		return
	}
	defer in.Close()
	if p.Cursor != "" {
		r.sure = max(r.sure, in.From) // now it is certain
	}
	s.From = in.From
	stream := r.rec.open(s)
	for left := r.rand.IntN(20); ; left-- {
		e, err := in.Next()
		if err != nil {
			return
		}
		r.take(stream, e)
		if left > 0 {
			continue
		}
		left = r.rand.IntN(20)
		if !r.ack(ctx, c, e.Seq) {
			return
		}
	}
}

// ack says that everything up to a number is done.
func (r *reader) ack(ctx context.Context, c *control.Client, seq uint64) bool {
	r.maybe = max(r.maybe, seq)
	err := c.Ack(ctx, cursor, seq)
	if err == nil {
		r.sure = max(r.sure, seq)
	} else if !gone(err) && ctx.Err() == nil {
		r.rec.Violate("I14", r.home.name, "", "the reader's place is not taken: %v", err)
	}
	return err == nil
}

func (r *reader) take(stream int, e control.Event) {
	seen := Seen{Seq: e.Seq, Kind: e.Kind, At: r.rec.Now()}
	switch {
	case e.Kind == control.EventReset:
		r.rec.Violate("I14", r.home.name, "", "the feed starts over at %d", e.Seq)
	case e.Message != nil:
		m := e.Message
		seen.ID, seen.State, seen.Mine, seen.Peer, seen.Missing = m.ID, m.State, m.From.Me, m.Conv.Name, m.Missing
	case e.Contact != nil:
		seen.ID = e.Contact.ID
	case e.Invite != nil:
		seen.ID = e.Invite.ID
	}
	r.rec.saw(stream, seen)
	fresh := e.Seq > r.seen.Load()
	if fresh {
		r.seen.Store(e.Seq)
	}
	if fresh && e.Kind == kindReceipt && seen.Mine && (seen.State == "delivered" || seen.State == "read") {
		r.tell(r.home, seen.Peer, seen.ID)
	}
}

// prober looks, at one receiver, for every message that a sender has just called delivered (I5).
type prober struct {
	rec  *Recorder
	home *home

	mu    sync.Mutex
	queue []Find
	open  int // not looked for yet
	late  int // found only after a while: held back until the ones before it came
	more  chan struct{}
}

func newProber(rec *Recorder, h *home) *prober {
	return &prober{rec: rec, home: h, more: make(chan struct{}, 1)}
}

func (p *prober) add(sender, id string) {
	p.mu.Lock()
	p.queue = append(p.queue, Find{Sender: sender, Receiver: p.home.name, ID: id})
	p.open++
	p.mu.Unlock()
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// run looks until ctx ends.
func (p *prober) run(ctx context.Context) error {
	for {
		p.mu.Lock()
		batch := p.queue
		p.queue = nil
		p.mu.Unlock()
		for _, f := range batch {
			late, err := p.look(ctx, f)
			if err != nil {
				return nil
			}
			p.mu.Lock()
			p.open--
			if late {
				p.late++
			}
			p.mu.Unlock()
		}
		select {
		case <-p.more:
		case <-ctx.Done():
			return nil
		}
	}
}

// idle reports whether everything was looked for.
func (p *prober) idle() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open == 0
}

// heldFor is how long a receiver may hold a message back, because one before it is missing, plus some grace.
const heldFor = 15 * time.Second

func (p *prober) look(ctx context.Context, f Find) (late bool, err error) {
	for until := p.rec.Now() + heldFor; ; late = true {
		err := p.home.do(ctx, func(ctx context.Context, c *control.Client) error {
			_, err := control.Call[control.Message](ctx, c, "message.get", control.IDParams{ID: f.ID})
			return err
		})
		f.At, f.Found = p.rec.Now(), err == nil
		switch {
		case f.Found, errors.Is(err, notFound) && f.At > until:
			p.rec.find(f)
			return late, nil
		case ctx.Err() != nil || !errors.Is(err, notFound):
			return late, err
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return late, err
		}
	}
}

var notFound = &control.Error{Code: "message_not_found"}
