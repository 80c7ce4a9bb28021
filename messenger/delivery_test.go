package messenger_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sotto/internal/clock"
	"sotto/internal/testnet"
	"sotto/messenger"
	"sotto/store"
	"sotto/wire"
)

// converse has both write rounds texts each, and returns what was written.
func converse(a, b *person, rounds int) (fromA, fromB []string) {
	for i := range rounds {
		fromA = append(fromA, fmt.Sprintf("%s %d", a.name, i))
		fromB = append(fromB, fmt.Sprintf("%s %d", b.name, i))
		a.send(b.name, fromA[i])
		b.send(a.name, fromB[i])
		if i%7 == 0 {
			settle(300 * time.Millisecond)
		}
	}
	return fromA, fromB
}

// TestEveryAcceptedMessageIsShownOnceAndInOrder is the promise, on networks of every kind of badness.
func TestEveryAcceptedMessageIsShownOnceAndInOrder(t *testing.T) {
	for name, faults := range map[string]testnet.Faults{
		"loss 5 %":           {Loss: 0.05},
		"loss 40 %":          {Loss: 0.4, AckLoss: 0.1},
		"answers lost":       {AckLoss: 0.4},
		"twice":              {Duplicate: 0.5},
		"another order":      {Shuffle: 0.5, Delay: 50 * time.Millisecond},
		"everything at once": {Loss: 0.1, AckLoss: 0.1, Duplicate: 0.2, Shuffle: 0.3, Delay: 200 * time.Millisecond},
	} {
		for seed := range seeds(2) {
			t.Run(fmt.Sprintf("%s seed %d", name, seed), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					net := testnet.NewNet(seed, testnet.Faults{})
					alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
					meet(t, alice, bob)
					net.SetFaults(faults)
					fromA, fromB := converse(alice, bob, 60)
					settle(12 * time.Minute)
					net.SetFaults(testnet.Faults{})
					settle(10 * time.Minute)
					wantTexts(t, bob, "alice", fromA)
					wantTexts(t, alice, "bob", fromB)
					if q := alice.status().Queued + bob.status().Queued; q != 0 {
						t.Errorf("%d entries left after healing", q)
					}
				})
			})
		}
	}
}

func TestFirstContactSurvivesABadNetwork(t *testing.T) {
	for seed := range seeds(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(seed, testnet.Faults{Loss: 0.4, AckLoss: 0.4, Duplicate: 0.3})
				alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
				bob.add(alice.invite(messenger.InviteRequest{}).Link)
				bob.send("alice", "first")
				bob.send("alice", "second")
				settle(20 * time.Minute)
				wantTexts(t, alice, "bob", []string{"first", "second"})
				alice.send("bob", "welcome")
				settle(20 * time.Minute)
				wantTexts(t, bob, "alice", []string{"welcome"})
			})
		})
	}
}

func TestReceiverGoneForAnHourGetsEverythingWithinSecondsOfItsReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob", onDisk)
		meet(t, alice, bob)
		bob.halt()
		msg := alice.send("bob", "while you were away")
		settle(time.Hour)
		if got := alice.message(msg.ID.String()).State; got != messenger.StateQueued {
			t.Errorf("state while away: %s", got)
		}
		bob.start()
		settle(2 * time.Second)
		wantTexts(t, bob, "alice", []string{"while you were away"})
		if got := alice.message(msg.ID.String()).State; got != messenger.StateDelivered {
			t.Errorf("state after the return: %s", got)
		}
		bob.send("alice", "thanks")
		settle(2 * time.Second)
		wantTexts(t, alice, "bob", []string{"thanks"})
	})
}

func TestBothRestartedAgainAndAgainLoseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(3, testnet.Faults{AckLoss: 0.2})
		alice, bob := newPerson(t, net, "alice", onDisk), newPerson(t, net, "bob", onDisk)
		meet(t, alice, bob)
		var fromA, fromB []string
		for round := range 6 {
			a, b := converse(alice, bob, 5)
			for i := range a {
				a[i], b[i] = alice.name+fmt.Sprintf(" %d", i), bob.name+fmt.Sprintf(" %d", i)
			}
			fromA, fromB = append(fromA, a...), append(fromB, b...)
			if round%2 == 0 {
				alice.restart()
			} else {
				bob.restart()
			}
		}
		settle(20 * time.Minute)
		wantTexts(t, bob, "alice", fromA)
		wantTexts(t, alice, "bob", fromB)
	})
}

