package store

import (
	"bytes"
	"errors"
	"time"
)

// hidden is what records with secrets print as.
const hidden = "(secret)"

// Self is what the node knows about itself; the whole row lives in the vault.
type Self struct {
	Name          string    `cbor:"1,keyasint,omitempty"` // claimed name, told to contacts
	Created       time.Time `cbor:"2,keyasint,omitzero"`
	DeviceSecret  []byte    `cbor:"3,keyasint,omitempty"`
	AccountPublic [32]byte  `cbor:"4,keyasint"`
	DeviceList    []byte    `cbor:"5,keyasint,omitempty"`
	CardSeq       uint64    `cbor:"6,keyasint,omitempty"`
	ReachSeq      uint64    `cbor:"7,keyasint,omitempty"`
	InnerPort     int       `cbor:"8,keyasint,omitempty"`
	FrontPort     int       `cbor:"9,keyasint,omitempty"`
	Card          []byte    `cbor:"10,keyasint,omitempty"`
	CardIssued    time.Time `cbor:"11,keyasint,omitzero"`
	CardUntil     time.Time `cbor:"12,keyasint,omitzero"`
	RecordSeq     uint64    `cbor:"13,keyasint,omitempty"`
	NextKeyID     uint32    `cbor:"14,keyasint,omitempty"` // next prekey or seal key id
	Reach         []byte    `cbor:"15,keyasint,omitempty"`
	Extra         []byte    `cbor:"16,keyasint,omitempty"` // the messenger's own, opaque here
}

// String keeps the device's secret out of logs.
func (Self) String() string { return hidden }

// GoString keeps the device's secret out of logs.
func (Self) GoString() string { return hidden }

// PutSelf writes the node's own row.
func (tx *Tx) PutSelf(self Self) error { return put(tx, key(tSelf), self) }

// GetSelf returns the node's own row, ErrNotFound before the first start.
func (tx *Tx) GetSelf() (Self, error) { return get[Self](tx, key(tSelf)) }

// SecretRow is a named secret in the vault: a prekey, a seal key, anything that must be erasable.
type SecretRow struct {
	Name    string    `cbor:"-"`
	Value   []byte    `cbor:"1,keyasint"`
	Created time.Time `cbor:"2,keyasint,omitzero"`
	Expires time.Time `cbor:"3,keyasint,omitzero"` // zero is never; the owner deletes, nothing expires by itself
}

// String keeps the value out of logs.
func (s SecretRow) String() string { return s.Name + " " + hidden }

// GoString keeps the value out of logs.
func (s SecretRow) GoString() string { return s.String() }

// PutSecret writes a named secret.
func (tx *Tx) PutSecret(row SecretRow) error { return put(tx, key(tSecret, []byte(row.Name)), row) }

// GetSecret returns a named secret.
func (tx *Tx) GetSecret(name string) (SecretRow, error) {
	row, err := get[SecretRow](tx, key(tSecret, []byte(name)))
	row.Name = name
	return row, err
}

// DeleteSecret removes a named secret; its old bytes become unreadable with the next epoch.
func (tx *Tx) DeleteSecret(name string) error { return tx.delete(key(tSecret, []byte(name))) }

// ListSecrets returns the secrets whose names begin with the prefix, sorted by name.
func (tx *Tx) ListSecrets(prefix string) ([]SecretRow, error) {
	var rows []SecretRow
	err := tx.iterate(scan{prefix: key(tSecret, []byte(prefix))}, func(k, plain []byte) (bool, error) {
		row := SecretRow{Name: string(k[1:])}
		if err := decode(plain, &row); err != nil {
			return false, tx.s.damaged(k, err)
		}
		rows = append(rows, row)
		return true, nil
	})
	return rows, err
}

// PutSetting writes a small value that is not secret.
func (tx *Tx) PutSetting(name string, value []byte) error {
	return tx.putRaw(key(tSetting, []byte(name)), bytes.Clone(value))
}

// Setting returns a value written by PutSetting.
func (tx *Tx) Setting(name string) ([]byte, error) {
	value, err := tx.getRaw(key(tSetting, []byte(name)))
	return bytes.Clone(value), err
}

// DeleteSetting removes a setting.
func (tx *Tx) DeleteSetting(name string) error { return tx.delete(key(tSetting, []byte(name))) }

// Settings returns every setting.
func (tx *Tx) Settings() (map[string][]byte, error) {
	out := map[string][]byte{}
	err := tx.iterate(scan{prefix: key(tSetting)}, func(k, plain []byte) (bool, error) {
		out[string(k[1:])] = bytes.Clone(plain)
		return true, nil
	})
	return out, err
}

// expiring is a row that holds nothing but the moment until which it counts.
type expiring struct {
	Until time.Time `cbor:"1,keyasint"`
}

// MarkHandshake remembers a handshake until expires, so that it is not answered twice.
func (tx *Tx) MarkHandshake(id []byte, expires time.Time) error {
	return put(tx, key(tHandshake, id), expiring{Until: expires})
}

// SeenHandshake reports whether the handshake was marked; a mark is forgotten only by the retention job after its expiry.
func (tx *Tx) SeenHandshake(id []byte) (bool, error) { return tx.has(key(tHandshake, id)) }

type idempotency struct {
	Message [16]byte  `cbor:"1,keyasint"`
	At      time.Time `cbor:"2,keyasint"`
}

// PutIdempotency remembers which message an API caller's key led to.
func (tx *Tx) PutIdempotency(name string, message [16]byte) error {
	return put(tx, key(tIdempotency, []byte(name)), idempotency{Message: message, At: tx.s.now()})
}

// Idempotency returns the message an API caller's key led to.
func (tx *Tx) Idempotency(name string) ([16]byte, error) {
	row, err := get[idempotency](tx, key(tIdempotency, []byte(name)))
	return row.Message, err
}

// found turns ErrNotFound into false.
func found(err error) (bool, error) {
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
