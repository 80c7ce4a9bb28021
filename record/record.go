// Package record makes and checks the sealed, signed values that a node keeps in the DHT: where a device is now, and what
// an invite leads to. Pure: bytes and time in, bytes out.
//
// A record's name is a public key that changes every day and that only those can compute who hold the owner's record key
// A and discovery secret S; only the owner can sign for it (the key blinding of Tor's onion services, version 3).
// Begin with Seal, Reader.Open and Validate. PROTOCOL 6.
package record

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"sotto/internal/canon"
)

// Size is how long a record is; there are only two, so that a record's length says nothing more.
type Size int

// The two sizes: reach records and invite records.
const (
	Small  Size = 1153
	Invite Size = 8192
)

// Overhead is what a record adds to its plaintext, the plaintext's own length field included.
const Overhead = 1 + 8 + 8 + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead + 2 + 8 + ed25519.SignatureSize

// Max is how many bytes of plaintext a record of this size holds.
func (s Size) Max() int { return int(s) - Overhead }

// maxLife is how far ahead not_after may lie.
func (s Size) maxLife() time.Duration {
	if s == Invite {
		return 30 * 24 * time.Hour
	}
	return 72 * time.Hour
}

// Limits (PROTOCOL 15).
const (
	Version   = 1
	StampBits = 18
	Skew      = 24 * time.Hour // how wrong a clock may be before dates are refused
)

// Errors that callers branch on.
var (
	// ErrInvalid: damaged, forged, or against the format.
	ErrInvalid = errors.New("invalid record")
	// ErrNewer: made by a newer version of the program.
	ErrNewer = errors.New("record made by a newer version of sotto; update to use it")
	// ErrExpired: the date has passed, or this computer's clock is ahead.
	ErrExpired = errors.New("record expired, or this computer's clock is ahead")
	// ErrTooEarly: dated further ahead than a record may be, so this computer's clock is behind or the owner's is ahead.
	ErrTooEarly = errors.New("record dated too far ahead, or this computer's clock is behind")
)

// Record layout: version u8, seq u64, not_after u64, nonce 24, sealed, stamp u64, signature 64 (PROTOCOL 6.3).
const (
	atSeq    = 1
	atExpiry = atSeq + 8
	atNonce  = atExpiry + 8
	atSealed = atNonce + chacha20poly1305.NonceSizeX
	tail     = 8 + ed25519.SignatureSize
)

// maxUnix is the last second of year 9999.
const maxUnix = 253402300799

// Seal makes the record of one day (or of epoch Fixed): it pads, seals under S, stamps and signs. seq should be
// max(last seq + 1, unix time). The name is where the record belongs.
func Seal(o *Owner, s Secret, epoch, seq uint64, notAfter time.Time, plain []byte, size Size, rand io.Reader) (name [32]byte, value []byte, err error) {
	if size != Small && size != Invite {
		return name, nil, fmt.Errorf("seal record: size %d: %w", size, ErrInvalid)
	}
	if len(plain) > size.Max() {
		return name, nil, fmt.Errorf("seal record: %d bytes, at most %d fit: %w", len(plain), size.Max(), ErrInvalid)
	}
	if t := notAfter.Unix(); t < 0 || t > maxUnix {
		return name, nil, fmt.Errorf("seal record: not_after out of range: %w", ErrInvalid)
	}
	key := o.blind(s, epoch)
	aead, err := sealKey(o.public, s, epoch)
	if err != nil {
		return name, nil, fmt.Errorf("seal record: %w", err)
	}
	nonce := make([]byte, aead.NonceSize())
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return name, nil, fmt.Errorf("seal record: draw nonce: %w", err)
	}
	padded := make([]byte, 2+size.Max())
	binary.BigEndian.PutUint16(padded, uint16(len(plain)))
	copy(padded[2:], plain)

	var w canon.Writer
	w.U8(Version).U64(seq).U64(uint64(notAfter.Unix()))
	ad := append(key.public[:len(key.public):len(key.public)], w.Bytes()...)
	w.Raw(nonce).Raw(aead.Seal(nil, nonce, padded, ad)).U64(mint(key.public, uint64(notAfter.Unix()), size))
	return key.public, w.Raw(key.sign(signed(key.public, w.Bytes()))).Bytes(), nil
}

// signed is the input of the signature: the name comes first, so that a record is signed for one name only.
func signed(name [32]byte, fields []byte) []byte {
	return canon.SigInput("record", append(name[:len(name):len(name)], fields...))
}

// Open returns what is inside a record of the given day. It checks name, signature and seal, not the dates.
func (r Reader) Open(epoch uint64, value []byte) (plain []byte, seq uint64, err error) {
	name, err := r.Name(epoch)
	if err != nil {
		return nil, 0, err
	}
	if err := verify(name, value); err != nil {
		return nil, 0, fmt.Errorf("open record: %w", err)
	}
	aead, err := sealKey(r.A, r.S, epoch)
	if err != nil {
		return nil, 0, fmt.Errorf("open record: %w", err)
	}
	ad := append(name[:len(name):len(name)], value[:atNonce]...)
	padded, err := aead.Open(nil, value[atNonce:atSealed], value[atSealed:len(value)-tail], ad)
	if err != nil {
		return nil, 0, fmt.Errorf("open record: %w: sealed with another secret", ErrInvalid)
	}
	n := int(binary.BigEndian.Uint16(padded))
	if n > len(padded)-2 || !zero(padded[2+n:]) {
		return nil, 0, fmt.Errorf("open record: %w: padding", ErrInvalid)
	}
	return padded[2 : 2+n], binary.BigEndian.Uint64(value[atSeq:]), nil
}

func zero(b []byte) bool {
	var or byte
	for _, x := range b {
		or |= x
	}
	return or == 0
}

