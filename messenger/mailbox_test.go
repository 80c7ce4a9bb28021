package messenger_test

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sotto/internal/testnet"
	"sotto/messenger"
	"sotto/wire"
)

func TestAMessageForSomebodyWhoIsAwayWaitsAtTheirMailboxes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, boxes := testnet.NewNet(1, testnet.Faults{}), testnet.NewMailboxes('a', 'b', 'c')
		alice := newPerson(t, net, "alice", onQuickDisk, withMailboxes(boxes))
		bob := newPerson(t, net, "bob", onQuickDisk, withMailboxes(boxes))
		meet(t, alice, bob)
		settle(time.Hour)
		alice.halt()
		msg := bob.send("alice", "you are away")
		settle(time.Minute)
		got := bob.message(msg.ID.String())
		if got.State != messenger.StateHeld || got.Held.By != 3 || got.Held.Of != 3 || got.Held.Until.Before(time.Now().Add(29*24*time.Hour)) {
			t.Fatalf("the sender sees %s, %+v", got.State, got.Held)
		}
		for name := byte('a'); name <= 'c'; name++ {
			if n := boxes.Waiting(name); n != 1 {
				t.Errorf("mailbox %c keeps %d envelopes", name, n)
			}
		}
		bob.halt()
		alice.start()
		settle(time.Minute)
		wantTexts(t, alice, "bob", []string{"you are away"})
		own, err := alice.m.Mailboxes(t.Context())
		if err != nil || len(own) != 3 {
			t.Fatalf("alice's mailboxes: %v, %v", own, err)
		}
		for _, box := range own { // what waits elsewhere is alice's answer
			if n := boxes.WaitingIn(box.ID); n != 0 {
				t.Errorf("%d envelopes wait for alice after she took hers", n)
			}
		}
		alice.halt()
		bob.start()
		settle(time.Minute)
		if got := bob.message(msg.ID.String()); got.State != messenger.StateDelivered {
			t.Errorf("the sender sees %s", got.State)
		}
		alice.start() // takes bob's acknowledgement of what rode on hers
		settle(time.Minute)
		for name := byte('a'); name <= 'c'; name++ {
			if n := boxes.Waiting(name); n != 0 {
				t.Errorf("mailbox %c keeps %d envelopes in the end", name, n)
			}
		}
	})
}

func TestTwoWhoAreNeverOnlineTogetherMeetAndTalk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, boxes := testnet.NewNet(1, testnet.Faults{}), testnet.NewMailboxes('a', 'b', 'c')
		alice := newPerson(t, net, "alice", onQuickDisk, withMailboxes(boxes))
		settle(time.Minute)
		link := alice.invite(messenger.InviteRequest{Expires: 20 * 24 * time.Hour}).Link
		settle(time.Minute)
		alice.halt()
		bob := newPerson(t, net, "bob", onQuickDisk, withMailboxes(boxes))
		settle(time.Minute)
		bob.add(link)
		bob.send("alice", "found your link")
		settle(time.Minute)
		bob.halt()
		alice.start()
		settle(time.Minute)
		wantTexts(t, alice, "bob", []string{"found your link"})
		alice.send("bob", "good")
		settle(time.Minute)
		alice.halt()
		bob.start()
		settle(time.Minute)
		wantTexts(t, bob, "alice", []string{"good"})
		if s := bob.contact("alice").State; s != messenger.ContactEstablished {
			t.Errorf("bob sees alice as %s", s)
		}
		bob.send("alice", "so we met")
		settle(time.Minute)
		bob.halt()
		alice.start()
		settle(time.Minute)
		wantTexts(t, alice, "bob", []string{"found your link", "so we met"})
	})
}

func TestNoTwoMailboxesSeeCommonBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, boxes := testnet.NewNet(1, testnet.Faults{}), testnet.NewMailboxes('a', 'b', 'c')
		alice := newPerson(t, net, "alice", onQuickDisk, withMailboxes(boxes))
		bob := newPerson(t, net, "bob", withMailboxes(boxes))
		meet(t, alice, bob)
		settle(time.Hour)
		alice.halt()
		bob.send("alice", "sealed apart")
		settle(time.Minute)
		seen := map[string]byte{}
		for name := byte('a'); name <= 'c'; name++ {
			for _, d := range boxes.Seen(name) {
				if len(d.Envelope) != 8192 && len(d.Envelope) != 32768 {
					t.Errorf("an envelope of %d bytes", len(d.Envelope))
				}
				for _, part := range slices.Concat([][]byte{d.Token[:], d.Box[:]}, slices.Collect(slices.Chunk(d.Envelope[1:], 64))) {
					if bytes.Count(part, part[:1]) == len(part) {
						continue
					}
					if other, ok := seen[string(part)]; ok && other != name {
						t.Fatalf("mailboxes %c and %c saw the same %d bytes", other, name, len(part))
					}
					seen[string(part)] = name
				}
			}
		}
		if len(seen) == 0 {
			t.Fatal("nothing was left anywhere")
		}
	})
}

func TestManyMessagesForSomebodyAwayAllArriveInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, boxes := testnet.NewNet(1, testnet.Faults{}), testnet.NewMailboxes('a', 'b')
		alice := newPerson(t, net, "alice", onQuickDisk, withMailboxes(boxes))
		bob := newPerson(t, net, "bob", onQuickDisk, withMailboxes(boxes))
		meet(t, alice, bob)
		settle(time.Hour)
		for round := range 2 {
			alice.halt()
			var want []string
			for i := range 200 {
				text := fmt.Sprintf("%d of round %d", i, round)
				bob.send("alice", text)
				if i%20 == 19 {
					settle(time.Minute)
				}
				want = append(want, text)
			}
			settle(time.Hour)
			bob.halt()
			alice.start()
			settle(10 * time.Minute)
			got := alice.texts("bob")
			if tail := got[max(0, len(got)-200):]; !slices.Equal(tail, want) {
				t.Fatalf("round %d: %d messages, the last: %q", round, len(got), head(tail))
			}
			bob.start()
			settle(10 * time.Minute)
		}
		if s := bob.status(); s.Queued != 0 {
			t.Errorf("%d still wait", s.Queued)
		}
		if s := alice.status(); s.Queued != 0 {
			t.Errorf("%d of alice's still wait", s.Queued)
		}
		if n := boxes.Unspent('a'); n > wire.MaxPool {
			t.Errorf("%d tokens", n)
		}
	})
}

// boxedPair makes contacts of two people who have their boxes.
func boxedPair(t *testing.T, seed uint64, boxes *testnet.Mailboxes, options ...option) (net *testnet.Net, alice, bob *person) {
	t.Helper()
	net = testnet.NewNet(seed, testnet.Faults{})
	options = append(options, onQuickDisk, withMailboxes(boxes))
	alice, bob = newPerson(t, net, "alice", options...), newPerson(t, net, "bob", options...)
	settle(time.Minute)
	meet(t, alice, bob)
	settle(time.Minute)
	return net, alice, bob
}

func wantState(t *testing.T, p *person, msg messenger.Message, want string) messenger.Message {
	t.Helper()
	got := p.message(msg.ID.String())
	if got.State != want {
		t.Errorf("%s sees %q as %s (%s), want %s", p.name, got.Text, got.State, got.Why, want)
	}
	return got
}

