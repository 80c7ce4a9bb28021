package messenger

import (
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/identity"
	"sotto/session"
	"sotto/store"
	"sotto/wire"
)

// What the recipient's device did not take soon is left at its mailboxes as well (PROTOCOL 17.4). It goes on beside the direct way, never
// instead of it, and changes nothing there: an entry leaves the outbox when the recipient acknowledged it, whoever carried it.
//
//  1. the outbox kicks the recipient (kick); its entries that still wait are looked at Hedge later, at once if the recipient is away;
//  2. those that a mailbox of the recipient does not keep yet, or not for long, are packed into envelopes (pack);
//  3. each envelope is sealed afresh for each mailbox and left there for a token (leave);
//  4. the signed receipts become the entries' custody, and their messages held (kept).

// holder knows when whose entries are to be looked at, and which mailboxes are to be left in peace for now.
type holder struct {
	mu      sync.Mutex // guards what follows
	due     map[identity.AccountID]time.Time
	working map[identity.AccountID]bool
	away    map[identity.AccountID]bool
	pauses  map[[32]byte]*boxPause
	signal  chan struct{} // somebody is due earlier than before
}

// boxPause is how long a mailbox that failed is not asked.
type boxPause struct {
	until    time.Time
	last     time.Duration
	refusals int // in a row
}

func newHolder() *holder {
	return &holder{due: map[identity.AccountID]time.Time{}, working: map[identity.AccountID]bool{}, away: map[identity.AccountID]bool{},
		pauses: map[[32]byte]*boxPause{}, signal: make(chan struct{}, 1)}
}

// lookAt has a recipient's entries looked at at that moment, or earlier. The lock is held.
func (h *holder) lookAt(acct identity.AccountID, at time.Time) {
	if due, ok := h.due[acct]; !ok || at.Before(due) {
		h.due[acct] = at
		poke(h.signal)
	}
}

// kick has a recipient's entries looked at: after the hedge, or at once when the direct way is known not to work.
func (h *holder) kick(acct identity.AccountID, now time.Time, hedge time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away[acct] {
		hedge = 0
	}
	h.lookAt(acct, now.Add(hedge))
}

// setAway notes whether the direct way works; when it stops working, what waits need wait no longer.
func (h *holder) setAway(acct identity.AccountID, away bool, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !away {
		delete(h.away, acct)
	} else if !h.away[acct] {
		h.away[acct] = true
		h.lookAt(acct, now)
	}
}

// take returns who is due and not being worked on, marked as worked on from now, and how long until the next of the others is due.
func (h *holder) take(now time.Time) (list []identity.AccountID, next time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next = tendEvery
	for acct, at := range h.due {
		switch wait := at.Sub(now); {
		case h.working[acct]: // done looks again
		case wait <= 0:
			list = append(list, acct)
			h.working[acct] = true
			delete(h.due, acct)
		default:
			next = min(next, wait)
		}
	}
	return list, next
}

// done ends the work on a recipient, which is to be looked at again after a pause, 0 for when kicked.
func (h *holder) done(acct identity.AccountID, now time.Time, again time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.working, acct)
	if again > 0 {
		h.lookAt(acct, now.Add(again))
	}
	if _, ok := h.due[acct]; ok {
		poke(h.signal)
	}
}

func (h *holder) isAway(acct identity.AccountID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.away[acct]
}

// paused tells how long a box is to be left in peace.
func (h *holder) paused(box [32]byte, now time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.pauses[box]; p != nil {
		return p.until.Sub(now)
	}
	return 0
}

// Pauses after a deposit that was not taken.
const (
	depositRetryMin = 2 * time.Second
	depositRetryMax = 2 * time.Minute
	refusedRetryMin = 5 * time.Minute // a box without room, or that does not know our tokens
	refusedRetryMax = 6 * time.Hour
)

// spentInVain is how many tokens in a row may be refused before the box is taken for full or closed: an answer that was lost leaves one that is
// spent, and the guests of one invite share theirs.
const spentInVain = 8

// note has a box left in peace after a failure, longer each time.
func (h *holder) note(box [32]byte, now time.Time, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		delete(h.pauses, box)
		return
	}
	p := h.pauses[box]
	if p == nil {
		p = &boxPause{}
		h.pauses[box] = p
	}
	least, most := depositRetryMin, depositRetryMax
	if errors.Is(err, wire.ErrRefused) {
		p.refusals++
	}
	if p.refusals > spentInVain {
		least, most = refusedRetryMin, refusedRetryMax
	}
	p.last = min(max(p.last*3/2, least), most)
	p.until = now.Add(jitter(p.last))
}

