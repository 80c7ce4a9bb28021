package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Session is one double ratchet with one device; its state is opaque here and lives in the vault.
type Session struct {
	ID       [16]byte  `cbor:"-"` // these three in the row's name
	Account  [32]byte  `cbor:"-"`
	Device   [16]byte  `cbor:"-"`
	State    []byte    `cbor:"4,keyasint"` // in the row only the head
	Head     int       `cbor:"-"`          // how many bytes of State change often: the others have a row of their own
	Created  time.Time `cbor:"5,keyasint,omitzero"`
	LastUsed time.Time `cbor:"6,keyasint,omitzero"`
	Archived bool      `cbor:"7,keyasint,omitempty"` // received on, never sent on
	TailSum  [8]byte   `cbor:"8,keyasint"`           // of the tail that belongs to the head; PutSession fills it in

	tail []byte // the row's own when it was read: written anew only when it differs
}

// String keeps the ratchet out of logs.
func (Session) String() string { return hidden }

// GoString keeps the ratchet out of logs.
func (Session) GoString() string { return hidden }

type sessionOwner struct {
	Account [32]byte `cbor:"1,keyasint"`
	Device  [16]byte `cbor:"2,keyasint"`
}

// PutSession writes a session's state.
func (tx *Tx) PutSession(row Session) error {
	known, err := tx.has(key(tSessionID, row.ID[:]))
	if err != nil {
		return err
	}
	if !known {
		if err := put(tx, key(tSessionID, row.ID[:]), sessionOwner{row.Account, row.Device}); err != nil {
			return err
		}
		if err := tx.putRaw(key(tSessionOf, row.Account[:], row.Device[:], row.ID[:]), nil); err != nil {
			return err
		}
	}
	if row.Head < 0 || row.Head > len(row.State) {
		return fmt.Errorf("store: session state of %d bytes with a head of %d", len(row.State), row.Head)
	}
	tail := row.State[row.Head:]
	row.State = row.State[:row.Head]
	if !known || !bytes.Equal(tail, row.tail) {
		row.TailSum = tailSum(tail)
		if err := tx.putRaw(key(tSessionTail, row.name()), bytes.Clone(tail)); err != nil {
			return err
		}
	}
	return put(tx, key(tSession, row.name()), row)
}

func (row *Session) name() []byte { return slices.Concat(row.Account[:], row.Device[:], row.ID[:]) }

// tailSum binds a session's head to its tail: halves of two ages would make a ratchet that never was.
func tailSum(tail []byte) [8]byte {
	sum := sha256.Sum256(tail)
	return [8]byte(sum[:8])
}

// session reads a session with its tail.
func (tx *Tx) session(name []byte) (Session, error) {
	row, err := get[Session](tx, key(tSession, name))
	if err != nil {
		return row, err
	}
	row.Account, row.Device, row.ID = [32]byte(name), [16]byte(name[32:]), [16]byte(name[48:])
	k := key(tSessionTail, name)
	if row.tail, err = tx.getRaw(k); err != nil {
		return row, tx.s.danglingIndex(k, err)
	}
	if tailSum(row.tail) != row.TailSum {
		return row, tx.s.damaged(k, errors.New("not the tail of its head"))
	}
	row.Head = len(row.State)
	row.State = slices.Concat(row.State, row.tail)
	return row, nil
}

// Session returns one session by its id.
func (tx *Tx) Session(id [16]byte) (Session, error) {
	owner, err := get[sessionOwner](tx, key(tSessionID, id[:]))
	if err != nil {
		return Session{}, err
	}
	return tx.session(slices.Concat(owner.Account[:], owner.Device[:], id[:]))
}

// Sessions returns the sessions with one device, newest use first.
func (tx *Tx) Sessions(account [32]byte, device [16]byte) ([]Session, error) {
	rows, err := tx.sessions(key(tSessionOf, account[:], device[:]))
	newestUseFirst(rows)
	return rows, err
}

// AccountSessions returns the sessions with every device of an account, newest use first.
func (tx *Tx) AccountSessions(account [32]byte) ([]Session, error) {
	rows, err := tx.sessions(key(tSessionOf, account[:]))
	newestUseFirst(rows)
	return rows, err
}

// AllSessions returns every session there is.
func (tx *Tx) AllSessions() ([]Session, error) { return tx.sessions(key(tSessionOf)) }

