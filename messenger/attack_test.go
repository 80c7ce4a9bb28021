package messenger_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"math"
	mathrand "math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sotto/identity"
	"sotto/internal/testnet"
	"sotto/messenger"
	"sotto/session"
	"sotto/store"
	"sotto/wire"
)

// pair is two people who are contacts, Mallory ready to do anything to Bob that a contact's keys allow.
func pair(t *testing.T) (net *testnet.Net, mallory, bob *person) {
	t.Helper()
	net = testnet.NewNet(1, testnet.Faults{})
	mallory, bob = newPerson(t, net, "mallory"), newPerson(t, net, "bob")
	meet(t, mallory, bob)
	return net, mallory, bob
}

// live is the session with a peer that is sent on.
func (p *person) live(tx *store.Tx, to *person) (store.Session, *session.Session) {
	p.t.Helper()
	rows, err := tx.AccountSessions([32]byte(accountOf(to)))
	if err != nil {
		p.t.Fatal(err)
	}
	for _, row := range rows {
		if !row.Archived {
			s, err := session.Unmarshal(row.State)
			if err != nil {
				p.t.Fatal(err)
			}
			return row, s
		}
	}
	p.t.Fatalf("%s has no session with %s", p.name, to.name)
	return store.Session{}, nil
}

// sealRaw seals any bytes with the live session; skip leaves out so many positions before.
func (p *person) sealRaw(to *person, payload []byte, skip uint32) (item []byte) {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		row, s := p.live(tx, to)
		for range skip { // SkipTo refuses what no honest sender does
			if _, err := s.Encrypt(nil, rand.Reader); err != nil {
				return err
			}
		}
		sealed, err := s.Encrypt(payload, rand.Reader)
		item, row.State, row.Head = sealed.Item, s.Marshal(), s.Head()
		if err != nil {
			return err
		}
		return tx.PutSession(row)
	})
	return item
}

// seal seals a content that the messenger would never make.
func (p *person) seal(to *person, c wire.Content) []byte {
	p.t.Helper()
	if c.ID == (wire.MsgID{}) {
		if _, err := rand.Read(c.ID[:]); err != nil {
			p.t.Fatal(err)
		}
	}
	c.Device = p.deviceID()
	if c.N > 1 && c.Prev == ([32]byte{}) {
		c.Prev = [32]byte{1}
	}
	raw, err := c.Marshal()
	if err != nil {
		p.t.Fatal(err)
	}
	return p.sealRaw(to, raw, 0)
}

func (p *person) deviceID() (id [16]byte) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		self, err := tx.GetSelf()
		if err != nil {
			return err
		}
		d, err := identity.ParseDevice(self.DeviceSecret)
		id = [16]byte(d.ID())
		return err
	})
	return id
}

// offer hands an item to somebody as if p's node did.
func (p *person) offer(to *person, item []byte) wire.Answer {
	p.t.Helper()
	return to.m.Offer(p.t.Context(), [32]byte(p.port.Reach().InnerKey), item)()
}

func (p *person) wantCode(to *person, item []byte, want ...wire.Code) wire.Answer {
	p.t.Helper()
	a := p.offer(to, item)
	for _, code := range want {
		if a.Code == code {
			return a
		}
	}
	p.t.Errorf("answer %v, want one of %v", a.Code, want)
	return a
}

func TestEveryByteOfAnItemIsGuarded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		initial := firstItem(t, bob) // one with an initial header, of a third person
		for name, item := range map[string][]byte{"message": hold(t, mallory, bob, "whole")[0], "initial": initial} {
			before, counted := bob.state(), bob.status().Counters
			refusals := uint64(0)
			broken := func(b []byte) {
				refusals++
				if a := mallory.wantCode(bob, b, wire.CodeRefused, wire.CodeLost); a.Ack != (wire.Ack{}) {
					t.Errorf("%s: a broken item was acknowledged", name)
				}
			}
			r := mathrand.New(mathrand.NewPCG(1, 2))
			for i := 0; i < len(item); i += 1 + r.IntN(24) {
				b := bytes.Clone(item)
				b[i] ^= 1 << r.IntN(8)
				broken(b)
				if i%7 == 0 {
					broken(item[:i])
				}
			}
			broken(append(bytes.Clone(item), 0))
			broken(bytes.Repeat([]byte{2}, wire.MaxItem+1))
			now := bob.status().Counters
			if got := now.Refused + now.Unopened - counted.Refused - counted.Unopened; got != refusals {
				t.Errorf("%s: %d of %d refusals counted", name, got, refusals)
			}
			if bob.state() != before {
				t.Errorf("%s: broken items changed the state", name)
			}
		}
		mallory.net.Cut(mallory.port, bob.port, false)
		settle(10 * time.Minute)
		wantTexts(t, bob, "mallory", []string{"whole"})
		check(t, mallory, bob)
	})
}

