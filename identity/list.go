package identity

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"sotto/internal/canon"
)

// Signature types: what a signature or hash is about (PROTOCOL 2.4).
const (
	typDeviceList = "device list"
	typCard       = "card"
	typPrekeys    = "prekeys"
	typBundle     = "bundle"
	typReach      = "reach"
)

// DeviceEntry is the public side of one device.
type DeviceEntry struct {
	ID          DeviceID
	SignKey     [32]byte // DK
	IdentityKey [32]byte // IK
	Added       time.Time
}

// Verify checks a signature by the device over an object of the given type.
func (e DeviceEntry) Verify(typ string, fields, sig []byte) bool {
	return canon.Verify(e.SignKey[:], typ, fields, sig)
}

// DeviceList says which devices speak for an account; signed by AK (PROTOCOL 4.1). The higher Seq wins.
type DeviceList struct {
	Account AccountID
	Seq     uint64   // from 1
	Prev    [32]byte // Hash of the list before; zero in the first
	Issued  time.Time
	Devices []DeviceEntry // by rising ID
	Exts    []canon.Extension

	signed []byte
}

const listVersion = 1

// fields is everything that is signed.
func (l DeviceList) fields() []byte {
	devices := slices.Clone(l.Devices)
	slices.SortFunc(devices, func(a, b DeviceEntry) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	var w canon.Writer
	w.U8(listVersion).Raw(l.Account[:]).U64(l.Seq).Raw(l.Prev[:])
	writeTime(&w, l.Issued)
	w.U8(uint8(len(devices)))
	for _, d := range devices {
		w.Raw(d.ID[:]).Raw(d.SignKey[:]).Raw(d.IdentityKey[:])
		writeTime(&w, d.Added)
	}
	return w.Extensions(l.Exts).Bytes()
}

// Sign writes the list as the given account; the caller sees to the limits that ParseDeviceList enforces.
func (l DeviceList) Sign(a *Account) []byte {
	l.Account = a.ID()
	fields := l.fields()
	return append(fields, a.Sign(typDeviceList, fields)...)
}

// ParseDeviceList reads a signed list and verifies it.
func ParseDeviceList(b []byte) (DeviceList, error) {
	l, err := parseDeviceList(bytes.Clone(b))
	if err != nil {
		return DeviceList{}, fmt.Errorf("read device list: %w", err)
	}
	return l, nil
}

func parseDeviceList(b []byte) (DeviceList, error) {
	fields, sig, err := splitSig(b)
	if err != nil {
		return DeviceList{}, err
	}
	r := canon.NewReader(fields)
	if err := readVersion(r, listVersion); err != nil {
		return DeviceList{}, err
	}
	l := DeviceList{signed: b}
	r.Copy(l.Account[:])
	l.Seq = r.U64()
	r.Copy(l.Prev[:])
	l.Issued = readTime(r)
	n := int(r.U8())
	if r.Err() == nil && (n == 0 || n > MaxDevices) {
		return DeviceList{}, fmt.Errorf("%d devices, 1 to %d allowed: %w", n, MaxDevices, ErrInvalid)
	}
	for range n {
		var d DeviceEntry
		r.Copy(d.ID[:])
		r.Copy(d.SignKey[:])
		r.Copy(d.IdentityKey[:])
		d.Added = readTime(r)
		l.Devices = append(l.Devices, d)
	}
	l.Exts = r.Extensions()
	if err := closeReader(r); err != nil {
		return DeviceList{}, err
	}
	if err := l.check(); err != nil {
		return DeviceList{}, err
	}
	if !canon.Verify(l.Account[:], typDeviceList, fields, sig) {
		return DeviceList{}, fmt.Errorf("wrong signature: %w", ErrInvalid)
	}
	return l, nil
}

// check holds what a well-formed list must hold beyond its layout.
func (l DeviceList) check() error {
	if first := l.Prev == [32]byte{}; l.Seq == 0 || (l.Seq == 1) != first {
		return fmt.Errorf("number %d does not fit the list before it: %w", l.Seq, ErrInvalid)
	}
	if err := checkEdPoint(l.Account); err != nil {
		return err
	}
	for i, d := range l.Devices {
		if i > 0 && bytes.Compare(l.Devices[i-1].ID[:], d.ID[:]) >= 0 {
			return fmt.Errorf("devices out of order: %w", ErrInvalid)
		}
		if err := checkEdPoint(d.SignKey); err != nil {
			return fmt.Errorf("device %s: %w", d.ID, err)
		}
		if err := checkX25519(d.IdentityKey); err != nil {
			return fmt.Errorf("device %s: %w", d.ID, err)
		}
	}
	return nil
}

// Bytes is the signed form the list was read from; nil for a list that was built here.
func (l DeviceList) Bytes() []byte { return l.signed }

// Hash names the list's content; the next list carries it as Prev.
func (l DeviceList) Hash() [32]byte { return objectHash(typDeviceList, l.fields()) }

// Find returns the device of that id.
func (l DeviceList) Find(id DeviceID) (DeviceEntry, bool) {
	for _, d := range l.Devices {
		if d.ID == id {
			return d, true
		}
	}
	return DeviceEntry{}, false
}

// Follows compares a list with the one held so far: true if it is newer, false if it is the same or older,
// ErrEquivocation if the account signed two different histories.
func (l DeviceList) Follows(held DeviceList) (bool, error) {
	switch {
	case l.Account != held.Account:
		return false, fmt.Errorf("compare device lists: %w", ErrOtherAccount)
	case l.Seq == held.Seq && l.Hash() != held.Hash(),
		l.Seq == held.Seq+1 && l.Prev != held.Hash(),
		l.Seq+1 == held.Seq && held.Prev != l.Hash():
		return false, fmt.Errorf("device list %d of %s: %w", l.Seq, l.Account.Short(), ErrEquivocation)
	}
	return l.Seq > held.Seq, nil
}

// objectHash is H over the same bytes that a signature of this type would cover.
func objectHash(typ string, fields []byte) [32]byte {
	return sha256.Sum256(canon.SigInput(typ, fields))
}

// splitSig takes the 64-byte signature off the end.
func splitSig(b []byte) (fields, sig []byte, err error) {
	if len(b) < 64 {
		return nil, nil, fmt.Errorf("%w: %w", ErrInvalid, canon.ErrShort)
	}
	n := len(b) - 64
	return b[:n:n], b[n:], nil
}

// readVersion takes the format version and tells a newer one from nonsense.
func readVersion(r *canon.Reader, want uint8) error {
	switch v := r.U8(); {
	case r.Err() != nil:
		return fmt.Errorf("%w: %w", ErrInvalid, r.Err())
	case v == 0:
		return fmt.Errorf("format 0: %w", ErrInvalid)
	case v > want:
		return fmt.Errorf("format %d: %w", v, ErrNewer)
	}
	return nil
}

// closeReader turns a layout error into ErrInvalid, and an unknown critical extension into ErrNewer.
func closeReader(r *canon.Reader) error {
	switch err := r.Close(); {
	case err == nil:
		return nil
	case errors.Is(err, canon.ErrCritical):
		return fmt.Errorf("%w: %w", ErrNewer, err)
	default:
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
}

// maxUnix is the last second of year 9999, so that every accepted time can be printed and stored anywhere.
const maxUnix = 253402300799

// writeTime appends u64 seconds since 1970; a time before that counts as 0.
func writeTime(w *canon.Writer, t time.Time) { w.U64(uint64(max(t.Unix(), 0))) }

// readTime takes u64 seconds since 1970, at most the year 9999.
func readTime(r *canon.Reader) time.Time {
	v := r.U64()
	if v > maxUnix {
		r.Fail(fmt.Errorf("time out of range: %w", ErrInvalid))
		return time.Time{}
	}
	return time.Unix(int64(v), 0).UTC()
}