func TestTwoWhoInviteEachOtherAtOnceBecomeOneContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{Delay: 100 * time.Millisecond})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
		ofAlice, ofBob := alice.invite(messenger.InviteRequest{}).Link, bob.invite(messenger.InviteRequest{}).Link
		bob.add(ofAlice)
		alice.add(ofBob)
		alice.send("bob", "from alice")
		bob.send("alice", "from bob")
		settle(10 * time.Minute)
		wantTexts(t, bob, "alice", []string{"from alice"})
		wantTexts(t, alice, "bob", []string{"from bob"})
		for i := range 10 {
			alice.send("bob", fmt.Sprint(i))
			bob.send("alice", fmt.Sprint(i))
			settle(time.Second)
		}
		if got := len(bob.texts("alice")) + len(alice.texts("bob")); got != 22 {
			t.Errorf("%d messages shown, want 22", got)
		}
		list, err := alice.m.Contacts(context.Background())
		if err != nil || len(list) != 1 {
			t.Errorf("alice has %d contacts, %v", len(list), err)
		}
	})
}

func TestMessageThatCannotBeDeliveredInTimeIsToldToHaveExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob", onDisk)
		meet(t, alice, bob)
		bob.halt()
		msg, err := alice.m.Send(t.Context(), messenger.SendRequest{To: "bob", Text: "now or never", Expire: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		later := alice.send("bob", "no hurry")
		settle(2 * time.Hour)
		got := alice.message(msg.ID.String())
		if got.State != messenger.StateExpired || got.Why == "" {
			t.Errorf("state %s, why %q", got.State, got.Why)
		}
		bob.start()
		settle(10 * time.Minute)
		if got := alice.message(later.ID.String()).State; got != messenger.StateDelivered {
			t.Errorf("the other message is %s", got)
		}
		wantTexts(t, bob, "alice", []string{"no hurry"})
	})
}

func TestGapIsShownAfterTenSecondsAndFillsInPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
		meet(t, alice, bob)
		// Alice's first message is kept back on the way, the next two are not.
		items := hold(t, alice, bob, "one", "two", "three")
		key := [32]byte(alice.port.Reach().InnerKey)
		for _, item := range items[1:] {
			if a := bob.m.Offer(t.Context(), key, item)(); a.Code != wire.CodeOK {
				t.Fatalf("answer %v", a.Code)
			}
		}
		wantTexts(t, bob, "alice", nil)
		settle(11 * time.Second)
		wantTexts(t, bob, "alice", []string{"two", "three"})
		list, err := bob.m.Messages(t.Context(), "alice", messenger.MessagesQuery{Peek: true})
		if err != nil || list[0].Missing != 1 {
			t.Fatalf("missing before the first: %+v, %v", list, err)
		}
		if a := bob.m.Offer(t.Context(), key, items[0])(); a.Code != wire.CodeOK {
			t.Fatalf("late one: %v", a.Code)
		}
		wantTexts(t, bob, "alice", []string{"one", "two", "three"})
		if list, err = bob.m.Messages(t.Context(), "alice", messenger.MessagesQuery{Peek: true}); err != nil || list[1].Missing != 0 {
			t.Errorf("the gap is still shown: %+v, %v", list, err)
		}
	})
}

// hold has a person write texts while the other cannot be reached, and returns the items that are then on their way.
func hold(t *testing.T, from, to *person, texts ...string) [][]byte {
	t.Helper()
	from.net.Cut(from.port, to.port, true)
	for _, text := range texts {
		from.send(to.name, text)
	}
	settle(100 * time.Millisecond)
	return outbox(t, from, to)
}

