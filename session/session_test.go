package session

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"sotto/identity"
	"sotto/internal/canon"
)

func TestTwoStrangersMeetAndTalk(t *testing.T) {
	for _, oneTime := range []bool{false, true} {
		a, b := newPerson(t, "alice"), newPerson(t, "bob")
		alice, bob := meet(t, a, b, oneTime)
		if alice.ID() != bob.ID() {
			t.Error("the ends name the session differently")
		}
		if account, device := alice.Peer(); account != b.local.Account || device != b.local.Device.ID() {
			t.Error("alice's peer is not bob")
		}
		if account, device := bob.Peer(); account != a.local.Account || device != a.local.Device.ID() {
			t.Error("bob's peer is not alice")
		}
		for i := range 20 {
			text := fmt.Sprint("round ", i)
			bob.mustHear(t, alice.say(t, text).Item, text)
			bob.mustHear(t, alice.say(t, text+" more").Item, text+" more")
			alice.mustHear(t, bob.say(t, text).Item, text)
		}
	}
}

func TestTheInitialHeaderGoesWithEveryMessageUntilAnAnswer(t *testing.T) {
	b := newPerson(t, "bob")
	alice, bob := meet(t, newPerson(t, "alice"), b, true)
	second := alice.say(t, "two")
	it := must(ParseItem(second.Item))(t)
	if it.Kind != KindInitial || it.Initial.ID() != bob.ID() || !alice.Initial() {
		t.Fatal("the second message lost its initial header")
	}
	if !bytes.Equal(it.Initial.marshal(), alice.initial) {
		t.Error("initial header does not survive a round trip")
	}
	alice.mustHear(t, bob.say(t, "answer").Item, "answer")
	if alice.Initial() || must(ParseItem(alice.say(t, "three").Item))(t).Kind != KindMessage {
		t.Error("the initial header stays after an answer")
	}
	bob.mustHear(t, second.Item, "two")
}

func TestFirstMessagesMayArriveInAnyOrder(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	r := newStream("any order")
	alice := must(Initiate(a.local, b.card, b.publicOneTime(), r))(t)
	items := make([]Sealed, 5)
	for i := range items {
		items[i] = must(alice.Encrypt(fmt.Append(nil, i), r))(t)
	}
	it := must(ParseItem(items[3].Item))(t)
	s, o, err := Accept(b.local, it, b.keys(it.Initial))
	if err != nil {
		t.Fatal(err)
	}
	bob := &end{s, keyStore{}, newStream("bob")}
	bob.keys.commit(o)
	if len(o.Store) != 3 || bob.SkippedTotal() != 3 {
		t.Fatalf("%d keys to store, %d counted, want 3", len(o.Store), bob.SkippedTotal())
	}
	for _, i := range []int{4, 0, 2, 1} {
		bob.mustHear(t, items[i].Item, fmt.Sprint(i))
	}
	for _, sent := range items {
		bob.refuses(t, sent.Item, ErrDuplicate)
	}
	if bob.SkippedTotal() != 0 || len(bob.keys) != 0 {
		t.Error("skipped keys are left")
	}
}

func TestAnOldMessageOpensManyChainsLater(t *testing.T) {
	alice, bob := pair(t)
	late := alice.say(t, "late")
	chain, n := late.Chain, late.N
	bob.mustHear(t, alice.say(t, "next").Item, "next")
	for range 3 * RecentChains {
		alice.mustHear(t, bob.say(t, "ping").Item, "ping")
		bob.mustHear(t, alice.say(t, "pong").Item, "pong")
	}
	if bob.SkippedTotal() != 1 {
		t.Fatalf("%d skipped keys, want 1", bob.SkippedTotal())
	}
	if o := bob.mustHear(t, late.Item, "late"); o.Used == nil || *o.Used != (SkippedRef{chain, n}) || o.Chain != chain || o.N != n {
		t.Error("wrong key named as used")
	}
	if got := len(bob.closed); got != RecentChains {
		t.Errorf("%d earlier chains kept, want %d", got, RecentChains)
	}
}

func TestARepeatIsCalledARepeatAfterTheTurnChanged(t *testing.T) {
	alice, bob := pair(t)
	sent := alice.say(t, "once")
	bob.mustHear(t, sent.Item, "once")
	for range RecentChains {
		alice.mustHear(t, bob.say(t, "ping").Item, "ping")
		bob.mustHear(t, alice.say(t, "pong").Item, "pong")
		bob.refuses(t, sent.Item, ErrDuplicate)
	}
}

func TestBothEndsNumberChainsAlike(t *testing.T) {
	alice, bob := pair(t)
	for range 5 {
		chain, n := alice.NextSend()
		sent := alice.say(t, "x")
		if sent.Chain != chain || sent.N != n {
			t.Fatalf("NextSend told %d/%d, Encrypt used %d/%d", chain, n, sent.Chain, sent.N)
		}
		if o := bob.mustHear(t, sent.Item, "x"); o.Chain != chain || o.N != n {
			t.Fatalf("sent as %d/%d, opened as %d/%d", chain, n, o.Chain, o.N)
		}
		chain, n = bob.NextSend()
		sent = bob.say(t, "y")
		if o := alice.mustHear(t, sent.Item, "y"); sent.Chain != chain || sent.N != n || o.Chain != chain || o.N != n {
			t.Fatal("the acceptor's chains are numbered differently")
		}
	}
}

