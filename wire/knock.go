package wire

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"

	"sotto/internal/canon"
)

// Limits of the knock protocol (PROTOCOL 12).
const (
	MaxEnvelope    = 128 << 10
	MaxKnock       = 1 + 32 + 8 + 4 + MaxEnvelope
	MaxRecord      = 8 << 10
	MaxAcks        = 64
	MaxKnockAnswer = 1 + 2 + 4 + MaxRecord + 1 + 16*MaxAcks
	KnockBits      = 16 // leading zero bits of a stamp
)

const (
	knockGet = 1
	knockPut = 2
)

// Knock is a request to a front host: *KnockGet or *KnockPut.
type Knock interface{ Append(dst []byte) []byte }

// KnockGet asks for the invite record under a name.
type KnockGet struct{ Name [32]byte }

// KnockPut hands over one sealed envelope.
type KnockPut struct {
	Name     [32]byte // the invite it answers, or zeros
	Stamp    uint64   // work, judged only when Name is no live invite
	Envelope []byte
}

// Append appends the request's whole frame.
func (k *KnockGet) Append(dst []byte) []byte {
	return AppendFrame(dst, append([]byte{knockGet}, k.Name[:]...))
}

// Append appends the request's whole frame.
func (k *KnockPut) Append(dst []byte) []byte {
	var w canon.Writer
	return AppendFrame(dst, w.U8(knockPut).Raw(k.Name[:]).U64(k.Stamp).LP(k.Envelope).Bytes())
}

// ParseKnock reads a request from a frame's body.
func ParseKnock(body []byte) (Knock, error) {
	r := canon.NewReader(body)
	var k Knock
	switch op := r.U8(); op {
	case knockGet:
		get := &KnockGet{}
		r.Copy(get.Name[:])
		k = get
	case knockPut:
		put := &KnockPut{}
		r.Copy(put.Name[:])
		put.Stamp, put.Envelope = r.U64(), r.LP(MaxEnvelope)
		k = put
	default:
		r.Fail(fmt.Errorf("unknown request %d", op))
	}
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("knock: %w", err)
	}
	return k, nil
}

// KnockAnswer answers either request: a record for a get, an ack for each item of the envelope for a put.
type KnockAnswer struct {
	Code       Code
	RetryAfter uint16 // seconds
	Record     []byte
	Acks       []Ack
}

// Append appends the answer's whole frame.
func (a KnockAnswer) Append(dst []byte) []byte {
	var w canon.Writer
	w.U8(uint8(a.Code)).U16(a.RetryAfter).LP(a.Record).U8(uint8(len(a.Acks)))
	for _, k := range a.Acks {
		w.Raw(k[:])
	}
	return AppendFrame(dst, w.Bytes())
}

// ParseKnockAnswer reads an answer from a frame's body.
func ParseKnockAnswer(body []byte) (KnockAnswer, error) {
	r := canon.NewReader(body)
	a := KnockAnswer{Code: Code(r.U8()), RetryAfter: r.U16(), Record: r.LP(MaxRecord)}
	n := int(r.U8())
	if n > MaxAcks {
		r.Fail(canon.ErrTooLong)
	}
	for i := 0; i < n && r.Err() == nil; i++ {
		var k Ack
		r.Copy(k[:])
		a.Acks = append(a.Acks, k)
	}
	if err := r.Close(); err != nil {
		return KnockAnswer{}, fmt.Errorf("knock answer: %w", err)
	}
	return a, nil
}

// StampKnock finds the work for a put to the front host with that key in that hour (hours of Unix time):
// about 2^16 hashes, a few milliseconds.
func StampKnock(front [32]byte, hour uint32, envelope []byte) uint64 {
	in := knockInput(front, hour, envelope)
	for stamp := uint64(0); ; stamp++ {
		if stampFits(in, stamp) {
			return stamp
		}
	}
}

// CheckKnock judges a stamp for the hour now and its two neighbours.
func CheckKnock(front [32]byte, hour uint32, envelope []byte, stamp uint64) bool {
	for _, h := range []uint32{hour, hour - 1, hour + 1} {
		if stampFits(knockInput(front, h, envelope), stamp) {
			return true
		}
	}
	return false
}

func knockInput(front [32]byte, hour uint32, envelope []byte) []byte {
	hash := sha256.Sum256(envelope)
	in := append([]byte("sotto/v1 knock"), front[:]...)
	in = binary.BigEndian.AppendUint32(in, hour)
	in = append(in, hash[:]...)
	return append(in, make([]byte, 8)...)
}

func stampFits(in []byte, stamp uint64) bool {
	binary.BigEndian.PutUint64(in[len(in)-8:], stamp)
	sum := sha256.Sum256(in)
	return bits.LeadingZeros64(binary.BigEndian.Uint64(sum[:8])) >= KnockBits
}
