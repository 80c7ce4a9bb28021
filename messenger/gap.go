package messenger

import (
	"context"
	"errors"
	"slices"
	"time"

	"sotto/store"
)

// A message whose predecessor is missing is held; after GapWait the gap is shown, and what comes late fills it in place.

// runGaps shows held messages once they have waited long enough for the ones before them.
func (m *Messenger) runGaps(ctx context.Context) error {
	for {
		next, err := m.fillGaps()
		if errors.Is(err, store.ErrFull) {
			next, err = m.clock.Now().Add(m.limits.GapWait), nil
		}
		if err != nil {
			return err
		}
		pause := time.Hour
		if !next.IsZero() {
			pause = max(next.Sub(m.clock.Now()), 0)
		}
		if err := m.waitOr(ctx, pause, m.gaps); err != nil {
			return nil
		}
	}
}

// fillGaps declares the gaps that are due and returns when the next one will be.
func (m *Messenger) fillGaps() (next time.Time, err error) {
	now := m.clock.Now()
	var due [][16]byte
	err = m.store.View(func(tx *store.Tx) error {
		convs, err := tx.Conversations()
		for _, conv := range convs {
			for _, r := range conv.Recv {
				if len(r.Held) == 0 {
					continue
				}
				if at := r.Since.Add(m.limits.GapWait); !at.After(now) {
					due = append(due, conv.ID)
				} else if next.IsZero() || at.Before(next) {
					next = at
				}
			}
		}
		return err
	})
	for _, id := range due {
		if err == nil {
			err = m.store.Update(func(tx *store.Tx) error { return m.declareGaps(tx, id, now) })
		}
	}
	return next, err
}

// release shows the first of the held rows.
func (m *Messenger) release(tx *store.Tx, c *store.Contact, conv *store.Conversation, recv *store.Received) error {
	row, err := tx.Message(recv.Held[0].ID)
	if err != nil {
		return err
	}
	recv.Held = recv.Held[1:]
	if row.N == recv.N+1 && recv.N > 0 && row.Prev != recv.Hash {
		row.Why = "does not follow the message before it"
		m.counters.conflicts.Add(1)
	}
	row.Held = false
	row.Order = m.order(*conv, *recv, row.Order)
	recv.N, recv.Hash, recv.Order = row.N, row.Hash, row.Order
	return m.show(tx, c, conv, row)
}

// hold stores a row that may not be shown yet.
func (m *Messenger) hold(tx *store.Tx, recv *store.Received, row store.Message) error {
	at, _ := slices.BinarySearchFunc(recv.Held, row.N, func(h store.Held, n uint64) int {
		return int(int64(h.N - n))
	})
	recv.Held = slices.Insert(recv.Held, at, store.Held{N: row.N, ID: row.ID})
	if recv.Since.IsZero() {
		recv.Since = m.clock.Now()
	}
	row.Held = true
	tx.AfterCommit(func() { poke(m.gaps) })
	return tx.PutMessage(&row)
}

// fillHole takes a number out of the declared gaps; the row behind the gap says that one less is missing.
func (m *Messenger) fillHole(tx *store.Tx, recv *store.Received, n uint64) error {
	i := slices.IndexFunc(recv.Holes, func(h store.Hole) bool { return h.From <= n && n <= h.To })
	hole := recv.Holes[i]
	if len(recv.Holes) >= maxHoles && hole.From < n && n < hole.To {
		hole.To = n // splitting it would make one more than are remembered: the later part is given up
	}
	var rest []store.Hole
	if hole.From < n {
		rest = append(rest, store.Hole{From: hole.From, To: n - 1, Before: hole.Before})
	}
	if n < hole.To {
		rest = append(rest, store.Hole{From: n + 1, To: hole.To, Before: hole.Before})
	}
	recv.Holes = slices.Replace(recv.Holes, i, i+1, rest...)
	row, err := tx.Message(hole.Before)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil || row.Gap == 0 {
		return err
	}
	row.Gap--
	if _, err := m.announce(tx, EventReceipt, event{Message: row.ID}); err != nil {
		return err
	}
	return tx.PutMessage(&row)
}

// declareGaps gives up waiting where GapWait is over: the held rows are shown and the first says how many are missing.
func (m *Messenger) declareGaps(tx *store.Tx, id [16]byte, now time.Time) error {
	conv, err := tx.Conversation(id)
	if err != nil {
		return err
	}
	c, err := tx.Contact(conv.Account)
	if err != nil {
		return err
	}
	for device, recv := range conv.Recv {
		if len(recv.Held) == 0 || recv.Since.Add(m.limits.GapWait).After(now) {
			continue
		}
		for len(recv.Held) > 0 {
			if first := recv.Held[0]; first.N > recv.N+1 {
				if err := m.declareGap(tx, &recv, first); err != nil {
					return err
				}
			}
			if err := m.release(tx, &c, &conv, &recv); err != nil {
				return err
			}
		}
		recv.Since = time.Time{}
		conv.Recv[device] = recv
	}
	return tx.PutConversation(conv)
}

// maxHoles bounds how many gaps of one device are remembered for filling; the oldest are given up.
const maxHoles = 1000

func (m *Messenger) declareGap(tx *store.Tx, recv *store.Received, first store.Held) error {
	recv.Holes = append(recv.Holes, store.Hole{From: recv.N + 1, To: first.N - 1, Before: first.ID})
	recv.Holes = recv.Holes[max(0, len(recv.Holes)-maxHoles):]
	row, err := tx.Message(first.ID)
	if err != nil {
		return err
	}
	row.Gap = first.N - 1 - recv.N
	recv.N = first.N - 1
	recv.Hash = row.Prev
	m.counters.gaps.Add(1)
	return tx.PutMessage(&row)
}
