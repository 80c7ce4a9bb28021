package store

import (
	"crypto/sha256"
	"time"
)

// Box is a box of ours at a mailbox; the whole row lives in the vault.
type Box struct {
	ID      [32]byte  `cbor:"-"`                    // in the row's name
	Addr    string    `cbor:"1,keyasint"`           // multiaddr of the mailbox, with its peer id, as people write it
	Raw     []byte    `cbor:"15,keyasint"`          // the same in binary
	Service [32]byte  `cbor:"2,keyasint"`           // the mailbox's key
	Key     []byte    `cbor:"3,keyasint"`           // seed of the box's own Ed25519 key
	State   string    `cbor:"4,keyasint"`           // the messenger's word for where it stands
	Chosen  bool      `cbor:"5,keyasint,omitempty"` // by the program, not by the person
	Voucher []byte    `cbor:"6,keyasint,omitempty"`
	Created time.Time `cbor:"7,keyasint,omitzero"`
	Seen    time.Time `cbor:"8,keyasint,omitzero"` // when it last answered
	Failing time.Time `cbor:"9,keyasint,omitzero"` // since when it does not
	Why     string    `cbor:"10,keyasint,omitempty"`
	Quota   uint64    `cbor:"11,keyasint,omitempty"` // bytes
	Used    uint64    `cbor:"12,keyasint,omitempty"`
	Days    int       `cbor:"13,keyasint,omitempty"` // how long it keeps mail
	Net     string    `cbor:"16,keyasint,omitempty"` // the part of the Internet the mailbox is in
	Ready   bool      `cbor:"14,keyasint,omitempty"` // holds tokens of everybody who may leave mail: it may stand in the card
}

// String keeps the key out of logs.
func (Box) String() string { return hidden }

// GoString keeps the key out of logs.
func (Box) GoString() string { return hidden }

// PutBox writes a box.
func (tx *Tx) PutBox(row Box) error { return put(tx, key(tBox, row.ID[:]), row) }

// Box returns one box.
func (tx *Tx) Box(id [32]byte) (Box, error) {
	row, err := get[Box](tx, key(tBox, id[:]))
	row.ID = id
	return row, err
}

// Boxes returns all boxes, in the order of their ids.
func (tx *Tx) Boxes() ([]Box, error) {
	var rows []Box
	err := tx.iterate(scan{prefix: key(tBox)}, func(k, plain []byte) (bool, error) {
		row := Box{ID: [32]byte(k[1:])}
		if err := decode(plain, &row); err != nil {
			return false, tx.s.damaged(k, err)
		}
		rows = append(rows, row)
		return true, nil
	})
	return rows, err
}

// DeleteBox forgets a box.
func (tx *Tx) DeleteBox(id [32]byte) error { return tx.delete(key(tBox, id[:])) }

// Grant is a run of tokens for our boxes, made from one seed, for one contact or one invite, or for nobody yet.
type Grant struct {
	Seed    [32]byte          `cbor:"1,keyasint"`
	Count   uint32            `cbor:"2,keyasint"`           // tokens: 0 to Count-1
	Account [32]byte          `cbor:"3,keyasint,omitzero"`  // whose they are
	Invite  [16]byte          `cbor:"4,keyasint,omitzero"`  // or in whose bundle they stand
	Spent   uint32            `cbor:"5,keyasint,omitempty"` // the highest that was spent, and one
	Pooled  map[[32]byte]bool `cbor:"6,keyasint,omitempty"` // boxes whose mailbox confirmed them
	Dropped bool              `cbor:"7,keyasint,omitempty"` // to be taken out of all pools
	Created time.Time         `cbor:"8,keyasint,omitzero"`
	Told    bool              `cbor:"9,keyasint,omitempty"` // its owner knows it
}

// String keeps the seed out of logs.
func (Grant) String() string { return hidden }

// GoString keeps the seed out of logs.
func (Grant) GoString() string { return hidden }

