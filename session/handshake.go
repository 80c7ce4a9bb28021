package session

import (
	"bytes"
	"crypto/ecdh"
	"errors"
	"fmt"
	"io"

	"sotto/identity"
	"sotto/internal/canon"
)

// Local is this end's own identity.
type Local struct {
	Device  *identity.Device
	Account identity.AccountID
	Devices []byte // our own signed device list, which must name Device
}

// Keys are the private prekeys that an initial header names; the caller looks them up.
type Keys struct {
	Signed  *identity.PrekeySecret
	OneTime *identity.PrekeySecret // only if Initial.OneTime
}

// Initiate begins a session with the device of a card (PROTOCOL 7.2). The card and the one-time prekey come from
// identity's parsers, which verified them; the caller has checked their times. The session may send at once.
func Initiate(local Local, card identity.Card, oneTime *identity.Prekey, rand io.Reader) (*Session, error) {
	if err := checkSuite(card.Core.Suite, card.Core.MinSuite); err != nil {
		return nil, err
	}
	peer, ok := card.Devices.Find(card.Core.Device)
	if !ok {
		return nil, fmt.Errorf("begin session: card's device is not in its list: %w", ErrBad)
	}
	if card.Devices.Account == local.Account && peer.ID == local.Device.ID() {
		return nil, fmt.Errorf("begin session: the card is this device's own: %w", ErrBad)
	}
	own, err := ownEntry(local)
	if err != nil {
		return nil, fmt.Errorf("begin session: %w", err)
	}
	in := &Initial{Suite: Suite, Device: own, List: local.Devices, SPKID: card.Prekey.ID, OneTime: oneTime != nil}
	prekeys := prekeyPair{signed: card.Prekey}
	if oneTime != nil {
		in.OPKID, prekeys.oneTime = oneTime.ID, oneTime
	}
	a := party{local.Account, own}
	b := party{card.Devices.Account, peer}
	s, err := initiate(local, in, a, b, prekeys, rand)
	if err != nil {
		return nil, fmt.Errorf("begin session: %w", err)
	}
	return s, nil
}

func checkSuite(suite, minSuite uint8) error {
	switch {
	case suite < MinSuite:
		return fmt.Errorf("begin session: card offers suite %d, this program asks for %d: %w", suite, MinSuite, ErrUnsupported)
	case minSuite > Suite:
		return fmt.Errorf("begin session: card asks for suite %d, this program has %d: %w", minSuite, Suite, ErrUnsupported)
	case minSuite > suite:
		return fmt.Errorf("begin session: card asks for more than it offers: %w", ErrBad)
	}
	return nil
}

// ownEntry finds our device in our own signed list: peers will read our keys there.
func ownEntry(local Local) (identity.DeviceEntry, error) {
	list, err := identity.ParseDeviceList(local.Devices)
	if err != nil {
		return identity.DeviceEntry{}, fmt.Errorf("own device list: %w", err)
	}
	entry, ok := list.Find(local.Device.ID())
	if !ok || list.Account != local.Account || !bytes.Equal(entry.IdentityKey[:], local.Device.IdentityKey().PublicKey().Bytes()) {
		return identity.DeviceEntry{}, errors.New("own device list does not name this device")
	}
	return entry, nil
}

// party is one end as the transcript names it.
type party struct {
	account identity.AccountID
	device  identity.DeviceEntry
}

// prekeyPair is the public prekeys that a handshake uses.
type prekeyPair struct {
	signed  identity.Prekey
	oneTime *identity.Prekey
}

// kem is the prekey whose ML-KEM key the handshake uses.
func (p prekeyPair) kem() *identity.Prekey {
	if p.oneTime != nil {
		return p.oneTime
	}
	return &p.signed
}

