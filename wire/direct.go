package wire

import (
	"encoding/binary"
	"fmt"

	"sotto/internal/canon"
)

// Limits of the direct protocol (PROTOCOL 11.2).
const (
	MaxItem       = 96 << 10 // bytes of one item: 64 KiB of text and what surrounds it
	OfferPad      = 512      // an offer's whole frame is a multiple of this
	MaxOfferFrame = (MaxItem + 12 + OfferPad) / OfferPad * OfferPad
	AnswerSize    = 23 // bytes of an answer's body
)

// Ack proves that the receiver opened an item and holds what it said; only the two ends can compute it (PROTOCOL 10.4).
type Ack [16]byte

// Offer asks the other side to take one item.
type Offer struct {
	ID   uint32 // chosen by the offering side, rising by one on a stream
	Item []byte
}

// Append appends the offer's whole frame: u32 length || u32 id || lp(item) || zeros up to a multiple of 512.
func (o Offer) Append(dst []byte) []byte {
	size := 4 + 4 + 4 + len(o.Item)
	padded := (size + OfferPad - 1) / OfferPad * OfferPad
	dst = binary.BigEndian.AppendUint32(dst, uint32(padded-4))
	dst = binary.BigEndian.AppendUint32(dst, o.ID)
	dst = canon.AppendLP(dst, o.Item)
	return append(dst, make([]byte, padded-size)...)
}

// ParseOffer reads an offer from a frame's body; the item aliases it.
func ParseOffer(body []byte) (Offer, error) {
	if (len(body)+4)%OfferPad != 0 {
		return Offer{}, fmt.Errorf("offer: frame of %d bytes is not a multiple of %d", len(body)+4, OfferPad)
	}
	r := canon.NewReader(body)
	o := Offer{ID: r.U32(), Item: r.LP(MaxItem)}
	pad := r.Raw(r.Len())
	if err := r.Close(); err != nil {
		return Offer{}, fmt.Errorf("offer: %w", err)
	}
	if len(o.Item) == 0 {
		return Offer{}, fmt.Errorf("offer %d: no item", o.ID)
	}
	if len(pad) >= OfferPad || !allZero(pad) {
		return Offer{}, fmt.Errorf("offer %d: padding is not minimal zeros", o.ID)
	}
	return o, nil
}

// Answer tells what became of the offer with the same id.
type Answer struct {
	ID         uint32
	Code       Code
	RetryAfter uint16 // seconds, with CodeLater and CodeOverloaded; 0 leaves it to the sender
	Ack        Ack    // zero unless Code is CodeOK
}

// Append appends the answer's whole frame.
func (a Answer) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, AnswerSize)
	dst = binary.BigEndian.AppendUint32(dst, a.ID)
	dst = append(dst, byte(a.Code))
	dst = binary.BigEndian.AppendUint16(dst, a.RetryAfter)
	return append(dst, a.Ack[:]...)
}

// ParseAnswer reads an answer from a frame's body.
func ParseAnswer(body []byte) (Answer, error) {
	r := canon.NewReader(body)
	a := Answer{ID: r.U32(), Code: Code(r.U8()), RetryAfter: r.U16()}
	r.Copy(a.Ack[:])
	if err := r.Close(); err != nil {
		return Answer{}, fmt.Errorf("answer: %w", err)
	}
	return a, nil
}

func allZero(b []byte) bool {
	var or byte
	for _, x := range b {
		or |= x
	}
	return or == 0
}