func TestWhatWaitsInAnEndedChainGoesOutAsItWasSealed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice", onDisk), newPerson(t, net, "bob")
		meet(t, alice, bob)
		sealed := hold(t, alice, bob, "one", "two")
		alice.net.Mute(bob.port, alice.port, false)
		bob.send("alice", "meanwhile") // its arrival ends the chain that the two were sealed in
		settle(time.Minute)
		wantTexts(t, alice, "bob", []string{"meanwhile"})
		alice.send("bob", "three") // in the next chain
		alice.restart()
		settle(time.Second)
		if now := outbox(t, alice, bob); len(now) != 3 || !slices.EqualFunc(now[:2], sealed, bytes.Equal) {
			t.Error("what waits is not what was sealed")
		}
		alice.net.Cut(alice.port, bob.port, false)
		settle(10 * time.Minute)
		wantTexts(t, bob, "alice", []string{"one", "two", "three"})
		if n := alice.headings(); n != 1 {
			t.Errorf("%d headings are kept, want that of the ended chain", n)
		}
		settle(2 * time.Hour)
		if n := alice.headings(); n != 0 {
			t.Errorf("%d headings are kept though nothing waits", n)
		}
	})
}

// headings counts the headings of ended chains.
func (p *person) headings() (n int) {
	counted := errors.New("only counted")
	err := p.store.Update(func(tx *store.Tx) (err error) {
		n, err = tx.DropHeadings(nil)
		return errors.Join(err, counted)
	})
	if !errors.Is(err, counted) {
		p.t.Fatal(err)
	}
	return n
}

func TestSameKeyForTheSameRequestSendsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
		meet(t, alice, bob)
		var ids []wire.MsgID
		for range 3 {
			msg, err := alice.m.Send(t.Context(), messenger.SendRequest{To: "bob", Text: "once", Key: "job-17"})
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, msg.ID)
		}
		settle(time.Minute)
		if ids[0] != ids[1] || ids[1] != ids[2] {
			t.Errorf("ids %v", ids)
		}
		wantTexts(t, bob, "alice", []string{"once"})
	})
}

func TestTextsAtTheLimitsGoThroughAndOverThemAreRefusedByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
		meet(t, alice, bob)
		whole := strings.Repeat("ä", wire.MaxText/2)
		alice.send("bob", whole)
		for text, code := range map[string]string{
			"": messenger.CodeBadText, whole + "x": messenger.CodeTooLarge, "a\xff": messenger.CodeBadText,
		} {
			_, err := alice.m.Send(t.Context(), messenger.SendRequest{To: "bob", Text: text})
			var e *messenger.Error
			if !errors.As(err, &e) || e.Code != code || e.Hint() == "" {
				t.Errorf("%d bytes: %v, want %s with a remedy", len(text), err, code)
			}
		}
		settle(time.Minute)
		wantTexts(t, bob, "alice", []string{whole})
	})
}

func TestClockAMonthWrongOnOneSideStillDelivers(t *testing.T) {
	for name, offset := range map[string]time.Duration{"ahead": 30 * 24 * time.Hour, "behind": -30 * 24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob", onDisk)
				meet(t, alice, bob)
				bob.halt()
				bob.clock = clock.System{Offset: offset}
				bob.start()
				settle(5 * time.Second)
				fromA, fromB := converse(alice, bob, 10)
				settle(20 * time.Minute)
				wantTexts(t, bob, "alice", fromA)
				wantTexts(t, alice, "bob", fromB)
				bob.halt()
				bob.clock = clock.System{}
				bob.start()
				alice.send("bob", "clock mended")
				settle(20 * time.Minute)
				wantTexts(t, bob, "alice", append(fromA, "clock mended"))
			})
		})
	}
}

func TestConversationsOfManyDoNotHoldEachOtherUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, away, here := newPerson(t, net, "alice"), newPerson(t, net, "away"), newPerson(t, net, "here")
		meet(t, alice, away)
		meet(t, alice, here)
		net.Cut(alice.port, away.port, true)
		for i := range 50 {
			alice.send("away", fmt.Sprint(i))
		}
		settle(time.Minute)
		msg := alice.send("here", "quick")
		settle(time.Second)
		if got := alice.message(msg.ID.String()).State; got != messenger.StateDelivered {
			t.Errorf("message to the one who is here: %s", got)
		}
	})
}