// Validate is what everyone can check who stores or passes on a record without being able to open it: size, version,
// dates, stamp and signature under its name.
func Validate(name [32]byte, value []byte, now time.Time) error {
	if err := layout(value); err != nil {
		return fmt.Errorf("check record: %w", err)
	}
	seq, notAfter := binary.BigEndian.Uint64(value[atSeq:]), binary.BigEndian.Uint64(value[atExpiry:])
	if notAfter > maxUnix || seq > maxUnix {
		return fmt.Errorf("check record: %w: number out of range", ErrInvalid)
	}
	until := time.Unix(int64(notAfter), 0)
	switch {
	case now.After(until.Add(Skew)):
		return fmt.Errorf("check record: %w: it was good until %s", ErrExpired, until.UTC().Format(time.DateTime))
	case until.After(now.Add(Size(len(value)).maxLife() + Skew)):
		return fmt.Errorf("check record: %w: good until %s", ErrTooEarly, until.UTC().Format(time.DateTime))
	case time.Unix(int64(seq), 0).After(now.Add(Skew)):
		return fmt.Errorf("check record: %w: its number lies in the future", ErrTooEarly)
	}
	if err := verify(name, value); err != nil {
		return fmt.Errorf("check record: %w", err)
	}
	return nil
}

// layout checks length and version, on which every other position depends.
func layout(value []byte) error {
	if size := Size(len(value)); size != Small && size != Invite {
		return fmt.Errorf("%w: %d bytes, a record has %d or %d", ErrInvalid, len(value), Small, Invite)
	}
	if value[0] != Version {
		if value[0] > Version {
			return fmt.Errorf("format %d: %w", value[0], ErrNewer)
		}
		return fmt.Errorf("%w: format 0", ErrInvalid)
	}
	return nil
}

// verify checks layout, stamp and signature, the cheap ones first.
func verify(name [32]byte, value []byte) error {
	if err := layout(value); err != nil {
		return err
	}
	body, sig := value[:len(value)-ed25519.SignatureSize], value[len(value)-ed25519.SignatureSize:]
	stamp := binary.BigEndian.Uint64(body[len(body)-8:])
	if !stamped(name, binary.BigEndian.Uint64(value[atExpiry:]), Size(len(value)), stamp) {
		return fmt.Errorf("%w: stamp", ErrInvalid)
	}
	if _, err := primeOrder(name); err != nil {
		return err
	}
	if !ed25519.Verify(name[:], signed(name, body), sig) {
		return fmt.Errorf("%w: signature", ErrInvalid)
	}
	return nil
}

// Select returns the index of the record to keep: highest seq, then latest not_after, then greatest bytes.
// Values that are no records are passed over.
func Select(values [][]byte) (int, error) {
	best := -1
	for i, v := range values {
		if layout(v) == nil && (best < 0 || newer(v, values[best])) {
			best = i
		}
	}
	if best < 0 {
		return 0, fmt.Errorf("choose record: none of %d is one: %w", len(values), ErrInvalid)
	}
	return best, nil
}

func newer(a, b []byte) bool {
	for _, at := range []int{atSeq, atExpiry} {
		if x, y := binary.BigEndian.Uint64(a[at:]), binary.BigEndian.Uint64(b[at:]); x != y {
			return x > y
		}
	}
	return string(a) > string(b)
}

// Seq returns a record's number and last date without checking anything but the layout.
func Seq(value []byte) (seq uint64, notAfter time.Time, err error) {
	if err := layout(value); err != nil {
		return 0, time.Time{}, fmt.Errorf("read record: %w", err)
	}
	t := min(binary.BigEndian.Uint64(value[atExpiry:]), maxUnix)
	return binary.BigEndian.Uint64(value[atSeq:]), time.Unix(int64(t), 0).UTC(), nil
}

// stampInput is hashed to prove work: a stamp is good for one name, one last date and one size, so an owner who only
// changes the content needs no new one.
func stampInput(name [32]byte, notAfter uint64, size Size) []byte {
	var w canon.Writer
	return w.Raw([]byte("sotto/v1 stamp")).Raw(name[:]).U64(notAfter).U16(uint16(size)).U64(0).Bytes()
}

func mint(name [32]byte, notAfter uint64, size Size) uint64 {
	in := stampInput(name, notAfter, size)
	for stamp := uint64(0); ; stamp++ {
		binary.BigEndian.PutUint64(in[len(in)-8:], stamp)
		if enough(in) {
			return stamp
		}
	}
}

func stamped(name [32]byte, notAfter uint64, size Size, stamp uint64) bool {
	in := stampInput(name, notAfter, size)
	binary.BigEndian.PutUint64(in[len(in)-8:], stamp)
	return enough(in)
}

// enough reports whether the hash begins with StampBits zero bits.
func enough(in []byte) bool {
	sum := sha256.Sum256(in)
	return bits.LeadingZeros32(binary.BigEndian.Uint32(sum[:])) >= StampBits
}

// keyPrefix is the DHT namespace.
const keyPrefix = "/sotto/"

var base32Lower = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Key is the DHT key of a name: "/sotto/" and 52 characters of base32.
func Key(name [32]byte) string { return keyPrefix + base32Lower.EncodeToString(name[:]) }

// ParseKey reads what Key wrote, and nothing else.
func ParseKey(key string) ([32]byte, error) {
	text, ok := strings.CutPrefix(key, keyPrefix)
	b, err := base32Lower.DecodeString(text)
	if !ok || err != nil || len(b) != 32 || Key([32]byte(b)) != key {
		return [32]byte{}, fmt.Errorf("read record key: %w: want %s and 52 letters and digits", ErrInvalid, keyPrefix)
	}
	return [32]byte(b), nil
}
