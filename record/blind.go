package record

import (
	"bytes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"math"
	"time"

	"filippo.io/edwards25519"
	"golang.org/x/crypto/chacha20poly1305"
)

// Secret is a discovery secret S: it finds and opens records, and signs nothing.
type Secret [32]byte

const redaction = "(secret)"

// String says only that there is a secret.
func (Secret) String() string { return redaction }

// GoString says only that there is a secret.
func (Secret) GoString() string { return redaction }

// Format says only that there is a secret, whatever the verb.
func (Secret) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redaction) }

// MarshalJSON says only that there is a secret.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redaction + `"`), nil }

// MarshalText says only that there is a secret.
func (Secret) MarshalText() ([]byte, error) { return []byte(redaction), nil }

// LogValue says only that there is a secret.
func (Secret) LogValue() slog.Value { return slog.StringValue(redaction) }

// Equal compares in constant time.
func (s Secret) Equal(o Secret) bool { return subtle.ConstantTimeCompare(s[:], o[:]) == 1 }

// Fixed is the epoch of records whose name never changes: those of invites.
const Fixed uint64 = math.MaxUint64

// daySeconds is the length of an epoch.
const daySeconds = 24 * 60 * 60

// Epoch is the day of a moment as the holders of S count it: days of 24 hours whose start is shifted by an amount only
// they know, so that records do not all move at midnight.
func Epoch(s Secret, at time.Time) uint64 { return (uint64(max(at.Unix(), 0)) + shift(s)) / daySeconds }

// EpochEnd is the moment at which the day ends and the next one begins.
func EpochEnd(s Secret, epoch uint64) time.Time {
	if epoch >= math.MaxInt64/daySeconds-1 {
		return time.Unix(maxUnix, 0).UTC() // Fixed never ends
	}
	return time.Unix(int64((epoch+1)*daySeconds-shift(s)), 0).UTC()
}

func shift(s Secret) uint64 {
	return binary.BigEndian.Uint64(expand(s[:], nil, "sotto/v1 epoch", 8)) % daySeconds
}

// expand is HKDF-SHA-256(salt, ikm, info, n).
func expand(ikm, salt []byte, info string, n int) []byte {
	out, err := hkdf.Key(sha256.New, ikm, salt, info, n)
	if err != nil {
		panic("record: hkdf: " + err.Error()) // only for n > 8160, and every n here is a constant
	}
	return out
}

// Owner holds a record key: an Ed25519 key in its expanded form, which blinding needs.
type Owner struct {
	secret *ownerSecret // behind a pointer, so that printing an Owner shows an address at most
	public [32]byte
}

type ownerSecret struct {
	scalar *edwards25519.Scalar
	prefix []byte
}

// NewOwner expands an Ed25519 seed: a device's record seed, or the account's for invites.
func NewOwner(seed [32]byte) *Owner {
	h := sha512.Sum512(seed[:])
	a, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
	if err != nil {
		panic("record: clamp: " + err.Error()) // only for a wrong length, and 32 bytes is a right one
	}
	public := new(edwards25519.Point).ScalarBaseMult(a).Bytes()
	return &Owner{secret: &ownerSecret{scalar: a, prefix: h[32:]}, public: [32]byte(public)}
}

// Public is A.
func (o *Owner) Public() [32]byte { return o.public }

// String says only that there is a secret.
func (*Owner) String() string { return redaction }

// GoString says only that there is a secret.
func (*Owner) GoString() string { return redaction }

// Format says only that there is a secret, whatever the verb.
func (*Owner) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redaction) }

// MarshalJSON says only that there is a secret.
func (*Owner) MarshalJSON() ([]byte, error) { return []byte(`"` + redaction + `"`), nil }

// MarshalText says only that there is a secret.
func (*Owner) MarshalText() ([]byte, error) { return []byte(redaction), nil }

// LogValue says only that there is a secret.
func (*Owner) LogValue() slog.Value { return slog.StringValue(redaction) }

