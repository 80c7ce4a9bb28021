package store

import (
	"time"
)

// Invite is a door we opened; the whole row lives in the vault.
type Invite struct {
	ID        [16]byte  `cbor:"1,keyasint"`
	Secret    [16]byte  `cbor:"2,keyasint"`
	OneTimeID uint32    `cbor:"3,keyasint,omitempty"` // id of its one-time prekey
	Created   time.Time `cbor:"4,keyasint,omitzero"`
	Expires   time.Time `cbor:"5,keyasint,omitzero"`
	Uses      int       `cbor:"6,keyasint,omitempty"`
	MaxUses   int       `cbor:"7,keyasint,omitempty"`
	Reusable  bool      `cbor:"8,keyasint,omitempty"`
	Revoked   bool      `cbor:"9,keyasint,omitempty"`
	State     string    `cbor:"10,keyasint,omitempty"`
	Hints     []string  `cbor:"11,keyasint,omitempty"`
	Link      string    `cbor:"12,keyasint,omitempty"`
	Name      [32]byte  `cbor:"13,keyasint"`           // name of its record
	Record    []byte    `cbor:"14,keyasint,omitempty"` // the record as last sealed
	RecordSeq uint64    `cbor:"15,keyasint,omitempty"`
	Published time.Time `cbor:"16,keyasint,omitzero"`
	Accounts  [][]byte  `cbor:"17,keyasint,omitempty"` // who came by it
	Extra     []byte    `cbor:"18,keyasint,omitempty"` // the messenger's own, opaque here
}

// String keeps the secret out of logs.
func (Invite) String() string { return hidden }

// GoString keeps the secret out of logs.
func (Invite) GoString() string { return hidden }

// PutInvite writes an invite and the index of its record's name.
func (tx *Tx) PutInvite(row Invite) error {
	if row.Name != ([32]byte{}) {
		if err := tx.putRaw(key(tInviteName, row.Name[:]), row.ID[:]); err != nil {
			return err
		}
	}
	return put(tx, key(tInvite, row.ID[:]), row)
}

// Invite returns an invite by its id.
func (tx *Tx) Invite(id [16]byte) (Invite, error) { return get[Invite](tx, key(tInvite, id[:])) }

// Invites returns every invite, in the order of their ids.
func (tx *Tx) Invites() ([]Invite, error) { return all[Invite](tx, key(tInvite)) }

// InviteByName returns the invite whose record has the name.
func (tx *Tx) InviteByName(record [32]byte) (Invite, error) {
	id, err := tx.getRaw(key(tInviteName, record[:]))
	if err != nil {
		return Invite{}, err
	}
	if len(id) != 16 {
		return Invite{}, tx.s.damaged(key(tInviteName, record[:]), errEmptyValue)
	}
	return tx.Invite([16]byte(id))
}

// DeleteInvite removes an invite.
func (tx *Tx) DeleteInvite(id [16]byte) error {
	row, err := tx.Invite(id)
	if ok, err := found(err); !ok {
		return err
	}
	if err := tx.delete(key(tInviteName, row.Name[:])); err != nil {
		return err
	}
	return tx.delete(key(tInvite, id[:]))
}

// PendingAdd is an invite of somebody else that we are still trying to use; the whole row lives in the vault.
type PendingAdd struct {
	ID        [16]byte  `cbor:"1,keyasint"` // the invite's id
	Account   [32]byte  `cbor:"2,keyasint"`
	Secret    [16]byte  `cbor:"3,keyasint"`
	Link      string    `cbor:"4,keyasint,omitempty"`
	Name      string    `cbor:"5,keyasint,omitempty"` // petname to give
	Created   time.Time `cbor:"6,keyasint,omitzero"`
	Expires   time.Time `cbor:"7,keyasint,omitzero"`
	Next      time.Time `cbor:"8,keyasint,omitzero"`
	Attempts  int       `cbor:"9,keyasint,omitempty"`
	LastError string    `cbor:"10,keyasint,omitempty"`
	State     string    `cbor:"11,keyasint,omitempty"`
	Hints     []string  `cbor:"12,keyasint,omitempty"`
	Extra     []byte    `cbor:"13,keyasint,omitempty"` // the messenger's own, opaque here
}

// String keeps the secret out of logs.
func (PendingAdd) String() string { return hidden }

// GoString keeps the secret out of logs.
func (PendingAdd) GoString() string { return hidden }

// PutPendingAdd writes an add that is under way.
func (tx *Tx) PutPendingAdd(row PendingAdd) error { return put(tx, key(tPendingAdd, row.ID[:]), row) }

// PendingAdd returns one add that is under way.
func (tx *Tx) PendingAdd(id [16]byte) (PendingAdd, error) {
	return get[PendingAdd](tx, key(tPendingAdd, id[:]))
}

// PendingAdds returns every add that is under way.
func (tx *Tx) PendingAdds() ([]PendingAdd, error) { return all[PendingAdd](tx, key(tPendingAdd)) }

// DeletePendingAdd removes an add that came to its end.
func (tx *Tx) DeletePendingAdd(id [16]byte) error { return tx.delete(key(tPendingAdd, id[:])) }
