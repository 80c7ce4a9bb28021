package messenger_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sotto/internal/testnet"
	"sotto/messenger"
)

// waysOut are the ways in which bob leaves mallory out and is ready to meet her again.
func waysOut(t *testing.T) map[string]func(bob *person) error {
	return map[string]func(bob *person) error{
		"blocked and unblocked": func(bob *person) error {
			if err := bob.m.Block(t.Context(), "mallory"); err != nil {
				return err
			}
			return bob.m.Unblock(t.Context(), "mallory")
		},
		"removed": func(bob *person) error { return bob.m.Remove(t.Context(), "mallory") },
	}
}

func TestOneWhoWasLeftOutFollowsANewInviteWithoutRemovingFirst(t *testing.T) {
	for how, leaveOut := range waysOut(t) {
		t.Run(how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, mallory, bob := pair(t)
				if err := leaveOut(bob); err != nil {
					t.Fatal(err)
				}
				settle(time.Minute)
				mallory.add(bob.invite(messenger.InviteRequest{}).Link)
				mallory.send("bob", "sorry")
				settle(20 * time.Minute)
				bob.send("mallory", "all right")
				settle(20 * time.Minute)
				wantTexts(t, bob, "mallory", []string{"sorry"})
				wantTexts(t, mallory, "bob", []string{"all right"})
				if c := bob.contact("mallory"); c.State != messenger.ContactEstablished || c.Warning != "" {
					t.Errorf("bob sees %+v", c)
				}
				check(t, mallory, bob)
			})
		})
	}
}

func TestInviteOfAContactWhoStillKnowsUsIsNotUsedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, mallory, bob := pair(t)
		link := mallory.invite(messenger.InviteRequest{}).Link
		before := bob.contact("mallory")
		wantError(t, bob.addErr(link), messenger.CodeAlreadyContact)
		if got := bob.contact("mallory"); got != before {
			t.Errorf("before %+v\nafter %+v", before, got)
		}
		net.Cut(mallory.port, bob.port, true)
		wantError(t, bob.addErr(mallory.invite(messenger.InviteRequest{}).Link), messenger.CodeAlreadyContact)
		net.Cut(mallory.port, bob.port, false)
		settle(time.Hour)
		carol := newPerson(t, net, "carol")
		carol.add(link)
		settle(time.Minute)
		if s := carol.contact("mallory").State; s != messenger.ContactEstablished {
			t.Errorf("carol's contact is %s", s)
		}
		check(t, mallory, bob, carol)
	})
}

func TestPatienceBoundsHowLongAnInviteIsLookedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
		link := alice.invite(messenger.InviteRequest{}).Link
		alice.port.Leave()
		begun := time.Now()
		res, err := bob.m.Add(t.Context(), messenger.AddRequest{Link: link, Within: 2 * time.Second})
		if err != nil || time.Since(begun) > 2*time.Second {
			t.Errorf("%+v, %v after %v", res, err, time.Since(begun))
		}
	})
}

func TestWhatWasSaidWithSomebodyRemovedCanBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, mallory, bob := pair(t)
		mallory.send("bob", "before")
		settle(time.Second)
		account := bob.contact("mallory").Account
		if err := bob.m.Remove(t.Context(), "mallory"); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"mallory", "Mallory (removed)", "mall", account, account[:8]} {
			wantTexts(t, bob, name, []string{"before"})
		}
		if _, err := bob.m.Messages(t.Context(), "mallory", messenger.MessagesQuery{}); err != nil { // not only a peek
			t.Error(err)
		}
		inbox, err := bob.m.Inbox(t.Context())
		if err != nil || len(inbox) != 1 || !inbox[0].Removed || inbox[0].Unread != 0 || inbox[0].Ref.Name != "mallory (removed)" {
			t.Errorf("inbox %+v, %v", inbox, err)
		}
		_, err = bob.m.Contact(t.Context(), "mallory")
		wantError(t, err, messenger.CodeContactNotFound)

		// The name is free for others, and then means them.
		other := newPerson(t, net, "mallory")
		meet(t, bob, other)
		other.send("bob", "me too")
		settle(time.Minute)
		wantTexts(t, bob, "mallory", []string{"me too"})
		wantTexts(t, bob, "mallory (removed)", []string{"before"})
	})
}

