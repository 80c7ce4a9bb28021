package identity

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/subtle"
	"encoding/hex"
	"fmt"
	"io"
	"time"

	"sotto/internal/canon"
)

// DeviceID names one of an account's devices; random.
type DeviceID [16]byte

// String is 32 hex digits.
func (id DeviceID) String() string { return hex.EncodeToString(id[:]) }

// Device holds one machine's long-lived secrets (PROTOCOL 3.2). The node key and the record pair may be replaced any
// time: neither says who someone is.
type Device struct {
	hidden
	id        DeviceID
	sign      ed25519.PrivateKey // DK
	identity  *ecdh.PrivateKey   // IK
	node      ed25519.PrivateKey // NK, the inner host's
	record    [32]byte           // Ed25519 seed of the record key a, A
	recordKey [32]byte           // A
	discovery [32]byte           // S
}

// deviceVersion is the first byte of a device's secret form.
const deviceVersion = 1

// deviceSecretSize is version, id, DK seed, IK, NK seed, record seed, discovery secret.
const deviceSecretSize = 1 + 16 + 5*32

// NewDevice draws a device's keys.
func NewDevice(r io.Reader) (*Device, error) {
	b, err := draw(r, "device keys", deviceSecretSize-1)
	if err != nil {
		return nil, err
	}
	return ParseDevice(append([]byte{deviceVersion}, b...))
}

// MarshalSecret writes the device's secrets for the vault (PROTOCOL A.8).
func (d *Device) MarshalSecret() []byte {
	var w canon.Writer
	w.U8(deviceVersion).Raw(d.id[:]).Raw(d.sign.Seed()).Raw(d.identity.Bytes()).Raw(d.node.Seed())
	return w.Raw(d.record[:]).Raw(d.discovery[:]).Bytes()
}

// ParseDevice reads what MarshalSecret wrote.
func ParseDevice(b []byte) (*Device, error) {
	r := canon.NewReader(b)
	if v := r.U8(); r.Err() == nil && v != deviceVersion {
		return nil, fmt.Errorf("read device keys: format %d: %w", v, ErrNewer)
	}
	d := &Device{}
	r.Copy(d.id[:])
	sign, identity, node := r.Raw(32), r.Raw(32), r.Raw(32)
	seed, discovery := r.Raw(32), r.Raw(32)
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("read device keys: %w: %w", ErrInvalid, err)
	}
	var err error
	if d.identity, err = ecdh.X25519().NewPrivateKey(identity); err != nil {
		return nil, fmt.Errorf("read device keys: identity key: %w", err)
	}
	d.sign, d.node = ed25519.NewKeyFromSeed(sign), ed25519.NewKeyFromSeed(node)
	d.setRecord(seed, discovery)
	return d, nil
}

// ID names the device within its account.
func (d *Device) ID() DeviceID { return d.id }

// Sign signs an object of the given type with DK (PROTOCOL 2.4).
func (d *Device) Sign(typ string, fields []byte) []byte { return canon.Sign(d.sign, typ, fields) }

// SignKey is DK's public half.
func (d *Device) SignKey() ed25519.PublicKey { return d.sign.Public().(ed25519.PublicKey) }

// IdentityKey is IK, used in the handshake only.
func (d *Device) IdentityKey() *ecdh.PrivateKey { return d.identity }

// NodeKey is NK, the key of the inner libp2p host.
func (d *Device) NodeKey() ed25519.PrivateKey { return d.node }

// RotateNodeKey draws a new node key; contacts must be told the new reach.
func (d *Device) RotateNodeKey(r io.Reader) error {
	b, err := draw(r, "node key", ed25519.SeedSize)
	if err != nil {
		return err
	}
	d.node = ed25519.NewKeyFromSeed(b)
	return nil
}

// RecordSeed is the Ed25519 seed with which package record signs this device's reach records.
func (d *Device) RecordSeed() [32]byte { return d.record }

// RecordKey is A, the public half that contacts hold.
func (d *Device) RecordKey() [32]byte { return d.recordKey }

func (d *Device) setRecord(seed, discovery []byte) {
	copy(d.record[:], seed)
	copy(d.discovery[:], discovery)
	d.recordKey = [32]byte(ed25519.NewKeyFromSeed(d.record[:]).Public().(ed25519.PublicKey))
}

// Discovery is S, the secret that lets a contact find and open this device's records.
func (d *Device) Discovery() [32]byte { return d.discovery }

// RotateRecord draws a new record key and discovery secret, so that whoever held the old pair finds nothing more.
func (d *Device) RotateRecord(r io.Reader) error {
	b, err := draw(r, "record key", 64)
	if err != nil {
		return err
	}
	d.setRecord(b[:32], b[32:])
	return nil
}

// Entry is the device's line in its account's device list.
func (d *Device) Entry(added time.Time) DeviceEntry {
	return DeviceEntry{
		ID:          d.id,
		SignKey:     [32]byte(d.SignKey()),
		IdentityKey: [32]byte(d.identity.PublicKey().Bytes()),
		Added:       added.UTC().Truncate(time.Second),
	}
}

// Equal compares in constant time.
func (d *Device) Equal(o *Device) bool {
	return subtle.ConstantTimeCompare(d.MarshalSecret(), o.MarshalSecret()) == 1
}
