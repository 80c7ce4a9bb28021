package messenger

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"strings"
	"time"

	"sotto/identity"
	"sotto/record"
	"sotto/session"
	"sotto/store"
	"sotto/wire"
)

// How long one step of a delivery may take; the network has shorter limits of its own inside.
const (
	touchTimeout = 15 * time.Second
	findTimeout  = 10 * time.Second
	knockTimeout = 20 * time.Second
)

// result is what a delivery came to.
type result struct {
	progress bool          // something was settled for good: an answer that settles nothing must not speed up the next try
	complete bool          // nothing of the batch is left to be tried
	after    time.Duration // the receiver asked for this pause
	err      error         // the store failed: nothing can go on
}

// delivery carries one batch to one recipient.
type delivery struct {
	m       *Messenger
	net     Network
	contact store.Contact
	left    []store.Outgoing // not answered yet, in order
	result
}

// deliver is the whole delivery policy: direct; if the device is not where we believe, look where it says it is and try
// once more; then knock at its front door. What is left waits for the next try.
func (m *Messenger) deliver(ctx context.Context, net Network, acct identity.AccountID, batch []store.Outgoing) result {
	d := &delivery{m: m, net: net, left: batch}
	err := m.store.View(func(tx *store.Tx) (err error) {
		d.contact, err = tx.Contact(acct)
		return err
	})
	if errors.Is(err, store.ErrNotFound) {
		return result{complete: true} // removed meanwhile, and its queue with it
	}
	if err != nil {
		return result{err: err}
	}
	reach, err := contactReach(d.contact)
	if err != nil {
		reach = wire.Reach{}
	}
	met := d.contact.State == ContactEstablished
	d.reachOut(ctx, reach, met)
	if d.open() {
		newer, ok := m.locate(ctx, net, d.contact)
		if moved := ok && newer.Seq > reach.Seq; moved {
			reach = newer
			d.reachOut(ctx, reach, met)
		}
	}
	if met && d.open() {
		d.knock(ctx, reach)
	}
	d.complete = len(d.left) == 0
	return d.result
}

// reachOut tries the way that fits: contacts directly; whoever does not know us yet lets nobody in but at the front door.
func (d *delivery) reachOut(ctx context.Context, reach wire.Reach, met bool) {
	if met {
		d.direct(ctx, reach)
	} else {
		d.knock(ctx, reach)
	}
}

// open reports whether something is left that another way might deliver.
func (d *delivery) open() bool { return d.err == nil && len(d.left) > 0 && d.after == 0 }

// direct offers what is left over the inner host's stream.
func (d *delivery) direct(ctx context.Context, reach wire.Reach) {
	if len(reach.Inner) == 0 {
		return
	}
	batch := d.left
	items := make([][]byte, len(batch))
	for i, out := range batch {
		items[i] = out.Item
	}
	answers := make(chan answered, len(batch))
	settled := make(chan struct{})
	go func() { defer close(settled); d.settleAll(answers, batch) }()
	err := d.net.Send(ctx, reach, items, func(i int, a wire.Answer) {
		if i >= 0 && i < len(batch) {
			answers <- answered{i, a}
		}
	})
	close(answers)
	<-settled
	if err != nil && ctx.Err() == nil {
		d.note("dialled, "+reason(err), d.left)
	}
}

// answered is one answer of a batch.
type answered struct {
	i int
	a wire.Answer
}

// settleRows and settleBytes bound what one transaction settles: each answer rewrites its message's row, and the store
// takes about a mebibyte at once.
const (
	settleRows  = 1000
	settleBytes = 256 << 10
)

// settleAll commits answers as they come, as many at once as are there and fit.
func (d *delivery) settleAll(answers <-chan answered, batch []store.Outgoing) {
	gone := make([]bool, len(batch))
	for first := range answers {
		group, size := []answered{first}, len(batch[first.i].Item)
		for more := true; more && len(group) < settleRows && size < settleBytes; {
			select {
			case next, ok := <-answers:
				if more = ok; ok {
					group, size = append(group, next), size+len(batch[next.i].Item)
				}
			default:
				more = false
			}
		}
		if d.err == nil {
			d.err = d.m.store.Update(func(tx *store.Tx) error { return d.settle(tx, group, batch, gone, "directly") })
		}
	}
	if d.err != nil {
		return // nothing was noted: all of it is tried again
	}
	d.left = nil
	for i, out := range batch {
		if !gone[i] {
			d.left = append(d.left, out)
		}
	}
	d.progress = d.progress || len(d.left) < len(batch)
}