func initiate(local Local, in *Initial, a, b party, prekeys prekeyPair, rand io.Reader) (*Session, error) {
	ek, ekPublic, err := newPoint(rand)
	if err != nil {
		return nil, err
	}
	in.ek = ekPublic
	ss, ct, err := encapsulate(prekeys.kem().EK[:], rand)
	if err != nil {
		return nil, err
	}
	copy(in.ct[:], ct)
	ikm := newSecret()
	ikm.add(exchange(local.Device.IdentityKey(), &prekeys.signed.X)) // DH1
	ikm.add(x25519(&ek, &b.device.IdentityKey))                      // DH2
	ikm.add(x25519(&ek, &prekeys.signed.X))                          // DH3
	if prekeys.oneTime != nil {
		ikm.add(x25519(&ek, &prekeys.oneTime.X)) // DH4
	}
	ikm.add(ss, nil)
	if ikm.err != nil {
		return nil, ikm.err
	}
	ad := transcript(in, a, b, prekeys)
	root, hka, nhkb := ikm.derive(&ad)
	s := &Session{
		id: in.ID(), peerAccount: b.account, peerDevice: b.device.ID, initiator: true,
		initiatorKey: a.device.IdentityKey, ad: ad, nhkr: nhkb, initial: in.marshal(),
	}
	s.initialDigest = sum(s.initial)
	if len(s.initial) > MaxInitial {
		return nil, fmt.Errorf("initial header of %d bytes, at most %d: %w", len(s.initial), MaxInitial, ErrTooLarge)
	}
	return s, s.firstChain(root, hka, &prekeys.signed.X, rand)
}

// firstChain makes the initiator's chain 0, the only one without a ciphertext: the handshake has used the peer's
// ML-KEM key already.
func (s *Session) firstChain(root, hka Key, peer *[32]byte, rand io.Reader) error {
	dh, public, err := newPoint(rand)
	if err != nil {
		return err
	}
	kem, ek, err := newKEM(rand)
	if err != nil {
		return err
	}
	shared, err := x25519(&dh, peer)
	if err != nil {
		return err
	}
	c := &sending{hk: hka, dh: dh, kem: kem}
	th := sum([]byte{flagFirst}, public[:], peer[:])
	s.rk, c.ck, s.nhks = rootStep(&root, shared, nil, &th)
	c.fillHeader(flagFirst, &public, 0, ek, nil)
	s.send = c
	return nil
}

// secret collects the input of the handshake's key derivation. The first error sticks.
type secret struct {
	ikm []byte
	err error
}

// newSecret begins with 32 bytes 0xFF, as X3DH does, so that the input is unlike any curve point's encoding.
func newSecret() *secret {
	s := &secret{ikm: make([]byte, 32, 32*6)}
	for i := range s.ikm {
		s.ikm[i] = 0xff
	}
	return s
}

func (s *secret) add(part []byte, err error) {
	if s.err == nil {
		s.err = err
	}
	s.ikm = append(s.ikm, part...)
	clear(part)
}

// derive gives SK, HKa and NHKb (PROTOCOL 7.4).
func (s *secret) derive(ad *[32]byte) (root, hka, nhkb Key) {
	var salt [32]byte
	root, hka, nhkb = derive3(salt[:], s.ikm, "sotto/v1 X25519+MLKEM768+SHA256"+string(ad[:]))
	clear(s.ikm)
	return root, hka, nhkb
}

// Tags that keep the key types of the transcript apart.
const (
	tagNone      uint8 = 0
	tagSPK       uint8 = 1
	tagOPK       uint8 = 2
	tagSignedKEM uint8 = 3
	tagOneKEM    uint8 = 4
)

// transcript is T: everything that both ends must agree on (PROTOCOL 7.4).
func transcript(in *Initial, a, b party, prekeys prekeyPair) [32]byte {
	var w canon.Writer
	w.LP([]byte("sotto/v1 pqxdh")).U8(in.Suite)
	for _, p := range []party{a, b} {
		w.Raw(p.account[:]).Raw(p.device.ID[:]).Raw(p.device.SignKey[:]).Raw(p.device.IdentityKey[:])
	}
	w.Raw(in.ek[:])
	w.U8(tagSPK).U32(prekeys.signed.ID).Raw(prekeys.signed.X[:])
	if prekeys.oneTime != nil {
		w.U8(tagOPK).U32(prekeys.oneTime.ID).Raw(prekeys.oneTime.X[:])
		w.U8(tagOneKEM)
	} else {
		w.U8(tagNone)
		w.U8(tagSignedKEM)
	}
	kem := prekeys.kem()
	w.U32(kem.ID).Raw(kem.EK[:]).Raw(in.ct[:]).Extensions(in.exts)
	return sum(w.Bytes())
}