// firstItem is a first contact's item under a live invite of the person, kept back on its way.
func firstItem(t *testing.T, to *person) []byte {
	t.Helper()
	carol := newPerson(t, to.net, "carol")
	to.net.Cut(carol.port, to.port, true)
	carol.add(to.invite(messenger.InviteRequest{Reusable: true}).Link)
	settle(time.Second)
	item := outbox(t, carol, to)[0]
	carol.halt()
	return item
}

func TestContentsAgainstTheRulesAreRefusedOrShownForWhatTheyAre(t *testing.T) {
	text := func(n uint64, s string) wire.Content { return wire.Content{Kind: wire.KindText, N: n, Text: s} }
	for name, c := range map[string]struct {
		content wire.Content
		code    wire.Code
		shown   []string
	}{
		"a text without a number":             {text(0, "x"), wire.CodeRefused, nil},
		"a number beyond all":                 {text(math.MaxUint64, "x"), wire.CodeRefused, nil},
		"a number far ahead shows a gap":      {text(1<<40, "far"), wire.CodeOK, []string{"far"}},
		"control with a number":               {wire.Content{Kind: wire.KindControl, N: 7}, wire.CodeRefused, nil},
		"an unknown kind is shown":            {wire.Content{Kind: 4711, N: 1}, wire.CodeOK, []string{""}},
		"written in 1970":                     {wire.Content{Kind: wire.KindText, N: 1, Text: "old", SentAt: 1}, wire.CodeOK, []string{"old"}},
		"written before time":                 {wire.Content{Kind: wire.KindText, N: 1, Text: "min", SentAt: math.MinInt64}, wire.CodeOK, []string{"min"}},
		"written at the end of time":          {wire.Content{Kind: wire.KindText, N: 1, Text: "max", SentAt: math.MaxInt64, Clock: math.MaxUint64}, wire.CodeOK, []string{"max"}},
		"voids of sessions that are not ours": {wire.Content{Kind: wire.KindControl, Voids: []wire.Void{{Session: [16]byte{9}, To: math.MaxUint32}}}, wire.CodeOK, nil},
		"a receipt for everything":            {wire.Content{Kind: wire.KindControl, Receipts: []wire.Receipt{{Device: [16]byte{1}, UpTo: math.MaxUint64}}}, wire.CodeOK, nil},
		"a read mark beyond all":              {wire.Content{Kind: wire.KindControl, ReadUpTo: math.MaxUint64}, wire.CodeOK, nil},
		"a card and a reach of nobody":        {wire.Content{Kind: wire.KindControl, Card: []byte("card"), Reach: []byte("reach")}, wire.CodeOK, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				_, mallory, bob := pair(t)
				bob.send("mallory", "mine")
				settle(time.Second)
				mallory.wantCode(bob, mallory.seal(bob, c.content), c.code)
				settle(time.Minute)
				wantTexts(t, bob, "mallory", c.shown)
				bob.checkStore()
				if list := bob.rows(mallory); list[0].State != messenger.StateDelivered && c.content.ReadUpTo == 0 {
					t.Errorf("bob's own message is %s", list[0].State)
				}
				// Whatever came, what comes after it is taken and shown behind it, and so is what bob writes.
				bob.send("mallory", "still here")
				settle(time.Second)
				wantTexts(t, mallory, "bob", []string{"mine", "still here"})
				rows := bob.rows(mallory)
				if last := rows[len(rows)-1]; wire.TextOf(last.Raw) != "still here" {
					t.Errorf("%q is shown last", wire.TextOf(last.Raw))
				}
			})
		})
	}
}

