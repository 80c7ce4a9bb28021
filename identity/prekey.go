package identity

import (
	"crypto/ecdh"
	"crypto/hpke"
	"crypto/mlkem"
	"crypto/subtle"
	"fmt"
	"io"

	"sotto/internal/canon"
)

// PrekeySecret is the private side of a prekey pair, X25519 and ML-KEM-768: a signed prekey that serves everyone for a
// week, or a one-time prekey that serves one invite (PROTOCOL 3.3).
type PrekeySecret struct {
	hidden
	ID  uint32
	x   *ecdh.PrivateKey
	kem *mlkem.DecapsulationKey768
}

const prekeyVersion = 1

// NewPrekey draws a prekey pair.
func NewPrekey(r io.Reader, id uint32) (*PrekeySecret, error) {
	b, err := draw(r, "prekey", 32+mlkem.SeedSize)
	if err != nil {
		return nil, err
	}
	return newPrekey(id, b[:32], b[32:])
}

func newPrekey(id uint32, x, seed []byte) (*PrekeySecret, error) {
	p := &PrekeySecret{ID: id}
	var err error
	if p.x, err = ecdh.X25519().NewPrivateKey(x); err != nil {
		return nil, fmt.Errorf("prekey %d: %w", id, err)
	}
	if p.kem, err = mlkem.NewDecapsulationKey768(seed); err != nil {
		return nil, fmt.Errorf("prekey %d: %w", id, err)
	}
	return p, nil
}

// MarshalSecret writes the private halves for the vault (PROTOCOL A.8).
func (p *PrekeySecret) MarshalSecret() []byte {
	var w canon.Writer
	return w.U8(prekeyVersion).U32(p.ID).Raw(p.x.Bytes()).Raw(p.kem.Bytes()).Bytes()
}

// ParsePrekeySecret reads what MarshalSecret wrote.
func ParsePrekeySecret(b []byte) (*PrekeySecret, error) {
	r := canon.NewReader(b)
	if err := readVersion(r, prekeyVersion); err != nil {
		return nil, fmt.Errorf("read prekey: %w", err)
	}
	id, x, seed := r.U32(), r.Raw(32), r.Raw(mlkem.SeedSize)
	if err := closeReader(r); err != nil {
		return nil, fmt.Errorf("read prekey: %w", err)
	}
	return newPrekey(id, x, seed)
}

// Public is what others need to write to the holder.
func (p *PrekeySecret) Public() Prekey {
	return Prekey{ID: p.ID, X: [32]byte(p.x.PublicKey().Bytes()), EK: [1184]byte(p.kem.EncapsulationKey().Bytes())}
}

// X is the X25519 half.
func (p *PrekeySecret) X() *ecdh.PrivateKey { return p.x }

// KEM is the ML-KEM-768 half.
func (p *PrekeySecret) KEM() *mlkem.DecapsulationKey768 { return p.kem }

// Equal compares in constant time.
func (p *PrekeySecret) Equal(o *PrekeySecret) bool {
	return subtle.ConstantTimeCompare(p.MarshalSecret(), o.MarshalSecret()) == 1
}

// Prekey is the public side of a prekey pair.
type Prekey struct {
	ID uint32
	X  [32]byte
	EK [1184]byte
}

func (p Prekey) write(w *canon.Writer) { w.U32(p.ID).Raw(p.X[:]).Raw(p.EK[:]) }

func readPrekey(r *canon.Reader) Prekey {
	p := Prekey{ID: r.U32()}
	r.Copy(p.X[:])
	r.Copy(p.EK[:])
	return p
}

// check refuses low-order, non-canonical and unreduced keys.
func (p Prekey) check() error {
	if err := checkX25519(p.X); err != nil {
		return fmt.Errorf("prekey %d: %w", p.ID, err)
	}
	if err := checkEK(p.EK[:]); err != nil {
		return fmt.Errorf("prekey %d: %w", p.ID, err)
	}
	return nil
}

// prekeysHash binds the detachable prekey to the signed card (PROTOCOL 4.3).
func prekeysHash(p Prekey, exts []canon.Extension) [32]byte {
	return objectHash(typPrekeys, prekeysFields(p, exts))
}

func prekeysFields(p Prekey, exts []canon.Extension) []byte {
	var w canon.Writer
	p.write(&w)
	return w.Extensions(exts).Bytes()
}

// SealSecret is the private side of a seal key LK: X-Wing, opens envelopes (PROTOCOL 3.4).
type SealSecret struct {
	hidden
	ID  uint32
	key hpke.PrivateKey
}

const sealVersion = 1

// NewSealKey draws a seal key.
func NewSealKey(r io.Reader, id uint32) (*SealSecret, error) {
	b, err := draw(r, "seal key", 32)
	if err != nil {
		return nil, err
	}
	return newSealKey(id, b)
}

func newSealKey(id uint32, seed []byte) (*SealSecret, error) {
	key, err := hpke.MLKEM768X25519().NewPrivateKey(seed)
	if err != nil {
		return nil, fmt.Errorf("seal key %d: %w", id, err)
	}
	return &SealSecret{ID: id, key: key}, nil
}

// MarshalSecret writes the private half for the vault (PROTOCOL A.8).
func (s *SealSecret) MarshalSecret() []byte {
	seed, err := s.key.Bytes()
	if err != nil {
		panic("identity: seal key: " + err.Error()) // an X-Wing key made from its seed always has it
	}
	var w canon.Writer
	return w.U8(sealVersion).U32(s.ID).Raw(seed).Bytes()
}

// ParseSealSecret reads what MarshalSecret wrote.
func ParseSealSecret(b []byte) (*SealSecret, error) {
	r := canon.NewReader(b)
	if err := readVersion(r, sealVersion); err != nil {
		return nil, fmt.Errorf("read seal key: %w", err)
	}
	id, seed := r.U32(), r.Raw(32)
	if err := closeReader(r); err != nil {
		return nil, fmt.Errorf("read seal key: %w", err)
	}
	return newSealKey(id, seed)
}

// Public is what others seal envelopes to.
func (s *SealSecret) Public() SealKey {
	return SealKey{ID: s.ID, Key: [1216]byte(s.key.PublicKey().Bytes())}
}

// HPKE is the key as crypto/hpke takes it.
func (s *SealSecret) HPKE() hpke.PrivateKey { return s.key }

// Equal compares in constant time.
func (s *SealSecret) Equal(o *SealSecret) bool {
	return subtle.ConstantTimeCompare(s.MarshalSecret(), o.MarshalSecret()) == 1
}

// SealKey is the public side of a seal key: ML-KEM-768 encapsulation key (1184) || X25519 (32).
type SealKey struct {
	ID  uint32
	Key [1216]byte
}

// HPKE is the key as crypto/hpke takes it.
func (k SealKey) HPKE() (hpke.PublicKey, error) {
	key, err := hpke.MLKEM768X25519().NewPublicKey(k.Key[:])
	if err != nil {
		return nil, fmt.Errorf("seal key %d: %w: %w", k.ID, ErrInvalid, err)
	}
	return key, nil
}

// check refuses low-order, non-canonical and unreduced keys.
func (k SealKey) check() error {
	if err := checkEK(k.Key[:1184]); err != nil {
		return fmt.Errorf("seal key %d: %w", k.ID, err)
	}
	if err := checkX25519([32]byte(k.Key[1184:])); err != nil {
		return fmt.Errorf("seal key %d: %w", k.ID, err)
	}
	return nil
}
