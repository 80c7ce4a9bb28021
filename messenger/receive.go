package messenger

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"sotto/identity"
	"sotto/session"
	"sotto/store"
	"sotto/wire"
)

// A message on its way in. Two doors, one room:
//  1. Offer takes an item from the direct stream, Envelope the items of a sealed envelope from a knock;
//  2. an item that was answered before gets the same answer again, because its answer may have been lost;
//  3. a session opens it, which proves the sender, never the door it came by; an initial header makes a session;
//  4. apply.go gives it meaning;
//  5. ratchet, row, acknowledgement and event are one synced transaction, and only then does the door answer.

// arrival is what an item came to.
type arrival struct {
	code  wire.Code
	ack   wire.Ack
	from  identity.AccountID // zero if no session opened it just now
	quiet bool               // only acknowledges: needs no acknowledgement where none comes by itself
}

// errRefused wraps the reasons for which an item will never be taken; its writes are dropped.
var errRefused = errors.New("refused")

// Offer takes one item from the peer with that inner key. It queues the item at once, in the caller's order; the
// returned function blocks until the item is on disk or refused, and must be called.
func (m *Messenger) Offer(ctx context.Context, from [32]byte, item []byte) func() wire.Answer {
	m.mu.Lock()
	claims := m.inner[from]
	m.mu.Unlock()
	if len(claims) == 0 { // its key changed, or it was shut out, while the item was on its way: not the item's fault
		return func() wire.Answer { return wire.Answer{Code: wire.CodeLater} }
	}
	var got arrival
	pending := m.store.Submit(func(tx *store.Tx) (err error) {
		got, err = m.Receive(tx, claims, item)
		return err
	})
	return func() wire.Answer {
		code := m.answer(pending.Wait(), &got, [32]byte{})
		return wire.Answer{Code: code, Ack: got.ack}
	}
}

// Envelope takes a sealed envelope that was knocked in, perhaps under an invite of ours. One that no key opens is asked for
// later: somebody who was away for long has an old card of ours, and learns the new one by another way.
func (m *Messenger) Envelope(ctx context.Context, invite [32]byte, envelope []byte) wire.KnockAnswer {
	items, err := m.openEnvelope(envelope)
	if err != nil {
		m.counters.unopened.Add(1)
		if errors.Is(err, session.ErrBad) || errors.Is(err, session.ErrUnsupported) || errors.Is(err, session.ErrTooLarge) {
			return wire.KnockAnswer{Code: wire.CodeRefused}
		}
		return wire.KnockAnswer{Code: wire.CodeLater} // no key, or the store is just closing
	}
	answer := wire.KnockAnswer{}
	for i, item := range items {
		var got arrival
		code := m.answer(m.update(ctx, func(tx *store.Tx) (err error) {
			got, err = m.Receive(tx, nil, item)
			return err
		}), &got, invite)
		answer.Acks = append(answer.Acks, got.ack)
		if code != wire.CodeOK && i == 0 {
			return wire.KnockAnswer{Code: code}
		}
	}
	return answer
}

