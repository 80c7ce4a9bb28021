package messenger_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sotto/identity"
	"sotto/internal/clock"
	"sotto/internal/testnet"
	"sotto/messenger"
	"sotto/store"
	"sotto/wire"
)

// wantError wants an error with that code and a remedy.
func wantError(t *testing.T, err error, code string) {
	t.Helper()
	var e *messenger.Error
	if !errors.As(err, &e) || e.Code != code || e.Hint() == "" {
		t.Errorf("error %v, want %s with a remedy", err, code)
	}
}

func (p *person) addErr(link string) error {
	_, err := p.m.Add(p.t.Context(), messenger.AddRequest{Link: link})
	return err
}

func TestInviteThatCannotBeFollowedSaysWhy(t *testing.T) {
	for name, c := range map[string]struct {
		link func(t *testing.T, alice, bob *person) string
		code string
	}{
		"own":       {func(t *testing.T, _, bob *person) string { return bob.invite(messenger.InviteRequest{}).Link }, messenger.CodeOwnInvite},
		"truncated": {func(t *testing.T, alice, _ *person) string { return alice.invite(messenger.InviteRequest{}).Link[:40] }, messenger.CodeBadInvite},
		"mistyped": {func(t *testing.T, alice, _ *person) string {
			link := []byte(alice.invite(messenger.InviteRequest{}).Link)
			link[30] ^= 3
			return string(link)
		}, messenger.CodeBadInvite},
		"nothing": {func(*testing.T, *person, *person) string { return "" }, messenger.CodeBadInvite},
		"expired": {func(t *testing.T, alice, _ *person) string {
			link := alice.invite(messenger.InviteRequest{Expires: time.Minute}).Link
			settle(2 * time.Minute)
			return link
		}, ""}, // a day's grace for clocks: the inviter decides
		"revoked": {func(t *testing.T, alice, _ *person) string {
			inv := alice.invite(messenger.InviteRequest{})
			if err := alice.m.RevokeInvite(t.Context(), inv.ID[:8]); err != nil {
				t.Fatal(err)
			}
			settle(time.Minute)
			return inv.Link
		}, messenger.CodeInviteUsed},
		"used, its record withdrawn": {func(t *testing.T, alice, _ *person) string {
			inv := alice.invite(messenger.InviteRequest{})
			newPerson(t, alice.net, "carol").add(inv.Link)
			settle(time.Minute)
			return inv.Link
		}, messenger.CodeInviteUsed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
				link := c.link(t, alice, bob)
				known := len(alice.contacts())
				if err := bob.addErr(link); c.code != "" {
					wantError(t, err, c.code)
				}
				settle(time.Minute)
				if got := len(alice.contacts()); got != known {
					t.Errorf("alice has %d contacts, had %d", got, known)
				}
				if c.code != "" && len(bob.contacts()) != 0 {
					t.Errorf("bob keeps %v", bob.contacts())
				}
				if c.code == "" && bob.contact("alice").Warning == "" {
					t.Error("bob is not told that it came to nothing")
				}
			})
		})
	}
}

func (p *person) contacts() []messenger.Contact {
	p.t.Helper()
	list, err := p.m.Contacts(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return list
}

func TestSingleUseInviteFollowedByTwoAtOnceWelcomesOneAndTellsItsOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob, eve := newPerson(t, net, "alice"), newPerson(t, net, "bob"), newPerson(t, net, "eve")
		inv := alice.invite(messenger.InviteRequest{})
		for _, guest := range []*person{bob, eve} { // both have the bundle before either is heard
			net.Cut(alice.port, guest.port, true)
			guest.add(inv.Link)
			guest.send("alice", "it is "+guest.name)
		}
		net.Cut(alice.port, bob.port, false)
		settle(10 * time.Minute)
		seq := alice.status().Seq
		net.Cut(alice.port, eve.port, false)
		settle(10 * time.Minute)
		wantTexts(t, alice, "bob", []string{"it is bob"})
		if got := alice.contacts(); len(got) != 1 {
			t.Errorf("alice has %d contacts", len(got))
		}
		told := false
		for _, e := range alice.events(seq) {
			told = told || e.Kind == messenger.EventInvite && e.Invite.ID == inv.ID
		}
		if got := alice.status().Counters.InvitesReused; !told || got == 0 {
			t.Errorf("told %v, counted %d", told, got)
		}
		if c := eve.contact("alice"); c.Warning == "" || eve.status().Queued != 0 || eve.rows(alice)[0].State != messenger.StateFailed {
			t.Errorf("eve sees warning %q, %d queued, message %s", c.Warning, eve.status().Queued, eve.rows(alice)[0].State)
		}
		// A new invite works, and what she could not say she can say again.
		eve.add(alice.invite(messenger.InviteRequest{}).Link)
		eve.send("alice", "it is eve again")
		settle(10 * time.Minute)
		wantTexts(t, alice, "eve", []string{"it is eve again"})
		check(t, alice, bob, eve)
	})
}

