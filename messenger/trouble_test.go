package messenger_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sotto/internal/clock"
	"sotto/internal/testnet"
	"sotto/messenger"
	"sotto/store"
	"sotto/wire"
)

// copyHome copies a store's directory as it is.
func copyHome(t *testing.T, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "home")
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// positions collects which item the person sealed at which position for another, and complains about a second item at
// one position (I6): both would be under one key.
func (p *person) positions(of *person, seen map[string][]byte) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		rows, err := tx.Outgoings([32]byte(accountOf(of)), 0)
		for _, out := range rows {
			if len(out.Item) == 0 {
				continue
			}
			at := fmt.Sprintf("%x/%d/%d", out.Session, out.Chain, out.N)
			if held, ok := seen[at]; ok && string(held) != string(out.Item) {
				p.t.Errorf("position %s was used for two items", at)
			}
			seen[at] = out.Item
		}
		return err
	})
}

// TestStoreTakenBackNeverUsesAPositionTwice restores an old database beside the newer send floor.
func TestStoreTakenBackNeverUsesAPositionTwice(t *testing.T) {
	for name, c := range map[string]struct {
		between func(alice, bob *person) // what happens after the copy was made
		whole   bool                     // the floor goes back too: as after restoring a backup of the whole home
	}{
		"in the same chain":     {between: func(alice, bob *person) { bob.send("alice", "one more"); bob.send("alice", "and more") }},
		"chains later":          {between: func(alice, bob *person) { talk(alice, bob, 3) }},
		"many chains later":     {between: func(alice, bob *person) { talk(alice, bob, 8) }},
		"nothing happened":      {between: func(alice, bob *person) {}},
		"the whole home, chain": {between: func(alice, bob *person) { bob.send("alice", "x"); bob.send("alice", "y") }, whole: true},
		"the whole home, later": {between: func(alice, bob *person) { talk(alice, bob, 4) }, whole: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob", onDisk)
				meet(t, alice, bob)
				talk(alice, bob, 2)
				bob.halt()
				old := copyHome(t, bob.dir)
				bob.start()
				settle(time.Second)
				seen := map[string][]byte{}
				c.between(alice, bob)
				hold(t, bob, alice, "on its way")
				bob.positions(alice, seen)
				net.Cut(alice.port, bob.port, false)
				settle(10 * time.Second)
				bob.halt()
				restore(t, old, bob.dir, c.whole)
				bob.start()
				settle(time.Minute)
				before := len(alice.texts("bob"))
				net.Cut(alice.port, bob.port, true)
				for i := range 5 {
					bob.send("alice", fmt.Sprint("after ", i))
				}
				settle(time.Second)
				if !c.whole { // no local file can tell that all local files went back
					bob.positions(alice, seen)
				}
				net.Cut(alice.port, bob.port, false)
				settle(20 * time.Minute)
				alice.send("bob", "still there?")
				settle(20 * time.Minute)
				got := alice.texts("bob")
				if c.whole { // then order is not promised either
					slices.Sort(got[before:])
				}
				wantTail(t, got[before:], []string{"after 0", "after 1", "after 2", "after 3", "after 4"})
				wantTail(t, bob.texts("alice"), []string{"still there?"})
				if n := alice.status().Counters.Resets; n > 1 {
					t.Errorf("alice reset %d times", n)
				}
				if q := alice.status().Queued + bob.status().Queued; q != 0 {
					t.Errorf("left in the outboxes: %s%s", alice.queue(), bob.queue())
				}
			})
		})
	}
}

// talk has both write in turn, so that the ratchet steps.
func talk(alice, bob *person, rounds int) {
	for i := range rounds {
		alice.send("bob", fmt.Sprint("a", i))
		settle(time.Second)
		bob.send("alice", fmt.Sprint("b", i))
		settle(time.Second)
	}
}

func wantTail(t *testing.T, got, want []string) {
	t.Helper()
	if len(got) < len(want) || fmt.Sprint(got[len(got)-len(want):]) != fmt.Sprint(want) {
		t.Errorf("shown %q, want at the end %q", got, want)
	}
}

// restore puts an old copy of the store in place of the new one, the send floor only with whole.
func restore(t *testing.T, old, dir string, whole bool) {
	t.Helper()
	var floor []byte
	var err error
	if !whole {
		if floor, err = os.ReadFile(filepath.Join(dir, "floor.log")); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(old)); err != nil {
		t.Fatal(err)
	}
	if !whole {
		if err := os.WriteFile(filepath.Join(dir, "floor.log"), floor, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCopyOfARunningStoreGoesOnAsAfterAPowerCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob", onDisk)
		meet(t, alice, bob)
		for i := range 5 {
			talk(alice, bob, 1)
			hold(t, bob, alice, fmt.Sprint("accepted ", i))
			cut := copyHome(t, bob.dir) // as a power cut would leave it
			bob.halt()
			bob.dir = cut
			bob.start()
			net.Cut(alice.port, bob.port, false)
			settle(5 * time.Minute)
			wantTail(t, alice.texts("bob"), []string{fmt.Sprint("accepted ", i)})
		}
		if n := alice.status().Counters.Resets + bob.status().Counters.Resets; n != 0 {
			t.Errorf("%d resets", n)
		}
		check(t, alice, bob)
	})
}

