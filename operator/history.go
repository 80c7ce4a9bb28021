package operator

import (
	"context"
	"sync"
	"time"

	"sotto/internal/clock"
	"sotto/mailbox"
)

// history remembers the queue's counters of the last day, so that status can say what happened in 24 hours. It is in memory only.
type history struct {
	clock clock.Clock
	queue *mailbox.Queue
	began time.Time

	mu   sync.Mutex
	list []sample // oldest first
}

const (
	sampleEvery = 10 * time.Minute
	sampleDay   = 24 * time.Hour
)

// sample is what was counted since the start.
type sample struct {
	at                    time.Time
	in, out, expired, not uint64
}

// lately is what happened in the last 24 hours, or since the start if that is less.
type lately struct {
	Hours   float64 `json:"hours"` // how much time that is
	In      uint64  `json:"in"`
	Out     uint64  `json:"out"` // acknowledged by their owners
	Expired uint64  `json:"expired"`
	Refused uint64  `json:"refused"` // by the queue
}

func newHistory(c clock.Clock, q *mailbox.Queue) *history {
	return &history{clock: c, queue: q, began: c.Now(), list: []sample{{at: c.Now()}}}
}

func (h *history) run(ctx context.Context) {
	for h.clock.Wait(ctx, sampleEvery) == nil {
		s := h.now(h.queue.Stats())
		h.mu.Lock()
		h.list = append(h.list, s)
		for len(h.list) > 1 && s.at.Sub(h.list[1].at) >= sampleDay {
			h.list = h.list[1:]
		}
		h.mu.Unlock()
	}
}

func (h *history) now(q mailbox.QueueStats) sample {
	s := sample{at: h.clock.Now(), in: q.Accepted, out: q.Acked, expired: q.Expired}
	for _, n := range q.Refused {
		s.not += n
	}
	return s
}

// day compares now with the oldest sample.
func (h *history) day(q mailbox.QueueStats) lately {
	s := h.now(q)
	h.mu.Lock()
	defer h.mu.Unlock()
	was := h.list[0]
	return lately{Hours: s.at.Sub(was.at).Hours(), In: s.in - was.in, Out: s.out - was.out, Expired: s.expired - was.expired, Refused: s.not - was.not}
}
