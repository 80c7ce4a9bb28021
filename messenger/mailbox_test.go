package messenger_test

import (
	"bytes"
	"fmt"
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
		for name := byte('a'); name <= 'c'; name++ {
			if n := boxes.Waiting(name); n > 1 { // one with alice's answer is bob's
				t.Errorf("mailbox %c keeps %d envelopes after alice took hers", name, n)
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
		for round := range 4 {
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
