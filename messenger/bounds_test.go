package messenger_test

import (
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sotto/identity"
	"sotto/internal/testnet"
	"sotto/messenger"
	"sotto/store"
	"sotto/wire"
)

// What gathers over weeks may be more than one transaction of the store takes: 8000 rows, a mebibyte.

// write has somebody write so many texts of a kilobyte or so, and returns them.
func (p *person) write(to string, count int) (texts []string) {
	p.t.Helper()
	for i := range count {
		texts = append(texts, fmt.Sprint(i, " ", strings.Repeat("x", 800)))
		p.send(to, texts[i])
	}
	return texts
}

func (p *person) wantCancelled(with [16]byte, count int) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		rows, err := tx.Messages(with, store.MessagesQuery{Limit: 1 << 20})
		cancelled := 0
		for _, row := range rows {
			if row.State == messenger.StateCancelled {
				cancelled++
			}
		}
		if cancelled != count {
			p.t.Errorf("%d of %d are cancelled", cancelled, count)
		}
		accounts, err2 := tx.OutgoingAccounts()
		if len(accounts) != 0 {
			p.t.Errorf("%d accounts have something waiting", len(accounts))
		}
		sessions, err3 := tx.AllSessions()
		if len(sessions) != 0 {
			p.t.Errorf("%d sessions are kept", len(sessions))
		}
		for _, e := range []error{err, err2, err3} {
			if e != nil {
				return e
			}
		}
		return nil
	})
}

func TestContactForWhomThousandsWaitCanBeBlockedAndRemoved(t *testing.T) {
	for name, shut := range map[string]func(p *person) error{
		"blocked": func(p *person) error { return p.m.Block(p.t.Context(), "mallory") },
		"removed": func(p *person) error { return p.m.Remove(p.t.Context(), "mallory") },
		"removed before a crash": func(p *person) error {
			p.update(func(tx *store.Tx) error { // as the first transaction of a removal leaves it
				c, err := tx.ContactByName("mallory")
				if err != nil {
					return err
				}
				c.State, c.Reach, c.InnerKey = store.ContactRemoved, nil, [32]byte{}
				return tx.PutContact(c)
			})
			p.restart2()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net, mallory, bob := pair(t)
				net.Cut(bob.port, mallory.port, true)
				const count = 1500
				bob.write("mallory", count)
				conv := bob.contactRow(mallory).Conv
				if err := shut(bob); err != nil {
					t.Fatal(err)
				}
				settle(time.Minute)
				bob.wantCancelled(conv, count)
				if list := bob.contacts(); (len(list) == 1) != (name == "blocked") {
					t.Errorf("contacts: %v", list)
				}
			})
		})
	}
}

func TestThousandsOfTextsWrittenBeforeMeetingAreShownInOrder(t *testing.T) {
	for _, crash := range []bool{false, true} {
		t.Run(fmt.Sprint("a crash between: ", crash), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				alice, bob := newPerson(t, net, "alice"), newPerson(t, net, "bob")
				alice.port.Leave()
				alice.stop()
				if err := <-alice.done; err != nil {
					t.Fatal(err)
				}
				link := alice.invite(messenger.InviteRequest{}).Link // which nobody can find yet
				if _, err := bob.m.Add(t.Context(), messenger.AddRequest{Link: link, Name: "alice"}); err != nil {
					t.Fatal(err)
				}
				texts := bob.write("alice", 400)
				if crash {
					bob.crashInTheMove(alice)
				}
				alice.start()
				settle(30 * time.Minute)
				wantTexts(t, alice, "bob", texts)
				for _, row := range alice.rows(bob) {
					if row.Gap != 0 || row.Late {
						t.Fatal("something came late")
					}
				}
				check(t, alice, bob)
			})
		})
	}
}

// crashInTheMove leaves the queue as a crash does between two transactions that make way for a hello: some entries are behind
// the one that keeps its place.
func (p *person) crashInTheMove(to *person) {
	p.t.Helper()
	p.update(func(tx *store.Tx) error {
		raw, err := (&wire.Content{Kind: wire.KindControl, ID: wire.MsgID{1}, Device: p.deviceID2(tx)}).Marshal()
		if err != nil {
			return err
		}
		place := store.Outgoing{Account: [32]byte(accountOf(to)), MsgID: wire.MsgID{1}, Control: true, Hello: true, Payload: raw, Extra: []byte("place")}
		if err := tx.PutOutgoing(&place); err != nil {
			return err
		}
		rows, err := tx.Outgoings(place.Account, 200)
		for _, out := range rows {
			if err == nil {
				err = tx.DeleteOutgoing(out.Account, out.Order)
			}
			out.Order = 0
			if err == nil {
				err = tx.PutOutgoing(&out)
			}
		}
		return err
	})
}

