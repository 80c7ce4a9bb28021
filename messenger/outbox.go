package messenger

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/identity"
	"sotto/store"
)

// outbox decides when each recipient's queue is worked on. The queue itself is in the store; here is only who was woken.
// There is one worker per recipient, so that one's order holds and one slow recipient never holds up another.
type outbox struct {
	mu     sync.Mutex // guards woken
	woken  map[identity.AccountID]bool
	signal chan struct{} // holds a token while somebody is woken
}

func newOutbox() *outbox {
	return &outbox{woken: map[identity.AccountID]bool{}, signal: make(chan struct{}, 1)}
}

// kick wakes a recipient's worker. Life means that the recipient showed itself, which ends any pause.
func (o *outbox) kick(acct identity.AccountID, life bool) {
	o.mu.Lock()
	o.woken[acct] = o.woken[acct] || life
	o.mu.Unlock()
	select {
	case o.signal <- struct{}{}:
	default:
	}
}

// kick has somebody's queue worked on, by the direct way and by mailboxes.
func (m *Messenger) kick(acct identity.AccountID) {
	m.outbox.kick(acct, false)
	m.holdSoon(acct)
}

// holdSoon has somebody's queue looked at by the mailboxes' side.
func (m *Messenger) holdSoon(acct identity.AccountID) {
	m.holder.kick(acct, m.clock.Now(), m.limits.Hedge)
}

// take returns who was woken since the last call.
func (o *outbox) take() map[identity.AccountID]bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	woken := o.woken
	o.woken = map[identity.AccountID]bool{}
	return woken
}

// Up takes note that the peer with that inner key is connected: what waits for it can go now.
func (m *Messenger) Up(inner [32]byte) {
	m.mu.Lock()
	claims := m.inner[inner]
	m.mu.Unlock()
	for _, acct := range claims {
		m.holder.setAway(acct, false, m.clock.Now())
		m.outbox.kick(acct, true)
	}
}

// runOutbox starts a worker for each recipient with something waiting and passes wakes on to it.
func (m *Messenger) runOutbox(ctx context.Context, net Network) error {
	var waiting [][32]byte
	err := m.store.View(func(tx *store.Tx) (err error) {
		waiting, err = tx.OutgoingAccounts()
		return err
	})
	if err != nil {
		return err
	}
	for _, acct := range waiting {
		m.kick(acct)
	}
	g, ctx := errgroup.WithContext(ctx)
	workers := map[identity.AccountID]chan bool{}
	done := make(chan identity.AccountID)
	start := func(acct identity.AccountID) {
		wake := make(chan bool, 1)
		workers[acct] = wake
		g.Go(func() error {
			err := m.work(ctx, net, acct, wake)
			select {
			case done <- acct:
			case <-ctx.Done():
			}
			return err
		})
	}
	for {
		select {
		case <-m.outbox.signal:
			for acct, life := range m.outbox.take() {
				if wake, ok := workers[acct]; ok {
					push(wake, life)
				} else {
					start(acct)
				}
			}
		case acct := <-done:
			wake := workers[acct]
			delete(workers, acct)
			if len(wake) > 0 { // woken between its last look and its end
				start(acct)
			}
		case <-ctx.Done():
			return g.Wait()
		}
	}
}

// push leaves a wake; of several, one with life wins.
func push(wake chan bool, life bool) {
	select {
	case wake <- life:
	case earlier := <-wake:
		wake <- life || earlier
	}
}

// work empties one recipient's queue and pauses between tries that fail: RetryMin, doubled up to RetryMax, with jitter.
func (m *Messenger) work(ctx context.Context, net Network, acct identity.AccountID, wake <-chan bool) error {
	pause := m.limits.RetryMin
	for ctx.Err() == nil {
		batch, waiting, err := m.ready(acct)
		if errors.Is(err, store.ErrFull) { // nothing can be noted now; it goes on when there is room
			waiting, err = true, nil
		}
		if err != nil || len(batch) == 0 && !waiting {
			return err
		}
		if len(batch) == 0 { // nothing can be sealed yet, but what expires must be told
			if _, err := m.rest(ctx, m.limits.RetryMax, wake); err != nil {
				return nil
			}
			continue
		}
		res := m.deliver(ctx, net, acct, batch)
		if res.err != nil && !errors.Is(res.err, store.ErrFull) {
			return res.err
		}
		if res.progress {
			pause = m.limits.RetryMin
		}
		m.holder.setAway(acct, !res.progress && !res.complete, m.clock.Now())
		if res.complete {
			continue
		}
		most := m.limits.RetryMax
		if first := batch[0]; first.Hello && m.clock.Now().Sub(first.Created) < freshHello {
			most = min(most, helloPause)
		}
		pause = min(pause, most)
		life, err := m.rest(ctx, max(jitter(pause), res.after), wake)
		if err != nil {
			return nil
		}
		pause = min(2*pause, most)
		if life {
			pause = m.limits.RetryMin
		}
	}
	return nil
}

