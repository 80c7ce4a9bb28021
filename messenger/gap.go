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
		if err != nil {
			return err
		}
		for _, conv := range convs {
			if _, ok, err := heard(tx, conv); err != nil {
				return err
			} else if !ok {
				continue
			}
			for _, r := range conv.Recv {
				if m.overdue(r, now) || follows(r) {
					due = append(due, conv.ID)
				} else if at := r.Since.Add(m.limits.GapWait); len(r.Held) > 0 && (next.IsZero() || at.Before(next)) {
					next = at
				}
			}
		}
		return nil
	})
	for _, id := range due {
		for again := true; again && err == nil; {
			err = m.store.Update(func(tx *store.Tx) (err error) {
				again, err = m.declareGaps(tx, id, now)
				return err
			})
		}
	}
	return next, err
}

// heard returns whom a conversation is with, if not somebody who was shut out: what was held of those stays so.
func heard(tx *store.Tx, conv store.Conversation) (c store.Contact, ok bool, err error) {
	c, err = tx.Contact(conv.Account)
	if errors.Is(err, store.ErrNotFound) {
		return c, false, nil
	}
	return c, err == nil && c.State != ContactBlocked && c.State != contactRemoved, err
}

// overdue reports whether rows were held for long enough.
func (m *Messenger) overdue(r store.Received, now time.Time) bool {
	return len(r.Held) > 0 && !r.Since.Add(m.limits.GapWait).After(now)
}

// follows reports whether the first held row has nothing to wait for any more.
func follows(r store.Received) bool { return len(r.Held) > 0 && r.Held[0].N == r.N+1 }

// showHeld shows held rows as far as they follow, and with gaps all of them, declaring the gaps between them; but no more than one
// transaction should: the rest is for fillGaps. A row that a damaged disk lost is one more that is missing.
func (m *Messenger) showHeld(tx *store.Tx, c *store.Contact, conv *store.Conversation, recv *store.Received, gaps bool) error {
	for count, size := 0, 0; (gaps && len(recv.Held) > 0 || follows(*recv)) && count < sweepRows && size < sweepBytes; count++ {
		row, err := tx.Message(recv.Held[0].ID)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		recv.Held = recv.Held[1:]
		if err != nil {
			continue
		}
		if row.N > recv.N+1 {
			m.declareGap(recv, &row)
		}
		if err := m.release(tx, c, conv, recv, row); err != nil {
			return err
		}
		size += len(row.Raw)
	}
	if len(recv.Held) == 0 {
		recv.Since = time.Time{}
	}
	if follows(*recv) {
		tx.AfterCommit(func() { poke(m.gaps) })
	}
	return nil
}

// release shows a row that was held.
func (m *Messenger) release(tx *store.Tx, c *store.Contact, conv *store.Conversation, recv *store.Received, row store.Message) error {
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

// declareGaps gives up waiting where GapWait is over: the held rows are shown and the first says how many are missing. Again says
// that there may be more for another transaction.
func (m *Messenger) declareGaps(tx *store.Tx, id [16]byte, now time.Time) (again bool, err error) {
	conv, err := tx.Conversation(id)
	if err != nil {
		return false, err
	}
	c, ok, err := heard(tx, conv)
	if err != nil || !ok {
		return false, err // shut out meanwhile
	}
	for device, recv := range conv.Recv { // one of them in a transaction
		overdue := m.overdue(recv, now)
		if !overdue && !follows(recv) {
			continue
		}
		if err := m.showHeld(tx, &c, &conv, &recv, overdue); err != nil {
			return false, err
		}
		conv.Recv[device] = recv
		return true, tx.PutConversation(conv)
	}
	return false, nil
}

// maxHoles bounds how many gaps of one device are remembered for filling; the oldest are given up.
const maxHoles = 1000

// declareGap says with a row how many are missing before it.
func (m *Messenger) declareGap(recv *store.Received, row *store.Message) {
	recv.Holes = append(recv.Holes, store.Hole{From: recv.N + 1, To: row.N - 1, Before: row.ID})
	recv.Holes = recv.Holes[max(0, len(recv.Holes)-maxHoles):]
	row.Gap = row.N - 1 - recv.N
	recv.N = row.N - 1
	recv.Hash = row.Prev
	m.counters.gaps.Add(1)
}