func TestWhoeverStopsAlongTheWayNothingIsLostOrDoubled(t *testing.T) {
	for seed := range seeds(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				boxes := testnet.NewMailboxes('a', 'b', 'c')
				net, alice, bob := boxedPair(t, seed, boxes)
				net.SetFaults(testnet.Faults{Loss: 0.1, AckLoss: 0.1, Duplicate: 0.1, Delay: time.Second})
				r := rand.New(rand.NewPCG(seed, 7))
				said := map[*person][]string{}
				for range 25 {
					for _, p := range []*person{alice, bob} {
						switch {
						case r.IntN(3) == 0 && p.m == nil:
							p.start()
						case r.IntN(3) == 0 && p.m != nil:
							p.halt()
						}
						if to := map[*person]string{alice: "bob", bob: "alice"}[p]; p.m != nil && r.IntN(2) == 0 {
							text := fmt.Sprintf("%d by %s", len(said[p]), p.name)
							p.send(to, text)
							said[p] = append(said[p], text)
						}
					}
					boxes.SetDown('a'+byte(r.IntN(3)), r.IntN(2) == 0)
					settle(time.Duration(r.IntN(120)) * time.Second)
				}
				net.SetFaults(testnet.Faults{})
				for name := byte('a'); name <= 'c'; name++ {
					boxes.SetDown(name, false)
				}
				for _, p := range []*person{alice, bob} {
					if p.m == nil {
						p.start()
					}
				}
				settle(30 * time.Minute)
				wantTexts(t, alice, "bob", said[bob])
				wantTexts(t, bob, "alice", said[alice])
				for _, p := range []*person{alice, bob} {
					if s := p.status(); s.Queued != 0 {
						t.Errorf("%s: %d still wait", p.name, s.Queued)
					}
				}
				for name := byte('a'); name <= 'c'; name++ {
					if n := boxes.Waiting(name); n != 0 {
						t.Errorf("mailbox %c keeps %d envelopes in the end", name, n)
					}
				}
			})
		})
	}
}

func TestWithoutMailboxesMessagesSayThatTheyAreQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, alice, bob := boxedPair(t, 1, testnet.NewMailboxes())
		alice.halt()
		msg := bob.send("alice", "nobody keeps this")
		settle(time.Hour)
		wantState(t, bob, msg, messenger.StateQueued)
		alice.start()
		settle(time.Hour)
		wantState(t, bob, msg, messenger.StateDelivered)
	})
}

func TestTwoOfThreeMailboxesLostForEverLoseNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := testnet.NewMailboxes('a', 'b', 'c')
		_, alice, bob := boxedPair(t, 1, boxes)
		alice.halt()
		boxes.SetDown('a', true)
		msg := bob.send("alice", "two of three")
		settle(time.Minute)
		if got := wantState(t, bob, msg, messenger.StateHeld); got.Held.By != 2 || got.Held.Of != 3 {
			t.Errorf("held %+v", got.Held)
		}
		boxes.SetDown('b', true)
		bob.halt()
		alice.start()
		settle(time.Hour)
		wantTexts(t, alice, "bob", []string{"two of three"})
	})
}

func TestAMailboxThatOnlyPromisesCostsNothingWhileAnotherKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := testnet.NewMailboxes('a', 'b')
		_, alice, bob := boxedPair(t, 1, boxes)
		boxes.SetLying('a', true)
		alice.halt()
		msg := bob.send("alice", "one lies")
		settle(time.Minute)
		wantState(t, bob, msg, messenger.StateHeld)
		bob.halt()
		alice.start()
		settle(time.Minute)
		wantTexts(t, alice, "bob", []string{"one lies"})
	})
}

func TestWhenAllMailboxesLieTheSenderStillDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := testnet.NewMailboxes('a', 'b')
		_, alice, bob := boxedPair(t, 1, boxes)
		boxes.SetLying('a', true)
		boxes.SetLying('b', true)
		alice.halt()
		msg := bob.send("alice", "all lie")
		settle(time.Minute)
		wantState(t, bob, msg, messenger.StateHeld)
		alice.start()
		settle(time.Hour)
		wantTexts(t, alice, "bob", []string{"all lie"})
		wantState(t, bob, msg, messenger.StateDelivered)
	})
}

func TestAMailboxThatForgotEverythingIsFilledAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := testnet.NewMailboxes('a')
		_, alice, bob := boxedPair(t, 1, boxes)
		boxes.Wipe('a')
		settle(3 * time.Hour)
		alice.halt()
		msg := bob.send("alice", "after the loss")
		settle(time.Hour)
		wantState(t, bob, msg, messenger.StateHeld)
		bob.halt()
		alice.start()
		settle(time.Minute)
		wantTexts(t, alice, "bob", []string{"after the loss"})
	})
}