func TestRefusalAndReceiptShowAtTheContact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		settle(time.Hour)
		mallory.send("bob", "there?")
		settle(time.Minute)
		if seen := mallory.contact("bob").LastSeen; time.Since(seen) > 2*time.Minute {
			t.Errorf("a receipt came a minute ago, but bob was seen %v ago", time.Since(seen))
		}
		if err := bob.m.Remove(t.Context(), "mallory"); err != nil {
			t.Fatal(err)
		}
		told := mallory.send("bob", "gone?")
		settle(20 * time.Minute)
		if why := mallory.message(told.ID.String()).Why; !strings.Contains(why, "ask them for a new invite") {
			t.Errorf("why: %s", why)
		}
		if warning := mallory.contact("bob").Warning; warning == "" {
			t.Error("the contact carries no warning")
		}
	})
}

func TestTriesInARowAreOneLineOfATrace(t *testing.T) {
	for _, text := range []string{"hello?", strings.Repeat("too large to knock ", 300)} {
		triesAreOneLine(t, text)
	}
}

func triesAreOneLine(t *testing.T, text string) {
	synctest.Test(t, func(t *testing.T) {
		net, alice, bob := pair(t)
		net.Cut(alice.port, bob.port, true)
		id := alice.send("bob", text).ID.String()
		settle(3 * time.Hour)
		net.Cut(alice.port, bob.port, false)
		settle(time.Hour)
		tr, err := alice.m.Trace(t.Context(), id)
		if err != nil || len(tr.Steps) > 4 || tr.Steps[len(tr.Steps)-1].What != messenger.StateDelivered {
			t.Fatalf("%d steps: %+v, %v", len(tr.Steps), tr.Steps, err)
		}
		if tries := tr.Steps[1]; tries.Times < 3 || !tries.Last.After(tries.At) {
			t.Errorf("got %+v", tries)
		}
		_, err = alice.m.Trace(t.Context(), "m")
		wantError(t, err, messenger.CodeAmbiguous)
	})
}

func TestTwoWhoMeetAnewTalkAtOnce(t *testing.T) {
	for how, leaveOut := range waysOut(t) {
		for who, invite := range map[string]func(mallory, bob *person){
			"by the invite of who left out":     func(mallory, bob *person) { mallory.add(bob.invite(messenger.InviteRequest{}).Link) },
			"by the invite of who was left out": func(mallory, bob *person) { bob.add(mallory.invite(messenger.InviteRequest{}).Link) },
		} {
			t.Run(how+" "+who, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					net, mallory, bob := pair(t)
					bob.send("mallory", "before")
					settle(time.Second)
					if err := leaveOut(bob); err != nil {
						t.Fatal(err)
					}
					mallory.send("bob", "into the void")
					settle(5 * time.Second)
					invite(mallory, bob)
					net.LoseDHT() // where they are they have from each other alone
					settle(5 * time.Second)
					bob.send("mallory", "all right")
					mallory.send("bob", "sorry")
					settle(15 * time.Second) // what was refused leaves a gap, which is waited for
					wantTexts(t, mallory, "bob", []string{"before", "all right"})
					wantTexts(t, bob, "mallory", []string{"sorry"})
					for _, p := range []*person{mallory, bob} {
						other := map[*person]string{mallory: "bob", bob: "mallory"}[p]
						if c := p.contact(other); c.State != messenger.ContactEstablished || c.Warning != "" || c.Queued != 0 {
							t.Errorf("%s sees %+v", p.name, c)
						}
					}
					check(t, mallory, bob)
				})
			})
		}
	}
}