func TestNobodyWithoutTheLinkCanRaiseTheAlarmOfALeak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		item := firstItem(t, bob)
		for i := range item[:40] { // an initial header that names a used one-time prekey: offered by a contact's door
			b := append([]byte(nil), item...)
			b[i] ^= 1
			mallory.offer(bob, b)
		}
		if got := bob.status().Counters.InvitesReused; got != 0 {
			t.Errorf("%d alarms", got)
		}
	})
}

func TestReusableInviteTakesAsManyAsItSays(t *testing.T) {
	for uses, guests := range map[int]int{0: 4, 2: 2, 70000: 3} {
		t.Run(fmt.Sprint(uses, " uses"), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				alice := newPerson(t, net, "alice")
				inv := alice.invite(messenger.InviteRequest{Reusable: true, Uses: uses})
				for i := range 4 {
					guest := newPerson(t, net, fmt.Sprint("guest", i))
					if err := guest.addErr(inv.Link); (err == nil) != (i < guests || uses != 2) {
						t.Errorf("guest %d: %v", i, err)
					}
					settle(time.Minute)
				}
				if got := len(alice.contacts()); uses == 2 && got != 2 || uses != 2 && got != 4 {
					t.Errorf("%d contacts", got)
				}
			})
		})
	}
}

func TestSecondAddOfTheSameLinkChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
		link := alice.invite(messenger.InviteRequest{}).Link
		net.Cut(alice.port, bob.port, true)
		for range 3 {
			if res := bob.add(link); res.State != messenger.ContactInvited {
				t.Errorf("state %s", res.State)
			}
		}
		if got := strings.Count(bob.queue(), "hello true"); got != 1 {
			t.Errorf("%d hellos are under way", got)
		}
		net.Cut(alice.port, bob.port, false)
		settle(10 * time.Minute)
		wantError(t, bob.addErr(link), messenger.CodeAlreadyContact)
		if got := alice.status().Counters.InvitesReused; got != 0 {
			t.Errorf("%d false alarms", got)
		}
		check(t, alice, bob)
	})
}

func TestAnInviterWhoComesBackIsMetSoon(t *testing.T) {
	for again, within := range map[bool]time.Duration{false: 15 * time.Second, true: time.Second} {
		synctest.Test(t, func(t *testing.T) {
			net := testnet.NewNet(1, testnet.Faults{})
			alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
			link := alice.invite(messenger.InviteRequest{}).Link
			net.Cut(alice.port, bob.port, true)
			bob.add(link)
			settle(5 * time.Minute)
			net.Cut(alice.port, bob.port, false)
			if again {
				bob.add(link)
			}
			settle(within)
			if c := bob.contact("alice"); c.State != messenger.ContactEstablished {
				t.Errorf("again %v: after %v alice is %s", again, within, c.State)
			}
			check(t, alice, bob)
		})
	}
}