func TestUnknownKindSurvivesWordForWordAndIsCalledUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		c := wire.Content{Kind: 300, N: 1, ID: wire.MsgID{7}, Device: mallory.deviceID()}
		raw, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		raw = append(raw, 0xfa, 0xff, 0x01, 3, 'n', 'e', 'w') // field 4095, which this version does not know
		mallory.wantCode(bob, mallory.sealRaw(bob, raw, 0), wire.CodeOK)
		got := bob.message(wire.MsgID{7}.String())
		if got.Kind != 300 || got.Kind.Known() {
			t.Errorf("kind %d, known %v", got.Kind, got.Kind.Known())
		}
		if rows := bob.rows(mallory); !bytes.Equal(rows[0].Raw, raw) {
			t.Error("the bytes did not survive")
		}
	})
}

func TestMalformedContentIsCountedAndUsesUpItsPositionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		for i, payload := range [][]byte{nil, {0xff}, bytes.Repeat([]byte{8}, 1000), bytes.Repeat([]byte{0}, wire.MaxContent)} {
			mallory.wantCode(bob, mallory.sealRaw(bob, payload, 0), wire.CodeRefused)
			if got := bob.status().Counters.Malformed; got != uint64(i+1) {
				t.Errorf("malformed contents counted: %d, want %d", got, i+1)
			}
		}
		mallory.send("bob", "sorry")
		settle(time.Second)
		wantTexts(t, bob, "mallory", []string{"sorry"})
		check(t, mallory, bob)
	})
}

func TestReplayedItemGetsTheSameAnswerAndIsShownOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		items := hold(t, mallory, bob, "one", "two")
		first := mallory.wantCode(bob, items[0], wire.CodeOK)
		mallory.wantCode(bob, items[1], wire.CodeOK)
		for range 5 {
			settle(24 * time.Second)
			if again := mallory.wantCode(bob, items[0], wire.CodeOK); again.Ack != first.Ack {
				t.Errorf("another acknowledgement for the same item")
			}
		}
		wantTexts(t, bob, "mallory", []string{"one", "two"})
		bob.checkStore()
	})
}

func TestMessageIdUsedAgainForOtherWordsIsNotShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		id := wire.MsgID{1, 2, 3}
		mallory.wantCode(bob, mallory.seal(bob, wire.Content{ID: id, Kind: wire.KindText, N: 1, Text: "said"}), wire.CodeOK)
		mallory.wantCode(bob, mallory.seal(bob, wire.Content{ID: id, Kind: wire.KindText, N: 2, Text: "unsaid"}), wire.CodeOK)
		wantTexts(t, bob, "mallory", []string{"said"})
		if got := bob.status().Counters.Duplicates; got != 1 {
			t.Errorf("duplicates counted: %d", got)
		}
	})
}

func TestNumberUsedTwiceIsShownWithAMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		for i, s := range []string{"one", "two", "another two"} {
			mallory.wantCode(bob, mallory.seal(bob, wire.Content{Kind: wire.KindText, N: uint64(min(i+1, 2)), Text: s}), wire.CodeOK)
		}
		wantTexts(t, bob, "mallory", []string{"one", "two", "another two"})
		rows := bob.rows(mallory)
		if rows[0].Why != "" || rows[2].Why == "" || bob.status().Counters.Conflicts == 0 {
			t.Errorf("marks %q, %q", rows[0].Why, rows[2].Why)
		}
		bob.checkStore()
	})
}

func TestRatchetThatRunsTooFarAheadIsDeferredNotRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		before := bob.state()
		far := mallory.sealRaw(bob, nil, session.MaxJump+1)
		mallory.wantCode(bob, far, wire.CodeLater)
		if bob.state() != before || bob.status().Counters.Deferred != 1 {
			t.Error("it changed something, or was not counted")
		}
	})
}

func TestItemsOfOneSessionDoNotOpenAtAnotherDoor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, mallory, bob := pair(t)
		alice := newPerson(t, net, "alice")
		meet(t, alice, bob)
		fromAlice, fromMallory := hold(t, alice, bob, "alice's")[0], hold(t, mallory, bob, "mallory's")[0]
		const head = 1 + session.MessageOverhead - 72
		mixed := append(bytes.Clone(fromAlice[:head]), fromMallory[head:]...)
		before := bob.state()
		mallory.wantCode(bob, fromAlice, wire.CodeLost) // another's item by mallory's door
		mallory.wantCode(bob, mixed, wire.CodeLost)     // another's header on mallory's body
		alice.wantCode(bob, mixed, wire.CodeLost, wire.CodeRefused)
		if bob.state() != before {
			t.Error("foreign items changed the state")
		}
		net.Cut(alice.port, bob.port, false)
		net.Cut(mallory.port, bob.port, false)
		settle(10 * time.Minute)
		wantTexts(t, bob, "alice", []string{"alice's"})
		wantTexts(t, bob, "mallory", []string{"mallory's"})
	})
}

