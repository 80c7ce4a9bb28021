package messenger_test

import (
	"testing"
	"testing/synctest"
	"time"

	"sotto/internal/testnet"
	"sotto/messenger"
)

func TestTwoPeopleMeetByAnInviteAndTalk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
		meet(t, alice, bob)
		sent := bob.send("alice", "hi alice")
		alice.send("bob", "hi bob")
		settle(time.Second)
		wantTexts(t, alice, "bob", []string{"hi alice"})
		wantTexts(t, bob, "alice", []string{"hi bob"})
		if got := bob.message(sent.ID.String()); got.State != messenger.StateDelivered {
			t.Errorf("bob sees his message as %s (%s)", got.State, got.Why)
		}
		if q := alice.status().Queued + bob.status().Queued; q != 0 {
			t.Errorf("%d entries left in the outboxes", q)
		}
	})
}

func TestMeetingAgainAndAgainAlwaysWorks(t *testing.T) {
	for range seeds(8) {
		synctest.Test(t, func(t *testing.T) {
			net := testnet.NewNet(1, testnet.Faults{})
			alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
			meet(t, alice, bob)
		})
	}
}