// A fresh hello pauses no longer than helloPause: whoever was just invited waits for the answer, and an inviter who comes back cannot
// know of it, so nothing but the next try finds them.
const (
	freshHello = 15 * time.Minute
	helloPause = 10 * time.Second
)

// rest waits out a pause. A sign of life ends it at once; a new message ends it after RetryMin, so that someone who
// types to an absent friend tries now and then, not with every line.
func (m *Messenger) rest(ctx context.Context, pause time.Duration, wake <-chan bool) (life bool, err error) {
	begun := m.clock.Now()
	for {
		waited, cancel := context.WithCancel(ctx)
		over := make(chan error, 1)
		left := pause - m.clock.Now().Sub(begun)
		go func() { over <- m.clock.Wait(waited, left) }()
		select {
		case life := <-wake:
			cancel()
			<-over
			if life {
				return true, ctx.Err()
			}
			pause = min(pause, m.limits.RetryMin)
		case err := <-over:
			cancel()
			return false, err
		}
		if m.clock.Now().Sub(begun) >= pause {
			return false, ctx.Err()
		}
	}
}

// jitter spreads retries by a fifth either way.
func jitter(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1)
}

// ready returns the next entries for a recipient in their order: expired ones are told and gone, unsealed ones sealed.
// Entries that cannot be sealed yet are left out; waiting says that there are some.
func (m *Messenger) ready(acct identity.AccountID) (batch []store.Outgoing, waiting bool, err error) {
	tidy := false
	now := m.clock.Now()
	err = m.store.View(func(tx *store.Tx) error {
		batch, err = firstWaiting(tx, acct, m.limits.Window)
		for _, out := range batch {
			tidy = tidy || len(out.Item) == 0 || m.expired(out, now)
		}
		return err
	})
	if err != nil || !tidy {
		return batch, false, err
	}
	for again := true; again && err == nil; {
		err = m.store.Update(func(tx *store.Tx) (err error) {
			batch, waiting, again, err = m.tidy(tx, acct, now)
			return err
		})
	}
	return batch, waiting, err
}

// tidy expires and seals what stands first in a recipient's queue; again says that it all expired and more is behind.
func (m *Messenger) tidy(tx *store.Tx, acct identity.AccountID, now time.Time) (batch []store.Outgoing, waiting, again bool, err error) {
	rows, err := firstWaiting(tx, acct, m.limits.Window)
	if err != nil || len(rows) == 0 {
		return nil, false, false, err
	}
	var live []store.Outgoing
	for _, out := range rows {
		if !m.expired(out, now) {
			live = append(live, out)
		} else if err := m.giveUp(tx, out, StateExpired, "not delivered in time"); err != nil {
			return nil, false, false, err
		}
	}
	if len(live) == 0 {
		return nil, false, true, nil
	}
	c, err := tx.Contact(acct)
	if err != nil {
		return nil, false, false, err
	}
	sealed := 0
	for _, out := range live {
		if len(out.Item) == 0 && sealed >= batchBytes/2 {
			break // the rest in the next turn
		}
		if len(out.Item) == 0 {
			if err := m.sealAnew(tx, &c, &out); err != nil {
				return nil, false, false, err
			}
			sealed += len(out.Item)
		}
		if len(out.Item) > 0 {
			batch = append(batch, out)
		}
	}
	if sealed > 0 {
		err = tx.PutContact(c)
	}
	return batch, len(batch) < len(live), false, err
}

func (m *Messenger) expired(out store.Outgoing, now time.Time) bool {
	return !out.Expires.IsZero() && now.After(out.Expires) && !m.doubtful(now)
}

