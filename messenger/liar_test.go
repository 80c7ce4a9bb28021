package messenger_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sotto/identity"
	"sotto/internal/testnet"
	"sotto/messenger"
	"sotto/record"
	"sotto/store"
	"sotto/wire"
)

// lying is a node whose messenger is honest and whose answers are not.
type lying struct {
	testnet.Receiver
	answer func(item []byte) wire.Answer
}

// Offer answers without opening anything.
func (l lying) Offer(_ context.Context, _ [32]byte, item []byte) func() wire.Answer {
	return func() wire.Answer { return l.answer(item) }
}

// falseDoor is a front door that says it took everything, and more.
type falseDoor struct {
	messenger.Network
	ack  wire.Ack
	more bool
}

// Knock hands nothing over.
func (d *falseDoor) Knock(context.Context, wire.Reach, [32]byte, []byte) (wire.KnockAnswer, error) {
	d.more = !d.more
	answer := wire.KnockAnswer{Code: wire.CodeOK}
	if d.more { // or no acknowledgement at all
		answer.Acks = slices.Repeat([]wire.Ack{d.ack}, wire.MaxAcks)
	}
	return answer, nil
}

func TestAnswersThatAcknowledgeFalselyDeliverNothing(t *testing.T) {
	for name, lie := range map[string]func(item []byte, before wire.Ack) wire.Ack{
		"zeros":              func([]byte, wire.Ack) wire.Ack { return wire.Ack{} },
		"ones":               func([]byte, wire.Ack) wire.Ack { return wire.Ack(bytes.Repeat([]byte{0xff}, 16)) },
		"from the item":      func(item []byte, _ wire.Ack) wire.Ack { return wire.Ack(item[len(item)-16:]) },
		"of another message": func(_ []byte, before wire.Ack) wire.Ack { return before },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net, mallory, bob := pair(t)
				before := bob.offer(mallory, bob.seal(mallory, wire.Content{Kind: wire.KindControl})).Ack
				if before == (wire.Ack{}) {
					t.Fatal("mallory did not acknowledge")
				}
				mallory.port.Leave()
				bob.through(func(n messenger.Network) messenger.Network { return &falseDoor{n, lie(make([]byte, 16), before), true} })
				liar := net.Join("liar", mallory.m.NodeKey(), lying{mallory.m, func(item []byte) wire.Answer {
					return wire.Answer{Code: wire.CodeOK, Ack: lie(item, before)}
				}})
				liar.Admit([][32]byte{bob.port.Reach().InnerKey})
				sent := []messenger.Message{bob.send("mallory", "one"), bob.send("mallory", "two")}
				settle(20 * time.Minute)
				for _, msg := range sent {
					if got := bob.message(msg.ID.String()).State; got != messenger.StateQueued {
						t.Errorf("message is %s", got)
					}
				}
				s := bob.status()
				if s.Counters.BadAcks < 2 || s.Counters.BadAcks > 1000 {
					t.Errorf("%d false acknowledgements counted", s.Counters.BadAcks)
				}
				bob.through(func(n messenger.Network) messenger.Network { return n })
				mallory.port = net.Join("mallory", mallory.m.NodeKey(), mallory.m)
				mallory.port.Admit([][32]byte{bob.port.Reach().InnerKey})
				settle(20 * time.Minute)
				wantTexts(t, mallory, "bob", []string{"one", "two"})
				check(t, mallory, bob)
			})
		})
	}
}

// evil lies to its own side: answers for other items, more than there are, false records.
type evil struct {
	messenger.Network
	find func(ctx context.Context, name [32]byte) ([]byte, error)
}

// Send tells of answers that nobody gave before it sends.
func (e evil) Send(ctx context.Context, to wire.Reach, items [][]byte, settled func(i int, a wire.Answer)) error {
	for _, i := range []int{-1, len(items), 1 << 30, 0, 0, 0} {
		settled(i, wire.Answer{Code: wire.CodeOK, Ack: wire.Ack{1}})
	}
	return e.Network.Send(ctx, to, items, settled)
}

// Find answers what it likes.
func (e evil) Find(ctx context.Context, name [32]byte) ([]byte, error) {
	if e.find == nil {
		return e.Network.Find(ctx, name)
	}
	return e.find(ctx, name)
}