func TestOnlyAStepDrawsKeys(t *testing.T) {
	alice, bob := pair(t)
	alice.say(t, "makes the step")
	alice.rand.draws = nil
	alice.say(t, "same chain")
	if len(alice.rand.draws) != 1 || len(alice.rand.draws[0]) != 2*nonceSize {
		t.Error("a message within a chain draws more than its nonces")
	}
	if before := bob.Marshal(); bob.due != nil || !bytes.Equal(before, bob.Marshal()) {
		t.Error("bob has nothing to answer, yet a step is due")
	}
	bob.mustHear(t, alice.say(t, "new chain").Item, "new chain")
	if bob.due == nil || bob.send != nil {
		t.Error("keys of the old chain survive the peer's answer")
	}
}

func TestTheAcknowledgementProvesOpening(t *testing.T) {
	alice, bob := pair(t)
	sent := alice.say(t, "ack me")
	o := bob.mustHear(t, sent.Item, "ack me")
	ack := Ack(o.AckKey, sent.Item)
	if Ack(sent.AckKey, sent.Item) != ack {
		t.Error("the sender refuses the receiver's acknowledgement")
	}
	ack[3] ^= 1
	other := alice.say(t, "other")
	if Ack(sent.AckKey, sent.Item) == ack || Ack(other.AckKey, other.Item) == Ack(o.AckKey, other.Item) {
		t.Error("a wrong acknowledgement passes")
	}
}

func TestTheSendFloorIsHonoured(t *testing.T) {
	alice, bob := pair(t)
	first := alice.say(t, "0")
	if err := alice.SkipTo(64); err != nil {
		t.Fatal(err)
	}
	if err := alice.SkipTo(10); err != nil {
		t.Fatal(err)
	}
	if chain, n := alice.NextSend(); chain != first.Chain || n != 64 {
		t.Fatalf("next position %d/%d, want %d/64", chain, n, first.Chain)
	}
	bob.mustHear(t, alice.say(t, "64").Item, "64")
	if bob.SkippedTotal() != 64 {
		t.Fatalf("%d skipped, want 64", bob.SkippedTotal())
	}
	// The message names the spent positions in a void field; the receiver drops their keys.
	for n := uint32(1); n < 64; n++ {
		delete(bob.keys, SkippedRef{first.Chain, n})
	}
	bob.ForgetSkipped(first.Chain, 63)
	bob.mustHear(t, first.Item, "0")
	if bob.SkippedTotal() != 0 || len(bob.keys) != 0 {
		t.Error("void positions are still counted")
	}
}

func TestAFloorSetBeforeAStepHoldsInTheNewChain(t *testing.T) {
	alice, bob := pair(t)
	chain, n := alice.NextSend()
	if n != 0 || alice.due == nil {
		t.Fatal("no step is due")
	}
	if err := alice.SkipTo(128); err != nil {
		t.Fatal(err)
	}
	alice.Session = must(Unmarshal(alice.Marshal()))(t)
	sent := alice.say(t, "after the floor")
	if sent.Chain != chain || sent.N != 128 {
		t.Fatalf("sent at %d/%d, want %d/128", sent.Chain, sent.N, chain)
	}
	bob.mustHear(t, sent.Item, "after the floor")
	if bob.SkippedTotal() != 128 {
		t.Errorf("%d skipped, want 128", bob.SkippedTotal())
	}
	if err := alice.SkipTo(128 + 2 + MaxJump); !errors.Is(err, ErrChainFull) {
		t.Errorf("a floor no receiver would follow: %v", err)
	}
}

func TestForgottenPositionsAreCountedInOldChains(t *testing.T) {
	alice, bob := pair(t)
	var lost []Sealed
	for range 3 {
		lost = append(lost, alice.say(t, "lost"))
	}
	bob.mustHear(t, alice.say(t, "here").Item, "here")
	alice.mustHear(t, bob.say(t, "ping").Item, "ping")
	bob.mustHear(t, alice.say(t, "pong").Item, "pong")
	bob.ForgetSkipped(lost[0].Chain, 2)
	bob.ForgetSkipped(lost[0].Chain, -1)
	bob.ForgetSkipped(99, 5)
	if bob.SkippedTotal() != 1 {
		t.Errorf("%d counted, want 1", bob.SkippedTotal())
	}
	bob.ForgetSkipped(lost[0].Chain, 50)
	if bob.SkippedTotal() != 0 {
		t.Errorf("%d counted, want 0", bob.SkippedTotal())
	}
	bob.keys = keyStore{}
	bob.refuses(t, lost[1].Item, ErrDuplicate)
}

func TestAFailingStoreOfKeysChangesNothing(t *testing.T) {
	alice, bob := pair(t)
	late := alice.say(t, "late")
	bob.mustHear(t, alice.say(t, "next").Item, "next")
	before := bob.Marshal()
	broken := errors.New("disk")
	if _, err := bob.Decrypt(must(ParseItem(late.Item))(t), failingStore{broken}); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := bob.Decrypt(must(ParseItem(late.Item))(t), nil); !errors.Is(err, ErrDuplicate) {
		t.Errorf("got %v", err)
	}
	if !bytes.Equal(before, bob.Marshal()) {
		t.Error("the session changed")
	}
}

type failingStore struct{ err error }

func (f failingStore) Find(uint32, uint32) ([32]byte, bool, error) { return [32]byte{}, false, f.err }