// sessions reads the rows that an index prefix names.
func (tx *Tx) sessions(index []byte) ([]Session, error) {
	var names [][]byte
	err := tx.iterate(scan{prefix: index, keysOnly: true}, func(k, _ []byte) (bool, error) {
		names = append(names, k[1:])
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	rows := make([]Session, 0, len(names))
	for _, name := range names {
		row, err := tx.session(name)
		if err != nil {
			return nil, tx.s.danglingIndex(key(tSession, name), err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func newestUseFirst(rows []Session) {
	slices.SortStableFunc(rows, func(a, b Session) int { return b.LastUsed.Compare(a.LastUsed) })
}

// DeleteSession removes a session and the skipped keys of all its chains.
func (tx *Tx) DeleteSession(id [16]byte) error {
	owner, err := get[sessionOwner](tx, key(tSessionID, id[:]))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := tx.dropSkipped(key(tSkipped, id[:])); err != nil {
		return err
	}
	for _, t := range []table{tSession, tSessionTail, tSessionOf} {
		if err := tx.delete(key(t, owner.Account[:], owner.Device[:], id[:])); err != nil {
			return err
		}
	}
	return tx.delete(key(tSessionID, id[:]))
}

type skippedRow struct {
	Key [32]byte  `cbor:"1,keyasint"`
	At  time.Time `cbor:"2,keyasint"`
}

func skippedKey(session [16]byte, chain, n uint32) []byte {
	return key(tSkipped, session[:], u32(chain), u32(n))
}

// PutSkipped keeps the key of a message that has not come yet.
func (tx *Tx) PutSkipped(session [16]byte, chain, n uint32, messageKey [32]byte, at time.Time) error {
	return put(tx, skippedKey(session, chain, n), skippedRow{Key: messageKey, At: at})
}

// FindSkipped returns a kept message key.
func (tx *Tx) FindSkipped(session [16]byte, chain, n uint32) (messageKey [32]byte, ok bool, err error) {
	row, err := get[skippedRow](tx, skippedKey(session, chain, n))
	ok, err = found(err)
	return row.Key, ok, err
}

// DeleteSkipped removes a message key that was used.
func (tx *Tx) DeleteSkipped(session [16]byte, chain, n uint32) error {
	return tx.delete(skippedKey(session, chain, n))
}

// DropSkipped removes the kept keys of one chain with counters from first to last, both included, and says how many there were.
func (tx *Tx) DropSkipped(session [16]byte, chain, first, last uint32) (int, error) {
	var gone [][]byte
	err := tx.iterate(scan{prefix: key(tSkipped, session[:], u32(chain)), from: skippedKey(session, chain, first), keysOnly: true},
		func(k, _ []byte) (bool, error) {
			if binary.BigEndian.Uint32(k[len(k)-4:]) > last {
				return false, nil
			}
			gone = append(gone, k)
			return true, nil
		})
	if err != nil {
		return 0, err
	}
	return len(gone), tx.deleteKeys(gone)
}

// dropSkipped removes every kept key under a prefix.
func (tx *Tx) dropSkipped(prefix []byte) (int, error) {
	var gone [][]byte
	err := tx.iterate(scan{prefix: prefix, keysOnly: true}, func(k, _ []byte) (bool, error) {
		gone = append(gone, k)
		return true, nil
	})
	if err != nil {
		return 0, err
	}
	return len(gone), tx.deleteKeys(gone)
}

func (tx *Tx) deleteKeys(keys [][]byte) error {
	for _, k := range keys {
		if err := tx.delete(k); err != nil {
			return err
		}
	}
	return nil
}

// SkippedCount says how many kept keys of a chain an expiry removed.
type SkippedCount struct {
	Session [16]byte
	Chain   uint32
	Count   int
}

// ExpireSkipped removes kept keys from before the moment, at most limit of them (0 is 4 000), and says whose they were, so that
// the sessions can count them off.
func (tx *Tx) ExpireSkipped(before time.Time, limit int) ([]SkippedCount, error) {
	if limit <= 0 {
		limit = maxDeletes
	}
	var gone [][]byte
	var counts []SkippedCount
	err := tx.iterate(scan{prefix: key(tSkipped)}, func(k, plain []byte) (bool, error) {
		var row skippedRow
		if err := decode(plain, &row); err != nil {
			return false, tx.s.damaged(k, err)
		}
		if !row.At.Before(before) {
			return true, nil
		}
		gone = append(gone, k)
		session, chain := [16]byte(k[1:17]), binary.BigEndian.Uint32(k[17:21])
		if last := len(counts) - 1; last < 0 || counts[last].Session != session || counts[last].Chain != chain {
			counts = append(counts, SkippedCount{Session: session, Chain: chain})
		}
		counts[len(counts)-1].Count++
		return len(gone) < limit, nil
	})
	if err != nil {
		return nil, err
	}
	return counts, tx.deleteKeys(gone)
}