func TestLostSessionIsBegunAnewOnceADayAndNothingIsLost(t *testing.T) {
	for name, lose := range map[string]func(alice, bob *person){
		"by the receiver": func(_, bob *person) { bob.forgetSessions() },
		"by the sender":   func(alice, _ *person) { alice.forgetSessions() },
		"by both":         func(alice, bob *person) { alice.forgetSessions(); bob.forgetSessions() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
				meet(t, alice, bob)
				want := []string{}
				for i := range 3 {
					lose(alice, bob)
					for j := range 4 {
						want = append(want, fmt.Sprint(i, j))
						alice.send("bob", fmt.Sprint(i, j))
					}
					settle(20 * time.Minute)
					if i == 0 {
						wantTexts(t, bob, "alice", want)
					}
				}
				if n := alice.status().Counters.Resets; n > 1 {
					t.Errorf("%d resets within a day", n)
				}
				c := alice.contactRow(bob)
				alice.update(func(tx *store.Tx) error { // a day passes
					c.Reset = c.Reset.Add(-25 * time.Hour)
					return tx.PutContact(c)
				})
				settle(20 * time.Minute)
				wantTexts(t, bob, "alice", want)
				check(t, alice, bob)
			})
		})
	}
}

func TestInviterWhoLosesTheFirstSessionIsMetAllTheSame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
		hello := func() { bob.add(alice.invite(messenger.InviteRequest{}).Link) }
		net.Cut(alice.port, bob.port, true)
		hello()
		item := outbox(t, bob, alice)[0]
		mallory := newPerson(t, net, "mallory")
		meet(t, mallory, alice)
		mallory.offer(alice, item) // it arrives, its answer does not
		alice.forgetSessions()
		alice.update(func(tx *store.Tx) error { _, err := tx.ExpireAcks(time.Now().Add(time.Hour), 0); return err })
		bob.send("alice", "hello?")
		net.Cut(alice.port, bob.port, false)
		settle(20 * time.Minute)
		wantTexts(t, alice, "bob", []string{"hello?"})
		check(t, alice, bob)
	})
}

func TestPoisonedMessageDoesNotTakeItsNeighboursWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, alice, bob := pair(t)
		hold(t, alice, bob, "one", "two", "three")
		alice.update(func(tx *store.Tx) error { // the first of them is damaged at rest
			rows, err := tx.Outgoings([32]byte(accountOf(bob)), 1)
			if err != nil {
				return err
			}
			rows[0].Item, rows[0].Short = append([]byte{99}, rows[0].Item...), false
			return tx.PutOutgoing(&rows[0])
		})
		bob.port.Admit(nil) // by the front door only, where they share an envelope
		alice.net.Cut(alice.port, bob.port, false)
		settle(10 * time.Minute)
		wantTexts(t, bob, "mallory", []string{"two", "three"})
		if got := alice.rows(bob)[0].State; got != messenger.StateFailed {
			t.Errorf("the poisoned one is %s", got)
		}
	})
}

func TestEventFeedIsSeenOnceThroughRestartsAndItsCursorNeverGoesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(2, testnet.Faults{AckLoss: 0.2, Duplicate: 0.2})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob", onDisk)
		meet(t, alice, bob)
		seen := map[uint64]string{}
		var shown []string
		for round := range 4 {
			alice.send("bob", fmt.Sprint(round))
			settle(time.Minute)
			at, _, err := bob.m.Cursor(t.Context(), "reader")
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range bob.events(at) {
				if _, twice := seen[e.Seq]; twice || e.Seq != at+1 {
					t.Errorf("event %d after %d, seen before: %v", e.Seq, at, twice)
				}
				at, seen[e.Seq] = e.Seq, e.Kind
				if e.Kind == messenger.EventMessage && !e.Message.From.Me {
					shown = append(shown, e.Message.Text)
				}
			}
			for _, seq := range []uint64{at, at - 1, 0, at + 1000} { // the last is beyond the log
				if err := bob.m.AckCursor(t.Context(), "reader", seq); err != nil {
					t.Fatal(err)
				}
			}
			if now, _, err := bob.m.Cursor(t.Context(), "reader"); err != nil || now != at {
				t.Errorf("cursor %d, want %d, %v", now, at, err)
			}
			bob.restart()
		}
		if fmt.Sprint(shown) != "[0 1 2 3]" {
			t.Errorf("the reader saw %v", shown)
		}
	})
}