// runHold looks at the recipients that are due, each in a goroutine of its own: a mailbox that is slow holds up nobody else's mail.
func (m *Messenger) runHold(ctx context.Context, boxes Mailboxes) error {
	g, ctx := errgroup.WithContext(ctx)
	for {
		list, next := m.holder.take(m.clock.Now())
		for _, acct := range list {
			g.Go(func() error {
				again, err := m.holdFor(ctx, boxes, acct)
				if passing(err) {
					again, err = depositRetryMax, nil
				}
				m.holder.done(acct, m.clock.Now(), again)
				return err
			})
		}
		if err := m.waitOr(ctx, next, m.holder.signal); err != nil {
			return g.Wait()
		}
	}
}

// holding is what of one recipient's entries is to be left where.
type holding struct {
	contact store.Contact
	card    identity.Card
	rows    []store.Outgoing // with whole items
	boxes   []identity.Box   // that may be asked now
	next    time.Duration    // look again after so long, 0 for not
}

// holdFor leaves a recipient's waiting entries at its mailboxes. It returns after how long to look again, 0 for when kicked.
func (m *Messenger) holdFor(ctx context.Context, boxes Mailboxes, acct identity.AccountID) (time.Duration, error) {
	for ctx.Err() == nil {
		h, err := m.toHold(acct)
		if err != nil || len(h.rows) == 0 || len(h.boxes) == 0 {
			return h.next, err
		}
		left, err := m.holdBatch(ctx, boxes, h)
		if err != nil || !left {
			return max(h.next, depositRetryMin), err
		}
	}
	return 0, nil
}

// toHold collects what waits and is not kept yet by a mailbox that may be asked.
func (m *Messenger) toHold(acct identity.AccountID) (h holding, err error) {
	now := m.clock.Now()
	err = m.store.View(func(tx *store.Tx) error {
		c, err := tx.Contact(acct)
		if errors.Is(err, store.ErrNotFound) || err == nil && !mayConnect(c) || len(c.Card) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		h.contact = c
		if h.card, err = identity.ParseCard(c.Card); err != nil {
			return nil // said when it was taken
		}
		for _, box := range h.card.Core.Boxes {
			if pause := m.holder.paused(box.ID, now); pause > 0 {
				h.again(pause)
			} else {
				h.boxes = append(h.boxes, box)
			}
		}
		if len(h.boxes) == 0 {
			return nil
		}
		if tokens, err := tx.Granted(acct); errors.Is(err, store.ErrNotFound) || err == nil && len(tokens.Runs) == 0 {
			h.boxes = nil // more come with what the recipient says next
			return nil
		} else if err != nil {
			return err
		}
		return m.waitingFor(tx, &h, now)
	})
	return h, err
}

// waitingFor adds the first entries that lack custody, whole, as many as one turn should have in memory.
func (m *Messenger) waitingFor(tx *store.Tx, h *holding, now time.Time) error {
	heads := headings{}
	acct := identity.AccountID(h.contact.Account)
	for after, size := uint64(0), 0; size < batchBytes; {
		rows, err := tx.OutgoingsAfter(acct, after, 256)
		if err != nil || len(rows) == 0 {
			return err
		}
		after = rows[len(rows)-1].Order
		for _, out := range rows {
			age := now.Sub(out.Created)
			switch {
			case len(out.Item) == 0 || m.expired(out, now) || size >= batchBytes:
			case !slices.ContainsFunc(h.boxes, func(b identity.Box) bool { return m.lacks(out, b.ID, now) }):
				for _, c := range out.Custody { // until one of them is to be renewed
					h.again(max(m.renewAt(c).Sub(now), time.Minute))
				}
			case !m.holder.isAway(acct) && age >= 0 && age < m.limits.Hedge:
				h.again(m.limits.Hedge - age)
			default:
				if err := heads.restore(tx, &out); err != nil {
					return err
				}
				if len(out.Item) > 0 {
					h.rows, size = append(h.rows, out), size+len(out.Item)
				}
			}
		}
	}
	return nil
}

func (h *holding) again(d time.Duration) {
	if h.next == 0 || d < h.next {
		h.next = d
	}
}