// ID names a grant without telling its seed.
func (g *Grant) ID() [16]byte {
	sum := sha256.Sum256(g.Seed[:])
	return [16]byte(sum[:16])
}

// PutGrant writes a grant.
func (tx *Tx) PutGrant(row Grant) error {
	id := row.ID()
	return put(tx, key(tGrant, id[:]), row)
}

// Grant returns one grant.
func (tx *Tx) Grant(id [16]byte) (Grant, error) { return get[Grant](tx, key(tGrant, id[:])) }

// Grants returns every grant.
func (tx *Tx) Grants() ([]Grant, error) { return all[Grant](tx, key(tGrant)) }

// DeleteGrant forgets a grant.
func (tx *Tx) DeleteGrant(id [16]byte) error { return tx.delete(key(tGrant, id[:])) }

// Granted is what we may leave at a contact's boxes, oldest first.
type Granted struct {
	Runs []TokenRun `cbor:"1,keyasint,omitempty"`
}

// TokenRun is tokens of one seed, from Next up to End.
type TokenRun struct {
	Seed [32]byte `cbor:"1,keyasint"`
	Next uint32   `cbor:"2,keyasint"`
	End  uint32   `cbor:"3,keyasint"`
}

// String keeps the seed out of logs.
func (TokenRun) String() string { return hidden }

// GoString keeps the seed out of logs.
func (TokenRun) GoString() string { return hidden }

// String keeps the seed out of logs.
func (Granted) String() string { return hidden }

// GoString keeps the seed out of logs.
func (Granted) GoString() string { return hidden }

// PutGranted writes what we may leave at a contact's boxes.
func (tx *Tx) PutGranted(account [32]byte, row Granted) error {
	return put(tx, key(tGranted, account[:]), row)
}

// Granted returns what we may leave at a contact's boxes.
func (tx *Tx) Granted(account [32]byte) (Granted, error) {
	return get[Granted](tx, key(tGranted, account[:]))
}

// DeleteGranted forgets a contact's tokens.
func (tx *Tx) DeleteGranted(account [32]byte) error { return tx.delete(key(tGranted, account[:])) }

// Late is a message that was given up while mailboxes keep it: it may still arrive and be acknowledged.
type Late struct {
	Message [16]byte  `cbor:"1,keyasint"`
	Talk    [16]byte  `cbor:"2,keyasint"`
	Row     uint64    `cbor:"3,keyasint"`
	Until   time.Time `cbor:"4,keyasint"`
}

func lateKey(account [32]byte, ack [16]byte) []byte { return key(tLate, account[:], ack[:]) }

// PutLate keeps which message an acknowledgement would be for.
func (tx *Tx) PutLate(account [32]byte, ack [16]byte, row Late) error {
	return put(tx, lateKey(account, ack), row)
}

// TakeLate returns the message an acknowledgement is for and forgets it.
func (tx *Tx) TakeLate(account [32]byte, ack [16]byte) (row Late, ok bool, err error) {
	row, err = get[Late](tx, lateKey(account, ack))
	if ok, err = found(err); !ok {
		return row, false, err
	}
	return row, true, tx.delete(lateKey(account, ack))
}

// ExpireLate forgets at most limit (0 is 4 000) messages that no mailbox keeps any more, and returns how many.
func (tx *Tx) ExpireLate(now time.Time, limit int) (int, error) {
	if limit <= 0 {
		limit = maxDeletes
	}
	var gone [][]byte
	err := tx.iterate(scan{prefix: key(tLate)}, func(k, plain []byte) (bool, error) {
		var row Late
		if err := decode(plain, &row); err != nil {
			return false, tx.s.damaged(k, err)
		}
		if row.Until.Before(now) {
			gone = append(gone, k)
		}
		return len(gone) < limit, nil
	})
	if err != nil {
		return 0, err
	}
	return len(gone), tx.deleteKeys(gone)
}