func TestWithoutRandomnessNothingMoves(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	if _, err := Initiate(a.local, b.card, nil, brokenReader{}); !errors.Is(err, errBroken) {
		t.Errorf("handshake: %v", err)
	}
	alice, _ := pair(t)
	for range 2 { // with a step due, then within a chain
		before := alice.Marshal()
		if _, err := alice.Encrypt([]byte("x"), brokenReader{}); !errors.Is(err, errBroken) {
			t.Errorf("got %v", err)
		}
		for n := range 4 { // each draw in turn
			if _, err := alice.Encrypt([]byte("x"), &limitedReader{left: n}); n == 0 && !errors.Is(err, errBroken) {
				t.Errorf("draw %d: %v", n, err)
			} else if err == nil {
				before = alice.Marshal()
			} else if !bytes.Equal(before, alice.Marshal()) {
				t.Errorf("draw %d: the session changed", n)
			}
		}
	}
}

// limitedReader fails after so many reads.
type limitedReader struct{ left int }

func (l *limitedReader) Read(b []byte) (int, error) {
	if l.left == 0 {
		return 0, errBroken
	}
	l.left--
	return rand.Read(b)
}

func TestSimultaneousFirstContactEndsInOneSession(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	r := newStream("both at once")
	aliceOwn := must(Initiate(a.local, b.card, nil, r))(t)
	bobOwn := must(Initiate(b.local, a.card, nil, r))(t)
	fromAlice := must(ParseItem(must(aliceOwn.Encrypt([]byte("a"), r))(t).Item))(t)
	fromBob := must(ParseItem(must(bobOwn.Encrypt([]byte("b"), r))(t).Item))(t)
	bobOther, _, err := Accept(b.local, fromAlice, b.keys(fromAlice.Initial))
	if err != nil {
		t.Fatal(err)
	}
	aliceOther, _, err := Accept(a.local, fromBob, a.keys(fromBob.Initial))
	if err != nil {
		t.Fatal(err)
	}
	if aliceOwn.SmallerInitiator(aliceOther) == aliceOther.SmallerInitiator(aliceOwn) {
		t.Error("neither session goes first")
	}
	if aliceOwn.SmallerInitiator(aliceOther) != bobOther.SmallerInitiator(bobOwn) {
		t.Error("the ends choose different sessions")
	}
}

func TestASessionPrintsNoSecret(t *testing.T) {
	alice, bob := pair(t)
	sent := alice.say(t, "secret text")
	o := bob.mustHear(t, sent.Item, "secret text")
	encoded, err := json.Marshal(map[string]any{"session": alice.Session, "key": o.AckKey})
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		fmt.Sprintf("%v %+v %#v %s %x", alice.Session, *alice.Session, *alice.Session, alice.Session, *alice.Session),
		fmt.Sprintf("%v %x %d %+v", o.AckKey, o.AckKey, o.AckKey, SkippedKey{Key: o.AckKey}),
		string(encoded),
	} {
		for _, secret := range []Key{alice.rk, alice.nhks, o.AckKey} {
			if strings.Contains(out, fmt.Sprintf("%x", secret[:8])) || strings.Contains(out, fmt.Sprint([32]byte(secret))) ||
				strings.Contains(out, fmt.Sprintf("%d %d %d", secret[0], secret[1], secret[2])) {
				t.Errorf("a secret is printed: %s", out)
			}
		}
	}
}

func TestCloneIsIndependent(t *testing.T) {
	alice, bob := pair(t)
	for i := range 3 {
		alice.say(t, "lost")
		bob.mustHear(t, alice.say(t, "x").Item, "x")
		before := bob.Marshal()
		c := bob.clone()
		if !bytes.Equal(before, c.Marshal()) {
			t.Fatal("a clone differs")
		}
		c.say(t, "y")
		c.mustHear(t, alice.clone().say(t, "z").Item, "z")
		c.ForgetSkipped(uint32(i)+1, 9)
		if !bytes.Equal(before, bob.Marshal()) {
			t.Fatal("using a clone changed the session")
		}
		alice.mustHear(t, bob.say(t, "turn").Item, "turn")
	}
}

// Negative tests of handshakes.

// firstItem is a fresh handshake with its first message.
func firstItem(t testing.TB, a, b *person, oneTime bool) []byte {
	t.Helper()
	var opk *identity.Prekey
	if oneTime {
		opk = b.publicOneTime()
	}
	r := newStream("first item")
	s := must(Initiate(a.local, b.card, opk, r))(t)
	return must(s.Encrypt([]byte("hello"), r))(t).Item
}

func acceptBytes(p *person, item []byte) (*Session, error) {
	it, err := ParseItem(item)
	if err != nil {
		return nil, err
	}
	if it.Initial == nil {
		return nil, fmt.Errorf("no header: %w", ErrBad)
	}
	s, _, err := Accept(p.local, it, p.keys(it.Initial))
	return s, err
}