// settle applies answers. It must bear being run twice.
func (d *delivery) settle(tx *store.Tx, group []answered, batch []store.Outgoing, gone []bool, how string) error {
	taken := false
	for _, g := range group {
		out := batch[g.i]
		done := true
		var err error
		switch {
		case g.a.Code == wire.CodeOK && subtle.ConstantTimeCompare(out.Ack[:], g.a.Ack[:]) == 1:
			taken = true
			err = d.m.delivered(tx, out, how)
		case g.a.Code == wire.CodeOK:
			d.m.counters.badAcks.Add(1)
			done = false
		case g.a.Code == wire.CodeLost:
			done = false
			err = d.m.lost(tx, out)
		case g.a.Code == wire.CodeLater, g.a.Code == wire.CodeOverloaded, g.a.Code == wire.CodeTooLarge:
			done = false
			d.after = max(d.after, time.Duration(g.a.RetryAfter)*time.Second, d.m.limits.RetryMin)
		default:
			err = d.m.refused(tx, out, g.a.Code)
		}
		if err != nil {
			return err
		}
		gone[g.i] = done
	}
	if taken && strings.HasPrefix(d.contact.Warning, warnAnew) {
		return d.m.opensAgain(tx, d.contact.Account)
	}
	return nil
}

// opensAgain ends the warning of a session begun anew: the other side has opened something of the new one.
func (m *Messenger) opensAgain(tx *store.Tx, acct [32]byte) error {
	c, err := tx.Contact(acct)
	if errors.Is(err, store.ErrNotFound) || err == nil && !strings.HasPrefix(c.Warning, warnAnew) {
		return nil
	}
	if err != nil {
		return err
	}
	c.Warning = ""
	if err := m.putContact(tx, c); err != nil {
		return err
	}
	return m.announceContact(tx, acct)
}

// delivered takes note that the recipient's node holds the message.
func (m *Messenger) delivered(tx *store.Tx, out store.Outgoing, how string) error {
	if err := tx.DeleteOutgoing(out.Account, out.Order); err != nil {
		return err
	}
	if out.Hello {
		if err := m.established(tx, out.Account); err != nil {
			return err
		}
	}
	if out.Control {
		return nil
	}
	return m.markWaiting(tx, out, StateDelivered, how)
}

// lost prepares an entry to be encrypted anew under the same message id: at the same session once, then in a new one,
// which may begin only once in ResetEvery (PROTOCOL 8.9).
func (m *Messenger) lost(tx *store.Tx, out store.Outgoing) error {
	current, err := tx.Outgoing(out.Account, out.Order)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	current.Lost++
	unseal(&current)
	m.counters.lost.Add(1)
	c, err := tx.Contact(out.Account)
	if err != nil {
		return err
	}
	if since := m.clock.Now().Sub(c.Reset); current.Lost > 1 && (since >= m.limits.ResetEvery || since < 0) {
		if err := m.reset(tx, &c, "the other side cannot open our messages"); err != nil {
			return err
		}
	}
	if !current.Control {
		if err := tx.AddTrace(current.MsgID, m.clock.Now(), "encrypted anew", "the other side could not open it"); err != nil {
			return err
		}
	}
	return tx.PutOutgoing(&current)
}

// refused ends an entry that the receiver will never take.
func (m *Messenger) refused(tx *store.Tx, out store.Outgoing, code wire.Code) error {
	if _, err := tx.Outgoing(out.Account, out.Order); errors.Is(err, store.ErrNotFound) {
		return nil // cancelled, or its contact removed, while it was under way
	} else if err != nil {
		return err
	}
	why := "refused by the other side: " + code.String()
	if out.Hello {
		why = "the invite was used already, has expired or was revoked: ask for a new one"
		c, err := tx.Contact(out.Account)
		if err != nil {
			return err
		}
		c.Warning = why
		if err := m.putContact(tx, c); err != nil {
			return err
		}
		if err := m.announceContact(tx, c.Account); err != nil {
			return err
		}
	}
	return m.giveUp(tx, out, StateFailed, why)
}

// knock hands over what is left in sealed envelopes at the front host. It also lets a contact in that does not know our
// new node key yet, and it is the only way while one side has not met the other.
func (d *delivery) knock(ctx context.Context, reach wire.Reach) {
	if len(reach.Front) == 0 {
		return
	}
	card, err := identity.ParseCard(d.contact.Card)
	if err != nil {
		return
	}
	name, err := d.m.inviteName(d.contact)
	if err != nil {
		d.err = err
		return
	}
	for d.open() {
		n, items := envelopeful(d.left)
		if n == 0 {
			d.note(tooLargeToKnock, d.left[:1])
			return
		}
		env, err := session.SealEnvelope(card.Core.Seal, items)
		if err != nil {
			d.err = fmt.Errorf("seal an envelope: %w", err)
			return
		}
		kctx, cancel := context.WithTimeout(ctx, knockTimeout)
		answer, err := d.net.Knock(kctx, reach, name, env)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				d.note("knocked, "+reason(err), d.left)
			}
			return
		}
		d.knocked(answer, n)
	}
}