func TestContactThatClaimsAnothersNodeKeyShutsNobodyOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, mallory, bob := pair(t)
		alice := newPerson(t, net, "alice")
		meet(t, alice, bob)
		reach := alice.port.Reach()
		reach.Seq = math.MaxUint32 << 20
		var signed []byte
		mallory.view(func(tx *store.Tx) error {
			self, err := tx.GetSelf()
			if err != nil {
				return err
			}
			d, err := identity.ParseDevice(self.DeviceSecret)
			signed = identity.SignReach(d, reach.Marshal())
			return err
		})
		mallory.wantCode(bob, mallory.seal(bob, wire.Content{Kind: wire.KindControl, Reach: signed}), wire.CodeOK)
		alice.send("bob", "me too")
		settle(time.Second)
		wantTexts(t, bob, "alice", []string{"me too"})
		if err := bob.m.Block(t.Context(), "mallory"); err != nil {
			t.Fatal(err)
		}
		alice.send("bob", "and still")
		settle(time.Second)
		wantTexts(t, bob, "alice", []string{"me too", "and still"})
	})
}

func TestReachAndCardOfSomebodyElseAreNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, mallory, bob := pair(t)
		alice := newPerson(t, net, "alice")
		meet(t, alice, bob)
		var card, reach []byte
		alice.view(func(tx *store.Tx) error {
			self, err := tx.GetSelf()
			if err != nil {
				return err
			}
			d, err := identity.ParseDevice(self.DeviceSecret)
			where := mallory.port.Reach()
			where.Seq = math.MaxInt64
			card, reach = self.Card, identity.SignReach(d, where.Marshal())
			return err
		})
		before := bob.contactRow(mallory)
		mallory.wantCode(bob, mallory.seal(bob, wire.Content{Kind: wire.KindControl, Card: card, Reach: reach}), wire.CodeOK)
		after := bob.contactRow(mallory)
		if !bytes.Equal(before.Card, after.Card) || !bytes.Equal(before.Reach, after.Reach) {
			t.Error("bob took another's card or reach for mallory's")
		}
	})
}

// contactRow is what the person's store holds of another.
func (p *person) contactRow(of *person) (c store.Contact) {
	p.t.Helper()
	p.view(func(tx *store.Tx) (err error) {
		c, err = tx.Contact([32]byte(accountOf(of)))
		return err
	})
	return c
}

func TestReceiptsAndReadMarksTouchTheSendersMessagesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, mallory, bob := pair(t)
		alice := newPerson(t, net, "alice")
		meet(t, alice, bob)
		hold(t, bob, alice, "for alice")
		hold(t, bob, mallory, "for mallory")
		lie := wire.Content{Kind: wire.KindControl, ReadUpTo: 1 << 40, Receipts: []wire.Receipt{{Device: bob.deviceID(), UpTo: 1 << 40}}}
		mallory.wantCode(bob, mallory.seal(bob, lie), wire.CodeOK)
		if got := bob.rows(alice)[0].State; got != messenger.StateQueued {
			t.Errorf("message to alice is %s by mallory's word", got)
		}
		if got := bob.rows(mallory)[0].State; got == messenger.StateQueued {
			t.Errorf("message to mallory is %s", got)
		}
		net.Cut(alice.port, bob.port, false)
		settle(10 * time.Minute)
		wantTexts(t, alice, "bob", []string{"for alice"})
	})
}

func TestContactCannotMakeTheStoreGrowWithoutBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		bob.halt()
		bob2 := newPerson(t, mallory.net, "bob2", withLimits(messenger.Limits{MaxHeld: 5}))
		meet(t, mallory, bob2)
		for i := range uint64(5) { // each leaves a gap behind it
			mallory.wantCode(bob2, mallory.seal(bob2, wire.Content{Kind: wire.KindText, N: 10 + 2*i, Text: fmt.Sprint(i)}), wire.CodeOK)
		}
		mallory.wantCode(bob2, mallory.seal(bob2, wire.Content{Kind: wire.KindText, N: 1000, Text: "too many"}), wire.CodeLater)
		settle(time.Minute)
		if got := len(bob2.texts("mallory")); got != 5 {
			t.Errorf("%d shown", got)
		}
		// Tearing one huge gap into pieces stops at a bound, too.
		mallory.wantCode(bob2, mallory.seal(bob2, wire.Content{Kind: wire.KindText, N: 1 << 30, Text: "far"}), wire.CodeOK)
		settle(time.Minute)
		for i := range uint64(1100) {
			mallory.offer(bob2, mallory.seal(bob2, wire.Content{Kind: wire.KindText, N: 1<<20 + 2*i, Text: "."}))
		}
		bob2.view(func(tx *store.Tx) error {
			convs, err := tx.Conversations()
			for _, r := range convs[0].Recv {
				if len(r.Holes) > 1000 {
					t.Errorf("%d gaps are remembered", len(r.Holes))
				}
			}
			return err
		})
	})
}

