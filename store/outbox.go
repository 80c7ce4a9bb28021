package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Outgoing is one sealed item that waits until a device acknowledged it, was given up, or the user cancelled.
type Outgoing struct {
	Account   [32]byte  `cbor:"-"` // in the row's name
	Device    [16]byte  `cbor:"2,keyasint"`
	Order     uint64    `cbor:"-"` // in the row's name: rises with every item; 0 lets PutOutgoing give the next one
	MsgID     [16]byte  `cbor:"4,keyasint"`
	Session   [16]byte  `cbor:"5,keyasint"`
	Chain     uint32    `cbor:"6,keyasint,omitempty"`
	N         uint32    `cbor:"7,keyasint,omitempty"`
	Item      []byte    `cbor:"8,keyasint"` // sealed; without its header when Short
	Short     bool      `cbor:"20,keyasint,omitempty"`
	Ack       [16]byte  `cbor:"9,keyasint"`            // the acknowledgement that proves that it was opened
	Control   bool      `cbor:"10,keyasint,omitempty"` // not a message the user wrote
	Created   time.Time `cbor:"11,keyasint,omitzero"`
	Expires   time.Time `cbor:"12,keyasint,omitzero"`
	Next      time.Time `cbor:"13,keyasint,omitzero"`
	Attempts  int       `cbor:"14,keyasint,omitempty"`
	LastError string    `cbor:"15,keyasint,omitempty"`
	Payload   []byte    `cbor:"16,keyasint,omitempty"` // plain content, for encrypting anew after a session reset
	Extra     []byte    `cbor:"17,keyasint,omitempty"` // the messenger's own, opaque here
	Hello     bool      `cbor:"18,keyasint,omitempty"` // introduces us: its receipt makes the contact established
	Lost      int       `cbor:"19,keyasint,omitempty"` // how often the receiver said that it cannot open it
	Talk      [16]byte  `cbor:"21,keyasint,omitzero"`  // with Row: where its message is, so that a receipt need not look for it
	Row       uint64    `cbor:"22,keyasint,omitempty"`
	AcksOnly  bool      `cbor:"23,keyasint,omitempty"` // for nothing but to acknowledge: not acknowledged itself
	Custody   []Custody `cbor:"24,keyasint,omitempty"` // the mailboxes that signed to keep it
}

// Custody is a mailbox's signed promise to keep a sealed copy.
type Custody struct {
	Box   [32]byte  `cbor:"1,keyasint"`
	Hash  [32]byte  `cbor:"2,keyasint"` // of the envelope
	Until time.Time `cbor:"3,keyasint"`
	At    time.Time `cbor:"4,keyasint"` // when it was left there
}

// String keeps the acknowledgement and the item out of logs.
func (o Outgoing) String() string { return hidden }

// GoString keeps the acknowledgement and the item out of logs.
func (o Outgoing) GoString() string { return hidden }

func outgoingKey(account [32]byte, order uint64) []byte {
	return key(tOutgoing, account[:], u64(order))
}

// PutOutgoing writes an item; with Order 0 it is appended behind all others and Order is filled in, else the entry must be there.
func (tx *Tx) PutOutgoing(o *Outgoing) error {
	if o.Order == 0 {
		tx.state.Next++
		o.Order = tx.state.Next
	} else if _, err := tx.getRaw(outgoingKey(o.Account, o.Order)); err != nil { // what was delivered or cancelled stays so
		return fmt.Errorf("store: outbox entry %d: %w", o.Order, err)
	}
	return put(tx, outgoingKey(o.Account, o.Order), *o)
}

// Outgoing returns one item.
func (tx *Tx) Outgoing(account [32]byte, order uint64) (Outgoing, error) {
	k := outgoingKey(account, order)
	plain, err := tx.getRaw(k)
	if err != nil {
		return Outgoing{}, err
	}
	return tx.readOutgoing(k, plain)
}

func (tx *Tx) readOutgoing(k, plain []byte) (Outgoing, error) {
	row := Outgoing{Account: [32]byte(k[1:33]), Order: binary.BigEndian.Uint64(k[33:])}
	if err := decode(plain, &row); err != nil {
		return row, tx.s.damaged(k, err)
	}
	return row, nil
}

// DeleteOutgoing removes an item; one that is gone already is no error.
func (tx *Tx) DeleteOutgoing(account [32]byte, order uint64) error {
	return tx.delete(outgoingKey(account, order))
}

// Outgoings returns the items waiting for an account in their order, at most limit (0 is all).
func (tx *Tx) Outgoings(account [32]byte, limit int) ([]Outgoing, error) {
	return tx.OutgoingsAfter(account, 0, limit)
}

// OutgoingsAfter returns the items with an order above after, at most limit (0 is all).
func (tx *Tx) OutgoingsAfter(account [32]byte, after uint64, limit int) ([]Outgoing, error) {
	var rows []Outgoing
	err := tx.walkOutgoing(account, after, false, func(k, plain []byte) (bool, error) {
		row, err := tx.readOutgoing(k, plain)
		if err != nil {
			return false, err
		}
		rows = append(rows, row)
		return limit <= 0 || len(rows) < limit, nil
	})
	return rows, err
}

// OutgoingBatch returns the first items waiting for an account, at most limit and about so many bytes, but one at least.
func (tx *Tx) OutgoingBatch(account [32]byte, limit, bytes int) ([]Outgoing, error) {
	var rows []Outgoing
	err := tx.walkOutgoing(account, 0, false, func(k, plain []byte) (bool, error) {
		row, err := tx.readOutgoing(k, plain)
		if err != nil {
			return false, err
		}
		rows = append(rows, row)
		bytes -= len(plain)
		return len(rows) < limit && bytes > 0, nil
	})
	return rows, err
}