// lacks reports whether a mailbox does not keep an entry, or will not for long.
func (m *Messenger) lacks(out store.Outgoing, box [32]byte, now time.Time) bool {
	for _, c := range out.Custody {
		if c.Box == box {
			return m.renewAt(c).Before(now) && (out.Expires.IsZero() || out.Expires.After(c.Until))
		}
	}
	return true
}

// renewAt is when an entry is left at a mailbox anew: in time, but not again and again at one that keeps mail for a day.
func (m *Messenger) renewAt(c store.Custody) time.Time {
	at, soonest := c.Until.Add(-m.limits.RenewBefore), c.At.Add(renewPause)
	if at.Before(soonest) {
		return soonest
	}
	return at
}

// renewPause is how long an entry is left alone at a mailbox that took it.
const renewPause = 12 * time.Hour

// holdBatch packs entries and leaves each pack at every mailbox that lacks one of it. Left says that it makes sense to look again at once.
func (m *Messenger) holdBatch(ctx context.Context, boxes Mailboxes, h holding) (left bool, err error) {
	for _, pack := range packs(h.rows) {
		token, ok, err := m.nextToken(h.contact.Account)
		if err != nil || !ok {
			return false, err
		}
		used := make([]bool, len(h.boxes)) // it will not pay for anything else there
		promises := make(chan promise, len(h.boxes))
		var g errgroup.Group
		for at, box := range h.boxes {
			lacking := slices.DeleteFunc(slices.Clone(pack), func(out store.Outgoing) bool { return !m.lacks(out, box.ID, m.clock.Now()) })
			if len(lacking) == 0 {
				continue
			}
			g.Go(func() error {
				custody, err := m.leave(ctx, boxes, h.card, box, wire.BoxToken(token.Seed, token.Next, box.ID), lacking)
				if ctx.Err() != nil {
					return nil
				}
				m.holder.note(box.ID, m.clock.Now(), err)
				used[at] = err == nil || errors.Is(err, wire.ErrRefused)
				if err != nil {
					m.log.Info("nothing left at a mailbox", "err", err)
				} else {
					promises <- promise{lacking, custody}
				}
				return nil
			})
		}
		noted := make(chan error, 1)
		go func() { noted <- m.noteAll(ctx, h, promises, &left) }()
		_ = g.Wait()
		close(promises)
		if err := <-noted; err != nil {
			return false, err
		}
		if slices.Contains(used, true) {
			if err := m.spendToken(h.contact.Account, token); err != nil {
				return false, err
			}
		}
	}
	return left, nil
}

// promise is what one mailbox signed to keep.
type promise struct {
	rows    []store.Outgoing
	custody store.Custody
}

// together is how long a promise waits for others of the same pack, so that a message is told to be held once and not three times.
const together = 300 * time.Millisecond

// noteAll notes promises as they come, those that come together in one transaction.
func (m *Messenger) noteAll(ctx context.Context, h holding, promises <-chan promise, left *bool) error {
	var failed error
	for first := range promises {
		list := []promise{first}
		waited, cancel := context.WithCancel(ctx)
		over := make(chan struct{})
		go func() { defer close(over); _ = m.clock.Wait(waited, together) }()
		for more := len(list) < len(h.boxes); more; {
			select {
			case p, ok := <-promises:
				if ok {
					list = append(list, p)
				}
				more = ok && len(list) < len(h.boxes)
			case <-over:
				more = false
			}
		}
		cancel()
		<-over
		if failed == nil {
			failed = m.kept(h.contact.Account, h.card, list)
			*left = failed == nil
		}
	}
	return failed
}

// packs puts entries together that go into one envelope, in their order: as many as the largest holds, since tokens are few.
func packs(rows []store.Outgoing) (list [][]store.Outgoing) {
	var items [][]byte
	from := 0
	for i, out := range rows {
		next := append(items, out.Item)
		if _, err := session.EnvelopeSize(next); (err != nil || len(next) > wire.MaxAcks) && len(items) > 0 {
			list, from, next = append(list, rows[from:i]), i, [][]byte{out.Item}
		}
		items = next
	}
	if from < len(rows) {
		list = append(list, rows[from:])
	}
	return list
}

