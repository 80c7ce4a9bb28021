package mailbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	"sotto/wire"
)

const (
	daySeconds = 86_400
	// A box goes when it is empty and nobody fetched for so long (PROTOCOL 17.3).
	unfetchedLife = 14 * daySeconds
	fetchedLife   = 120 * daySeconds
)

// Admit says why a box may be made; what speaks for it was checked, but for the voucher.
type Admit struct {
	Vouched bool       // the full quota at once
	Voucher []byte     // spends this one in the same transaction, and gives the full quota; nil: none
	Old     wire.BoxID // the box that this one follows: its standing, no other reason needed; zeros: none
}

// box finds a box for the loop or with mu held.
func (q *Queue) box(id wire.BoxID) (*box, error) {
	b := q.boxes[id]
	if b == nil {
		return nil, fmt.Errorf("mailbox: box: %w", wire.ErrNotFound)
	}
	return b, nil
}

// Register makes a box, or answers with the standing of one that is there. A full part, a used or unknown voucher, and a box that already
// has a successor are wire.ErrRefused.
func (q *Queue) Register(id wire.BoxID, how Admit) (standing wire.Standing, err error) {
	err = q.write(&op{bytes: opBytes, rows: opRows, grows: true, do: func(b *batch) error {
		if old := q.boxes[id]; old != nil {
			q.mu.Lock()
			defer q.mu.Unlock()
			standing = q.standing(old)
			return nil
		}
		return q.makeBox(b, id, how, &standing)
	}})
	return standing, err
}