// through starts the person anew behind another network.
func (p *person) through(wrap func(messenger.Network) messenger.Network) {
	p.t.Helper()
	p.stop()
	if err := <-p.done; err != nil {
		p.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop, p.done = cancel, make(chan error, 1)
	go func() { p.done <- p.m.Run(ctx, wrap(p.port), nil) }()
	synctest.Wait()
}

func TestMoreAnswersThanOffersAndSuchForNoneSettleNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		bob.through(func(n messenger.Network) messenger.Network { return evil{Network: n} })
		for i := range 5 {
			bob.send("mallory", fmt.Sprint(i))
		}
		settle(20 * time.Minute)
		wantTexts(t, mallory, "bob", []string{"0", "1", "2", "3", "4"})
		check(t, mallory, bob)
	})
}

func TestMessagesArriveByOtherWaysWhenTheDHTLies(t *testing.T) {
	for name, lie := range map[string]func(mallory *person) func(context.Context, [32]byte) ([]byte, error){
		"nothing there":     func(*person) func(context.Context, [32]byte) ([]byte, error) { return found(nil, wire.ErrNotFound) },
		"garbage":           func(*person) func(context.Context, [32]byte) ([]byte, error) { return found([]byte("garbage"), nil) },
		"huge":              func(*person) func(context.Context, [32]byte) ([]byte, error) { return found(make([]byte, 64<<20), nil) },
		"another's record":  func(p *person) func(context.Context, [32]byte) ([]byte, error) { return found(foreign(p.t), nil) },
		"the contact's old": func(p *person) func(context.Context, [32]byte) ([]byte, error) { return found(p.oldReach(), nil) },
		"never": func(*person) func(context.Context, [32]byte) ([]byte, error) {
			return func(ctx context.Context, _ [32]byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net, alice, bob := pair(t) // pair calls her mallory; here she is honest
				bob.through(func(n messenger.Network) messenger.Network { return evil{n, lie(alice)} })
				before := bob.contactRow(alice)
				bob.send("mallory", "direct")
				settle(time.Minute)
				net.Cut(alice.port, bob.port, true)
				bob.send("mallory", "later")
				settle(20 * time.Minute)
				net.Cut(alice.port, bob.port, false)
				settle(20 * time.Minute)
				wantTexts(t, alice, "bob", []string{"direct", "later"})
				if after := bob.contactRow(alice); after.ReachSeq < before.ReachSeq || !bytes.Equal(after.Reach, before.Reach) && after.ReachSeq == before.ReachSeq {
					t.Error("a false reach was taken")
				}
				check(t, alice, bob)
			})
		})
	}
}

func found(value []byte, err error) func(context.Context, [32]byte) ([]byte, error) {
	return func(context.Context, [32]byte) ([]byte, error) { return value, err }
}

// foreign is a good record of somebody else.
func foreign(t *testing.T) []byte {
	t.Helper()
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	_, value, err := record.Seal(record.NewOwner(seed), record.Secret(seed), 1, 1, time.Now().Add(time.Hour), []byte("x"), record.Small, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// oldReach is a record that the person itself signed, of a place where it no longer is.
func (p *person) oldReach() (value []byte) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		self, err := tx.GetSelf()
		if err != nil {
			return err
		}
		d, err := identity.ParseDevice(self.DeviceSecret)
		if err != nil {
			return err
		}
		other := ed25519.NewKeyFromSeed(make([]byte, 32))
		reach := wire.Reach{Seq: 1, InnerKey: [32]byte(other.Public().(ed25519.PublicKey)), Inner: [][]byte{[]byte("elsewhere")}}
		signed := identity.SignReach(d, reach.Marshal())
		secret := record.Secret(d.Discovery())
		_, value, err = record.Seal(record.NewOwner(d.RecordSeed()), secret, record.Epoch(secret, time.Now()), 1, time.Now().Add(time.Hour), signed, record.Small, rand.Reader)
		return err
	})
	return value
}