// openEnvelope tries the live seal keys; which one was used is not on the wire.
func (m *Messenger) openEnvelope(envelope []byte) ([][]byte, error) {
	var keys []*identity.SealSecret
	err := m.store.View(func(tx *store.Tx) error {
		rows, err := tx.ListSecrets(sealKeys)
		for _, row := range rows {
			key, err := identity.ParseSealSecret(row.Value)
			if err != nil {
				return err
			}
			keys = append(keys, key)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	items, err := session.OpenEnvelope(keys, envelope)
	if err == nil && len(items) > wire.MaxAcks {
		err = fmt.Errorf("envelope of %d items, at most %d: %w", len(items), wire.MaxAcks, session.ErrTooLarge)
	}
	return items, err
}

// answer turns what became of an item's transaction into the code for its sender, and counts.
func (m *Messenger) answer(err error, got *arrival, invite [32]byte) wire.Code {
	switch {
	case err == nil:
		m.counters.received.Add(1)
		return got.code
	case errors.Is(err, errRefused):
		m.counters.refused.Add(1)
		if reused := reusedError(0); errors.As(err, &reused) {
			m.noteReuse(uint32(reused), invite)
		}
		if two := (*equivocation)(nil); errors.As(err, &two) {
			m.noteEquivocation(two.account)
		}
		m.log.Debug("item refused", "err", err)
		*got = arrival{}
		return wire.CodeRefused
	case errors.Is(err, wire.ErrLost):
		m.counters.unopened.Add(1)
		*got = arrival{}
		return wire.CodeLost
	default:
		m.counters.deferred.Add(1)
		m.log.Warn("item not taken now", "err", err)
		*got = arrival{}
		return wire.CodeLater
	}
}

// Receive takes one item inside a transaction; all arrivals enter here. From is whose door it came by, if the door knows;
// that is no proof of anything.
func (m *Messenger) Receive(tx *store.Tx, from []identity.AccountID, item []byte) (got arrival, err error) {
	defer func() { // a defect on hostile bytes must not become a crash at each redelivery
		if r := recover(); r != nil {
			m.log.Error("item made the program stumble", "what", fmt.Sprint(r))
			got, err = arrival{}, fmt.Errorf("%w: defect", errRefused)
		}
	}()
	sum := sha256.Sum256(item)
	hash := [16]byte(sum[:16])
	known, again, err := tx.Ack(hash)
	if err != nil {
		return arrival{}, err
	}
	in, err := session.ParseItem(item)
	if err != nil {
		return arrival{}, fmt.Errorf("%w: %w", errRefused, err)
	}
	if again {
		return m.repeat(tx, in, known)
	}
	op, err := m.open(tx, from, in)
	if err != nil {
		return arrival{}, err
	}
	if err := m.keep(tx, op); err != nil {
		return arrival{}, err
	}
	code, err := m.take(tx, op)
	if err != nil {
		return arrival{}, err
	}
	if code != wire.CodeOK {
		return arrival{code: code, from: op.row.Account}, nil
	}
	ack := session.Ack(op.opened.AckKey, item)
	if err := tx.PutAck(hash, ack, m.clock.Now()); err != nil {
		return arrival{}, err
	}
	if op.contact.State == ContactRequested {
		ack = wire.Ack{} // a stranger learns nothing before being accepted
	}
	return arrival{ack: ack, from: op.row.Account, quiet: op.content.AcksOnly()}, nil
}

// repeat answers an item that was answered before. A stranger who was accepted meanwhile now gets the receipts that were
// kept back; all items of a stranger carry the initial header, because none of ours was ever sent.
func (m *Messenger) repeat(tx *store.Tx, in session.Item, ack wire.Ack) (arrival, error) {
	if in.Initial == nil {
		return arrival{ack: ack}, nil
	}
	c, err := tx.Contact([32]byte(in.Initial.Account()))
	if errors.Is(err, store.ErrNotFound) || err == nil && (c.State == ContactRequested || c.State == ContactBlocked) {
		return arrival{}, nil
	}
	return arrival{ack: ack}, err
}

// opening is an item that a session opened.
type opening struct {
	row     store.Session
	session *session.Session
	opened  session.Opened
	contact store.Contact
	content *wire.Content    // nil when what was inside breaks the format
	initial *session.Initial // the header that made the session just now, nil otherwise
}

// open finds the session that opens an item.
func (m *Messenger) open(tx *store.Tx, from []identity.AccountID, in session.Item) (*opening, error) {
	if in.Initial != nil {
		row, err := tx.Session(in.Initial.ID())
		if errors.Is(err, store.ErrNotFound) {
			return m.accept(tx, in)
		}
		if err != nil {
			return nil, err
		}
		return m.decrypt(tx, []store.Session{row}, in)
	}
	if from == nil {
		rows, err := tx.AllSessions()
		if err != nil {
			return nil, err
		}
		return m.decrypt(tx, rows, in)
	}
	for _, acct := range from { // most often it is the session we send on
		if row, err := m.chosenSession(tx, acct); err == nil {
			if op, err := m.decrypt(tx, []store.Session{row}, in); !errors.Is(err, errNoSession) {
				return op, err
			}
		}
	}
	var rows []store.Session
	for _, acct := range from {
		more, err := tx.AccountSessions(acct)
		if err != nil {
			return nil, err
		}
		rows = append(rows, more...)
	}
	return m.decrypt(tx, rows, in)
}

// errNoSession means that no session recognises an item.
var errNoSession = fmt.Errorf("%w: no session recognises it", wire.ErrLost)

// decrypt tries sessions until one recognises the message.
func (m *Messenger) decrypt(tx *store.Tx, rows []store.Session, in session.Item) (*opening, error) {
	for _, row := range rows {
		s, err := session.Unmarshal(row.State)
		if err != nil {
			return nil, fmt.Errorf("session with %s: %w", identity.AccountID(row.Account).Short(), err)
		}
		opened, err := s.Decrypt(in, skippedKeys{tx, row.ID})
		switch {
		case errors.Is(err, session.ErrNotOurs):
			continue
		case session.Passing(err):
			return nil, fmt.Errorf("open an item: %w", err)
		case errors.Is(err, session.ErrDuplicate):
			return nil, fmt.Errorf("%w: its key is used up: %w", wire.ErrLost, err)
		case errors.Is(err, session.ErrBad):
			// Forged, or sealed by a device that went back to an old copy of its state; the latter must begin anew.
			return nil, fmt.Errorf("%w: %w", wire.ErrLost, err)
		case errors.Is(err, session.ErrUnsupported):
			return nil, fmt.Errorf("%w: %w", errRefused, err)
		case err != nil:
			return nil, fmt.Errorf("open an item: %w", err)
		}
		c, err := tx.Contact(row.Account)
		if err != nil {
			return nil, err
		}
		return &opening{row: row, session: s, opened: opened, contact: c, content: m.parse(opened.Payload)}, nil
	}
	return nil, errNoSession
}

func (m *Messenger) parse(payload []byte) *wire.Content {
	c, err := wire.ParseContent(payload)
	if err != nil {
		m.log.Info("content refused", "err", err)
		return nil
	}
	return c
}

// skippedKeys finds keys of messages that were passed over, for session.Decrypt.
type skippedKeys struct {
	tx      *store.Tx
	session [16]byte
}

// Find returns the key stored for a position.
func (k skippedKeys) Find(chain, n uint32) ([32]byte, bool, error) {
	return k.tx.FindSkipped(k.session, chain, n)
}

// keep writes the session after a message was opened, the keys it skipped, and drops those that it says will never be
// used. From here on the stored row is the session; nothing may write op.session again.
func (m *Messenger) keep(tx *store.Tx, op *opening) error {
	if err := keepHeading(tx, op); err != nil {
		return err
	}
	now := m.clock.Now()
	for _, k := range op.opened.Store {
		if err := tx.PutSkipped(op.row.ID, k.Chain, k.N, k.Key, now); err != nil {
			return err
		}
	}
	if used := op.opened.Used; used != nil {
		if err := tx.DeleteSkipped(op.row.ID, used.Chain, used.N); err != nil {
			return err
		}
	}
	if op.content != nil {
		if err := dropVoids(tx, op); err != nil {
			return err
		}
	}
	op.row.LastUsed, op.row.State, op.row.Head = now, op.session.Marshal(), op.session.Head()
	return tx.PutSession(op.row)
}

func dropVoids(tx *store.Tx, op *opening) error {
	for _, v := range op.content.Voids {
		if v.Session != op.row.ID {
			continue // another session's keys expire by themselves
		}
		n, err := tx.DropSkipped(v.Session, v.Chain, v.From, v.To)
		if err != nil {
			return err
		}
		op.session.ForgetSkipped(v.Chain, n)
	}
	return nil
}