func TestHandshakeReplayedLaterIsNotTakenAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob, mallory := newPerson(t, net, "alice", onDisk), newPerson(t, net, "bob"), newPerson(t, net, "mallory")
		meet(t, mallory, alice)
		net.Cut(alice.port, bob.port, true)
		bob.add(alice.invite(messenger.InviteRequest{}).Link)
		hello := outbox(t, bob, alice)[0]
		net.Cut(alice.port, bob.port, false)
		bob.send("alice", "hi")
		settle(10 * time.Minute)
		replay := func(when string, want wire.Code) {
			t.Helper()
			before := alice.state()
			if a := mallory.offer(alice, hello); a.Code != want {
				t.Errorf("%s: answer %v, want %v", when, a.Code, want)
			}
			if alice.state() != before {
				t.Errorf("%s: the replay changed something", when)
			}
		}
		replay("later", wire.CodeOK) // its old answer again
		alice.restart()
		settle(time.Minute)
		replay("after a restart", wire.CodeOK)
		alice.update(func(tx *store.Tx) error {
			row, _ := alice.live(tx, bob)
			if err := tx.DeleteSession(row.ID); err != nil {
				return err
			}
			_, err := tx.ExpireAcks(time.Now().Add(time.Hour), 0)
			return err
		})
		replay("after its session was erased", wire.CodeLost)
		bob.send("alice", "still me")
		settle(20 * time.Minute)
		wantTexts(t, alice, "bob", []string{"hi", "still me"})
	})
}

// stranger is somebody who has the person's card and where they are, but no invite: their hello names one that never was.
func stranger(t *testing.T, of *person, name, text string) *person {
	t.Helper()
	inv := of.invite(messenger.InviteRequest{Reusable: true})
	p := newPerson(t, of.net, name)
	of.net.Cut(p.port, of.port, true)
	p.add(inv.Link)
	p.send(of.name, text)
	of.update(func(tx *store.Tx) error {
		rows, err := tx.Invites()
		for _, row := range rows {
			if err == nil {
				err = tx.DeleteInvite(row.ID)
			}
		}
		return err
	})
	of.net.Cut(p.port, of.port, false)
	settle(10 * time.Minute)
	return p
}

func TestStrangerWaitsWithoutAnyAnswerUntilAccepted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		bob := newPerson(t, net, "bob")
		sam := stranger(t, bob, "sam", "may I?")
		if c := bob.contact("sam"); c.State != messenger.ContactRequested || bob.status().Requests != 1 {
			t.Fatalf("bob sees sam as %s", c.State)
		}
		if got := sam.rows(bob)[0].State; got != messenger.StateQueued {
			t.Errorf("the stranger learns that its message is %s", got)
		}
		if got := len(outbox(t, bob, sam)); got != 0 {
			t.Errorf("%d items for the stranger", got)
		}
		if _, err := bob.m.Send(t.Context(), messenger.SendRequest{To: "sam", Text: "hm"}); err == nil {
			t.Error("a request may be written to")
		}
		for i := range 40 {
			sam.send("bob", fmt.Sprint(i))
		}
		settle(20 * time.Minute)
		if got := len(bob.rows(sam)); got > 20 {
			t.Errorf("%d messages of a stranger are kept", got)
		}
		if _, err := bob.m.AcceptRequest(t.Context(), "sam", "samuel"); err != nil {
			t.Fatal(err)
		}
		settle(20 * time.Minute)
		if got := len(bob.texts("samuel")); got != 41 {
			t.Errorf("%d of 41 shown", got)
		}
		bob.send("samuel", "welcome")
		settle(time.Minute)
		wantTexts(t, sam, "bob", []string{"welcome"})
		check(t, sam, bob)
	})
}

func TestStrangersBeyondTheLimitAndBlockedOnesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		bob := newPerson(t, net, "bob", withLimits(messenger.Limits{MaxRequests: 2}))
		for i := range 4 {
			stranger(t, bob, fmt.Sprint("s", i), "hello").halt()
		}
		if got := bob.status().Requests; got != 2 {
			t.Errorf("%d requests are waiting", got)
		}
		for name, block := range map[string]bool{"s0": true, "s1": false} {
			if err := bob.m.RejectRequest(t.Context(), name, block); err != nil {
				t.Fatal(err)
			}
		}
		if got := bob.status().Requests; got != 0 {
			t.Errorf("%d requests are left", got)
		}
	})
}

