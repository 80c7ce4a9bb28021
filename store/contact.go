package store

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"golang.org/x/text/cases"
	"golang.org/x/text/unicode/norm"
)

// Contact states.
const (
	ContactPending     = "pending"
	ContactRequested   = "requested"
	ContactEstablished = "established"
	ContactBlocked     = "blocked"
	ContactRemoved     = "removed"
)

// Contact is an account we know, under the name its owner's user gave it.
type Contact struct {
	Account     [32]byte   `cbor:"1,keyasint"`
	Name        string     `cbor:"2,keyasint"`           // petname: local, unique when case is ignored
	Claimed     string     `cbor:"3,keyasint,omitempty"` // the name the contact gives itself
	State       string     `cbor:"4,keyasint"`
	Verified    string     `cbor:"5,keyasint,omitempty"` // no, yes, changed
	DeviceList  []byte     `cbor:"6,keyasint,omitempty"`
	Card        []byte     `cbor:"7,keyasint,omitempty"`
	Reach       []byte     `cbor:"8,keyasint,omitempty"`
	RecordKey   [32]byte   `cbor:"9,keyasint"`
	Devices     [][16]byte `cbor:"10,keyasint,omitempty"`
	Conv        [16]byte   `cbor:"11,keyasint"`
	Created     time.Time  `cbor:"12,keyasint,omitzero"`
	LastSeen    time.Time  `cbor:"13,keyasint,omitzero"`
	Intro       string     `cbor:"14,keyasint,omitempty"` // how we met
	ReachSeq    uint64     `cbor:"15,keyasint,omitempty"` // newest reach of theirs we took
	RecordSeq   uint64     `cbor:"16,keyasint,omitempty"` // newest record of theirs we took
	InnerKey    [32]byte   `cbor:"17,keyasint"`           // key of their inner host: who may connect
	Invite      [16]byte   `cbor:"18,keyasint"`           // the invite of ours they came by, or zero
	Greeting    string     `cbor:"19,keyasint,omitempty"`
	ToldReach   uint64     `cbor:"20,keyasint,omitempty"` // newest reach of ours they acknowledged
	ToldCard    uint64     `cbor:"21,keyasint,omitempty"` // newest card of ours they acknowledged
	Established time.Time  `cbor:"22,keyasint,omitzero"`
	BlockedAt   time.Time  `cbor:"23,keyasint,omitzero"`
	Extra       []byte     `cbor:"24,keyasint,omitempty"` // the messenger's own, opaque here
	ToldRecord  [32]byte   `cbor:"25,keyasint"`           // record key of ours they were told
	Voids       []Void     `cbor:"26,keyasint,omitempty"` // positions we will never use and have not told them yet
	Reset       time.Time  `cbor:"27,keyasint,omitzero"`  // when a session with them was last begun anew
	Warning     string     `cbor:"28,keyasint,omitempty"` // something about them that the user should know
	GrantsDue   bool       `cbor:"29,keyasint,omitempty"` // there are tokens for our boxes that they were not told
	GrantsAgain bool       `cbor:"30,keyasint,omitempty"` // all are to be told again
}

// Void names counters of a sending chain that will never be used.
type Void struct {
	Session [16]byte `cbor:"1,keyasint"`
	Chain   uint32   `cbor:"2,keyasint,omitempty"`
	From    uint32   `cbor:"3,keyasint,omitempty"`
	To      uint32   `cbor:"4,keyasint,omitempty"`
}

// PutContact writes a contact and keeps the index of names; a name somebody else has is ErrNameTaken.
func (tx *Tx) PutContact(c Contact) error {
	old, err := tx.Contact(c.Account)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := tx.moveName(nameContact, c.Account[:], old.Name, c.Name); err != nil {
		return err
	}
	return put(tx, key(tContact, c.Account[:]), c)
}

// Contact returns the contact of an account.
func (tx *Tx) Contact(account [32]byte) (Contact, error) {
	return get[Contact](tx, key(tContact, account[:]))
}

// ContactByName returns the contact with the petname, ignoring case.
func (tx *Tx) ContactByName(name string) (Contact, error) {
	entry, err := get[nameEntry](tx, nameKey(name))
	if err != nil {
		return Contact{}, err
	}
	if entry.Kind != nameContact || len(entry.ID) != 32 {
		return Contact{}, ErrNotFound
	}
	return tx.Contact([32]byte(entry.ID))
}

// Contacts returns every contact, in the order of their accounts.
func (tx *Tx) Contacts() ([]Contact, error) { return all[Contact](tx, key(tContact)) }

// DeleteContact removes a contact, its name and its secret; its conversation stays.
func (tx *Tx) DeleteContact(account [32]byte) error {
	old, err := tx.Contact(account)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := tx.moveName(nameContact, account[:], old.Name, ""); err != nil {
		return err
	}
	if err := errors.Join(tx.delete(key(tContactSecret, account[:])), tx.DeleteGranted(account)); err != nil {
		return err
	}
	return tx.delete(key(tContact, account[:]))
}

// PutContactSecret keeps the discovery secret of a contact in the vault.
func (tx *Tx) PutContactSecret(account [32]byte, secret []byte) error {
	return tx.putRaw(key(tContactSecret, account[:]), bytes.Clone(secret))
}

// ContactSecret returns the discovery secret of a contact.
func (tx *Tx) ContactSecret(account [32]byte) ([]byte, error) {
	secret, err := tx.getRaw(key(tContactSecret, account[:]))
	return bytes.Clone(secret), err
}

// Whose name it is: contacts and groups share one namespace.
const (
	nameContact = uint8(1)
	nameGroup   = uint8(2)
)

type nameEntry struct {
	Kind uint8  `cbor:"1,keyasint"`
	ID   []byte `cbor:"2,keyasint"`
}

// nameKey folds case and compatibility forms, so that names which look alike but for case collide.
func nameKey(name string) []byte {
	return key(tName, []byte(cases.Fold().String(norm.NFKC.String(name))))
}

// moveName gives a name up and takes another; an empty name is none.
func (tx *Tx) moveName(kind uint8, id []byte, from, to string) error {
	if from == to {
		return nil
	}
	if to != "" {
		entry, err := get[nameEntry](tx, nameKey(to))
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil:
			return err
		case entry.Kind != kind || !bytes.Equal(entry.ID, id):
			return fmt.Errorf("store: name %q: %w", to, ErrNameTaken)
		}
	}
	if from != "" {
		if err := tx.delete(nameKey(from)); err != nil {
			return err
		}
	}
	if to == "" {
		return nil
	}
	return put(tx, nameKey(to), nameEntry{Kind: kind, ID: id})
}