func (p *person) deviceID2(tx *store.Tx) [16]byte {
	self, err := tx.GetSelf()
	if err != nil {
		p.t.Fatal(err)
	}
	d, err := identity.ParseDevice(self.DeviceSecret)
	if err != nil {
		p.t.Fatal(err)
	}
	return [16]byte(d.ID())
}

// crowd gives a person so many contacts more, who have the card of another and are nowhere.
func (p *person) crowd(like *person, count int) {
	p.t.Helper()
	c := p.contactRow(like)
	for i := range count {
		other := c
		if _, err := rand.Read(other.Account[:]); err != nil {
			p.t.Fatal(err)
		}
		copy(other.Conv[:], other.Account[:])
		other.Name, other.Reach, other.InnerKey = fmt.Sprint("friend ", i), nil, [32]byte{}
		p.update(func(tx *store.Tx) error { return tx.PutContact(other) })
	}
}

func TestWhoHasHundredsOfContactsTellsThemAllAndStartsAgainAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		renews := withLimits(messenger.Limits{PrekeyAge: 90 * time.Minute})
		alice, bob, mallory := newPerson(t, net, "alice"), newPerson(t, net, "bob", onQuickDisk, renews), newPerson(t, net, "mallory")
		meet(t, alice, bob)
		meet(t, mallory, bob)
		const count = 250
		bob.crowd(alice, count)
		if err := bob.m.Block(t.Context(), "mallory"); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		waiting := func() int { return len(bob.waitingFor()) }
		if got := waiting(); got != count {
			t.Errorf("%d of %d are told where to look from now on", got, count)
		}
		cut := copyHome(t, bob.dir) // every session sent something since the start
		bob.halt()
		bob.dir = cut
		bob.start()
		settle(150 * time.Minute) // a new card
		if got := waiting(); got < count {
			t.Errorf("%d of %d have something waiting", got, count)
		}
		alice.send("bob", "still there?")
		settle(time.Minute)
		wantTexts(t, bob, "alice", []string{"still there?"})
	})
}

// waitingFor lists who has something waiting.
func (p *person) waitingFor() (accounts [][32]byte) {
	p.t.Helper()
	p.view(func(tx *store.Tx) (err error) {
		accounts, err = tx.OutgoingAccounts()
		return err
	})
	return accounts
}

func TestSessionsWithAllTheSkippedKeysThereMayBeAreDropped(t *testing.T) {
	for name, drop := range map[string]func(mallory, bob *person){
		"with their contact": func(_, bob *person) {
			if err := bob.m.Remove(bob.t.Context(), "mallory"); err != nil {
				bob.t.Fatal(err)
			}
		},
		"when they are old": func(mallory, bob *person) {
			bob.update(func(tx *store.Tx) error {
				row, _ := bob.live(tx, mallory)
				row.Archived = true
				return tx.PutSession(row)
			})
			settle(70 * time.Minute)
		},
		"by newer ones": func(mallory, bob *person) {
			for range 4 {
				mallory.update(func(tx *store.Tx) error {
					row, _ := mallory.live(tx, bob)
					row.Archived = true
					return tx.PutSession(row)
				})
				items := hold(bob.t, mallory, bob, "again")
				mallory.wantCode(bob, items[len(items)-1], wire.CodeOK)
				settle(15 * time.Minute)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				mallory, bob := newPerson(t, net, "mallory"), newPerson(t, net, "bob", withLimits(messenger.Limits{SessionLife: 50 * time.Minute}))
				meet(t, mallory, bob)
				var first [16]byte
				bob.view(func(tx *store.Tx) error {
					row, _ := bob.live(tx, mallory)
					first = row.ID
					return nil
				})
				for range 2 {
					mallory.wantCode(bob, mallory.sealRaw(bob, nil, 4900), wire.CodeRefused) // nothing in it, but the position is used
				}
				bob.view(func(tx *store.Tx) error {
					if _, s := bob.live(tx, mallory); s.SkippedTotal() < 9800 {
						t.Errorf("%d skipped keys", s.SkippedTotal())
					}
					return nil
				})
				drop(mallory, bob)
				settle(time.Minute)
				bob.view(func(tx *store.Tx) error {
					rows, err := tx.AllSessions()
					if slices.ContainsFunc(rows, func(row store.Session) bool { return row.ID == first }) {
						t.Error("it is still there")
					}
					n, err2 := skippedOf(tx, first)
					if n != 0 || err2 != nil {
						t.Errorf("%d of its skipped keys are left, %v", n, err2)
					}
					return err
				})
			})
		})
	}
}