// knocked settles the first n of what is left with a knock's answer. A code other than OK is about the first item: the
// receiver looked at no other, and one poisoned message must not take its neighbours with it.
func (d *delivery) knocked(answer wire.KnockAnswer, n int) {
	if answer.Code != wire.CodeOK {
		n = 1
	}
	batch, gone := d.left[:n], make([]bool, n)
	group := make([]answered, n)
	for i := range group {
		group[i] = answered{i, wire.Answer{Code: answer.Code, RetryAfter: answer.RetryAfter}}
		if answer.Code == wire.CodeOK && i < len(answer.Acks) {
			group[i].a.Ack = answer.Acks[i]
		}
	}
	d.err = d.m.store.Update(func(tx *store.Tx) error { return d.settle(tx, group, batch, gone, "at the front door") })
	if d.err != nil {
		return
	}
	var left []store.Outgoing
	for i, out := range batch {
		if !gone[i] {
			left = append(left, out)
		}
	}
	d.progress = d.progress || len(left) < n
	if len(left) > 0 && d.after == 0 {
		d.after = d.m.limits.RetryMin
	}
	d.left = append(left, d.left[n:]...)
}

// envelopeful takes as many entries as fit the smallest envelope, which is the only one that front doors take.
func envelopeful(list []store.Outgoing) (n int, items [][]byte) {
	for n < len(list) && n < wire.MaxAcks {
		size, err := session.EnvelopeSize(append(items, list[n].Item))
		if err != nil || size > session.EnvelopeSmall {
			break
		}
		items = append(items, list[n].Item)
		n++
	}
	return n, items
}

// note adds a line to the traces of entries that people can ask about.
func (d *delivery) note(what string, rows []store.Outgoing) {
	if d.err != nil {
		return
	}
	d.err = d.m.store.Update(func(tx *store.Tx) error {
		for _, out := range rows {
			if out.Control {
				continue
			}
			steps, err := tx.Trace(out.MsgID)
			if err != nil {
				return err
			}
			if n := len(steps); n > 0 && steps[n-1].What == what || n >= maxSteps {
				continue // a friend who is away for weeks must not fill the disk
			}
			if err := tx.AddTrace(out.MsgID, d.m.clock.Now(), what, ""); err != nil {
				return err
			}
		}
		return nil
	})
}

// tooLargeToKnock is said of what goes only to those who are connected: a text grows by what its encryption needs, and a front door
// takes no more than the smallest envelope.
const tooLargeToKnock = "not knocked: encrypted, it is larger than a knock; it waits for a direct connection"

// maxSteps bounds a message's trace.
const maxSteps = 100

// reason is a network failure in a person's words.
func reason(err error) string {
	switch {
	case errors.Is(err, wire.ErrUnreachable), errors.Is(err, context.DeadlineExceeded):
		return "no answer"
	case errors.Is(err, wire.ErrOverloaded):
		return "asked to come back later"
	case errors.Is(err, wire.ErrRefused):
		return "not let in"
	case errors.Is(err, wire.ErrNotFound):
		return "nobody there"
	default:
		return "failed"
	}
}

// locate asks the DHT where a contact's device is and keeps what is newer than what we hold.
func (m *Messenger) locate(ctx context.Context, net Network, c store.Contact) (wire.Reach, bool) {
	var secret []byte
	err := m.store.View(func(tx *store.Tx) (err error) {
		secret, err = tx.ContactSecret(c.Account)
		return err
	})
	if err != nil || len(secret) != 32 {
		return wire.Reach{}, false
	}
	reader := record.Reader{A: c.RecordKey, S: record.Secret(secret)}
	today := record.Epoch(reader.S, m.now())
	ctx, cancel := context.WithTimeout(ctx, findTimeout) // in all: a DHT that does not answer holds up the front door
	defer cancel()
	for _, epoch := range []uint64{today, today + 1, today - 1} {
		reach, signed, err := m.findReach(ctx, net, reader, epoch, c)
		if err != nil {
			continue
		}
		err = m.store.Update(func(tx *store.Tx) error {
			fresh, err := tx.Contact(c.Account)
			if err != nil {
				return err
			}
			return m.takeReach(tx, &fresh, signed)
		})
		return reach, err == nil
	}
	return wire.Reach{}, false
}

func (m *Messenger) findReach(ctx context.Context, net Network, reader record.Reader, epoch uint64, c store.Contact) (wire.Reach, []byte, error) {
	name, err := reader.Name(epoch)
	if err != nil {
		return wire.Reach{}, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, findTimeout/2)
	defer cancel()
	value, err := net.Find(ctx, name)
	if err != nil {
		return wire.Reach{}, nil, err
	}
	signed, _, err := reader.Open(epoch, value)
	if err != nil {
		return wire.Reach{}, nil, err
	}
	reach, err := openReach(c, signed)
	return reach, signed, err
}