func TestClockThatJumpsMakesNothingExpireAndErasesNoKey(t *testing.T) {
	for name, offset := range map[string]time.Duration{"a month": 30 * 24 * time.Hour, "to 2099": 99 * 365 * 24 * time.Hour, "back to 1970": -(30*365 + 7) * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				alice, bob := newPerson(t, net, "alice", onDisk), newPerson(t, net, "bob")
				meet(t, alice, bob)
				hold(t, alice, bob, "one", "two")
				inv := alice.invite(messenger.InviteRequest{})
				keys := alice.secrets()
				alice.halt()
				alice.clock = clock.System{Offset: offset}
				alice.start()
				alice.send("bob", "in between")
				settle(10 * time.Minute)
				if got := len(outbox(t, alice, bob)); got < 3 {
					t.Errorf("%d left in the outbox", got)
				}
				alice.halt()
				alice.clock = clock.System{}
				alice.start()
				for name := range keys {
					if _, ok := alice.secrets()[name]; !ok {
						t.Errorf("key %s was erased", name)
					}
				}
				net.Cut(alice.port, bob.port, false)
				settle(10 * time.Minute)
				wantTexts(t, bob, "alice", []string{"one", "two", "in between"})
				newPerson(t, net, "carol").add(inv.Link)
				bob.send("alice", "and back")
				settle(10 * time.Minute)
				alice.send("carol", "welcome")
				settle(10 * time.Minute)
				check(t, alice, bob)
				if rows := alice.rows(bob); wire.TextOf(rows[len(rows)-1].Raw) != "and back" {
					t.Errorf("%q is shown last", wire.TextOf(rows[len(rows)-1].Raw))
				}
			})
		})
	}
}

// secrets names the keys in the vault.
func (p *person) secrets() map[string]bool {
	p.t.Helper()
	names := map[string]bool{}
	p.view(func(tx *store.Tx) error {
		rows, err := tx.ListSecrets("")
		for _, row := range rows {
			names[row.Name] = true
		}
		return err
	})
	return names
}

func TestMessageToSomebodyNeverFoundIsToldToHaveExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
		link := alice.invite(messenger.InviteRequest{}).Link
		other := testnet.NewNet(2, testnet.Faults{}) // where nobody is
		bob.halt()
		bob = newPerson(t, other, "bob")
		if res := bob.add(link); res.State != messenger.ContactPending {
			t.Fatalf("state %s", res.State)
		}
		name := bob.contacts()[0].Name
		msg, err := bob.m.Send(t.Context(), messenger.SendRequest{To: name, Text: "anybody?", Expire: 10 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		settle(time.Hour)
		if got := bob.message(msg.ID.String()); got.State != messenger.StateExpired {
			t.Errorf("state %s", got.State)
		}
	})
}

func TestThoseWhoWereApartForWeeksFindEachOther(t *testing.T) {
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		apart  time.Duration
		queued bool // something was written before
	}{
		"a card's life of a week":    {8 * day, false},
		"a node key's life":          {31 * day, false},
		"longer than seal keys live": {50 * day, false},
		"with something waiting":     {31 * day, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				alice, bob := newPerson(t, net, "alice", onDisk), newPerson(t, net, "bob", onDisk)
				meet(t, alice, bob)
				if c.queued {
					bob.halt()
					alice.send("bob", "before")
					settle(time.Minute)
				}
				cards := [2][]byte{alice.contactRow(bob).Card, nil}
				alice.halt()
				bob.halt()
				settle(c.apart)
				alice.start()
				bob.start()
				settle(70 * time.Minute)
				if string(alice.contactRow(bob).Card) == string(cards[0]) {
					t.Error("alice was not told bob's new card")
				}
				alice.send("bob", "long time")
				bob.send("alice", "no see")
				settle(20 * time.Minute)
				wantTail(t, bob.texts("alice"), []string{"long time"})
				wantTail(t, alice.texts("bob"), []string{"no see"})
				check(t, alice, bob)
			})
		})
	}
}

func TestFullDiskStopsWritingAndNothingElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob", onDisk)
		meet(t, alice, bob)
		alice.send("bob", "before")
		settle(time.Second)
		bob.halt()
		alice.send("bob", "meanwhile")
		bob.reserve = 1 << 60
		bob.start()
		settle(30 * time.Minute)
		wantTexts(t, bob, "alice", []string{"before"})
		if _, err := bob.m.Send(t.Context(), messenger.SendRequest{To: "alice", Text: "x"}); err == nil {
			t.Error("a message was accepted on a full disk")
		}
		bob.halt()
		bob.reserve = 0
		bob.start()
		settle(10 * time.Minute)
		wantTexts(t, bob, "alice", []string{"before", "meanwhile"})
		check(t, alice, bob)
	})
}