// nextToken is the next of a contact's tokens, if there is one left. One recipient's mail is left by one worker at a time, so it is not spent before
// spendToken says so: while no mailbox can be reached, tries cost none.
func (m *Messenger) nextToken(acct [32]byte) (token store.TokenRun, ok bool, err error) {
	err = m.store.View(func(tx *store.Tx) error {
		row, err := tx.Granted(acct)
		if errors.Is(err, store.ErrNotFound) || err == nil && len(row.Runs) == 0 {
			return nil
		}
		if err == nil {
			token, ok = row.Runs[0], true
		}
		return err
	})
	return token, ok, err
}

// spendToken goes on behind a token that paid, or was spent already. A crash before it costs one refusal.
func (m *Messenger) spendToken(acct [32]byte, token store.TokenRun) error {
	return m.store.Update(func(tx *store.Tx) error {
		row, err := tx.Granted(acct)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		for i := range row.Runs {
			if r := &row.Runs[i]; r.Seed == token.Seed {
				r.Next = max(r.Next, token.Next+1)
			}
		}
		row.Runs = slices.DeleteFunc(row.Runs, func(r store.TokenRun) bool { return r.Next >= r.End })
		return tx.PutGranted(acct, row)
	})
}

// depositTimeout bounds one deposit.
const depositTimeout = 30 * time.Second

// leave seals entries for one mailbox and leaves them there.
func (m *Messenger) leave(ctx context.Context, boxes Mailboxes, card identity.Card, box identity.Box, token [16]byte, pack []store.Outgoing) (store.Custody, error) {
	items := make([][]byte, len(pack))
	for i, out := range pack {
		items[i] = out.Item
	}
	env, err := session.SealEnvelope(card.Core.Seal, items)
	if err != nil {
		return store.Custody{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, depositTimeout)
	defer cancel()
	receipt, err := boxes.Deposit(ctx, box.Addr, wire.Deposit{Box: box.ID, Token: token, Envelope: env})
	if err != nil {
		return store.Custody{}, err
	}
	return store.Custody{Box: box.ID, Hash: sha256.Sum256(env), Until: time.Unix(receipt.HeldUntil, 0), At: m.clock.Now()}, nil
}

// kept notes mailboxes' promises on each entry that still waits. What only acknowledges needs no more than one.
func (m *Messenger) kept(acct [32]byte, card identity.Card, list []promise) error {
	return m.store.Update(func(tx *store.Tx) error {
		waiting := map[uint64]*store.Outgoing{}
		for _, p := range list {
			for _, sent := range p.rows {
				out := waiting[sent.Order]
				if out == nil {
					row, err := tx.Outgoing(acct, sent.Order)
					if errors.Is(err, store.ErrNotFound) {
						continue // delivered meanwhile
					}
					if err != nil {
						return err
					}
					if row.Session != sent.Session || row.Chain != sent.Chain || row.N != sent.N {
						continue // encrypted anew meanwhile
					}
					out = &row
					waiting[sent.Order] = out
				}
				out.Custody = append(slices.DeleteFunc(out.Custody, func(c store.Custody) bool { return c.Box == p.custody.Box }), p.custody)
			}
		}
		for _, order := range slices.Sorted(maps.Keys(waiting)) {
			if err := m.noteCustody(tx, waiting[order], card); err != nil {
				return err
			}
		}
		return nil
	})
}

func (m *Messenger) noteCustody(tx *store.Tx, out *store.Outgoing, card identity.Card) error {
	if out.AcksOnly {
		return tx.DeleteOutgoing(out.Account, out.Order)
	}
	if err := tx.PutOutgoing(out); err != nil || out.Control {
		return err
	}
	return m.markHeld(tx, *out, card)
}

// markHeld moves a message to held, or tells that more mailboxes keep it now.
func (m *Messenger) markHeld(tx *store.Tx, out store.Outgoing, card identity.Card) error {
	held := store.Holding{Of: len(card.Core.Boxes)}
	for _, c := range out.Custody {
		if !slices.ContainsFunc(card.Core.Boxes, func(b identity.Box) bool { return b.ID == c.Box }) {
			continue
		}
		held.By++
		if held.Until.IsZero() || c.Until.Before(held.Until) {
			held.Until = c.Until
		}
	}
	before, was, err := tx.State(out.Talk, out.Row)
	if err != nil || !forward(before, StateHeld) && (before != StateHeld || was == held) {
		return err
	}
	return m.setState(tx, out, StateHeld, "", held)
}