// Accept answers a handshake (PROTOCOL 7.5): it derives the session and opens the item's message, which proves that
// the sender holds the keys it names. Only after Accept succeeded may the caller erase the one-time prekey and store
// the session, in the transaction that stores the message.
func Accept(local Local, it Item, keys Keys) (*Session, Opened, error) {
	in := it.Initial
	if in == nil {
		return nil, Opened{}, fmt.Errorf("accept session: item has no initial header: %w", ErrBad)
	}
	if keys.Signed == nil || keys.Signed.ID != in.SPKID || in.OneTime != (keys.OneTime != nil) ||
		(in.OneTime && keys.OneTime.ID != in.OPKID) {
		return nil, Opened{}, fmt.Errorf("accept session: %w", ErrUnknownKeys)
	}
	own, err := ownEntry(local)
	if err != nil {
		return nil, Opened{}, fmt.Errorf("accept session: %w", err)
	}
	if in.Account() == local.Account && in.Device.ID == own.ID {
		return nil, Opened{}, fmt.Errorf("accept session: it claims to come from this device: %w", ErrBad)
	}
	s, opened, err := accept(local, it, own, keys)
	if err != nil {
		return nil, Opened{}, fmt.Errorf("accept session: %w", err)
	}
	return s, opened, nil
}

func accept(local Local, it Item, own identity.DeviceEntry, keys Keys) (*Session, Opened, error) {
	in := it.Initial
	a := party{in.Account(), in.Device}
	b := party{local.Account, own}
	prekeys := prekeyPair{signed: keys.Signed.Public()}
	kem := keys.Signed
	if in.OneTime {
		public := keys.OneTime.Public()
		prekeys.oneTime, kem = &public, keys.OneTime
	}
	ikm := newSecret()
	ikm.add(exchange(keys.Signed.X(), &in.Device.IdentityKey)) // DH1
	ikm.add(exchange(local.Device.IdentityKey(), &in.ek))      // DH2
	ikm.add(exchange(keys.Signed.X(), &in.ek))                 // DH3
	if in.OneTime {
		ikm.add(exchange(keys.OneTime.X(), &in.ek)) // DH4
	}
	ikm.add(kem.KEM().Decapsulate(in.ct[:]))
	if ikm.err != nil {
		return nil, Opened{}, ikm.err
	}
	ad := transcript(in, a, b, prekeys)
	s := &Session{
		id: in.ID(), peerAccount: a.account, peerDevice: a.device.ID,
		initiatorKey: a.device.IdentityKey, ad: ad, initialDigest: in.digest,
	}
	s.rk, s.nhkr, s.nhks = ikm.derive(&ad)
	opened, err := s.acceptFirst(it, keys.Signed.X())
	return s, opened, err
}

// acceptFirst opens the first message seen of the initiator's chain 0, for which our signed prekey stands in as
// ratchet key.
func (s *Session) acceptFirst(it Item, spk *ecdh.PrivateKey) (Opened, error) {
	message := it.Message
	if len(message) < MessageOverhead || len(message) > MaxItem {
		return Opened{}, fmt.Errorf("message of %d bytes: %w", len(message), ErrBad)
	}
	var h header
	if !h.open(&s.nhkr, &s.ad, message) {
		return Opened{}, fmt.Errorf("message does not belong to its initial header: %w", ErrBad)
	}
	return s.receiveStep(&h, it, ownKeys{dh: spk, public: [32]byte(spk.PublicKey().Bytes())})
}

// SmallerInitiator reports whether this session goes before other when both ends began one at the same time: the one
// whose initiator has the smaller SHA-256(IK) is used for sending from then on, the other only for receiving. Both
// ends come to the same answer (PROTOCOL 7.6).
func (s *Session) SmallerInitiator(other *Session) bool {
	mine, theirs := sum(s.initiatorKey[:]), sum(other.initiatorKey[:])
	if c := bytes.Compare(mine[:], theirs[:]); c != 0 {
		return c < 0
	}
	return bytes.Compare(s.id[:], other.id[:]) < 0
}
