package check

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"sotto/control"
	"sotto/internal/clock"
)

// pause waits, or returns the context's error as soon as it ends.
func pause(ctx context.Context, d time.Duration) error { return clock.System{}.Wait(ctx, d) }

// Bounds of the workload.
const (
	maxBacklog = 600 // texts of one sender on the way; more would only measure how long the rest takes
	writers    = 2   // at a time, from each to each
)

// writer is one person writing to another, a text at a time, and never giving one up: what was not answered is asked for
// again under its key, until it is.
type writer struct {
	rec      *Recorder
	from, to *home
	rand     *rand.Rand
	name     string
	sent     []string // ids
	pause    time.Duration
}

// run writes until enough is closed, and returns when everything it began is answered.
func (w *writer) run(ctx context.Context, enough <-chan struct{}) error {
	for n := 0; ; n++ {
		select {
		case <-enough:
			return nil
		default:
		}
		if w.rec.backlog(w.from.name) > maxBacklog {
			n--
		} else if err := w.write(ctx, n); err != nil {
			return err
		}
		if err := pause(ctx, time.Duration(w.rand.Int64N(int64(w.pause)))); err != nil {
			return err
		}
	}
}

// text is unlike every other; most are short, some fill several frames.
func (w *writer) text(n int) string {
	text := fmt.Sprintf("%s %d ", w.name, n)
	switch w.rand.IntN(40) {
	case 0:
		return text + strings.Repeat("long ", w.rand.IntN(12_000))
	case 1, 2, 3:
		return text + strings.Repeat("words ", w.rand.IntN(500))
	}
	return text + strings.Repeat("· ", w.rand.IntN(40))
}

func (w *writer) write(ctx context.Context, n int) error {
	text, key := w.text(n), fmt.Sprintf("%s-%d", w.name, n)
	op := w.rec.begin(w.from.name, w.to.name, key, text)
	id, err := w.send(ctx, op, text, key)
	if err != nil {
		return err
	}
	w.rec.accept(op, id)
	w.sent = append(w.sent, id)
	switch w.rand.IntN(20) {
	case 0: // as a script that lost the answer would
		again, err := w.send(ctx, op, text, key)
		if err == nil && again != id {
			w.rec.Violate("I2", w.from.name, id, "the same key made a second message, %s", again)
		}
		return err
	case 1:
		return w.lookBack(ctx)
	}
	return nil
}

// send asks until it is answered. A refusal is a broken promise: nothing here may be refused.
func (w *writer) send(ctx context.Context, op int, text, key string) (id string, err error) {
	err = w.from.do(ctx, func(ctx context.Context, c *control.Client) error {
		w.rec.tried(op)
		begun := w.rec.Now()
		m, err := c.Send(ctx, control.SendParams{To: w.to.name, Text: text, Key: key})
		if err == nil {
			id = m.ID
			w.rec.look(Look{w.from.name, m.ID, m.State, begun, w.rec.Now()})
		}
		return err
	})
	if err != nil && ctx.Err() == nil {
		w.rec.Violate("refused", w.from.name, "", "%q was refused: %v", head(text), err)
	}
	return id, err
}

// lookBack asks for the state of a text sent before.
func (w *writer) lookBack(ctx context.Context) error {
	id := w.sent[len(w.sent)-1-w.rand.IntN(min(len(w.sent), 200))]
	err := w.from.do(ctx, func(ctx context.Context, c *control.Client) error {
		begun := w.rec.Now()
		m, err := control.Call[control.Message](ctx, c, "message.get", control.IDParams{ID: id})
		if err == nil {
			w.rec.look(Look{w.from.name, id, m.State, begun, w.rec.Now()})
		}
		return err
	})
	if errors.Is(err, notFound) {
		w.rec.Violate("I1", w.from.name, id, "accepted, and not found while it ran")
		return nil
	}
	return err
}