func TestCustodyIsRenewedBeforeItRunsOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		day := 24 * time.Hour
		_, alice, bob := boxedPair(t, 1, testnet.NewMailboxes('a', 'b'), withLimits(messenger.Limits{RenewBefore: 30 * day}))
		alice.halt()
		msg, err := bob.m.Send(t.Context(), messenger.SendRequest{To: "alice", Text: "months", Expire: 100 * day})
		if err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		first := wantState(t, bob, msg, messenger.StateHeld).Held.Until
		settle(day + 2*time.Hour)
		if got := wantState(t, bob, msg, messenger.StateHeld); got.Held.By != 2 || !got.Held.Until.After(first) {
			t.Errorf("held %+v, at first until %v", got.Held, first)
		}
	})
}

func TestAMessageThatNobodyTookInTimeExpiresAndIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, alice, bob := boxedPair(t, 1, testnet.NewMailboxes('a', 'b'))
		alice.halt()
		msg, err := bob.m.Send(t.Context(), messenger.SendRequest{To: "alice", Text: "for an hour", Expire: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		wantState(t, bob, msg, messenger.StateHeld)
		settle(2 * time.Hour)
		wantState(t, bob, msg, messenger.StateExpired)
		bob.halt()
		alice.start()
		settle(time.Hour)
		alice.halt()
		bob.start()
		settle(time.Hour)
		wantState(t, bob, msg, messenger.StateDelivered) // late, but true
	})
}

func TestABlockedContactCanLeaveNothingAnyMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := testnet.NewMailboxes('a')
		_, alice, bob := boxedPair(t, 1, boxes)
		if err := alice.m.Block(t.Context(), "bob"); err != nil {
			t.Fatal(err)
		}
		settle(2 * time.Hour)
		alice.halt()
		before := boxes.Waiting('a')
		msg := bob.send("alice", "let me in")
		settle(time.Hour)
		wantState(t, bob, msg, messenger.StateQueued)
		if n := boxes.Waiting('a'); n != before {
			t.Errorf("the mailbox keeps %d envelopes of a blocked contact", n-before)
		}
	})
}

func TestAContactThatSpentAllItsTokensGetsMoreWhenItsMailIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := testnet.NewMailboxes('a')
		_, alice, bob := boxedPair(t, 1, boxes, withLimits(messenger.Limits{Tokens: 8}))
		var want []string
		for round := range 3 {
			alice.halt()
			for i := range 20 {
				want = append(want, fmt.Sprintf("%d of round %d", i, round))
				bob.send("alice", want[len(want)-1])
				settle(10 * time.Second)
			}
			bob.halt()
			alice.start()
			settle(10 * time.Minute)
			alice.halt()
			bob.start()
			settle(10 * time.Minute)
			alice.start()
			settle(10 * time.Minute)
			wantTexts(t, alice, "bob", want)
		}
		alice.halt()
		msg := bob.send("alice", "still tokens")
		settle(10 * time.Minute)
		wantState(t, bob, msg, messenger.StateHeld)
	})
}

func TestADroppedMailboxIsNoLongerUsedAndStillRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := testnet.NewMailboxes('a', 'b')
		_, alice, bob := boxedPair(t, 1, boxes, withLimits(messenger.Limits{Boxes: -1}))
		for name := byte('a'); name <= 'b'; name++ {
			if _, err := alice.m.AddMailbox(t.Context(), boxes.FormatAddr([]byte{name}), ""); err != nil {
				t.Fatal(err)
			}
		}
		settle(time.Hour)
		alice.halt()
		bob.send("alice", "at both")
		settle(time.Minute)
		bob.halt()
		boxes.SetDown('b', true)
		alice.start()
		settle(time.Minute)
		wantTexts(t, alice, "bob", []string{"at both"})
		list, err := alice.m.Mailboxes(t.Context())
		if err != nil || len(list) != 2 {
			t.Fatal(list, err)
		}
		if _, err := alice.m.DropMailbox(t.Context(), boxes.FormatAddr([]byte{'a'})); err != nil {
			t.Fatal(err)
		}
		boxes.SetDown('b', false)
		bob.start()
		settle(time.Hour)
		alice.halt()
		before := boxes.Waiting('a')
		msg := bob.send("alice", "at one")
		settle(time.Minute)
		if got := wantState(t, bob, msg, messenger.StateHeld); got.Held.Of != 1 {
			t.Errorf("held %+v", got.Held)
		}
		if boxes.Waiting('a') != before {
			t.Error("the dropped mailbox got mail")
		}
	})
}

func TestTriesThatReachNoMailboxCostNoTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := testnet.NewMailboxes('a')
		_, alice, bob := boxedPair(t, 1, boxes, withLimits(messenger.Limits{Tokens: 8}))
		alice.halt()
		boxes.SetDown('a', true)
		msg := bob.send("alice", "the mailbox is away too")
		settle(30 * time.Minute)
		wantState(t, bob, msg, messenger.StateQueued)
		boxes.SetDown('a', false)
		settle(10 * time.Minute)
		wantState(t, bob, msg, messenger.StateHeld)
	})
}

func TestAMailboxThatDiedIsReplacedAndContactsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boxes := testnet.NewMailboxes('a', 'b')
		boxes.SetDown('b', true)
		_, alice, bob := boxedPair(t, 1, boxes, withLimits(messenger.Limits{Boxes: 1, DeadAfter: time.Hour}))
		boxes.SetDown('a', true)
		boxes.SetDown('b', false)
		settle(3 * time.Hour)
		list, err := alice.m.Mailboxes(t.Context())
		if err != nil || len(list) != 2 || list[0].State != messenger.BoxLeaving || !list[1].Ready {
			t.Fatalf("alice's mailboxes: %+v, %v", list, err)
		}
		alice.halt()
		msg := bob.send("alice", "at the other one")
		settle(time.Minute)
		wantState(t, bob, msg, messenger.StateHeld)
	})
}

// TestWhatAMailboxSeesDoesNotTellWhoseMailItIs plays the mailbox: it knows every hash that was shown to it, in which upload and at which place, and every
// deposit. Deposits of one contact must not stand closer together there than those of different ones.
func TestWhatAMailboxSeesDoesNotTellWhoseMailItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, boxes := testnet.NewNet(1, testnet.Faults{}), testnet.NewMailboxes('a')
		alice := newPerson(t, net, "alice", onQuickDisk, withMailboxes(boxes))
		settle(time.Minute)
		var friends []*person
		for _, name := range []string{"bob", "carol", "dave"} {
			friends = append(friends, newPerson(t, net, name, withMailboxes(boxes)))
			meet(t, alice, friends[len(friends)-1])
		}
		settle(time.Minute)
		alice.halt()
		type deposit struct {
			from  int
			shown testnet.Shown
		}
		var list []deposit
		for range 25 {
			for who, p := range friends {
				seen := len(boxes.Seen('a'))
				p.send("alice", "one of many")
				settle(10 * time.Second)
				for _, d := range boxes.Seen('a')[seen:] {
					list = append(list, deposit{who, boxes.Shown('a', wire.PoolHash(d.Token))})
				}
			}
		}
		if len(list) < 75 {
			t.Fatalf("%d deposits", len(list))
		}
		var same, other []float64
		uploads := map[int]map[int]bool{}
		for i, a := range list {
			if uploads[a.shown.Upload] == nil {
				uploads[a.shown.Upload] = map[int]bool{}
			}
			uploads[a.shown.Upload][a.from] = true
			for _, b := range list[i+1:] {
				apart := math.Abs(float64(a.shown.Place - b.shown.Place))
				if a.from == b.from {
					same = append(same, apart)
				} else {
					other = append(other, apart)
				}
			}
		}
		mean := func(l []float64) (sum float64) {
			for _, x := range l {
				sum += x / float64(len(l))
			}
			return sum
		}
		if r := mean(same) / mean(other); r < 0.85 || r > 1.15 {
			t.Errorf("tokens of one contact stand %.2f times as far apart as those of different ones", r)
		}
		for upload, who := range uploads {
			if len(who) < 2 {
				t.Errorf("all deposits paid with hashes of upload %d came from one contact", upload)
			}
		}
	})
}
