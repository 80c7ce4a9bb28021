package store

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Outgoing is one sealed item that waits until a device acknowledged it, was given up, or the user cancelled.
type Outgoing struct {
	Account   [32]byte  `cbor:"1,keyasint"`
	Device    [16]byte  `cbor:"2,keyasint"`
	Order     uint64    `cbor:"3,keyasint"` // rises with every item; 0 lets PutOutgoing give the next one
	MsgID     [16]byte  `cbor:"4,keyasint"`
	Session   [16]byte  `cbor:"5,keyasint"`
	Chain     uint32    `cbor:"6,keyasint,omitempty"`
	N         uint32    `cbor:"7,keyasint,omitempty"`
	Item      []byte    `cbor:"8,keyasint"`
	AckKey    [32]byte  `cbor:"9,keyasint"`
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
}

// String keeps the acknowledgement key and the item out of logs.
func (o Outgoing) String() string { return hidden }

// GoString keeps the acknowledgement key and the item out of logs.
func (o Outgoing) GoString() string { return hidden }

func outgoingKey(account [32]byte, order uint64) []byte {
	return key(tOutgoing, account[:], u64(order))
}

func outgoingMsgKey(o Outgoing) []byte {
	return key(tOutgoingMsg, o.MsgID[:], o.Account[:], u64(o.Order))
}

// PutOutgoing writes an item; with Order 0 it is appended behind all others and Order is filled in, else the entry must be there.
func (tx *Tx) PutOutgoing(o *Outgoing) error {
	if o.Order == 0 {
		tx.state.Next++
		o.Order = tx.state.Next
		if err := tx.putRaw(outgoingMsgKey(*o), nil); err != nil {
			return err
		}
	} else if _, err := tx.getRaw(outgoingKey(o.Account, o.Order)); err != nil { // what was delivered or cancelled stays so
		return fmt.Errorf("store: outbox entry %d: %w", o.Order, err)
	}
	return put(tx, outgoingKey(o.Account, o.Order), *o)
}

// Outgoing returns one item.
func (tx *Tx) Outgoing(account [32]byte, order uint64) (Outgoing, error) {
	return get[Outgoing](tx, outgoingKey(account, order))
}

// DeleteOutgoing removes an item; one that is gone already is no error.
func (tx *Tx) DeleteOutgoing(account [32]byte, order uint64) error {
	row, err := tx.Outgoing(account, order)
	if ok, err := found(err); !ok {
		return err
	}
	if err := tx.delete(outgoingMsgKey(row)); err != nil {
		return err
	}
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
		var row Outgoing
		if err := decode(plain, &row); err != nil {
			return false, tx.s.damaged(k, err)
		}
		rows = append(rows, row)
		return limit <= 0 || len(rows) < limit, nil
	})
	return rows, err
}

// outboxHeads remembers, for each account, an order below which nothing waits any more. Orders only rise, so what was true
// once stays true. Without it each look at a queue would walk over the remains of everything that was ever in it.
type outboxHeads struct {
	mu    sync.Mutex
	heads map[[32]byte]uint64
}

func (o *outboxHeads) get(account [32]byte) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.heads[account]
}

func (o *outboxHeads) raise(account [32]byte, head uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.heads == nil {
		o.heads = map[[32]byte]uint64{}
	}
	o.heads[account] = max(o.heads[account], head)
}

// walkOutgoing walks over an account's items above after, and in a view learns where they begin.
func (tx *Tx) walkOutgoing(account [32]byte, after uint64, keysOnly bool, fn func(k, plain []byte) (bool, error)) error {
	head := tx.s.outbox.get(account)
	from := max(after+1, head)
	first := uint64(0)
	err := tx.iterate(scan{prefix: key(tOutgoing, account[:]), from: outgoingKey(account, from), keysOnly: keysOnly}, func(k, plain []byte) (bool, error) {
		if first == 0 {
			first = binary.BigEndian.Uint64(k[33:])
		}
		return fn(k, plain)
	})
	if err != nil || tx.own != nil || from > max(head, 1) { // a walk that began behind the head says nothing about it
		return err
	}
	if first == 0 {
		state, err := get[counters](tx, key(tState))
		if ok, err := found(err); !ok {
			return err
		}
		first = state.Next
	}
	tx.s.outbox.raise(account, first)
	return nil
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

// OutgoingByMessage returns every item that carries the message, whoever it is for.
func (tx *Tx) OutgoingByMessage(id [16]byte) ([]Outgoing, error) {
	var keys [][]byte
	err := tx.iterate(scan{prefix: key(tOutgoingMsg, id[:]), keysOnly: true}, func(k, _ []byte) (bool, error) {
		keys = append(keys, k)
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	var rows []Outgoing
	for _, k := range keys {
		row, err := tx.Outgoing([32]byte(k[17:49]), binary.BigEndian.Uint64(k[49:]))
		if err != nil {
			return nil, tx.s.danglingIndex(k, err)
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Outgoing) int { return int(int64(a.Order - b.Order)) })
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