func (q *Queue) makeBox(b *batch, id wire.BoxID, how Admit, standing *wire.Standing) error {
	if slices.Contains(q.closing, id) {
		return fmt.Errorf("mailbox: register: the box is being closed: %w", wire.ErrLater)
	}
	row := boxRow{Bytes: q.limits.StartBytes, Count: q.limits.StartCount, Created: q.now().Unix(), CreatedServed: q.served(), Next: 1}
	if how.Vouched || how.Voucher != nil {
		row.Flags, row.Bytes, row.Count = flagVouched, q.limits.MaxBytes, q.limits.MaxCount
	}
	var old *box
	if how.Old != (wire.BoxID{}) {
		if old = q.boxes[how.Old]; old == nil {
			return fmt.Errorf("mailbox: register: no old box: %w", wire.ErrRefused)
		}
		if q.boxes[old.row.New] != nil || q.boxes[old.row.Old] != nil { // else one voucher would give boxes without end
			return q.refuse("successor", fmt.Errorf("mailbox: register: the old box has a successor, or follows one that is still there: %w", wire.ErrRefused))
		}
		row.Flags, row.Bytes, row.Count, row.Grown, row.Old = row.Flags|old.row.Flags&flagVouched, old.row.Bytes, old.row.Count, old.row.Grown, how.Old
	}
	made := &box{id: id, row: row}
	p := made.part()
	most := q.limits.Boxes
	if p == partOpen {
		most = most / 3 * 2
	}
	use := q.perPart[p]
	if q.state.DrainUntil > 0 || use.boxes >= most || use.boxes+q.perPart[1-p].boxes >= q.limits.Boxes || use.bytes > q.limits.part(p)/10*9 {
		return q.refuse("no room for boxes", fmt.Errorf("mailbox: register: no room for %v boxes: %w", p, wire.ErrRefused))
	}
	if how.Voucher != nil {
		good, err := q.goodVoucher(b, how.Voucher)
		if err != nil {
			return err
		}
		if !good {
			return q.refuse("voucher", fmt.Errorf("mailbox: register: voucher: %w", wire.ErrRefused))
		}
		b.delete(voucherKey(how.Voucher))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if old != nil {
		old.row.New = id
		b.boxes[old] = true
	}
	q.boxes[id] = made
	q.state.Boxes++
	q.perPart[p].boxes++
	b.boxes[made] = true
	*standing = q.standing(made)
	return nil
}

// refuse counts a refusal for status.
func (q *Queue) refuse(why string, err error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.figures.refused[why]++
	return err
}

// Standing is what a box may hold, holds, and how long it lives.
func (q *Queue) Standing(id wire.BoxID) (wire.Standing, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b, err := q.box(id)
	if err != nil {
		return wire.Standing{}, err
	}
	return q.standing(b), nil
}

func (q *Queue) standing(b *box) wire.Standing {
	expires, _, _ := b.expires()
	return wire.Standing{
		Bytes: b.row.Bytes, Count: b.row.Count, UsedBytes: uint64(b.used()), UsedCount: b.row.Waiting, Unspent: b.row.Unspent,
		KeepDays: q.limits.KeepDays, Expires: expires,
	}
}

// expires is when an empty box goes, and from when that is counted.
func (b *box) expires() (at, wall, served int64) {
	if b.row.Fetched == 0 {
		return b.row.Created + unfetchedLife, b.row.Created, b.row.CreatedServed
	}
	return b.row.Fetched + fetchedLife, b.row.Fetched, b.row.FetchedServed
}

// Pool adds and drops hashes of tokens: drops first, and only of those that are unspent; adding a known one changes nothing.
func (q *Queue) Pool(id wire.BoxID, add, drop [][16]byte) (unspent uint32, err error) {
	if len(add) > wire.MaxPoolBatch || len(drop) > wire.MaxPoolBatch {
		return 0, fmt.Errorf("mailbox: pool: %d and %d tokens at once: %w", len(add), len(drop), wire.ErrRefused)
	}
	rows := len(add) + len(drop) + opRows
	err = q.write(&op{bytes: rows*70 + opBytes, rows: rows, grows: len(add) > 0, do: func(b *batch) error {
		box, err := q.box(id)
		if err == nil {
			unspent, err = q.changePool(b, box, add, drop)
		}
		return err
	}})
	return unspent, err
}

func (q *Queue) changePool(b *batch, box *box, add, drop [][16]byte) (uint32, error) {
	const (
		absent = iota
		whole
		spent
	)
	was, is := map[[16]byte]int{}, map[[16]byte]int{}
	look := func(hash [16]byte) error {
		if _, known := is[hash]; known {
			return nil
		}
		v, err := b.get(tokenKey(box.id, hash))
		if err != nil {
			return err
		}
		if v != nil {
			row, err := parseToken(v)
			if err != nil {
				return fmt.Errorf("mailbox: pool: %w", err)
			}
			if is[hash] = whole; row.Spent {
				is[hash] = spent
			}
		}
		was[hash] = is[hash]
		return nil
	}
	n := int(box.row.Unspent)
	for _, hash := range drop {
		if err := look(hash); err != nil {
			return 0, err
		}
		if is[hash] == whole {
			is[hash] = absent
			n--
		}
	}
	for _, hash := range add {
		if err := look(hash); err != nil {
			return 0, err
		}
		if is[hash] == absent {
			is[hash] = whole
			n++
		}
	}
	more := int64(n-int(box.row.Unspent)) * tokenBytes
	p := box.part()
	switch {
	case n > wire.MaxPool:
		return 0, q.refuse("pool full", fmt.Errorf("mailbox: pool: %d tokens, at most %d: %w", n, wire.MaxPool, wire.ErrRefused))
	case more > 0 && uint64(box.used()+more) > box.row.Bytes:
		return 0, q.refuse("box full", fmt.Errorf("mailbox: pool: the box is full: %w", wire.ErrRefused))
	case more > 0 && q.perPart[p].bytes+more > q.limits.part(p):
		return 0, q.refuse("part full", fmt.Errorf("mailbox: pool: %v part is full: %w", p, wire.ErrOverloaded))
	}
	for hash, now := range is {
		switch {
		case now == was[hash]:
		case now == whole:
			b.set(tokenKey(box.id, hash), tokenRow{}.marshal())
		default:
			b.delete(tokenKey(box.id, hash))
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if uint32(n) != box.row.Unspent {
		box.row.Unspent = uint32(n)
		q.perPart[p].bytes += more
		b.boxes[box] = true
	}
	return uint32(n), nil
}

// SetStrangers opens or shuts a box to strangers.
func (q *Queue) SetStrangers(id wire.BoxID, open bool) error {
	return q.setFlag(id, flagStrangers, open)
}

// BlockBox makes a box take nothing new, or again; what it holds stays.
func (q *Queue) BlockBox(id wire.BoxID, block bool) error { return q.setFlag(id, flagBlocked, block) }

func (q *Queue) setFlag(id wire.BoxID, flag uint8, on bool) error {
	return q.write(&op{bytes: opBytes, rows: opRows, do: func(b *batch) error {
		box, err := q.box(id)
		if err != nil {
			return err
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		flags := box.row.Flags &^ flag
		if on {
			flags |= flag
		}
		if flags != box.row.Flags {
			box.row.Flags = flags
			b.boxes[box] = true
		}
		return nil
	}})
}

// CloseBox removes a box and all in it.
func (q *Queue) CloseBox(ctx context.Context, id wire.BoxID) error {
	err := q.writeUntil(ctx, &op{bytes: int(q.limits.MaxCount)*50 + opBytes, rows: int(q.limits.MaxCount) + opRows, do: func(b *batch) error {
		box, err := q.box(id)
		if err != nil {
			return err
		}
		q.removeBox(b, box)
		return nil
	}})
	if err != nil {
		return err
	}
	return q.finishClosing(ctx, id)
}

// removeBox takes a box and its mail away; its tokens and records follow, and a start goes on with that.
func (q *Queue) removeBox(b *batch, box *box) {
	b.set(boxKey(rowClosed, box.id), nil)
	b.delete(boxKey(rowBox, box.id))
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, e := range box.wait {
		b.delete(indexKey(q.lots[e.lot].day, box.id, e.seq))
		q.forget(box, e)
	}
	for _, m := range b.mail { // of this very batch
		if m.box == box {
			b.delete(indexKey(q.lots[m.entry.lot].day, box.id, m.entry.seq))
			q.forget(box, m.entry)
		}
	}
	p := box.part()
	q.perPart[p].boxes--
	q.perPart[p].bytes -= box.used()
	box.wait, box.row.Unspent, box.row.Spent, box.row.Records, box.row.RecordBytes = nil, 0, 0, 0, 0
	box.gone = true
	delete(q.boxes, box.id)
	q.state.Boxes--
	q.closing = append(q.closing, box.id)
	box.tell()
}

// forget takes an envelope out of all accounts but the list it is in; it is called with mu held.
func (q *Queue) forget(box *box, e entry) {
	size := int64(e.size())
	box.row.Waiting--
	box.row.Stored -= uint64(size)
	if e.class&classStranger != 0 {
		box.strangers--
	}
	p := box.part()
	q.perPart[p].bytes -= size
	q.state.Waiting--
	q.state.Stored -= uint64(size)
	q.senders.remove(e.sender, size)
	l := q.lots[e.lot]
	if l.live -= size; l.live == 0 && q.days[l.day].open != e.lot {
		q.garbage = append(q.garbage, e.lot)
	}
	d := q.days[l.day]
	d.waiting--
	d.bytes -= size
}

// finishClosing removes the tokens and records of a closed box, some in each transaction.
func (q *Queue) finishClosing(ctx context.Context, id wire.BoxID) error {
	const some = 4000
	for {
		done := false
		err := q.writeUntil(ctx, &op{bytes: some*140 + opBytes, rows: 3*some + opRows, do: func(b *batch) error {
			var err error
			done, err = q.removeLeft(b, id, some)
			return err
		}})
		if err != nil || done {
			return err
		}
	}
}

func (q *Queue) removeLeft(b *batch, id wire.BoxID, some int) (done bool, err error) {
	tokens, err := keysUnder(q.db.DB, boxKey(rowToken, id), some)
	if err != nil {
		return false, err
	}
	names, err := keysUnder(q.db.DB, boxKey(rowOwns, id), wire.MaxRepublish)
	if err != nil {
		return false, err
	}
	due := map[[32]byte]int64{}
	for _, k := range names {
		name := [32]byte(k[33:])
		v, err := b.get(pairKey(rowRecord, name, id))
		if err != nil {
			return false, err
		}
		if row, err := parseRecord(v); err == nil {
			due[name] = row.Due
		}
	}
	for _, k := range tokens {
		b.delete(k)
	}
	for _, k := range names {
		name := [32]byte(k[33:])
		b.delete(k)
		b.delete(pairKey(rowRecord, name, id))
		b.delete(dueKey(due[name], name, id))
	}
	if len(tokens) == some {
		return false, nil
	}
	b.delete(boxKey(rowClosed, id))
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closing = slices.DeleteFunc(q.closing, func(c wire.BoxID) bool { return c == id })
	return true, nil
}

// keysUnder lists up to most keys with a prefix.
func keysUnder(db *badger.DB, prefix []byte, most int) (keys [][]byte, err error) {
	err = db.View(func(txn *badger.Txn) error {
		opt := badger.DefaultIteratorOptions
		opt.Prefix, opt.PrefetchValues = prefix, false
		it := txn.NewIterator(opt)
		defer it.Close()
		for it.Rewind(); it.Valid() && len(keys) < most; it.Next() {
			keys = append(keys, it.Item().KeyCopy(nil))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("mailbox: list %c rows: %w", prefix[0], err)
	}
	return keys, nil
}

func voucherKey(voucher []byte) []byte {
	hash := sha256.Sum256(append([]byte("voucher"), voucher...))
	return append([]byte{rowVoucher}, hash[:]...)
}

func (q *Queue) goodVoucher(b *batch, voucher []byte) (bool, error) {
	v, err := b.get(voucherKey(voucher))
	if err != nil || len(v) != 8 {
		return false, err
	}
	until := int64(be.Uint64(v))
	return until == 0 || q.now().Unix() < until, nil
}

// AddVoucher honours a voucher once, until a moment; the zero moment is never. What is kept is a hash.
func (q *Queue) AddVoucher(voucher []byte, until time.Time) error {
	if len(voucher) == 0 || len(voucher) > wire.MaxVoucher {
		return fmt.Errorf("mailbox: voucher of %d bytes: %w", len(voucher), wire.ErrTooLarge)
	}
	at := uint64(0)
	if !until.IsZero() {
		at = uint64(until.Unix())
	}
	return q.write(&op{bytes: opBytes, rows: opRows, do: func(b *batch) error {
		b.set(voucherKey(voucher), be.AppendUint64(nil, at))
		return nil
	}})
}

// SpendVoucher takes a voucher that is honoured, without making a box.
func (q *Queue) SpendVoucher(voucher []byte) error {
	return q.write(&op{bytes: opBytes, rows: opRows, do: func(b *batch) error {
		good, err := q.goodVoucher(b, voucher)
		if err != nil {
			return err
		}
		if !good {
			return fmt.Errorf("mailbox: voucher: %w", wire.ErrRefused)
		}
		b.delete(voucherKey(voucher))
		return nil
	}})
}

// Allow puts a hash of a box's key on the list of those that get a box in mode allowlist.
func (q *Queue) Allow(hash [32]byte) error { return q.setAllowed(hash, true) }

// Deny takes it off; a box that is there stays.
func (q *Queue) Deny(hash [32]byte) error { return q.setAllowed(hash, false) }

func (q *Queue) setAllowed(hash [32]byte, allow bool) error {
	return q.write(&op{bytes: opBytes, rows: opRows, do: func(b *batch) error {
		k := append([]byte{rowAllowed}, hash[:]...)
		q.mu.Lock()
		defer q.mu.Unlock()
		if allow {
			b.set(k, nil)
			q.allowed[hash] = true
		} else {
			b.delete(k)
			delete(q.allowed, hash)
		}
		return nil
	}})
}

// Allowed reports whether the hash of a box's key is on the list.
func (q *Queue) Allowed(hash [32]byte) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.allowed[hash]
}

// ListAllowed is the list, in order.
func (q *Queue) ListAllowed() [][32]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := make([][32]byte, 0, len(q.allowed))
	for h := range q.allowed {
		list = append(list, h)
	}
	slices.SortFunc(list, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	return list
}

// BlockPrefix takes no deposits from an address prefix, or again.
func (q *Queue) BlockPrefix(from netip.Prefix, block bool) error {
	from = from.Masked()
	if !from.IsValid() {
		return fmt.Errorf("mailbox: block: not an address prefix: %w", wire.ErrRefused)
	}
	return q.write(&op{bytes: opBytes, rows: opRows, do: func(b *batch) error {
		k := append([]byte{rowBlocked}, from.String()...)
		q.mu.Lock()
		defer q.mu.Unlock()
		if block {
			b.set(k, nil)
			q.blocked[from] = true
		} else {
			b.delete(k)
			delete(q.blocked, from)
		}
		return nil
	}})
}

// blockedFrom reports whether a prefix, or one around it, is blocked; it is called with mu held.
func (q *Queue) blockedFrom(from netip.Prefix) bool {
	for p := range q.blocked {
		if from.IsValid() && p.Overlaps(from) && p.Bits() <= from.Bits() {
			return true
		}
	}
	return false
}

// Drain takes no deposits and no boxes from now on and says so until a moment; the zero moment ends it.
func (q *Queue) Drain(until time.Time) error {
	return q.setState(func(s *stateRow) {
		s.DrainUntil = 0
		if !until.IsZero() {
			s.DrainUntil = min(max(until.Unix(), 1), math.MaxInt64)
		}
	})
}

// RefuseDeposits is the operator's switch for a bad day: nothing new is kept, owners are served.
func (q *Queue) RefuseDeposits(refuse bool) error {
	return q.setState(func(s *stateRow) { s.Refusing = refuse })
}

func (q *Queue) setState(change func(s *stateRow)) error {
	return q.write(&op{bytes: opBytes, rows: opRows, do: func(b *batch) error {
		q.mu.Lock()
		defer q.mu.Unlock()
		change(&q.state)
		b.wrote = true
		return nil
	}})
}
