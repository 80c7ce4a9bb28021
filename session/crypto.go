package session

import (
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/mlkem"
	"crypto/sha256"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// Sizes of the primitives' inputs and outputs.
const (
	pointSize = 32
	kemSeed   = mlkem.SeedSize
	ekSize    = mlkem.EncapsulationKeySize768
	ctSize    = mlkem.CiphertextSize768
	nonceSize = chacha20poly1305.NonceSizeX
	tagSize   = chacha20poly1305.Overhead
	boxSize   = nonceSize + tagSize // what box adds to its plaintext
)

// sum is SHA-256 over the concatenation of parts.
func sum(parts ...[]byte) (out [32]byte) {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	h.Sum(out[:0])
	return out
}

// prf is HMAC-SHA-256.
func prf(key *Key, data ...byte) (out Key) {
	h := hmac.New(sha256.New, key[:])
	h.Write(data)
	h.Sum(out[:0])
	return out
}

// expand is HKDF-Expand with a pseudorandom key of full size; it cannot fail at the lengths used here.
func expand(key *Key, info string, n int) []byte {
	out, err := hkdf.Expand(sha256.New, key[:], info, n)
	if err != nil {
		panic("session: HKDF-Expand refuses a fixed length: " + err.Error())
	}
	return out
}

// derive3 is HKDF with three keys of output.
func derive3(salt, ikm []byte, info string) (a, b, c Key) {
	out, err := hkdf.Key(sha256.New, ikm, salt, info, 96)
	if err != nil {
		panic("session: HKDF refuses a fixed length: " + err.Error())
	}
	copy(a[:], out)
	copy(b[:], out[32:])
	copy(c[:], out[64:])
	clear(out)
	return a, b, c
}

// aead is XChaCha20-Poly1305.
func aead(key []byte) cipher.AEAD {
	a, err := chacha20poly1305.NewX(key)
	if err != nil {
		panic("session: XChaCha20-Poly1305 refuses a 32-byte key: " + err.Error())
	}
	return a
}

// x25519 refuses what is not the one encoding of a point, and an all-zero result (a point of low order).
func x25519(private *Key, public *[32]byte) ([]byte, error) {
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return nil, fmt.Errorf("X25519 private key: %w", err)
	}
	return exchange(k, public)
}

func exchange(private *ecdh.PrivateKey, public *[32]byte) ([]byte, error) {
	if !canonicalPoint(public) {
		return nil, fmt.Errorf("X25519 point is not canonical: %w", ErrBad)
	}
	p, err := ecdh.X25519().NewPublicKey(public[:])
	if err != nil {
		return nil, fmt.Errorf("X25519 point: %w", ErrBad)
	}
	shared, err := private.ECDH(p)
	if err != nil {
		return nil, fmt.Errorf("X25519 point of low order: %w", ErrBad)
	}
	return shared, nil
}

// canonicalPoint reports whether the u-coordinate is below 2^255-19, so that a point has one byte string only.
func canonicalPoint(p *[32]byte) bool {
	if p[31] != 0x7f {
		return p[31] < 0x7f
	}
	for _, b := range p[1:31] {
		if b != 0xff {
			return true
		}
	}
	return p[0] < 0xed
}

// newPoint draws an X25519 pair.
func newPoint(rand io.Reader) (private Key, public [32]byte, err error) {
	if _, err = io.ReadFull(rand, private[:]); err != nil {
		return private, public, fmt.Errorf("draw an X25519 key: %w", err)
	}
	k, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return private, public, fmt.Errorf("draw an X25519 key: %w", err)
	}
	copy(public[:], k.PublicKey().Bytes())
	return private, public, nil
}

// newKEM draws an ML-KEM-768 seed and returns it with the public key.
func newKEM(rand io.Reader) (seed [kemSeed]byte, ek []byte, err error) {
	if _, err = io.ReadFull(rand, seed[:]); err != nil {
		return seed, nil, fmt.Errorf("draw an ML-KEM key: %w", err)
	}
	dk, err := mlkem.NewDecapsulationKey768(seed[:])
	if err != nil {
		return seed, nil, fmt.Errorf("draw an ML-KEM key: %w", err)
	}
	return seed, dk.EncapsulationKey().Bytes(), nil
}

// checkEncapsulationKey refuses an ML-KEM key of the wrong form, so that a later send cannot fail on it.
func checkEncapsulationKey(ek []byte) error {
	if _, err := mlkem.NewEncapsulationKey768(ek); err != nil {
		return fmt.Errorf("ML-KEM key: %w", ErrBad)
	}
	return nil
}

// encapsulator is met only by the readers of this package's vector tests: crypto/mlkem takes no randomness from its
// caller, but a vector must fix it.
type encapsulator interface {
	encapsulate(ek *mlkem.EncapsulationKey768) (shared, ciphertext []byte)
}

// encapsulate makes a shared key for ek. The randomness is the system's, whatever rand is, except in vectors.
func encapsulate(ek []byte, rand io.Reader) (shared, ciphertext []byte, err error) {
	k, err := mlkem.NewEncapsulationKey768(ek)
	if err != nil {
		return nil, nil, fmt.Errorf("ML-KEM key: %w", ErrBad)
	}
	if fixed, ok := rand.(encapsulator); ok {
		shared, ciphertext = fixed.encapsulate(k)
		return shared, ciphertext, nil
	}
	shared, ciphertext = k.Encapsulate()
	return shared, ciphertext, nil
}

// decapsulate opens a ciphertext. A forged one gives a wrong key, not an error (implicit rejection).
func decapsulate(seed, ciphertext []byte) ([]byte, error) {
	k, err := mlkem.NewDecapsulationKey768(seed)
	if err != nil {
		return nil, fmt.Errorf("ML-KEM private key: %w", err)
	}
	shared, err := k.Decapsulate(ciphertext)
	if err != nil {
		return nil, fmt.Errorf("ML-KEM ciphertext: %w", ErrBad)
	}
	return shared, nil
}