func TestContactWhoBeginsSessionAfterSessionIsSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		begun, later := 0, 0
		for range 12 {
			mallory.update(func(tx *store.Tx) error {
				row, _ := mallory.live(tx, bob)
				row.Archived = true
				return tx.PutSession(row)
			})
			items := hold(t, mallory, bob, "again")
			switch a := mallory.offer(bob, items[len(items)-1]); a.Code {
			case wire.CodeOK:
				begun++
			case wire.CodeLater:
				later++
			}
		}
		if begun == 0 || begun > 8 || later == 0 {
			t.Errorf("%d sessions begun at once, %d put off", begun, later)
		}
		bob.view(func(tx *store.Tx) error {
			rows, err := tx.AllSessions()
			if len(rows) > 4 {
				t.Errorf("%d sessions kept", len(rows))
			}
			return err
		})
		mallory.net.Cut(mallory.port, bob.port, false)
		settle(45 * time.Minute)
		if got := len(bob.texts("mallory")); got != 12 {
			t.Errorf("%d of 12 shown in the end", got)
		}
	})
}

func TestHostileTextIsKeptAsItIsAndNamesAreMadeSafe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		bob := newPerson(t, net, "bob")
		for i, name := range []string{"\x1b]52;c;AAAA\x07", "\u202egpj.exe", "", "-rf", strings.Repeat("Z\u0334", 20), "bob", "BOB"} {
			guest := newPerson(t, net, fmt.Sprint("guest", i))
			guest.update(func(tx *store.Tx) error {
				self, err := tx.GetSelf()
				if err != nil {
					return err
				}
				self.Name = name
				return tx.PutSelf(self)
			})
			guest.add(bob.invite(messenger.InviteRequest{}).Link)
			settle(time.Minute)
			c := bob.contactRow(guest)
			if c.State != messenger.ContactEstablished || identity.CheckName(c.Name) != nil {
				t.Errorf("guest %q became %q, %s", name, c.Name, c.State)
			}
			guest.halt()
		}
		list, err := bob.m.Contacts(t.Context())
		if err != nil || len(list) != 7 {
			t.Errorf("%d contacts, %v", len(list), err)
		}
	})
}

func TestEnvelopeThatDoesNotOpenIsCountedAndRefusesNoMessageForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		card, err := identity.ParseCard(mallory.contactRow(bob).Card)
		if err != nil {
			t.Fatal(err)
		}
		env, err := session.SealEnvelope(card.Core.Seal, hold(t, mallory, bob, "late"))
		if err != nil {
			t.Fatal(err)
		}
		before, tries := bob.state(), uint64(0)
		for i := 0; i < len(env); i += 701 {
			b := bytes.Clone(env)
			b[i] ^= 0x80
			tries++
			if a := bob.m.Envelope(t.Context(), [32]byte{}, b); a.Code != wire.CodeLater && a.Code != wire.CodeRefused || len(a.Acks) != 0 {
				t.Errorf("byte %d: %v", i, a)
			}
		}
		if a := bob.m.Envelope(t.Context(), [32]byte{}, env[:9000%len(env)]); a.Code != wire.CodeRefused {
			t.Errorf("an envelope of a size that there is not: %v", a.Code)
		}
		if got := bob.status().Counters.Unopened; got != tries+1 || bob.state() != before {
			t.Errorf("%d of %d counted, or the state changed", got, tries+1)
		}
		closing := bob.m
		bob.halt()
		if a := closing.Envelope(t.Context(), [32]byte{}, env); a.Code != wire.CodeLater {
			t.Errorf("a store that was closed answers %v", a.Code)
		}
	})
}