// outboxHeads remembers, for each account, an order below which nothing waited any more at some commit, and so never will
// again: orders only rise. Without it each look at a queue would walk over the remains of everything that was ever in it.
type outboxHeads struct {
	mu    sync.Mutex
	heads map[[32]byte]outboxHead
}

type outboxHead struct{ order, commit uint64 }

// at returns the head as it may be used by a view of the store at that commit: an older view may still hold what is gone.
func (o *outboxHeads) at(account [32]byte, commit uint64) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	if h := o.heads[account]; h.commit <= commit {
		return h.order
	}
	return 0
}

func (o *outboxHeads) raise(account [32]byte, h outboxHead) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.heads == nil {
		o.heads = map[[32]byte]outboxHead{}
	}
	if h.order > o.heads[account].order {
		o.heads[account] = h
	}
}

// walkOutgoing walks over an account's items above after, and in a view learns where they begin.
func (tx *Tx) walkOutgoing(account [32]byte, after uint64, keysOnly bool, fn func(k, plain []byte) (bool, error)) error {
	now := tx.state
	if tx.own == nil {
		var err error
		if now, err = get[counters](tx, key(tState)); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	head := max(1, tx.s.outbox.at(account, now.Commit))
	from := max(after+1, head)
	first := now.Next
	seen := false
	err := tx.iterate(scan{prefix: key(tOutgoing, account[:]), from: outgoingKey(account, from), keysOnly: keysOnly}, func(k, plain []byte) (bool, error) {
		if !seen {
			first, seen = binary.BigEndian.Uint64(k[33:]), true
		}
		return fn(k, plain)
	})
	if err == nil && tx.own == nil && from == head {
		tx.s.outbox.raise(account, outboxHead{order: first, commit: now.Commit})
	}
	return err
}

// OutgoingAccounts returns the accounts that have something waiting.
func (tx *Tx) OutgoingAccounts() ([][32]byte, error) {
	var accounts [][32]byte
	from := key(tOutgoing)
	for {
		var next [32]byte
		any := false
		err := tx.iterate(scan{prefix: key(tOutgoing), from: from, keysOnly: true}, func(k, _ []byte) (bool, error) {
			next, any = [32]byte(k[1:33]), true
			return false, nil
		})
		if err != nil || !any {
			return accounts, err
		}
		accounts = append(accounts, next)
		from = append(outgoingKey(next, ^uint64(0)), 0) // just behind the account's last possible item
	}
}

// OutgoingByMessage returns every item that carries the message, whoever it is for. It looks through the whole outbox: an
// index would cost each message two writes, for what people do now and then.
func (tx *Tx) OutgoingByMessage(id [16]byte) ([]Outgoing, error) {
	accounts, err := tx.OutgoingAccounts()
	if err != nil {
		return nil, err
	}
	var rows []Outgoing
	for _, account := range accounts {
		waiting, err := tx.Outgoings(account, 0)
		if err != nil {
			return nil, err
		}
		for _, row := range waiting {
			if row.MsgID == id {
				rows = append(rows, row)
			}
		}
	}
	return rows, nil
}

// CountOutgoing counts the items waiting for an account.
func (tx *Tx) CountOutgoing(account [32]byte) (int, error) {
	n := 0
	err := tx.walkOutgoing(account, 0, true, func(_, _ []byte) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// CountMessages counts the items waiting for an account that carry a message people wrote.
func (tx *Tx) CountMessages(account [32]byte) (int, error) {
	n := 0
	err := tx.walkOutgoing(account, 0, false, func(k, plain []byte) (bool, error) {
		row, err := tx.readOutgoing(k, plain)
		if !row.Control {
			n++
		}
		return true, err
	})
	return n, err
}

// CountAllOutgoing counts the items waiting for anybody.
func (tx *Tx) CountAllOutgoing() (int, error) { return tx.count(key(tOutgoing)) }

func (tx *Tx) count(prefix []byte) (int, error) {
	n := 0
	err := tx.iterate(scan{prefix: prefix, keysOnly: true}, func(_, _ []byte) (bool, error) {
		n++
		return true, nil
	})
	return n, err
}

// Heading is what the headers of a sending chain are made from, kept while items of it wait; opaque here.
type Heading struct {
	Session [16]byte
	Chain   uint32
}

func headingKey(h Heading) []byte { return key(tHeading, h.Session[:], u32(h.Chain)) }

// PutHeading keeps a chain's heading.
func (tx *Tx) PutHeading(h Heading, raw []byte) error { return tx.putRaw(headingKey(h), raw) }

// Heading returns what was kept for a chain.
func (tx *Tx) Heading(h Heading) ([]byte, error) { return tx.getRaw(headingKey(h)) }

// DropHeadings removes the headings of all chains but those still needed, and says how many those were.
func (tx *Tx) DropHeadings(needed map[Heading]bool) (int, error) {
	var gone [][]byte
	err := tx.iterate(scan{prefix: key(tHeading), keysOnly: true}, func(k, _ []byte) (bool, error) {
		if !needed[Heading{[16]byte(k[1:17]), binary.BigEndian.Uint32(k[17:])}] {
			gone = append(gone, k)
		}
		return len(gone) < maxDeletes, nil
	})
	if err != nil {
		return 0, err
	}
	return len(gone), tx.deleteKeys(gone)
}
