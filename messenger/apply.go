package messenger

import (
	"crypto/sha256"
	"errors"
	"reflect"
	"slices"
	"time"

	"sotto/identity"
	"sotto/store"
	"sotto/wire"
)

// take gives an opened content its meaning: first what rides on it, then what it says. The code answers the sender;
// anything but OK still keeps the ratchet's step, because the position is used.
func (m *Messenger) take(tx *store.Tx, op *opening) (wire.Code, error) {
	if op.content == nil || op.content.Device != op.row.Device || numbered(op.content.Kind) != countable(op.content.N) {
		m.counters.malformed.Add(1)
		return wire.CodeRefused, nil
	}
	c := &op.contact
	if c.State == ContactBlocked {
		return wire.CodeRefused, nil
	}
	before := *c
	if now := m.clock.Now(); now.Sub(c.LastSeen).Abs() > seenStep {
		c.LastSeen = now
	}
	if err := m.takeRiders(tx, op); err != nil {
		return 0, err
	}
	if c.State == ContactInvited && op.initial == nil { // their first words under our hello
		c.State, c.Established, c.Warning = ContactEstablished, m.clock.Now(), ""
		if err := endAdds(tx, c.Account); err != nil {
			return 0, err
		}
		if err := m.announceContact(tx, c.Account); err != nil {
			return 0, err
		}
	}
	code := wire.CodeOK
	var err error
	if numbered(op.content.Kind) {
		code, err = m.place(tx, c, op.content)
	}
	if err != nil {
		return 0, err
	}
	if op.initial != nil {
		if err := m.welcome(tx, c); err != nil {
			return 0, err
		}
	}
	if reflect.DeepEqual(before, *c) {
		return code, nil // a contact's row is large: it is not written anew with each message
	}
	return code, m.putContact(tx, *c)
}

// seenStep is how exactly it is remembered when a contact was last seen.
const seenStep = time.Minute

// takeRiders takes over news about the sender and receipts for what we sent. A rider that does not fit is left out:
// the content it came with may be fine.
func (m *Messenger) takeRiders(tx *store.Tx, op *opening) error {
	c, content := &op.contact, op.content
	if len(content.Card) > 0 {
		if err := m.takeCard(tx, c, content.Card); err != nil {
			return err
		}
	}
	if len(content.Reach) > 0 {
		if err := m.takeReach(tx, c, content.Reach); err != nil {
			m.log.Info("reach of a contact refused", "err", err)
		}
	}
	if k := content.RecordKeys; k != nil {
		c.RecordKey = k.Key
		if err := tx.PutContactSecret(c.Account, k.Discovery[:]); err != nil {
			return err
		}
	}
	for _, r := range content.Receipts {
		if r.Device != [16]byte(m.current().device.ID()) {
			continue
		}
		if err := m.takeReceipt(tx, *c, r); err != nil {
			return err
		}
		break // one says it all; each costs a walk over the outbox
	}
	if len(content.TokenGrants) > 0 {
		if err := takeGrants(tx, c.Account, content.TokenGrants); err != nil {
			return err
		}
		tx.AfterCommit(func() { m.holdSoon(c.Account) })
	}
	if len(content.Acks) > 0 {
		if err := m.takeAcks(tx, *c, content.Acks); err != nil {
			return err
		}
	}
	if content.ReadUpTo > 0 {
		return m.takeReadMark(tx, *c, content.ReadUpTo)
	}
	return nil
}

// takeCard replaces a contact's card by a newer one of the same account, and its device list by the card's. When that one
// contradicts the held one, or its device was removed, both stay as they were, and of a contradiction the person is warned.
func (m *Messenger) takeCard(tx *store.Tx, c *store.Contact, raw []byte) error {
	card, err := identity.ParseCard(raw)
	if err != nil || card.Account() != identity.AccountID(c.Account) {
		m.log.Info("card of a contact refused", "err", err)
		return nil
	}
	if held, err := identity.ParseCard(c.Card); err == nil && held.Core.Seq >= card.Core.Seq {
		return nil
	}
	if err := takeList(c, card.Devices, card.Core.Device); err != nil {
		m.log.Info("card of a contact refused", "err", err)
		if two := (*equivocation)(nil); errors.As(err, &two) && warn(c) {
			return m.announceContact(tx, c.Account)
		}
		return nil
	}
	c.Card = slices.Clone(raw)
	tx.AfterCommit(func() { m.holdSoon(c.Account) }) // it may name other mailboxes
	return nil
}

