// Package canon is the one canonical encoding of whatever is signed or hashed: fixed order, big-endian, length-prefixed,
// one byte string for one value (PROTOCOL 2). Begin with Writer and Reader, which mirror each other call for call.
package canon

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
)

// Extension is a field added after the first version of an object. Readers keep the ones they do not know and
// sign or hash them again byte for byte; an ID with the top bit set must be understood or the object refused.
type Extension struct {
	ID   uint16
	Data []byte
}

// Critical reports whether a reader that does not know the extension must refuse the object.
func (e Extension) Critical() bool { return e.ID&0x8000 != 0 }

// Limits on the extension list that ends each signed or hashed object.
const (
	MaxExtensions    = 16
	MaxExtensionData = 4096
)

// Errors a reader reports; callers wrap them with the name of the object.
var (
	ErrShort    = errors.New("truncated")
	ErrTrailing = errors.New("trailing bytes")
	ErrTooLong  = errors.New("field too long")
	ErrOrder    = errors.New("extensions out of order")
	ErrCritical = errors.New("needs a newer version: unknown critical extension")
)

// Writer appends fields to a byte string. The zero value is ready to use.
type Writer struct{ b []byte }

// Bytes returns what was written so far; it aliases the writer's buffer.
func (w *Writer) Bytes() []byte { return w.b }

// U8 appends one byte.
func (w *Writer) U8(v uint8) *Writer { w.b = append(w.b, v); return w }

// U16 appends two bytes, big-endian.
func (w *Writer) U16(v uint16) *Writer { w.b = binary.BigEndian.AppendUint16(w.b, v); return w }

// U32 appends four bytes, big-endian.
func (w *Writer) U32(v uint32) *Writer { w.b = binary.BigEndian.AppendUint32(w.b, v); return w }

// U64 appends eight bytes, big-endian.
func (w *Writer) U64(v uint64) *Writer { w.b = binary.BigEndian.AppendUint64(w.b, v); return w }

// Raw appends bytes whose length the format fixes.
func (w *Writer) Raw(x []byte) *Writer { w.b = append(w.b, x...); return w }

// LP appends u32 length || x.
func (w *Writer) LP(x []byte) *Writer { w.b = AppendLP(w.b, x); return w }

// Extensions appends u16 count || (u16 id || lp(data))*; ids must rise strictly.
func (w *Writer) Extensions(list []Extension) *Writer {
	w.U16(uint16(len(list)))
	for _, e := range list {
		w.U16(e.ID).LP(e.Data)
	}
	return w
}

// AppendLP appends u32 length || x to b.
func AppendLP(b, x []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(x))), x...)
}

// Reader takes fields off a byte string. The first failure sticks: later reads return zero values, Close returns it.
type Reader struct {
	b   []byte
	err error
}

// NewReader reads from b without copying it; Raw and LP return slices of b.
func NewReader(b []byte) *Reader { return &Reader{b: b} }

func (r *Reader) take(n int) []byte {
	if r.err == nil && len(r.b) < n {
		r.err = ErrShort
	}
	if r.err != nil {
		return nil
	}
	x := r.b[:n:n]
	r.b = r.b[n:]
	return x
}

// U8 takes one byte.
func (r *Reader) U8() uint8 {
	if x := r.take(1); x != nil {
		return x[0]
	}
	return 0
}

// U16 takes two bytes.
func (r *Reader) U16() uint16 {
	if x := r.take(2); x != nil {
		return binary.BigEndian.Uint16(x)
	}
	return 0
}

// U32 takes four bytes.
func (r *Reader) U32() uint32 {
	if x := r.take(4); x != nil {
		return binary.BigEndian.Uint32(x)
	}
	return 0
}

// U64 takes eight bytes.
func (r *Reader) U64() uint64 {
	if x := r.take(8); x != nil {
		return binary.BigEndian.Uint64(x)
	}
	return 0
}

// Raw takes exactly n bytes, nil on failure.
func (r *Reader) Raw(n int) []byte { return r.take(n) }

// Copy fills dst, or leaves it as it is on failure.
func (r *Reader) Copy(dst []byte) { copy(dst, r.take(len(dst))) }

// LP takes a length-prefixed field of at most max bytes.
func (r *Reader) LP(max int) []byte {
	n := r.U32()
	if r.err == nil && uint64(n) > uint64(max) {
		r.err = ErrTooLong
	}
	return r.take(int(n))
}

// Extensions takes the counted list and refuses it unless ids rise strictly and every critical one is in known.
func (r *Reader) Extensions(known ...uint16) []Extension {
	count := r.U16()
	if r.err == nil && count > MaxExtensions {
		r.err = ErrTooLong
	}
	var list []Extension
	for i := 0; i < int(count) && r.err == nil; i++ {
		e := Extension{ID: r.U16(), Data: r.LP(MaxExtensionData)}
		switch {
		case r.err != nil:
		case i > 0 && e.ID <= list[i-1].ID:
			r.err = ErrOrder
		case e.Critical() && !contains(known, e.ID):
			r.err = ErrCritical
		default:
			list = append(list, e)
		}
	}
	return list
}

func contains(ids []uint16, id uint16) bool {
	for _, k := range ids {
		if k == id {
			return true
		}
	}
	return false
}

// Fail makes the reader report err, for a value that the caller found invalid.
func (r *Reader) Fail(err error) {
	if r.err == nil {
		r.err = err
	}
}

// Len returns how many bytes are left.
func (r *Reader) Len() int { return len(r.b) }

// Err returns the first failure so far.
func (r *Reader) Err() error { return r.err }

// Close returns the first failure, or ErrTrailing when bytes are left.
func (r *Reader) Close() error {
	if r.err == nil && len(r.b) > 0 {
		return fmt.Errorf("%w: %d", ErrTrailing, len(r.b))
	}
	return r.err
}

// SigInput is what a signature covers: the type keeps a signature over one kind of object from passing for another.
func SigInput(typ string, fields []byte) []byte {
	in := make([]byte, 0, len("sotto/v1 sig ")+len(typ)+1+len(fields))
	in = append(in, "sotto/v1 sig "...)
	in = append(in, typ...)
	in = append(in, 0)
	return append(in, fields...)
}

// Sign signs fields as an object of the given type; 64 bytes.
func Sign(key ed25519.PrivateKey, typ string, fields []byte) []byte {
	return ed25519.Sign(key, SigInput(typ, fields))
}

// Verify checks a signature made by Sign.
func Verify(pub ed25519.PublicKey, typ string, fields, sig []byte) bool {
	return len(pub) == ed25519.PublicKeySize && len(sig) == ed25519.SignatureSize && ed25519.Verify(pub, SigInput(typ, fields), sig)
}
