package mailbox

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"

	"github.com/dgraph-io/badger/v4"

	"sotto/wire"
)

// An envelope's way in:
//
//  1. its size is one of three, its hash is taken, what the box and the token say is read: whatever is refused is refused here, after the
//     same work, with one error;
//  2. it joins the line of its address prefix, unless too much waits already;
//  3. the loop decides again, now alone: the token is whole, the box, its part of the ceiling and the prefix have room;
//  4. envelope, index, token, box and totals become durable in one commit; then the caller has its answer.
//
// The same envelope with the same token has the same answer ever after.

// What passes in seconds; a part that is full does not.
var (
	errBusy     = fmt.Errorf("mailbox: too many deposits wait: %w", wire.ErrOverloaded)
	errSlowDisk = fmt.Errorf("mailbox: deposit: the disk is slow: %w", wire.ErrOverloaded)
)

// errDeposit is the one answer to whoever may not deposit: no such box, no such token, no room (PROTOCOL 17.4).
var errDeposit = fmt.Errorf("mailbox: deposit: %w", wire.ErrRefused)

// arrival is a deposit on its way in.
type arrival struct {
	box       wire.BoxID
	spent     [16]byte // hash of the token
	stranger  bool
	notBefore int64
	envelope  []byte
	hash      [32]byte
	class     uint8
	from      netip.Prefix
	// the answer
	arrived, until int64
}

// Deposit spends a token on an envelope and returns when both are durable: the hour of arrival and the end of the promise. It fails with
// wire.ErrRefused, wire.ErrOverloaded or wire.ErrTooLarge.
func (q *Queue) Deposit(ctx context.Context, d wire.Deposit, from netip.Prefix) (arrived, heldUntil int64, err error) {
	return q.take(ctx, &arrival{box: d.Box, spent: wire.PoolHash(d.Token), notBefore: d.NotBefore, envelope: d.Envelope, from: from})
}

// DepositStranger keeps an envelope without a token in a box that is open to strangers. Its work was judged before.
func (q *Queue) DepositStranger(ctx context.Context, box wire.BoxID, envelope []byte, from netip.Prefix) (arrived, heldUntil int64, err error) {
	return q.take(ctx, &arrival{box: box, stranger: true, envelope: envelope, from: from})
}

func (q *Queue) take(ctx context.Context, a *arrival) (arrived, heldUntil int64, err error) {
	var ok bool
	if a.class, ok = classOf(len(a.envelope)); !ok || a.stranger && len(a.envelope) != wire.StrangerEnvelope {
		return 0, 0, q.refuse("size", fmt.Errorf("mailbox: envelope of %d bytes: %w", len(a.envelope), wire.ErrTooLarge))
	}
	if a.stranger {
		a.class |= classStranger
	}
	a.hash = sha256.Sum256(a.envelope)
	known, err := q.look(a)
	if err != nil || known {
		return a.arrived, a.until, err
	}
	o := &op{bytes: len(a.envelope) + opBytes, rows: opRows, grows: true, from: a.from, do: func(b *batch) error { return q.keep(b, a) }}
	if err := q.inbox.put(o, q.limits.Pending); err != nil {
		if errors.Is(err, wire.ErrOverloaded) {
			return 0, 0, q.refuse("busy", err)
		}
		return 0, 0, err
	}
	if err := o.wait(ctx); err != nil {
		return 0, 0, err
	}
	return a.arrived, a.until, nil
}