func TestFollowingTheLinkOfAStrangerAcceptsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		bob := newPerson(t, net, "bob")
		sam := stranger(t, bob, "sam", "may I?")
		bob.add(sam.invite(messenger.InviteRequest{}).Link)
		settle(20 * time.Minute)
		bob.send("sam", "yes")
		settle(20 * time.Minute)
		wantTexts(t, bob, "sam", []string{"may I?"})
		wantTexts(t, sam, "bob", []string{"yes"})
		check(t, sam, bob)
	})
}

func TestBlockedContactHearsNothingAndIsNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, mallory, bob := pair(t)
		alice := newPerson(t, net, "alice")
		meet(t, alice, bob)
		waiting := hold(t, bob, mallory, "never sent")
		if err := bob.m.Block(t.Context(), "mallory"); err != nil {
			t.Fatal(err)
		}
		net.Cut(bob.port, mallory.port, false)
		net.Record()
		late := mallory.seal(bob, wire.Content{Kind: wire.KindText, N: 1, Text: "let me in"})
		if a := mallory.offer(bob, late); a.Code == wire.CodeOK || a.Ack != (wire.Ack{}) {
			t.Errorf("a blocked contact's item: %v", a.Code)
		}
		lost := mallory.send("bob", "hello?")
		wantError(t, func() error {
			_, err := bob.m.Send(t.Context(), messenger.SendRequest{To: "mallory", Text: "x"})
			return err
		}(), messenger.CodeBlocked)
		bob.restart2()
		settle(20 * time.Minute)
		for _, item := range net.Seen() {
			for _, w := range waiting {
				if string(item) == string(w) {
					t.Error("something left for a blocked contact")
				}
			}
		}
		wantTexts(t, bob, "mallory", nil)
		if got := mallory.message(lost.ID.String()).State; got == messenger.StateDelivered {
			t.Error("the blocked contact is told that it was heard")
		}
		if got := bob.rows(mallory)[0].State; got != messenger.StateCancelled {
			t.Errorf("what waited for it is %s", got)
		}
		// The others find bob all the same.
		alice.send("bob", "hi")
		settle(time.Minute)
		wantTexts(t, bob, "alice", []string{"hi"})
		// Both meet again by a new invite.
		if err := bob.m.Unblock(t.Context(), "mallory"); err != nil {
			t.Fatal(err)
		}
		bob.add(mallory.invite(messenger.InviteRequest{}).Link)
		settle(20 * time.Minute)
		mallory.send("bob", "sorry")
		bob.send("mallory", "all right")
		settle(20 * time.Minute)
		wantTexts(t, bob, "mallory", []string{"hello?", "sorry"}) // it was waiting all the while
		wantTexts(t, mallory, "bob", []string{"all right"})
		check(t, alice, bob, mallory)
	})
}

// restart2 starts the messenger anew over a store in memory.
func (p *person) restart2() {
	p.t.Helper()
	p.port.Leave()
	p.stop()
	if err := <-p.done; err != nil {
		p.t.Errorf("%s: Run: %v", p.name, err)
	}
	p.start()
}

func TestRemovedContactIsForgottenAndMayBeMetAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		mallory.send("bob", "before")
		settle(time.Second)
		if err := bob.m.Remove(t.Context(), "mallory"); err != nil {
			t.Fatal(err)
		}
		told := mallory.send("bob", "gone?")
		settle(20 * time.Minute)
		if got := mallory.message(told.ID.String()).State; got != messenger.StateFailed {
			t.Errorf("message to one who removed us is %s", got)
		}
		mallory.add(bob.invite(messenger.InviteRequest{}).Link)
		mallory.send("bob", "back")
		settle(20 * time.Minute)
		wantTexts(t, bob, "mallory", []string{"before", "back"})
		check(t, mallory, bob)
	})
}