func TestAHandshakeWithAnyByteChangedIsRefused(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	item := firstItem(t, a, b, true)
	if _, err := acceptBytes(b, item); err != nil {
		t.Fatal(err)
	}
	// Everything small and every border byte by byte, the long random fields sampled.
	for i := 0; i < len(item); i++ {
		if i > 64 && i%11 != 0 && i < len(item)-64 {
			continue
		}
		changed := bytes.Clone(item)
		changed[i] ^= 1 << (i % 8)
		s, err := acceptBytes(b, changed)
		if err == nil || s != nil && err != nil && s.recv != nil {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if !isRefusal(err) {
			t.Fatalf("byte %d changed: unnamed error %v", i, err)
		}
	}
	for n := 0; n < len(item); n += 1 + n/40 {
		if _, err := acceptBytes(b, item[:n]); !isRefusal(err) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := acceptBytes(b, append(bytes.Clone(item), 0)); !errors.Is(err, ErrBad) {
		t.Fatalf("one byte more: %v", err)
	}
}

func isRefusal(err error) bool {
	for _, want := range []error{ErrBad, ErrUnsupported, ErrUnknownKeys, ErrNotOurs, ErrTooLarge} {
		if errors.Is(err, want) {
			return true
		}
	}
	return false
}

func TestAHeaderOfOneSessionOnTheBodyOfAnotherIsRefused(t *testing.T) {
	a, b, c := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "carol")
	fromAlice, fromCarol := firstItem(t, a, b, false), firstItem(t, c, b, false)
	ia, ic := must(ParseItem(fromAlice))(t), must(ParseItem(fromCarol))(t)
	ia.Message, ic.Message = ic.Message, ia.Message
	for _, it := range []Item{ia, ic} {
		if _, _, err := Accept(b.local, it, b.keys(it.Initial)); !errors.Is(err, ErrBad) {
			t.Errorf("got %v", err)
		}
	}
	// The same within an established session: the encrypted header of one message on the body of another.
	alice, bob := pair(t)
	m1, m2 := alice.say(t, "one").Item, alice.say(t, "two").Item
	mixed := append(bytes.Clone(m1[:1+ehSize]), m2[1+ehSize:]...)
	bob.refuses(t, mixed, ErrBad)
	bob.mustHear(t, m1, "one")
}

func TestPrekeysThatAreNotAtHandAreNamed(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	it := must(ParseItem(firstItem(t, a, b, true)))(t)
	plain := must(ParseItem(firstItem(t, a, b, false)))(t)
	other := must(identity.NewPrekey(newStream("other"), 1))(t)
	for name, c := range map[string]struct {
		it   Item
		keys Keys
	}{
		"none":                       {it, Keys{}},
		"one-time prekey used twice": {it, Keys{Signed: b.spk}},
		"signed prekey expired":      {it, Keys{OneTime: b.oneTime[9]}},
		"wrong one-time prekey":      {it, Keys{Signed: b.spk, OneTime: other}},
		"wrong signed prekey":        {it, Keys{Signed: other, OneTime: b.oneTime[9]}},
		"one-time prekey not asked":  {plain, Keys{Signed: b.spk, OneTime: b.oneTime[9]}},
	} {
		if _, _, err := Accept(b.local, c.it, c.keys); !errors.Is(err, ErrUnknownKeys) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := Accept(b.local, Item{Kind: KindMessage, Message: it.Message}, Keys{}); !errors.Is(err, ErrBad) {
		t.Errorf("no initial header: %v", err)
	}
}

func TestAReplayedHandshakeNamesTheSameSession(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	item := firstItem(t, a, b, false)
	s1, err := acceptBytes(b, item)
	if err != nil {
		t.Fatal(err)
	}
	// With the session at hand a replay goes to it and is a repeat; without, the caller's cache knows the id.
	it := must(ParseItem(item))(t)
	if it.Initial.ID() != s1.ID() {
		t.Error("a replay has another id")
	}
	if _, err := s1.Decrypt(it, nil); !errors.Is(err, ErrDuplicate) {
		t.Errorf("got %v", err)
	}
}

func TestNobodyCanPoseAsAnother(t *testing.T) {
	a, b, mallory := newPerson(t, "alice"), newPerson(t, "bob"), newPerson(t, "mallory")
	forge := func(device *identity.Device, to *person) []byte {
		r := newStream("forge")
		in := &Initial{Suite: Suite, Device: a.list.Devices[0], List: a.local.Devices, SPKID: b.spk.ID}
		s, err := initiate(Local{Device: device}, in, party{a.local.Account, a.list.Devices[0]},
			party{to.local.Account, to.list.Devices[0]}, prekeyPair{signed: b.spk.Public()}, r)
		if err != nil {
			t.Fatal(err)
		}
		return must(s.Encrypt([]byte("it is me, alice"), r))(t).Item
	}
	if _, err := acceptBytes(b, forge(a.local.Device, b)); err != nil {
		t.Fatalf("the test cannot forge: %v", err)
	}
	if _, err := acceptBytes(b, forge(mallory.local.Device, b)); !errors.Is(err, ErrBad) {
		t.Errorf("a stranger poses as alice: %v", err)
	}
	if _, err := acceptBytes(b, forge(b.local.Device, b)); !errors.Is(err, ErrBad) {
		t.Errorf("with bob's stolen identity key a stranger poses as alice to bob: %v", err)
	}
	// Mallory published bob's prekeys as her own and passes on what alice meant for her.
	if _, err := acceptBytes(b, forge(a.local.Device, mallory)); !errors.Is(err, ErrBad) {
		t.Errorf("alice spoke to mallory, bob accepted: %v", err)
	}
	if _, err := Initiate(Local{Device: mallory.local.Device, Account: a.local.Account, Devices: a.local.Devices}, b.card, nil, rand.Reader); err == nil {
		t.Error("began a session with another's device list")
	}
	if _, err := Initiate(b.local, b.card, nil, rand.Reader); !errors.Is(err, ErrBad) {
		t.Errorf("own card: %v", err)
	}
	it := must(ParseItem(forge(a.local.Device, b)))(t)
	if _, _, err := Accept(a.local, it, Keys{Signed: b.spk}); !errors.Is(err, ErrBad) {
		t.Errorf("own handshake came back: %v", err)
	}
}

func TestSuitesBelowTheMinimumAreRefused(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	for _, c := range []struct {
		suite, min uint8
		want       error
	}{{0, 0, ErrUnsupported}, {0, 1, ErrUnsupported}, {2, 2, ErrUnsupported}, {1, 2, ErrUnsupported}, {1, 1, nil}, {2, 1, nil}} {
		card := b.card
		card.Core.Suite, card.Core.MinSuite = c.suite, c.min
		if _, err := Initiate(a.local, card, nil, rand.Reader); !errors.Is(err, c.want) {
			t.Errorf("card with suites %d to %d: %v", c.min, c.suite, err)
		}
	}
	item := firstItem(t, a, b, false)
	for _, suite := range []byte{0, 2, 255} {
		changed := bytes.Clone(item)
		changed[5] = suite
		if _, err := ParseItem(changed); !errors.Is(err, ErrUnsupported) {
			t.Errorf("suite %d: %v", suite, err)
		}
	}
}

func TestHandshakeHeadersHaveOneForm(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	in := must(ParseItem(firstItem(t, a, b, false)))(t).Initial
	message := make([]byte, MessageOverhead)
	item := func(change func(in *Initial)) []byte {
		c := *in
		change(&c)
		return append(canon.AppendLP([]byte{byte(KindInitial)}, c.marshal()), message...)
	}
	for name, c := range map[string]struct {
		item []byte
		want error
	}{
		"unchanged":                     {item(func(*Initial) {}), nil},
		"unknown extension":             {item(func(in *Initial) { in.exts = []canon.Extension{{ID: 1, Data: []byte("x")}} }), nil},
		"critical extension":            {item(func(in *Initial) { in.exts = []canon.Extension{{ID: 0x8001}} }), ErrUnsupported},
		"extensions out of order":       {item(func(in *Initial) { in.exts = []canon.Extension{{ID: 2}, {ID: 1}} }), ErrBad},
		"one-time id without a key":     {item(func(in *Initial) { in.OPKID = 4 }), ErrBad},
		"point with the top bit set":    {item(func(in *Initial) { in.ek[31] |= 0x80 }), ErrBad},
		"point not reduced":             {item(func(in *Initial) { in.ek = nonCanonical() }), ErrBad},
		"device not in its list":        {item(func(in *Initial) { in.Device.ID[0] ^= 1 }), ErrBad},
		"list of another signature":     {item(func(in *Initial) { in.List = flip(in.List, len(in.List)-1) }), ErrBad},
		"header larger than allowed":    {append(canon.AppendLP([]byte{1}, make([]byte, MaxInitial+1)), message...), ErrBad},
		"length of 2^32-1 and no bytes": {[]byte{1, 0xff, 0xff, 0xff, 0xff}, ErrBad},
		"trailing bytes in the header":  {append(canon.AppendLP([]byte{1}, append(in.marshal(), 0)), message...), ErrBad},
		"kem byte 0":                    {item2(in, message, 1, 0), ErrBad},
		"kem byte 3":                    {item2(in, message, 1, 3), ErrBad},
		"empty":                         {nil, ErrBad},
		"kind 0":                        {[]byte{0}, ErrUnsupported},
		"kind 3":                        {append([]byte{3}, message...), ErrUnsupported},
		"message too short":             {append([]byte{2}, message[1:]...), ErrBad},
		"item too large":                {make([]byte, MaxItem+1), ErrTooLarge},
	} {
		if _, err := ParseItem(c.item); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	low := item(func(in *Initial) { in.ek = [32]byte{} })
	if _, err := acceptBytes(b, low); !errors.Is(err, ErrBad) {
		t.Errorf("handshake key of low order: %v", err)
	}
}

func nonCanonical() (p [32]byte) {
	for i := range p {
		p[i] = 0xff
	}
	p[0], p[31] = 0xed, 0x7f
	return p
}

func flip(b []byte, i int) []byte {
	c := bytes.Clone(b)
	c[i] ^= 1
	return c
}

// item2 sets one byte of the marshalled header.
func item2(in *Initial, message []byte, at int, value byte) []byte {
	raw := in.marshal()
	raw[at] = value
	return append(canon.AppendLP([]byte{1}, raw), message...)
}

func TestTheInitialHeaderIsPartOfEachFirstMessage(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	alice, bob := meet(t, a, b, true)
	item := alice.say(t, "two").Item
	it := must(ParseItem(item))(t)
	bob.refuses(t, append([]byte{byte(KindMessage)}, it.Message...), ErrBad)
	bob.refuses(t, flip(item, 5+2+16+32), ErrBad) // the number of the signed prekey
	bob.mustHear(t, item, "two")
	header := item[1 : len(item)-len(it.Message)]
	alice.mustHear(t, bob.say(t, "answer").Item, "answer")
	for _, text := range []string{"a step", "in the chain"} {
		later := alice.say(t, text).Item
		bob.refuses(t, append(append([]byte{byte(KindInitial)}, header...), later[1:]...), ErrBad)
		bob.mustHear(t, later, text)
	}
	// Alice's own header thrown back at her.
	fromBob := bob.say(t, "more").Item
	alice.refuses(t, append(append([]byte{byte(KindInitial)}, header...), fromBob[1:]...), ErrBad)
}

// Negative tests of the ratchet.

func TestAMessageWithAnyByteChangedIsRefused(t *testing.T) {
	alice, bob := pair(t)
	step := alice.say(t, "a new chain").Item
	for i := 0; i < len(step); i += 1 + i/200 {
		bob.refuses(t, flip(step, i), refusalOf(i))
	}
	bob.mustHear(t, step, "a new chain")
	item := alice.say(t, "in the chain").Item
	for i := range item {
		bob.refuses(t, flip(item, i), refusalOf(i))
	}
	for n := range len(item) {
		if _, err := bob.hear(item[:n]); err == nil {
			t.Fatalf("cut to %d bytes and accepted", n)
		}
	}
	bob.refuses(t, append(bytes.Clone(item), 7), ErrBad)
	bob.mustHear(t, item, "in the chain")
}

// refusalOf is what a changed byte must lead to: kind, header or body.
func refusalOf(i int) error {
	switch {
	case i == 0:
		return ErrUnsupported
	case i < 1+ehSize:
		return ErrNotOurs
	default:
		return ErrBad
	}
}

func TestKeyCommitmentIsCheckedBeforeTheBody(t *testing.T) {
	alice, bob := pair(t)
	bob.mustHear(t, alice.say(t, "step").Item, "step")
	item := alice.say(t, "true").Item
	// A body that the right key opens, beside the commitment of another key.
	forged := bytes.Clone(item)
	mk := prf(&bob.recv.ck, 1) // bob expects exactly this message
	keys := expand(&mk, "sotto/v1 msg", 64)
	forged[1+ehSize] ^= 1
	full := bodyAD(&alice.ad, forged[1:1+bodyOffset])
	body := forged[1+bodyOffset:]
	aead(keys[:32]).Seal(body[nonceSize:nonceSize], body[:nonceSize], []byte("lie!"), full[:])
	bob.refuses(t, forged, ErrBad)
	bob.mustHear(t, item, "true")
}

// crafted makes a message with a header that an honest sender never makes, under the right header key.
func crafted(t testing.TB, e *end, change func(h []byte, c *sending)) []byte {
	t.Helper()
	c := e.clone()
	if c.due != nil {
		if err := c.sendStep(c.rand); err != nil {
			t.Fatal(err)
		}
	}
	change(c.send.header[:], c.send)
	mk := prf(&c.send.ck, 1)
	var nonces [2 * nonceSize]byte
	return c.send.seal([]byte{byte(KindMessage)}, &mk, &c.ad, []byte("crafted"), &nonces)
}

func put32(b []byte, v uint32) { binary.BigEndian.PutUint32(b, v) }

func TestHeadersAgainstTheProtocolAreRefused(t *testing.T) {
	alice, bob := pair(t)
	bob.mustHear(t, alice.say(t, "x").Item, "x")
	alice.mustHear(t, bob.say(t, "y").Item, "y")
	low := [32]byte{1}
	for name, c := range map[string]struct {
		change func(h []byte, c *sending)
		want   error
	}{
		"flag of a first chain":       {func(h []byte, _ *sending) { h[0] = flagFirst }, ErrBad},
		"unknown flag":                {func(h []byte, _ *sending) { h[0] = 2 }, ErrBad},
		"point of low order":          {func(h []byte, _ *sending) { copy(h[offDH:], low[:]) }, ErrBad},
		"zero point":                  {func(h []byte, _ *sending) { clear(h[offDH : offDH+32]) }, ErrBad},
		"point with the top bit set":  {func(h []byte, _ *sending) { h[offDH+31] |= 0x80 }, ErrBad},
		"ML-KEM key not reduced":      {func(h []byte, _ *sending) { copy(h[offEK:], bytes.Repeat([]byte{0xff}, 64)) }, ErrBad},
		"ciphertext of another key":   {func(h []byte, _ *sending) { h[offCT] ^= 1 }, ErrBad},
		"earlier chain too short":     {func(h []byte, _ *sending) { put32(h[offPN:], 0) }, ErrBad},
		"earlier chain a bit longer":  {func(h []byte, _ *sending) { put32(h[offPN:], 5) }, nil},
		"earlier chain far longer":    {func(h []byte, _ *sending) { put32(h[offPN:], MaxJump+2) }, ErrTooFarAhead},
		"earlier chain beyond a full": {func(h []byte, _ *sending) { put32(h[offPN:], 1<<32-1) }, ErrBad},
		"jump within the limit":       {func(_ []byte, c *sending) { c.skipTo(1001) }, nil},
		"jump beyond the limit":       {func(_ []byte, c *sending) { c.n = MaxJump + 1 }, ErrTooFarAhead},
		"position beyond a chain":     {func(_ []byte, c *sending) { c.n = MaxChain }, ErrBad},
		"position 2^32-1":             {func(_ []byte, c *sending) { c.n = 1<<32 - 1 }, ErrBad},
	} {
		item := crafted(t, alice, c.change)
		if c.want != nil {
			bob.refuses(t, item, c.want)
			continue
		}
		if _, err := bob.clone().hear(item); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTheFirstChainHasNoCiphertext(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	r := newStream("first chain")
	alice := &end{must(Initiate(a.local, b.card, nil, r))(t), keyStore{}, r}
	for name, change := range map[string]func(h []byte, c *sending){
		"flag of a later chain":   func(h []byte, _ *sending) { h[0] = flagKEM },
		"ciphertext that is none": func(h []byte, _ *sending) { h[offCT+5] = 1 },
		"names an earlier chain":  func(h []byte, _ *sending) { put32(h[offPN:], 1) },
	} {
		item := crafted(t, alice, change)
		whole := append(canon.AppendLP([]byte{byte(KindInitial)}, alice.initial), item[1:]...)
		if _, err := acceptBytes(b, whole); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAChainMadeTwiceIsNoRepeat(t *testing.T) {
	alice, bob := pair(t)
	stale := alice.clone()
	for range 2 {
		bob.mustHear(t, alice.say(t, "from the newest state").Item, "from the newest state")
	}
	// The disk came back without the step: the same chain is made again with other keys.
	again := stale.say(t, "from a rolled back state").Item
	bob.refuses(t, again, ErrBad)
	alice.mustHear(t, bob.say(t, "turn").Item, "turn")
	bob.mustHear(t, alice.say(t, "turn").Item, "turn")
	bob.refuses(t, again, ErrBad)
}

func TestANewChainOutOfTurnIsRefused(t *testing.T) {
	alice, bob := pair(t)
	bob.mustHear(t, alice.say(t, "x").Item, "x")
	// Bob has not answered, yet another chain comes under the next header key.
	c := alice.clone()
	c.send.hk, c.send.chain = c.nhks, c.send.chain+1
	bob.refuses(t, c.say(t, "out of turn").Item, ErrBad)
}

func TestAPositionBeyondTheEndOfAnEarlierChainIsRefused(t *testing.T) {
	alice, bob := pair(t)
	alice.say(t, "lost")
	bob.mustHear(t, alice.say(t, "x").Item, "x")
	stale := alice.clone()
	alice.mustHear(t, bob.say(t, "y").Item, "y")
	bob.mustHear(t, alice.say(t, "z").Item, "z")
	bob.refuses(t, stale.say(t, "late").Item, ErrBad)
}

func TestMissingMessagesAreBounded(t *testing.T) {
	alice, bob := pair(t)
	alice.say(t, "0")
	if err := alice.SkipTo(6000); err != nil {
		t.Fatal(err)
	}
	bob.mustHear(t, alice.say(t, "6000").Item, "6000")
	if err := alice.SkipTo(12_000); err != nil {
		t.Fatal(err)
	}
	late := alice.say(t, "12000")
	bob.refuses(t, late.Item, ErrTooFarAhead)
	if !Passing(ErrTooFarAhead) || Passing(ErrBad) {
		t.Error("only a window that is too small is a passing failure")
	}
	// Once keys expired, the same bytes open.
	bob.keys = keyStore{}
	bob.ForgetSkipped(late.Chain, 6000)
	if o := bob.mustHear(t, late.Item, "12000"); len(o.Store) != 5999 {
		t.Errorf("%d keys to store", len(o.Store))
	}
}

func TestChainsThatWaitAreBounded(t *testing.T) {
	alice, bob := pair(t)
	alice.say(t, "lost")
	bob.mustHear(t, alice.say(t, "x").Item, "x")
	alice.mustHear(t, bob.say(t, "y").Item, "y")
	item := alice.say(t, "one chain more").Item
	// Bob's live chain waits for a message, and so do as many earlier ones as there may be.
	bob.closed = nil
	for i := range uint32(MaxOpenChains) {
		bob.closed = append(bob.closed, closed{chain: i, length: 2, skipped: 1, hk: Key{byte(i), byte(i >> 8), 1}})
	}
	bob.recv.chain, bob.send.chain = MaxOpenChains, MaxOpenChains
	if n := len(bob.Marshal()); n > 96<<10 {
		t.Errorf("the largest state takes %d bytes", n)
	}
	must(Unmarshal(bob.Marshal()))(t)
	bob.refuses(t, item, ErrTooFarAhead)
	bob.ForgetSkipped(3, 1)
	bob.mustHear(t, item, "one chain more")
}

func TestAChainThatIsUsedUpIsNamed(t *testing.T) {
	alice, _ := pair(t)
	alice.say(t, "x")
	alice.send.n = MaxChain
	before := alice.Marshal()
	if _, err := alice.Encrypt([]byte("x"), rand.Reader); !errors.Is(err, ErrChainFull) {
		t.Errorf("got %v", err)
	}
	if !bytes.Equal(before, alice.Marshal()) {
		t.Error("the session changed")
	}
}

func TestPayloadsOfEverySizeTravel(t *testing.T) {
	alice, bob := pair(t)
	for _, n := range []int{0, 1, 200, 64 << 10, MaxPayload} {
		text := strings.Repeat("x", n)
		sent := alice.say(t, text)
		if len(sent.Item) != ItemOverhead+n {
			t.Errorf("item of %d bytes for %d", len(sent.Item), n)
		}
		bob.mustHear(t, sent.Item, text)
	}
	if _, err := alice.Encrypt(make([]byte, MaxPayload+1), rand.Reader); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if _, err := bob.Decrypt(Item{Kind: KindMessage, Message: make([]byte, MaxItem+1)}, nil); !errors.Is(err, ErrBad) {
		t.Errorf("got %v", err)
	}
}

// Stored state.

func TestStateSurvivesItsStore(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	alice, bob := meet(t, a, b, true)
	reload := func(e *end) {
		t.Helper()
		stored := e.Marshal()
		e.Session = must(Unmarshal(stored))(t)
		if !bytes.Equal(stored, e.Marshal()) {
			t.Fatal("state changes in the store")
		}
	}
	for range 12 {
		reload(alice)
		reload(bob)
		alice.say(t, "lost")
		bob.mustHear(t, alice.say(t, "x").Item, "x")
		reload(alice)
		reload(bob)
		alice.mustHear(t, bob.say(t, "y").Item, "y")
	}
	if n := len(alice.Marshal()); n > 4096 {
		t.Errorf("ordinary state takes %d bytes", n)
	}
}

func TestMessagesOfAChainChangeOnlyTheHeadOfAState(t *testing.T) {
	alice, bob := pair(t)
	tail := func(e *end) []byte {
		state := e.Marshal()
		return state[e.Head():]
	}
	for range 3 {
		bob.mustHear(t, alice.say(t, "begins a chain").Item, "begins a chain")
		sender, receiver := tail(alice), tail(bob)
		for range 3 {
			bob.mustHear(t, alice.say(t, "goes on").Item, "goes on")
		}
		if !bytes.Equal(sender, tail(alice)) || !bytes.Equal(receiver, tail(bob)) {
			t.Error("the rest of the state changed within a chain")
		}
		alice.mustHear(t, bob.say(t, "answer").Item, "answer")
	}
}

func TestDamagedStateIsRefused(t *testing.T) {
	alice, bob := pair(t)
	alice.say(t, "lost")
	bob.mustHear(t, alice.say(t, "x").Item, "x")
	alice.mustHear(t, bob.say(t, "y").Item, "y")
	bob.mustHear(t, alice.say(t, "z").Item, "z")
	stored := bob.Marshal()
	for n := range stored {
		if _, err := Unmarshal(stored[:n]); !errors.Is(err, ErrDamagedState) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := Unmarshal(append(bytes.Clone(stored), 0)); !errors.Is(err, ErrDamagedState) {
		t.Error("trailing byte accepted")
	}
	for v, want := range map[byte]error{0: ErrDamagedState, 2: ErrNewerState} {
		c := bytes.Clone(stored)
		c[0] = v
		if _, err := Unmarshal(c); !errors.Is(err, want) {
			t.Errorf("version %d: %v", v, err)
		}
	}
	for flags := range 256 {
		c := bytes.Clone(stored)
		c[1] = byte(flags)
		if s, err := Unmarshal(c); err == nil && !bytes.Equal(s.Marshal(), c) {
			t.Errorf("flags %02x read otherwise than written", flags)
		}
	}
	for name, change := range map[string]func(s *Session){
		"chain out of turn":       func(s *Session) { s.due.chain++ },
		"floor beyond a jump":     func(s *Session) { s.due.floor = MaxJump + 1 },
		"position beyond a chain": func(s *Session) { s.recv.n = MaxChain + 1 },
		"more skipped than seen":  func(s *Session) { s.recv.skipped = s.recv.n },
		"earlier chain too new":   func(s *Session) { s.closed[0].chain = s.recv.chain },
		"chains out of order":     func(s *Session) { s.closed = append(s.closed, s.closed[0]) },
		"too many skipped":        func(s *Session) { s.closed[0].length, s.closed[0].skipped = MaxChain, MaxSkipped+1 },
	} {
		s := bob.Clone()
		change(s)
		if _, err := Unmarshal(s.Marshal()); !errors.Is(err, ErrDamagedState) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAnItemIsRestoredFromItsHeadingByteForByte(t *testing.T) {
	alice, bob := meet(t, newPerson(t, "alice"), newPerson(t, "bob"), true)
	first := alice.say(t, "first")
	if short, ok := Shorten(first.Item); ok || !bytes.Equal(short, first.Item) {
		t.Error("an item with an initial header was shortened")
	}
	bob.mustHear(t, first.Item, "first")
	alice.mustHear(t, bob.say(t, "answer").Item, "answer")
	var items []Sealed
	for _, text := range []string{"one", "", strings.Repeat("long ", 9000)} {
		items = append(items, alice.say(t, text))
	}
	head, ok := alice.Heading(items[0].Chain)
	if !ok {
		t.Fatal("the live chain has no heading")
	}
	kept := must(ParseHeading(head.Marshal()))(t)
	bob.mustHear(t, items[0].Item, "one")
	o := alice.mustHear(t, bob.say(t, "turn").Item, "turn")
	if o.Ended == nil || o.EndedChain != items[0].Chain || *o.Ended != *kept {
		t.Error("the end of the chain does not give its heading")
	}
	if _, ok := alice.Heading(items[0].Chain); ok {
		t.Error("an ended chain still has a heading")
	}
	for _, it := range items {
		short, ok := Shorten(it.Item)
		if !ok || len(short) > len(it.Item)-headerSize {
			t.Errorf("%d bytes shortened to %d", len(it.Item), len(short))
		}
		if whole := must(kept.Restore(short, it.N))(t); !bytes.Equal(whole, it.Item) {
			t.Error("restored to something else")
		}
	}
	if _, err := kept.Restore(make([]byte, 50), 0); err == nil {
		t.Error("too few bytes were restored")
	}
	if _, err := ParseHeading(head.Marshal()[1:]); !errors.Is(err, ErrDamagedState) {
		t.Errorf("short heading: %v", err)
	}
}