// sealAnew seals an entry that has no item: it waited for a session, or the receiver said that it cannot open the last.
func (m *Messenger) sealAnew(tx *store.Tx, c *store.Contact, out *store.Outgoing) error {
	raw := out.Payload
	if raw == nil {
		row, err := tx.Message(out.MsgID)
		if errors.Is(err, store.ErrNotFound) { // a damaged disk lost its text: there is nothing to seal
			untell(c)
			return errors.Join(tx.DeleteOutgoing(out.Account, out.Order), tx.PutContact(*c))
		}
		if err != nil {
			return err
		}
		raw = row.Raw
	}
	if err := m.seal(tx, c, out, raw); err != nil || len(out.Item) == 0 {
		return err
	}
	return putOutgoing(tx, out)
}

// giveUp takes an entry out of the outbox and tells why.
func (m *Messenger) giveUp(tx *store.Tx, out store.Outgoing, state, why string) error {
	if err := tx.DeleteOutgoing(out.Account, out.Order); err != nil {
		return err
	}
	c, err := tx.Contact(out.Account)
	if errors.Is(err, store.ErrNotFound) {
		return nil // removed meanwhile, and its messages cancelled
	}
	if err != nil {
		return err
	}
	if len(out.Item) > 0 && (len(out.Custody) == 0 || state == StateCancelled) { // its key will never be asked for: the receiver may drop it
		c.Voids = addVoid(c.Voids, store.Void{Session: out.Session, Chain: out.Chain, From: out.N, To: out.N})
	}
	untell(&c) // news may have been riding on it
	if err := tx.PutContact(c); err != nil {
		return err
	}
	if out.Control {
		return nil
	}
	if err := keepLate(tx, out); err != nil {
		return err
	}
	return m.markWaiting(tx, out, state, why)
}

// keepLate remembers a message that mailboxes may still hand over.
func keepLate(tx *store.Tx, out store.Outgoing) error {
	var until time.Time
	for _, c := range out.Custody {
		if c.Until.After(until) {
			until = c.Until
		}
	}
	if until.IsZero() || len(out.Item) == 0 {
		return nil
	}
	return tx.PutLate(out.Account, out.Ack, store.Late{Message: out.MsgID, Talk: out.Talk, Row: out.Row, Until: until.Add(lateFor)})
}

// lateFor is how long after the last promise ends an acknowledgement may come: the one who took the message may be away again.
const lateFor = 15 * 24 * time.Hour

// maxVoids bounds what one content tells of positions that will never be used. The oldest are given up first: their keys
// expire at the receiver by themselves.
const maxVoids = 256

// addVoid adds a run of positions to those not told yet, as one with its neighbour where it has one.
func addVoid(list []store.Void, v store.Void) []store.Void {
	for i, w := range list {
		if w.Session != v.Session || w.Chain != v.Chain {
			continue
		}
		if v.From <= w.To+1 && w.From <= v.To+1 {
			list[i].From, list[i].To = min(w.From, v.From), max(w.To, v.To)
			return list
		}
	}
	list = append(list, v)
	return list[max(0, len(list)-maxVoids):]
}

// mark moves a message's state forward and announces it.
func (m *Messenger) mark(tx *store.Tx, id [16]byte, state, why string) error {
	row, err := tx.Message(id)
	if err != nil {
		return err
	}
	if !forward(row.State, state) {
		return nil
	}
	return m.setState(tx, store.Outgoing{MsgID: id, Talk: row.Conv, Row: row.Seq}, state, why, store.Holding{})
}

// markWaiting is mark for a message that waits: all waiting ones were queued when their rows were written.
func (m *Messenger) markWaiting(tx *store.Tx, out store.Outgoing, state, why string) error {
	before, _, err := tx.State(out.Talk, out.Row)
	if err != nil || !forward(before, state) {
		return err
	}
	return m.setState(tx, out, state, why, store.Holding{})
}

func (m *Messenger) setState(tx *store.Tx, out store.Outgoing, state, why string, held store.Holding) error {
	if err := tx.SetState(out.Talk, out.Row, state, why, held, m.clock.Now()); err != nil {
		return err
	}
	_, err := m.announce(tx, EventReceipt, event{Message: out.MsgID, State: state})
	return err
}

// forward reports whether a state may follow another (reliability invariant I9): late delivery turns an expired or
// failed mark around, nothing else goes back.
func forward(from, to string) bool { return stateRank(to) > stateRank(from) }

func stateRank(state string) int {
	switch state {
	case StateHeld:
		return 1
	case StateExpired, StateFailed, StateCancelled:
		return 2
	case StateDelivered:
		return 3
	case StateRead:
		return 4
	}
	return 0
}