// look decides what can be decided without the loop; known says that the answer is in a already.
func (q *Queue) look(a *arrival) (known bool, err error) {
	q.mu.Lock()
	if err := q.enter(); err != nil {
		q.mu.Unlock()
		return false, err
	}
	defer q.readers.Done()
	q.mu.Unlock()
	txn := q.db.NewTransaction(false)
	defer txn.Discard()
	token, there, err := a.token(txn)
	if err != nil {
		return false, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.judge(a, token, there)
}

// token reads what the token is; a stranger's needs none.
func (a *arrival) token(txn *badger.Txn) (row tokenRow, there bool, err error) {
	if a.stranger {
		return row, false, nil
	}
	v, err := getRow(txn, tokenKey(a.box, a.spent))
	if err != nil || v == nil {
		return row, false, err
	}
	if row, err = parseToken(v); err != nil {
		return row, false, fmt.Errorf("mailbox: deposit: %w", err)
	}
	return row, true, nil
}

// judge says whether an arrival may be kept, or was before; it is called with mu held.
func (q *Queue) judge(a *arrival, token tokenRow, there bool) (known bool, err error) {
	refuse := func(why string, err error) (bool, error) {
		q.figures.refused[why]++
		return false, err
	}
	now := q.now().Unix()
	b := q.boxes[a.box]
	if b != nil && !a.stranger && there && token.Spent {
		if token.Hash != a.hash {
			return refuse("token spent", errDeposit)
		}
		a.arrived, a.until = int64(token.Arrived)*3600, int64(token.Day)*daySeconds
		return true, nil
	}
	a.arrived, a.until = now/3600*3600, wire.HeldUntil(now, q.limits.KeepDays)
	switch {
	case q.state.Refusing || q.state.DrainUntil > 0:
		return refuse("not taking", fmt.Errorf("mailbox: deposit: nothing is taken now: %w", wire.ErrOverloaded))
	case b == nil:
		return refuse("no box", errDeposit)
	case b.row.Flags&flagBlocked != 0 || q.blockedFrom(a.from):
		return refuse("blocked", errDeposit)
	case a.stranger && (b.row.Flags&flagStrangers == 0 || b.strangers >= wire.MaxStrangers):
		return refuse("strangers", errDeposit)
	case !a.stranger && !there:
		return refuse("no token", errDeposit)
	case a.notBefore > a.until-daySeconds:
		return refuse("not before", errDeposit)
	case a.until/daySeconds <= int64(q.state.Dropped) || a.until/daySeconds == int64(q.state.Dropping) || a.until/daySeconds > 0xffff:
		return refuse("clock", fmt.Errorf("mailbox: deposit: the clock is wrong: %w", wire.ErrLater))
	}
	size := int64(len(a.envelope))
	p := b.part()
	switch {
	case b.row.Waiting >= b.row.Count || uint64(b.used()+size) > b.row.Bytes:
		return refuse("box full", errDeposit)
	case q.perPart[p].bytes+size > q.limits.part(p):
		return refuse("part full", fmt.Errorf("mailbox: deposit: the %v part is full: %w", p, wire.ErrOverloaded))
	case p == partOpen && a.from.IsValid() && q.senders.bytes(a.from)+size > q.limits.share():
		return refuse("prefix full", fmt.Errorf("mailbox: deposit: too much from one address prefix: %w", wire.ErrOverloaded))
	case q.limits.Slow > 0 && q.figures.slow > q.limits.Slow && (a.stranger || p == partOpen && q.figures.slow > 2*q.limits.Slow):
		return refuse("slow", errSlowDisk)
	}
	return false, nil
}

// keep is what the loop does with an arrival.
func (q *Queue) keep(b *batch, a *arrival) error {
	token, there, err := a.token(b.txn)
	if err != nil {
		return err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	known, err := q.judge(a, token, there)
	if err != nil || known {
		return err
	}
	box := q.boxes[a.box]
	d := q.dayOf(b, uint16(a.until/daySeconds))
	at := q.openLot(b, d)
	l := q.lots[at]
	size := int64(len(a.envelope))
	seq := box.row.Next
	row := indexRow{Class: a.class, Lot: l.number, NotBefore: uint32(max(a.notBefore, 0)), Arrived: uint32(a.arrived / 3600), Hash: a.hash}
	if !a.stranger {
		row.Spent = a.spent
		b.set(tokenKey(a.box, a.spent), tokenRow{Spent: true, Hash: a.hash, Arrived: row.Arrived, Day: d.number}.marshal())
		b.set(spentKey(d.number, a.box, a.spent), nil)
		box.row.Unspent--
		box.row.Spent++
	} else {
		box.strangers++
	}
	b.set(envelopeKey(d.number, l.number, a.box, seq), a.envelope)
	b.set(indexKey(d.number, a.box, seq), row.marshal())
	e := entry{seq: seq, notBefore: row.NotBefore, hash: be.Uint32(a.hash[:]), lot: at, class: a.class}
	p := box.part()
	if p == partOpen {
		e.sender = q.senders.add(a.from, size)
	}
	box.row.Next++
	box.row.Waiting++
	box.row.Stored += uint64(size)
	q.perPart[p].bytes += size
	q.state.Waiting++
	q.state.Stored += uint64(size)
	d.waiting++
	d.bytes += size
	l.taken += size
	l.live += size
	b.boxes[box], b.lots[l] = true, true
	b.mail = append(b.mail, newMail{box, e})
	b.then = append(b.then, func() { q.figures.accepted++ })
	return nil
}

// dayOf finds or begins the day; it is called with mu held, as openLot is.
func (q *Queue) dayOf(b *batch, number uint16) *day {
	d := q.days[number]
	if d == nil {
		d = &day{number: number, row: dayRow{Wall: q.now().Unix(), Served: q.served()}}
		q.days[number] = d
		b.set(dayPrefix(rowDay, number), d.row.marshal())
	}
	return d
}

// openLot is the lot of a day that takes envelopes now.
func (q *Queue) openLot(b *batch, d *day) uint16 {
	if d.open != 0 && (q.lots[d.open].taken < q.limits.LotBytes || d.next == 0xffff) {
		return d.open
	}
	l := &lot{day: d.number, number: d.next}
	at := uint16(len(q.lots))
	switch {
	case len(q.freeLots) > 0:
		at, q.freeLots = q.freeLots[len(q.freeLots)-1], q.freeLots[:len(q.freeLots)-1]
		q.lots[at] = l
	case len(q.lots) >= 0xffff && d.open != 0:
		return d.open // no number left: this one grows
	default:
		q.lots = append(q.lots, l)
	}
	if was := d.open; was != 0 && q.lots[was].live == 0 {
		q.garbage = append(q.garbage, was)
	}
	d.open = at
	d.next++
	b.lots[l] = true
	return at
}
