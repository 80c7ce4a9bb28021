package session

import (
	"bytes"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"sotto/identity"
)

// issued is the date in every card of the tests.
var issued = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// stream is fixed randomness: SHA-256(seed || counter)... . It notes every draw, and gives ML-KEM encapsulation its
// randomness too, so that a vector can state all of it.
type stream struct {
	seed  string
	block uint64
	rest  []byte
	draws [][]byte
}

func newStream(seed string) *stream { return &stream{seed: seed} }

func (s *stream) Read(b []byte) (int, error) {
	for i := range b {
		if len(s.rest) == 0 {
			h := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(s.seed), s.block))
			s.block, s.rest = s.block+1, h[:]
		}
		b[i], s.rest = s.rest[0], s.rest[1:]
	}
	s.draws = append(s.draws, bytes.Clone(b))
	return len(b), nil
}

func (s *stream) encapsulate(ek *mlkem.EncapsulationKey768) (shared, ciphertext []byte) {
	var m [32]byte
	if _, err := s.Read(m[:]); err != nil {
		panic(err)
	}
	shared, ciphertext, err := mlkemtest.Encapsulate768(ek, m[:])
	if err != nil {
		panic(err)
	}
	return shared, ciphertext
}

// brokenReader is a random source that fails.
type brokenReader struct{}

var errBroken = errors.New("no randomness")

func (brokenReader) Read([]byte) (int, error) { return 0, errBroken }

// person is an account with one device and everything it has published.
type person struct {
	local   Local
	list    identity.DeviceList
	card    identity.Card
	spk     *identity.PrekeySecret
	seal    *identity.SealSecret
	oneTime map[uint32]*identity.PrekeySecret
}

func newPerson(t testing.TB, name string) *person {
	t.Helper()
	r := newStream("person " + name)
	seed := must(identity.NewSeed(r))(t)
	account := seed.Account()
	device := must(identity.NewDevice(r))(t)
	list := identity.DeviceList{Seq: 1, Issued: issued, Devices: []identity.DeviceEntry{device.Entry(issued)}}.Sign(account)
	p := &person{
		local:   Local{Device: device, Account: account.ID(), Devices: list},
		list:    must(identity.ParseDeviceList(list))(t),
		spk:     must(identity.NewPrekey(r, 7))(t),
		seal:    must(identity.NewSealKey(r, 3))(t),
		oneTime: map[uint32]*identity.PrekeySecret{9: must(identity.NewPrekey(r, 9))(t)},
	}
	p.card = p.makeCard(t, p.spk.Public())
	return p
}

func (p *person) makeCard(t testing.TB, prekey identity.Prekey) identity.Card {
	t.Helper()
	core := identity.CardCore{Seq: 1, Issued: issued, NotAfter: issued.Add(7 * 24 * time.Hour), Seal: p.seal.Public()}
	return must(identity.ParseCard(must(identity.SignCard(p.local.Devices, p.local.Device, core, prekey))(t)))(t)
}

// publicOneTime is the one-time prekey that an invite would carry.
func (p *person) publicOneTime() *identity.Prekey {
	k := p.oneTime[9].Public()
	return &k
}

// keys looks up what an initial header names, as the caller of the package must.
func (p *person) keys(in *Initial) Keys {
	k := Keys{}
	if in.SPKID == p.spk.ID {
		k.Signed = p.spk
	}
	if in.OneTime {
		k.OneTime = p.oneTime[in.OPKID]
	}
	return k
}

// must turns (value, error) into value and fails the test on an error.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// keyStore is the caller's store of skipped keys for one session.
type keyStore map[SkippedRef]Key

func (k keyStore) Find(chain, n uint32) (key [32]byte, ok bool, err error) {
	found, ok := k[SkippedRef{chain, n}]
	return found, ok, nil
}

func (k keyStore) commit(o Opened) {
	for _, key := range o.Store {
		k[SkippedRef{key.Chain, key.N}] = key.Key
	}
	if o.Used != nil {
		delete(k, *o.Used)
	}
}

// end is one side of a conversation: a session and its skipped keys.
type end struct {
	*Session
	keys keyStore
	rand *stream
}

func (e *end) clone() *end {
	c := &end{Session: e.Session.Clone(), keys: keyStore{}, rand: newStream(e.rand.seed + " clone")}
	for ref, key := range e.keys {
		c.keys[ref] = key
	}
	return c
}

func (e *end) say(t testing.TB, text string) Sealed {
	t.Helper()
	return must(e.Encrypt([]byte(text), e.rand))(t)
}

// hear opens an item and commits.
func (e *end) hear(item []byte) (Opened, error) {
	it, err := ParseItem(item)
	if err != nil {
		return Opened{}, err
	}
	o, err := e.Decrypt(it, e.keys)
	if err == nil {
		e.keys.commit(o)
	}
	return o, err
}

func (e *end) mustHear(t testing.TB, item []byte, text string) Opened {
	t.Helper()
	o := must(e.hear(item))(t)
	if string(o.Payload) != text {
		t.Fatalf("opened %q, want %q", o.Payload, text)
	}
	return o
}

// refuses asserts that an item is refused with the wanted error and that nothing changed.
func (e *end) refuses(t testing.TB, item []byte, want error) {
	t.Helper()
	before := e.Marshal()
	o, err := e.hear(item)
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
	if o.Payload != nil || o.Store != nil || o.Used != nil {
		t.Fatal("a refused message gave something")
	}
	if !bytes.Equal(before, e.Marshal()) {
		t.Fatal("a refused message changed the session")
	}
}

// meet begins a session and lets the acceptor open the first message.
func meet(t testing.TB, a, b *person, oneTime bool) (*end, *end) {
	t.Helper()
	var opk *identity.Prekey
	if oneTime {
		opk = b.publicOneTime()
	}
	ra, rb := newStream("rand a"), newStream("rand b")
	alice := &end{must(Initiate(a.local, b.card, opk, ra))(t), keyStore{}, ra}
	first := alice.say(t, "first")
	it := must(ParseItem(first.Item))(t)
	s, o, err := Accept(b.local, it, b.keys(it.Initial))
	if err != nil {
		t.Fatal(err)
	}
	if string(o.Payload) != "first" {
		t.Fatalf("opened %q", o.Payload)
	}
	bob := &end{s, keyStore{}, rb}
	bob.keys.commit(o)
	return alice, bob
}

// pair is a session in which both sides have spoken.
func pair(t testing.TB) (alice, bob *end) {
	t.Helper()
	alice, bob = meet(t, newPerson(t, "alice"), newPerson(t, "bob"), true)
	alice.mustHear(t, bob.say(t, "second").Item, "second")
	return alice, bob
}