// takeReach replaces a contact's reach by a newer one, and lets its node key in.
func (m *Messenger) takeReach(tx *store.Tx, c *store.Contact, signed []byte) error {
	reach, err := openReach(*c, signed)
	if err != nil || reach.Seq <= c.ReachSeq {
		return err
	}
	c.Reach, c.ReachSeq, c.InnerKey = reach.Marshal(), reach.Seq, reach.InnerKey
	return m.putContact(tx, *c)
}

// takeAcks settles what the other side took out of its mailboxes.
func (m *Messenger) takeAcks(tx *store.Tx, c store.Contact, acks []wire.Ack) error {
	known := map[wire.Ack]bool{}
	for _, a := range acks {
		known[a] = a != wire.Ack{}
	}
	rows, err := tx.Outgoings(c.Account, 0)
	if err != nil {
		return err
	}
	for _, out := range rows {
		if len(out.Item) > 0 && known[out.Ack] {
			delete(known, out.Ack)
			if err := m.delivered(tx, out, byMailbox); err != nil {
				return err
			}
		}
	}
	for a := range known {
		row, ok, err := tx.TakeLate(c.Account, a)
		if err != nil {
			return err
		}
		if !ok {
			continue // acknowledged before
		}
		if err := m.markWaiting(tx, store.Outgoing{MsgID: row.Message, Talk: row.Talk, Row: row.Row}, StateDelivered, byMailbox); err != nil {
			return err
		}
	}
	return nil
}

// byMailbox is how a message came that a mailbox kept.
const byMailbox = "by a mailbox"

