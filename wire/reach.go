package wire

import (
	"fmt"

	"sotto/internal/canon"
)

// Limits of a reach (PROTOCOL 11.4): it must fit a record of 1153 bytes beside its signature.
const (
	MaxReach     = 800
	MaxAddrs     = 8
	MaxAddr      = 128
	reachVersion = 1
)

// Reach says where a device is now: its two hosts' keys and addresses. It travels signed by the device (identity.SignReach),
// only inside sessions, invite bundles and sealed records.
type Reach struct {
	Seq      uint64   // rises with every change; milliseconds of Unix time, or the last one plus one
	InnerKey [32]byte // Ed25519 public key of the host that only contacts may connect to
	FrontKey [32]byte // Ed25519 public key of the nameless host that takes knocks; new at each start
	Inner    [][]byte // binary multiaddrs without the peer id, best first
	Front    [][]byte
	Exts     []canon.Extension
}

// Marshal is the canonical encoding; addresses that would not fit are left out from the end, inner ones last.
func (r Reach) Marshal() []byte {
	inner, front := clip(r.Inner), clip(r.Front)
	for {
		b := r.encode(inner, front)
		switch {
		case len(b) <= MaxReach || len(inner)+len(front) == 0:
			return b
		case len(front) > 1 || len(inner) == 0:
			front = front[:len(front)-1]
		default:
			inner = inner[:len(inner)-1]
		}
	}
}

func (r Reach) encode(inner, front [][]byte) []byte {
	var w canon.Writer
	w.U8(reachVersion).U64(r.Seq).Raw(r.InnerKey[:]).Raw(r.FrontKey[:])
	for _, list := range [][][]byte{inner, front} {
		w.U8(uint8(len(list)))
		for _, a := range list {
			w.LP(a)
		}
	}
	return w.Extensions(r.Exts).Bytes()
}

func clip(addrs [][]byte) [][]byte {
	var out [][]byte
	for _, a := range addrs {
		if len(a) > 0 && len(a) <= MaxAddr && len(out) < MaxAddrs {
			out = append(out, a)
		}
	}
	return out
}

// ParseReach reads what Marshal wrote.
func ParseReach(b []byte) (Reach, error) {
	if len(b) > MaxReach {
		return Reach{}, fmt.Errorf("reach: %w: %d bytes", canon.ErrTooLong, len(b))
	}
	rd := canon.NewReader(b)
	if v := rd.U8(); rd.Err() == nil && v != reachVersion {
		return Reach{}, fmt.Errorf("reach: needs a newer version: %d", v)
	}
	r := Reach{Seq: rd.U64()}
	rd.Copy(r.InnerKey[:])
	rd.Copy(r.FrontKey[:])
	r.Inner = readAddrs(rd)
	r.Front = readAddrs(rd)
	r.Exts = rd.Extensions()
	if err := rd.Close(); err != nil {
		return Reach{}, fmt.Errorf("reach: %w", err)
	}
	return r, nil
}

func readAddrs(rd *canon.Reader) [][]byte {
	n := int(rd.U8())
	if n > MaxAddrs {
		rd.Fail(canon.ErrTooLong)
	}
	var out [][]byte
	for i := 0; i < n && rd.Err() == nil; i++ {
		a := rd.LP(MaxAddr)
		if len(a) == 0 {
			rd.Fail(fmt.Errorf("empty address"))
		}
		out = append(out, a)
	}
	return out
}
