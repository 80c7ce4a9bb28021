package session

import (
	"errors"
	"fmt"

	"sotto/identity"
	"sotto/internal/canon"
)

// Kind is the first byte of an item.
type Kind uint8

// Kinds of item (PROTOCOL 10.1).
const (
	KindInitial Kind = 1 // lp(initial header) || ratchet message
	KindMessage Kind = 2 // ratchet message
)

// ItemOverhead is what an item without an initial header adds to its payload.
const ItemOverhead = 1 + MessageOverhead

// Item is a parsed item: the outside of one message.
type Item struct {
	Kind    Kind
	Initial *Initial // of KindInitial only
	Message []byte   // the ratchet message
}

// Which key the handshake's ML-KEM ciphertext is for; the second means that a one-time prekey takes part.
const (
	kemSigned  uint8 = 1
	kemOneTime uint8 = 2
)

// Initial is the header that begins a session (PROTOCOL 7.3). Its device list is verified; that the sender is the
// device it names is proved only by Accept.
type Initial struct {
	Suite   uint8
	Devices identity.DeviceList
	Device  identity.DeviceEntry // the sending device, as its list has it
	List    []byte               // the signed device list, for keeping
	SPKID   uint32               // signed prekey of ours that was used
	OPKID   uint32               // one-time prekey of ours that was used, if OneTime
	OneTime bool
	ek      [32]byte // EK_A, the initiator's one-time X25519 key
	ct      [ctSize]byte
	exts    []canon.Extension
	digest  [32]byte // of the header's bytes
}

// ID is the identity of the session that the header begins: the caller looks for it among its sessions, then in its
// replay cache, before it looks up any prekey (PROTOCOL 7.5).
func (in *Initial) ID() [16]byte { return sessionID(&in.ek, &in.Device.IdentityKey) }

// Account is the account that the sender claims.
func (in *Initial) Account() identity.AccountID { return in.Devices.Account }

func sessionID(ek, initiatorKey *[32]byte) [16]byte {
	h := sum([]byte("sotto/v1 session"), ek[:], initiatorKey[:])
	return [16]byte(h[:16])
}

// ParseItem takes an item apart and verifies an initial header's device list. Item.Message aliases item.
func ParseItem(item []byte) (Item, error) {
	if len(item) > MaxItem {
		return Item{}, fmt.Errorf("item of %d bytes, at most %d: %w", len(item), MaxItem, ErrTooLarge)
	}
	r := canon.NewReader(item)
	it := Item{Kind: Kind(r.U8())}
	switch it.Kind {
	case KindMessage:
	case KindInitial:
		raw := r.LP(MaxInitial)
		if r.Err() != nil {
			return Item{}, fmt.Errorf("initial header: %w: %w", ErrBad, r.Err())
		}
		in, err := parseInitial(raw)
		if err != nil {
			return Item{}, fmt.Errorf("initial header: %w", err)
		}
		it.Initial = in
	default:
		if r.Err() != nil {
			return Item{}, fmt.Errorf("empty item: %w", ErrBad)
		}
		return Item{}, fmt.Errorf("item of kind %d: %w", it.Kind, ErrUnsupported)
	}
	it.Message = r.Raw(r.Len())
	if len(it.Message) < MessageOverhead {
		return Item{}, fmt.Errorf("message of %d bytes: %w", len(it.Message), ErrBad)
	}
	return it, nil
}

func parseInitial(raw []byte) (*Initial, error) {
	r := canon.NewReader(raw)
	in := &Initial{Suite: r.U8(), digest: sum(raw)}
	if r.Err() == nil && (in.Suite < MinSuite || in.Suite > Suite) {
		return nil, fmt.Errorf("suite %d: %w", in.Suite, ErrUnsupported)
	}
	kem := r.U8()
	var device identity.DeviceID
	r.Copy(device[:])
	r.Copy(in.ek[:])
	in.SPKID, in.OPKID = r.U32(), r.U32()
	r.Copy(in.ct[:])
	in.List = append([]byte(nil), r.LP(MaxInitial)...)
	in.exts = r.Extensions()
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("%w: %w", kindOf(err), err)
	}
	in.OneTime = kem == kemOneTime
	if kem != kemSigned && kem != kemOneTime || (!in.OneTime && in.OPKID != 0) || !canonicalPoint(&in.ek) {
		return nil, fmt.Errorf("keys: %w", ErrBad)
	}
	list, err := identity.ParseDeviceList(in.List)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", kindOf(err), err)
	}
	entry, ok := list.Find(device)
	if !ok {
		return nil, fmt.Errorf("device is not in its own list: %w", ErrBad)
	}
	in.Devices, in.Device = list, entry
	return in, nil
}

// kindOf tells what a newer program may have written from what nobody should.
func kindOf(err error) error {
	if errors.Is(err, identity.ErrNewer) || errors.Is(err, canon.ErrCritical) {
		return ErrUnsupported
	}
	return ErrBad
}

// marshal is the inverse of parseInitial.
func (in *Initial) marshal() []byte {
	var w canon.Writer
	kem := kemSigned
	if in.OneTime {
		kem = kemOneTime
	}
	w.U8(in.Suite).U8(kem).Raw(in.Device.ID[:]).Raw(in.ek[:]).U32(in.SPKID).U32(in.OPKID).Raw(in.ct[:]).LP(in.List).Extensions(in.exts)
	return w.Bytes()
}

// appendKind begins an item: the kind, and the initial header while no answer has come.
func (s *Session) appendKind(dst []byte) []byte {
	if !s.Initial() {
		return append(dst, byte(KindMessage))
	}
	return canon.AppendLP(append(dst, byte(KindInitial)), s.initial)
}

func (s *Session) itemSize(payload int) int {
	size := ItemOverhead + payload
	if s.Initial() {
		size += 4 + len(s.initial)
	}
	return size
}