// Equal compares in constant time.
func (o *Owner) Equal(p *Owner) bool {
	return o.secret.scalar.Equal(p.secret.scalar)&subtle.ConstantTimeCompare(o.secret.prefix, p.secret.prefix) == 1
}

// Reader holds what finds and opens someone's records.
type Reader struct {
	A [32]byte
	S Secret
}

// Name is A' of the day: where the record is and what signs it. It refuses an A that is not of prime order, with which
// one owner could have several names.
func (r Reader) Name(epoch uint64) ([32]byte, error) {
	a, err := primeOrder(r.A)
	if err != nil {
		return [32]byte{}, fmt.Errorf("record key: %w", err)
	}
	return [32]byte(a.ScalarMult(factor(r.A, r.S, epoch), a).Bytes()), nil
}

// primeOrder decodes a canonical point of the prime-order group, not its identity.
func primeOrder(b [32]byte) (*edwards25519.Point, error) {
	p, err := new(edwards25519.Point).SetBytes(b[:])
	if err != nil || !bytes.Equal(p.Bytes(), b[:]) {
		return nil, fmt.Errorf("%w: key is not a canonical point", ErrInvalid)
	}
	identity := edwards25519.NewIdentityPoint()
	one, _ := edwards25519.NewScalar().SetCanonicalBytes(append([]byte{1}, make([]byte, 31)...))
	lp := new(edwards25519.Point).ScalarMult(edwards25519.NewScalar().Negate(one), p) // (l − 1)·P
	if lp.Add(lp, p).Equal(identity) != 1 || p.Equal(identity) == 1 {
		return nil, fmt.Errorf("%w: key is not of prime order", ErrInvalid)
	}
	return p, nil
}

// dayOf is A || e, which separates days and owners in every derivation.
func dayOf(a [32]byte, epoch uint64) []byte {
	return binary.BigEndian.AppendUint64(bytes.Clone(a[:]), epoch)
}

// factor is the blinding factor f, below l.
func factor(a [32]byte, s Secret, epoch uint64) *edwards25519.Scalar {
	f, err := edwards25519.NewScalar().SetUniformBytes(expand(s[:], dayOf(a, epoch), "sotto/v1 blind", 64))
	if err != nil {
		panic("record: blind: " + err.Error()) // only for a wrong length, and 64 bytes is a right one
	}
	return f
}

func sealKey(a [32]byte, s Secret, epoch uint64) (cipher.AEAD, error) {
	return chacha20poly1305.NewX(expand(s[:], dayOf(a, epoch), "sotto/v1 record", chacha20poly1305.KeySize))
}

// blinded is one day's signing key.
type blinded struct {
	scalar *edwards25519.Scalar // f·a
	prefix []byte
	public [32]byte // A' = f·A
}

func (o *Owner) blind(s Secret, epoch uint64) blinded {
	k := edwards25519.NewScalar().Multiply(factor(o.public, s, epoch), o.secret.scalar)
	public := [32]byte(new(edwards25519.Point).ScalarBaseMult(k).Bytes())
	return blinded{scalar: k, public: public, prefix: expand(o.secret.prefix, public[:], "sotto/v1 record nonce", 64)}
}

// sign is Ed25519 with a nonce that depends on the day's key: the same nonce under two factors would give away a.
func (k blinded) sign(message []byte) []byte {
	r := hashScalar(k.prefix, message)
	commitment := new(edwards25519.Point).ScalarBaseMult(r).Bytes()
	challenge := hashScalar(commitment, k.public[:], message)
	s := edwards25519.NewScalar().MultiplyAdd(challenge, k.scalar, r)
	return append(commitment, s.Bytes()...)
}

// hashScalar is SHA-512 of the parts, modulo l.
func hashScalar(parts ...[]byte) *edwards25519.Scalar {
	h := sha512.New()
	for _, p := range parts {
		h.Write(p)
	}
	s, err := edwards25519.NewScalar().SetUniformBytes(h.Sum(nil))
	if err != nil {
		panic("record: sign: " + err.Error()) // only for a wrong length, and SHA-512 gives a right one
	}
	return s
}