// takeReceipt marks what the other side says it holds: everything up to a counter but the holes.
func (m *Messenger) takeReceipt(tx *store.Tx, c store.Contact, r wire.Receipt) error {
	rows, err := tx.Outgoings(c.Account, 0)
	if err != nil {
		return err
	}
	heads := headings{}
	for _, out := range rows {
		if out.Control {
			continue
		}
		if len(r.Lost) > 0 { // only then its bytes matter
			if err := heads.restore(tx, &out); err != nil {
				return err
			}
		}
		row, err := tx.Message(out.MsgID)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		held := row.N <= r.UpTo && !slices.ContainsFunc(r.Holes, func(h [2]uint64) bool { return h[0] <= row.N && row.N <= h[1] })
		sum := sha256.Sum256(out.Item)
		switch {
		case held:
			err = m.delivered(tx, out, "by receipt")
		case slices.Contains(r.Lost, [16]byte(sum[:16])):
			err = m.lost(tx, out)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// takeReadMark marks our delivered messages up to a counter as read.
func (m *Messenger) takeReadMark(tx *store.Tx, c store.Contact, upTo uint64) error {
	rows, err := tx.Messages(c.Conv, store.MessagesQuery{Limit: 1000})
	if err != nil {
		return err
	}
	for _, row := range slices.Backward(rows) {
		if !row.Out || row.N > upTo {
			continue
		}
		if row.State == StateRead {
			return nil
		}
		if row.State == StateDelivered {
			if err := m.mark(tx, row.ID, StateRead, ""); err != nil {
				return err
			}
		}
	}
	return nil
}

// maxIntro is how many messages of a stranger are kept before they are accepted.
const maxIntro = 16

// place puts a numbered content where it belongs: next in its sender's order, into a gap that was declared, or among
// those held until the ones before them come (PROTOCOL 9.4).
func (m *Messenger) place(tx *store.Tx, c *store.Contact, content *wire.Content) (wire.Code, error) {
	if known, err := tx.HasMessage(content.ID); err != nil || known {
		m.counters.duplicates.Add(1)
		return wire.CodeOK, err
	}
	conv, err := m.conversation(tx, *c)
	if err != nil {
		return 0, err
	}
	if c.State == ContactRequested && conv.Count >= maxIntro {
		return wire.CodeLater, wire.ErrLater
	}
	recv := conv.Recv[content.Device]
	row := m.received(*c, content)
	switch {
	case slices.ContainsFunc(recv.Held, func(h store.Held) bool { return h.N == row.N }):
		m.counters.conflicts.Add(1)
		return wire.CodeLater, wire.ErrLater // once the held one is shown, this is an ordinary conflict
	case content.N == recv.N+1:
		if recv.N > 0 && content.Prev != recv.Hash {
			row.Why = "does not follow the message before it"
			m.counters.conflicts.Add(1)
		}
		err = m.showNext(tx, c, &conv, &recv, row, content.Hash())
	case content.N > recv.N+1:
		if len(recv.Held) >= m.limits.MaxHeld {
			return wire.CodeLater, wire.ErrLater
		}
		err = m.hold(tx, &recv, row)
	case slices.ContainsFunc(recv.Holes, func(h store.Hole) bool { return h.From <= content.N && content.N <= h.To }):
		row.Late = true
		if err = m.fillHole(tx, &recv, content.N); err == nil {
			err = m.show(tx, c, &conv, row)
		}
	default: // a second content under a number that is taken: its sender went back to an old copy of its database
		m.counters.conflicts.Add(1)
		row.Why = "its number was used before: the other side lost part of its history"
		row.Order = m.order(conv, recv, row.Order)
		recv.Order = row.Order
		err = m.show(tx, c, &conv, row)
	}
	if err != nil {
		return 0, err
	}
	if conv.Recv == nil {
		conv.Recv = map[[16]byte]store.Received{}
	}
	conv.Recv[content.Device] = recv
	return wire.CodeOK, tx.PutConversation(conv)
}

// received is the row of a content that came in; Order and Event are given when it is shown.
func (m *Messenger) received(c store.Contact, content *wire.Content) store.Message {
	return store.Message{
		ID: content.ID, Conv: c.Conv, Order: content.Clock, From: c.Account, Device: content.Device, N: content.N,
		SentAt: sentAt(content.SentAt), At: m.clock.Now(), Kind: uint32(content.Kind), Raw: content.Raw,
		State: StateDelivered, ReplyTo: content.ReplyTo, Hash: content.Hash(), Prev: content.Prev,
	}
}

// sentAt keeps an author's claim within the years that can be written down.
func sentAt(ms int64) time.Time {
	const last = 253402300799000 // the end of the year 9999
	return time.UnixMilli(min(max(ms, 0), last)).UTC()
}

// showNext shows the next row of a sender and those that waited for it.
func (m *Messenger) showNext(tx *store.Tx, c *store.Contact, conv *store.Conversation, recv *store.Received, row store.Message, hash [32]byte) error {
	row.Order = m.order(*conv, *recv, row.Order)
	if err := m.show(tx, c, conv, row); err != nil {
		return err
	}
	recv.N, recv.Hash, recv.Order = row.N, hash, row.Order
	return m.showHeld(tx, c, conv, recv, false)
}

// order places a row among all: by the sender's hybrid clock, after the sender's row before it, and not far in the
// future whatever the sender's clock says.
func (m *Messenger) order(conv store.Conversation, recv store.Received, clock uint64) uint64 {
	limit := tick(0, m.clock.Now().Add(24*time.Hour))
	if clock > limit || conv.Clock > limit { // theirs is wrong, or ours was: what comes later is shown later all the same
		clock = tick(conv.Clock, m.clock.Now())
	}
	return max(clock, recv.Order+1)
}

// show makes a row visible: an event, an unread count, the conversation's clock.
func (m *Messenger) show(tx *store.Tx, c *store.Contact, conv *store.Conversation, row store.Message) error {
	seq, err := m.announce(tx, EventMessage, event{Message: row.ID})
	if err != nil {
		return err
	}
	row.Event = seq
	if err := tx.PutMessage(&row); err != nil {
		return err
	}
	conv.Clock = max(conv.Clock, row.Order)
	conv.Unread++
	return nil
}
