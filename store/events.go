package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
)

// Event is one entry of the numbered log by which all news leaves the core. Numbers rise by one, in commit order.
type Event struct {
	Seq  uint64    `cbor:"1,keyasint"`
	At   time.Time `cbor:"2,keyasint"`
	Kind string    `cbor:"3,keyasint"`
	Data []byte    `cbor:"4,keyasint,omitempty"`
}

// AppendEvent adds an entry and returns its number. data is kept as it is when it is []byte, else encoded as CBOR.
// When the function fails, the number is given to the next event instead.
func (tx *Tx) AppendEvent(kind string, data any) (uint64, error) {
	raw, isBytes := data.([]byte)
	if !isBytes && data != nil {
		var err error
		if raw, err = encMode.Marshal(data); err != nil {
			return 0, fmt.Errorf("store: encode event %s: %w", kind, err)
		}
	}
	seq := tx.state.Event + 1
	if err := put(tx, key(tEvent, u64(seq)), Event{Seq: seq, At: tx.s.now(), Kind: kind, Data: raw}); err != nil {
		return 0, err
	}
	tx.state.Event = seq
	return seq, nil
}

// EventsAfter returns the events numbered above seq, at most limit (0 is 1 000). Very old ones may have been removed:
// the first number then jumps.
func (tx *Tx) EventsAfter(seq uint64, limit int) ([]Event, error) {
	if limit <= 0 {
		limit = 1000
	}
	var rows []Event
	if seq == ^uint64(0) {
		return nil, nil
	}
	next := uint64(0)
	err := tx.iterate(scan{prefix: key(tEvent), from: key(tEvent, u64(seq+1))}, func(k, plain []byte) (bool, error) {
		var row Event
		if err := decode(plain, &row); err != nil {
			return false, tx.s.damaged(k, err)
		}
		if number := binary.BigEndian.Uint64(k[1:]); next != 0 && number != next {
			return false, tx.s.damaged(k, fmt.Errorf("event %d is missing", next))
		}
		next = row.Seq + 1
		rows = append(rows, row)
		return len(rows) < limit, nil
	})
	if err != nil {
		return nil, err
	}
	last, err := tx.LastSeq()
	if err == nil && len(rows) < limit && max(seq, next-min(next, 1)) < last {
		return nil, tx.s.damaged(key(tEvent), fmt.Errorf("event %d is missing", last))
	}
	return rows, err
}

// LastSeq is the number of the newest event, 0 before the first.
func (tx *Tx) LastSeq() (uint64, error) {
	if tx.own != nil {
		return tx.state.Event, nil
	}
	state, err := get[counters](tx, key(tState))
	_, err = found(err)
	return state.Event, err
}

// FirstSeq is the number of the oldest event that is still kept, 0 when there is none.
func (tx *Tx) FirstSeq() (uint64, error) {
	first := uint64(0)
	err := tx.iterate(scan{prefix: key(tEvent), keysOnly: true}, func(k, _ []byte) (bool, error) {
		first = binary.BigEndian.Uint64(k[1:])
		return false, nil
	})
	return first, err
}

// SetCursor remembers up to which event a named reader has come.
func (tx *Tx) SetCursor(name string, seq uint64) error {
	return tx.putRaw(key(tCursor, []byte(name)), u64(seq))
}

// Cursor returns a named reader's place, 0 for one that never was.
func (tx *Tx) Cursor(name string) (uint64, error) {
	raw, err := tx.getRaw(key(tCursor, []byte(name)))
	if ok, err := found(err); !ok {
		return 0, err
	}
	if len(raw) != 8 {
		return 0, tx.s.damaged(key(tCursor, []byte(name)), errEmptyValue)
	}
	return binary.BigEndian.Uint64(raw), nil
}

// DeleteCursor forgets a named reader.
func (tx *Tx) DeleteCursor(name string) error { return tx.delete(key(tCursor, []byte(name))) }

// Cursors returns every named reader's place.
func (tx *Tx) Cursors() (map[string]uint64, error) {
	out := map[string]uint64{}
	err := tx.iterate(scan{prefix: key(tCursor)}, func(k, plain []byte) (bool, error) {
		if len(plain) != 8 {
			return false, tx.s.damaged(k, errEmptyValue)
		}
		out[string(k[1:])] = binary.BigEndian.Uint64(plain)
		return true, nil
	})
	return out, err
}

// Step is one line of a message's trace.
type Step struct {
	At     time.Time `cbor:"1,keyasint"`
	What   string    `cbor:"2,keyasint"`
	Detail string    `cbor:"3,keyasint,omitempty"`
}

// AddTrace notes what happened to a message.
func (tx *Tx) AddTrace(message [16]byte, at time.Time, what, detail string) error {
	tx.state.Next++
	return put(tx, key(tTrace, message[:], u64(tx.state.Next)), Step{At: at, What: what, Detail: detail})
}

// Trace returns what happened to a message, oldest first.
func (tx *Tx) Trace(message [16]byte) ([]Step, error) {
	return all[Step](tx, key(tTrace, bytes.Clone(message[:])))
}
