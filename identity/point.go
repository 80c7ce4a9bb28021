package identity

import (
	"bytes"
	"crypto/ecdh"
	"crypto/mlkem"
	"fmt"

	"filippo.io/edwards25519"
)

// checkEdPoint refuses an Ed25519 public key that is not a canonical encoding or not in the prime-order group: such keys
// verify signatures that nobody made, or under several encodings.
func checkEdPoint(key [32]byte) error {
	p, err := new(edwards25519.Point).SetBytes(key[:])
	if err != nil || !bytes.Equal(p.Bytes(), key[:]) {
		return fmt.Errorf("signing key is not a canonical point: %w", ErrInvalid)
	}
	identity := edwards25519.NewIdentityPoint()
	one, _ := edwards25519.NewScalar().SetCanonicalBytes(append([]byte{1}, make([]byte, 31)...))
	minus := edwards25519.NewScalar().Negate(one) // l − 1
	lp := new(edwards25519.Point).ScalarMult(minus, p)
	lp.Add(lp, p) // l·P
	if p.Equal(identity) == 1 || lp.Equal(identity) != 1 {
		return fmt.Errorf("signing key is not of prime order: %w", ErrInvalid)
	}
	return nil
}

// CheckKey refuses an Ed25519 public key that is not as PROTOCOL 2.5 wants it, for keys that no object of this package carries.
func CheckKey(key [32]byte) error { return checkEdPoint(key) }

// checkX25519 refuses a public key that is not canonical or whose shared secrets would all be zero (a low-order point).
func checkX25519(key [32]byte) error {
	if !canonicalX25519(key) {
		return fmt.Errorf("X25519 key is not canonical: %w", ErrInvalid)
	}
	pub, err := ecdh.X25519().NewPublicKey(key[:])
	if err != nil {
		return fmt.Errorf("X25519 key: %w", ErrInvalid)
	}
	probe, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{1}, 32)) // any scalar: clamping makes it a multiple of 8
	if err != nil {
		return fmt.Errorf("X25519 key: %w", err)
	}
	if _, err := probe.ECDH(pub); err != nil {
		return fmt.Errorf("X25519 key is a low-order point: %w", ErrInvalid)
	}
	return nil
}

// canonicalX25519 reports whether the little-endian u-coordinate is below 2^255 − 19.
func canonicalX25519(u [32]byte) bool {
	if u[31] != 0x7f {
		return u[31] < 0x7f
	}
	for _, b := range u[1:31] {
		if b != 0xff {
			return true
		}
	}
	return u[0] < 0xed
}

// checkEK refuses an ML-KEM-768 encapsulation key with unreduced coefficients (FIPS 203 modulus check).
func checkEK(ek []byte) error {
	if _, err := mlkem.NewEncapsulationKey768(ek); err != nil {
		return fmt.Errorf("ML-KEM key: %w", ErrInvalid)
	}
	return nil
}