func TestInviteThatLeadsToAHostileBundleIsRefusedByNameAndLeavesNothing(t *testing.T) {
	for name, forge := range map[string]func(good []byte, other *person, id [16]byte) []byte{
		"garbage":           func([]byte, *person, [16]byte) []byte { return []byte("garbage") },
		"cut":               func(good []byte, _ *person, _ [16]byte) []byte { return good[:len(good)/2] },
		"a byte too long":   func(good []byte, _ *person, _ [16]byte) []byte { return append(bytes.Clone(good), 0) },
		"a flipped bit":     func(good []byte, _ *person, _ [16]byte) []byte { b := bytes.Clone(good); b[len(b)/2] ^= 1; return b },
		"a wrong signature": func(good []byte, _ *person, _ [16]byte) []byte { b := bytes.Clone(good); b[len(b)-1] ^= 1; return b },
		"all zero":          func(good []byte, _ *person, _ [16]byte) []byte { return make([]byte, len(good)) },
		"another account's": func(_ []byte, other *person, id [16]byte) []byte {
			return other.bundle(id)
		},
		"zeros for the one-time prekey": func(good []byte, _ *person, _ [16]byte) []byte {
			at := 1 + 4 + int(good[1])<<24 + int(good[2])<<16 + int(good[3])<<8 + int(good[4]) + 1 + 4
			b := bytes.Clone(good)
			copy(b[at:at+32], make([]byte, 32))
			return b // and no signature could make up for it: identity's tests sign such ones
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := testnet.NewNet(1, testnet.Faults{})
				mallory, other, bob := newPerson(t, net, "mallory"), newPerson(t, net, "other"), newPerson(t, net, "bob")
				inv := mallory.invite(messenger.InviteRequest{})
				link, err := identity.ParseInvite(inv.Link)
				if err != nil {
					t.Fatal(err)
				}
				reader := record.Reader{A: [32]byte(link.Account), S: record.Secret(link.Discovery())}
				at, err := reader.Name(record.Fixed)
				if err != nil {
					t.Fatal(err)
				}
				value, err := mallory.port.Find(t.Context(), at)
				if err != nil {
					t.Fatal(err)
				}
				good, seq, err := reader.Open(record.Fixed, value)
				if err != nil {
					t.Fatal(err)
				}
				owner := record.NewOwner(mallory.account.RecordSeed())
				_, value, err = record.Seal(owner, reader.S, record.Fixed, seq+1, time.Now().Add(time.Hour), forge(good, other, link.ID()), record.Invite, rand.Reader)
				if err != nil {
					t.Fatal(err)
				}
				if err := mallory.port.Publish(t.Context(), at, value); err != nil {
					t.Fatal(err)
				}
				wantError(t, bob.addErr(inv.Link), messenger.CodeBadInvite)
				settle(time.Minute)
				if len(bob.contacts()) != 0 || len(bob.waitingFor()) != 0 {
					t.Errorf("bob keeps %v", bob.contacts())
				}
			})
		})
	}
}

// bundle is a good bundle of the person's for an invite of somebody else.
func (p *person) bundle(id [16]byte) (raw []byte) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		self, err := tx.GetSelf()
		if err != nil {
			return err
		}
		d, err := identity.ParseDevice(self.DeviceSecret)
		if err != nil {
			return err
		}
		b := identity.Bundle{Card: self.Card, RecordKey: d.RecordKey(), Discovery: d.Discovery(), Name: p.name, NotAfter: time.Now().Add(time.Hour), Uses: 5}
		raw, err = b.Marshal(d, id)
		return err
	})
	return raw
}

func TestInviteThatContradictsTheKnownDevicesIsRefusedAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		before := bob.contactRow(mallory)
		bob.update(func(tx *store.Tx) error { // something is wrong, so that a link may be followed again
			c, err := tx.Contact(before.Account)
			if err != nil {
				return err
			}
			c.Warning = "lost"
			return tx.PutContact(c)
		})
		card, device := mallory.twin()
		secret, err := identity.NewInviteSecret(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		link := identity.Invite{Account: mallory.account.ID(), Secret: secret}
		b := identity.Bundle{Card: card, RecordKey: device.RecordKey(), Discovery: device.Discovery(), Name: "mallory", NotAfter: time.Now().Add(time.Hour), Uses: 5}
		raw, err := b.Marshal(device, link.ID())
		if err != nil {
			t.Fatal(err)
		}
		owner := record.NewOwner(mallory.account.RecordSeed())
		name, value, err := record.Seal(owner, record.Secret(link.Discovery()), record.Fixed, uint64(time.Now().Unix()), time.Now().Add(time.Hour), raw, record.Invite, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if err := mallory.port.Publish(t.Context(), name, value); err != nil {
			t.Fatal(err)
		}
		wantError(t, bob.addErr(link.Link()), messenger.CodeBadInvite)
		after := bob.contactRow(mallory)
		if !bytes.Equal(before.Card, after.Card) || !bytes.Equal(before.DeviceList, after.DeviceList) || after.Verified != messenger.VerifiedChanged {
			t.Errorf("verified %q; card taken %v", after.Verified, !bytes.Equal(before.Card, after.Card))
		}
		mallory.send("bob", "hello")
		settle(time.Minute)
		wantTexts(t, bob, "mallory", []string{"hello"})
	})
}