func TestContactRemovedWhileSomethingIsUnderWayStaysRemoved(t *testing.T) {
	for name, under := range map[string]func(alice, bob *person){
		"a hello": func(alice, bob *person) { bob.add(alice.invite(messenger.InviteRequest{}).Link) },
		"a used invite": func(alice, bob *person) {
			inv := alice.invite(messenger.InviteRequest{})
			bob.add(inv.Link)
			_ = alice.m.RevokeInvite(alice.t.Context(), inv.ID)
		},
		"a lost session": func(alice, bob *person) { meet(alice.t, alice, bob); alice.forgetSessions(); bob.send("alice", "x") },
		"a dead link": func(alice, bob *person) {
			inv := alice.invite(messenger.InviteRequest{})
			link, err := identity.ParseInvite(inv.Link)
			if err != nil {
				alice.t.Fatal(err)
			}
			link.Secret[0] ^= 1
			bob.add(link.Link())
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{Delay: 2 * time.Second})
				alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
				under(alice, bob)
				for range 5 {
					if err := bob.m.Remove(t.Context(), bob.contacts()[0].Name); err != nil {
						t.Fatal(err)
					}
					settle(300 * time.Millisecond)
					if got := bob.contacts(); len(got) != 0 {
						t.Fatalf("%s came back as %s", got[0].Name, got[0].State)
					}
					under(alice, bob)
					settle(500 * time.Millisecond)
					if len(bob.contacts()) == 0 {
						break
					}
				}
				settle(time.Minute) // Run reports at the end whether anything stopped it
			})
		})
	}
}

// forgetSessions loses all ratchets, as damage to the store would.
func (p *person) forgetSessions() {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		rows, err := tx.AllSessions()
		for _, row := range rows {
			if err == nil {
				err = tx.DeleteSession(row.ID)
			}
		}
		return err
	})
}

func TestNamesThatClashOrCannotBeTypedAreRefusedByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		bob, ann, anna := newPerson(t, net, "bob"), newPerson(t, net, "ann"), newPerson(t, net, "anna")
		meet(t, ann, bob)
		meet(t, anna, bob)
		for to, code := range map[string]string{
			"anna": messenger.CodeNameTaken, "ANNA": messenger.CodeNameTaken, "": messenger.CodeBadName, "\x1b[31mred": messenger.CodeBadName,
			"a\u200bb": messenger.CodeBadName, strings.Repeat("x", 65): messenger.CodeBadName, "-x": messenger.CodeBadName, "a\nb": messenger.CodeBadName,
		} {
			wantError(t, bob.m.Rename(t.Context(), "ann", to), code)
		}
		if err := bob.m.Rename(t.Context(), "ann", "аnna"); err != nil { // with a Cyrillic а
			t.Fatal(err)
		}
		if c := bob.contact("аnna"); c.Warning == "" {
			t.Error("no warning at a name that looks like another's")
		}
		_, err := bob.m.Contact(t.Context(), "nobody")
		wantError(t, err, messenger.CodeContactNotFound)
	})
}

func TestClockThatIsWrongAtFirstContactIsNamed(t *testing.T) {
	epoch := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // where a bubble begins
	for name, offset := range map[string]time.Duration{
		"a month ahead": 30 * 24 * time.Hour, "a month behind": -30 * 24 * time.Hour,
		"1970": time.Unix(1, 0).Sub(epoch), "2099": time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC).Sub(epoch),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob", withClock(clock.System{Offset: offset}))
				err := bob.addErr(alice.invite(messenger.InviteRequest{}).Link)
				wantError(t, err, messenger.CodeInviteExpired)
				var e *messenger.Error
				if errors.As(err, &e) && !strings.Contains(e.Message+e.Hint(), "clock") {
					t.Errorf("%s (%s) does not name the clock", e.Message, e.Hint())
				}
				if len(bob.contacts()) != 0 {
					t.Error("a contact is left behind")
				}
				// The other way round the record is not even kept by others; the invite says that it is not published.
				if inv := bob.invite(messenger.InviteRequest{}); inv.Published && offset > 0 {
					t.Error("an invite of the future counts as published")
				}
			})
		})
	}
}
