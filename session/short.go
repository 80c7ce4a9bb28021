package session

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A sender keeps each item until it is acknowledged. Most of an item is the sealed header, which differs from the one before
// it in four bytes and is determined by the chain and the nonce: so only the rest is kept with the item, and what the headers
// of a chain share is kept once (PROTOCOL A.9).

// HeadingSize is the length of Heading's bytes.
const HeadingSize = 32 + 32 + headerSize

// Heading is what all sealed headers of one sending chain are made from.
type Heading struct {
	hk     Key
	ad     [32]byte
	header [headerSize]byte
}

var errShort = errors.New("not a short item")

// Heading returns the heading of a sending chain while it is the live one.
func (s *Session) Heading(chain uint32) (*Heading, bool) {
	if s.send == nil || s.send.chain != chain {
		return nil, false
	}
	return &Heading{hk: s.send.hk, ad: s.ad, header: s.send.header}, true
}

// Marshal returns the heading, a secret, as bytes for the caller's vault.
func (h *Heading) Marshal() []byte {
	b := append(make([]byte, 0, HeadingSize), h.hk[:]...)
	return append(append(b, h.ad[:]...), h.header[:]...)
}

// ParseHeading reads the bytes of Marshal.
func ParseHeading(b []byte) (*Heading, error) {
	if len(b) != HeadingSize {
		return nil, fmt.Errorf("heading of %d bytes, not %d: %w", len(b), HeadingSize, ErrDamagedState)
	}
	h := &Heading{}
	copy(h.hk[:], b)
	copy(h.ad[:], b[32:])
	copy(h.header[:], b[64:])
	return h, nil
}

// Shorten leaves out of an item what Restore makes again: the sealed header behind its nonce. An item with an initial
// header is given back as it is, with false: there are few of them.
func Shorten(item []byte) (short []byte, ok bool) {
	if len(item) < ItemOverhead || Kind(item[0]) != KindMessage {
		return item, false
	}
	short = make([]byte, 0, len(item)-headerSize-tagSize)
	short = append(short, item[1:1+nonceSize]...)
	return append(short, item[1+ehSize:]...), true
}

// Restore makes the item that Shorten shortened, byte for byte, from the heading of its chain and its position.
func (h *Heading) Restore(short []byte, n uint32) ([]byte, error) {
	if len(short) < nonceSize+commitSize+boxSize {
		return nil, fmt.Errorf("%d bytes: %w", len(short), errShort)
	}
	header := h.header
	binary.BigEndian.PutUint32(header[offN:], n)
	item := make([]byte, 0, len(short)+1+headerSize+tagSize)
	item = append(item, byte(KindMessage))
	item = append(item, short[:nonceSize]...)
	item = aead(h.hk[:]).Seal(item, short[:nonceSize], header[:], h.ad[:])
	return append(item, short[nonceSize:]...), nil
}