// skippedOf counts what is left of a session's skipped keys in its first chains.
func skippedOf(tx *store.Tx, id [16]byte) (count int, err error) {
	for chain := range uint32(3) {
		for n := range uint32(10_000) {
			_, ok, err := tx.FindSkipped(id, chain, n)
			if err != nil {
				return count, err
			}
			if ok {
				count++
			}
		}
	}
	return count, nil
}

func TestHandshakesRememberedUnderOnePrekeyAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice := newPerson(t, net, "alice", withLimits(messenger.Limits{MaxHandshakes: 3, PrekeyAge: 90 * time.Minute}))
		link := alice.invite(messenger.InviteRequest{Reusable: true, Expires: 20 * 24 * time.Hour}).Link
		for i := range 5 {
			guest := newPerson(t, net, fmt.Sprint("guest", i))
			guest.add(link)
			settle(time.Minute)
			if got := len(alice.contacts()); got != min(i+1, 3) {
				t.Errorf("%d contacts after guest %d", got, i)
			}
			if got := guest.contact("alice"); got.Warning != "" {
				t.Errorf("guest %d is told %q: coming later would do", i, got.Warning)
			}
		}
		settle(2 * time.Hour)
		newPerson(t, net, "late").add(link) // there is a new prekey
		settle(time.Minute)
		if got := len(alice.contacts()); got != 4 {
			t.Errorf("%d contacts with the next prekey", got)
		}
	})
}

func TestInviteCarriesANewCardSoonAfterItIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice := newPerson(t, net, "alice", withLimits(messenger.Limits{PrekeyAge: 90 * time.Minute}))
		settle(100 * time.Minute)
		link := alice.invite(messenger.InviteRequest{Reusable: true}).Link
		settle(30 * time.Minute) // the card was renewed meanwhile, the reach was not
		bob := newPerson(t, net, "bob")
		net.Cut(alice.port, bob.port, true)
		bob.add(link)
		card, err := identity.ParseCard(bob.contactRow(alice).Card)
		if err != nil || card.Core.Seq != 2 {
			t.Errorf("the invite brings card %d, %v", card.Core.Seq, err)
		}
	})
}

// twin is a device list of the person's account that contradicts the one in use, and a card and an invite's worth by it.
func (p *person) twin() (card []byte, device *identity.Device) {
	p.t.Helper()
	device, err := identity.NewDevice(rand.Reader)
	if err != nil {
		p.t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Second)
	list := identity.DeviceList{Account: p.account.ID(), Seq: 1, Issued: now, Devices: []identity.DeviceEntry{device.Entry(now)}}
	prekey, err := identity.NewPrekey(rand.Reader, 1)
	if err != nil {
		p.t.Fatal(err)
	}
	seal, err := identity.NewSealKey(rand.Reader, 1)
	if err != nil {
		p.t.Fatal(err)
	}
	core := identity.CardCore{Seq: 100, Issued: now, NotAfter: now.Add(24 * time.Hour), Seal: seal.Public()}
	if card, err = identity.SignCard(list.Sign(p.account), device, core, prekey.Public()); err != nil {
		p.t.Fatal(err)
	}
	return card, device
}

func TestCardThatContradictsTheKnownDevicesIsRefusedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		before, seq := bob.contactRow(mallory), bob.status().Seq
		card, _ := mallory.twin()
		for range 3 {
			mallory.wantCode(bob, mallory.seal(bob, wire.Content{Kind: wire.KindControl, Card: card}), wire.CodeOK)
		}
		after := bob.contactRow(mallory)
		if !slices.Equal(before.Card, after.Card) || !slices.Equal(before.DeviceList, after.DeviceList) {
			t.Error("bob took the card or its list")
		}
		if after.Verified != messenger.VerifiedChanged || after.Warning == "" {
			t.Errorf("verified %q, warning %q", after.Verified, after.Warning)
		}
		told := 0
		for _, e := range bob.events(seq) {
			if e.Kind == messenger.EventContact {
				told++
			}
		}
		if told != 1 {
			t.Errorf("bob is told %d times", told)
		}
		mallory.send("bob", "it was not me") // what is not about keys goes on
		settle(time.Minute)
		wantTexts(t, bob, "mallory", []string{"it was not me"})
	})
}

func TestNewerCardOfAKnownDeviceIsTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		mallory, bob := newPerson(t, net, "mallory", withLimits(messenger.Limits{PrekeyAge: 90 * time.Minute})), newPerson(t, net, "bob")
		meet(t, mallory, bob)
		before := bob.contactRow(mallory)
		settle(150 * time.Minute)
		after := bob.contactRow(mallory)
		if slices.Equal(before.Card, after.Card) || after.Verified == messenger.VerifiedChanged {
			t.Error("a card that was renewed is not taken")
		}
	})
}

func TestWhatIsHeldOfOneWhoIsShutOutIsNeverShown(t *testing.T) {
	for name, shutOut := range map[string]func(bob *person) error{
		"removed": func(bob *person) error { return bob.m.Remove(bob.t.Context(), "mallory") },
		"blocked": func(bob *person) error { return bob.m.Block(bob.t.Context(), "mallory") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				mallory, bob := newPerson(t, net, "mallory"), newPerson(t, net, "bob", onDisk)
				meet(t, mallory, bob)
				mallory.send("bob", "before")
				settle(time.Second)
				items := hold(t, mallory, bob, "kept back", "held")
				mallory.wantCode(bob, items[1], wire.CodeOK)
				if err := shutOut(bob); err != nil {
					t.Fatal(err)
				}
				settle(time.Minute) // the gap would have been shown by now
				bob.restart()
				settle(time.Minute)
				wantTexts(t, bob, "mallory", []string{"before"})
			})
		})
	}
}

func TestLongMessagesThatAreHeldAreShownAfterTheGap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		mallory, bob := newPerson(t, net, "mallory"), newPerson(t, net, "bob", onDisk)
		meet(t, mallory, bob)
		texts := make([]string, 60)
		for i := range texts {
			texts[i] = strings.Repeat(string(rune('a'+i%26)), 60000)
		}
		mallory.net.Cut(mallory.port, bob.port, true)
		for _, text := range texts {
			mallory.send("bob", text)
		}
		settle(100 * time.Millisecond)
		items := outbox(t, mallory, bob)
		for _, item := range items[1:] {
			mallory.wantCode(bob, item, wire.CodeOK)
		}
		settle(time.Minute)
		wantTexts(t, bob, "mallory", texts[1:])
		mallory.wantCode(bob, items[0], wire.CodeOK)
		bob.restart()
		wantTexts(t, bob, "mallory", texts)
	})
}

func TestAHeldMessageThatADamagedDiskLostIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		items := hold(t, mallory, bob, "late", "lost", "there")
		for _, item := range items[1:] {
			mallory.wantCode(bob, item, wire.CodeOK)
		}
		bob.update(func(tx *store.Tx) error {
			for _, row := range bob.rows(mallory) {
				if wire.TextOf(row.Raw) == "lost" {
					return tx.DeleteMessage(row.ID)
				}
			}
			return store.ErrNotFound
		})
		settle(time.Minute)
		wantTexts(t, bob, "mallory", []string{"there"})
		list, err := bob.m.Messages(t.Context(), "mallory", messenger.MessagesQuery{Peek: true})
		if err != nil || list[0].Missing != 2 {
			t.Fatalf("missing before the first: %+v, %v", list, err)
		}
		mallory.wantCode(bob, items[0], wire.CodeOK)
		wantTexts(t, bob, "mallory", []string{"late", "there"})
	})
}

func TestAWaitingMessageThatADamagedDiskLostHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := testnet.NewNet(1, testnet.Faults{})
		alice, bob := newPerson(t, net, "alice", onDisk), newPerson(t, net, "bob")
		meet(t, alice, bob)
		hold(t, alice, bob, "sealed", "unsealed", "whole")
		alice.update(func(tx *store.Tx) error { // as a salvage leaves them
			waiting, err := tx.Outgoings([32]byte(accountOf(bob)), 0)
			for i, out := range waiting[:2] {
				out.Control = true
				if i == 1 {
					out.Item, out.Short = nil, false
				}
				err = errors.Join(err, tx.DeleteMessage(out.MsgID), tx.PutOutgoing(&out))
			}
			return err
		})
		alice.restart()
		alice.net.Cut(alice.port, bob.port, false)
		settle(20 * time.Minute)
		wantTexts(t, bob, "alice", []string{"sealed", "whole"})
		check(t, alice)
	})
}
