package node

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"sotto/wire"
)

func TestAContactsArrivalIsTold(t *testing.T) {
	a, b := start(t, nil), start(t, nil)
	friends(a, b)
	if err := a.Touch(within(t, 10*time.Second), b.Reach()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*person{a, b} {
		eventually(t, "Up was called", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.ups == 1
		})
	}
}

func TestWithoutHandlersEverythingIsRefused(t *testing.T) {
	n, err := New(Config{NodeKey: newKey(t), Listen: loopback, AllowPrivate: true}, Handlers{})
	if err != nil {
		t.Fatal(err)
	}
	run(t, n.Run)
	p := start(t, nil)
	keyN, _ := keyOf(n.inner.ID())
	n.Admit([][32]byte{innerKey(p.key)})
	p.Admit([][32]byte{keyN})
	wantErr(t, p.Send(within(t, 10*time.Second), n.Reach(), numbered(1), func(int, wire.Answer) { t.Error("settled") }), wire.ErrUnreachable)
	a, err := p.Knock(within(t, 10*time.Second), n.Reach(), [32]byte{}, []byte("e"))
	if err != nil || a.Code != wire.CodeRefused {
		t.Errorf("knock: %+v, %v", a, err)
	}
	_, err = p.Fetch(within(t, 10*time.Second), [32]byte{1}, []string{n.Hint()})
	wantErr(t, err, wire.ErrNotFound)
}

func TestOffersBeyondTheWindowWaitOutside(t *testing.T) {
	release := make(chan struct{})
	p := start(t, func(c *Config, p *person) {
		c.Limits.InFlight = 16
		p.answer = func([]byte) func() wire.Answer {
			return func() wire.Answer { <-release; return wire.Answer{Code: wire.CodeOK} }
		}
	})
	t.Cleanup(func() { close(release) })
	a := attack(t, p, RoleInner, true)
	s := a.open(t, p.proto.direct)
	_ = s.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)) // the peer is stalled for good
	for id := uint32(1); id <= 2000; id++ {
		if _, err := s.Write((wire.Offer{ID: id, Item: make([]byte, 4000)}).Append(nil)); err != nil {
			break
		}
	}
	eventually(t, "the window filled", func() bool { return len(p.received()) >= 16 })
	if n := len(p.received()); n > 16+2 { // one being answered, one in the reader's hand
		t.Fatalf("%d offers were taken in", n)
	}
}

func TestItemsInHandAreBoundedByBytesToo(t *testing.T) {
	release := make(chan struct{})
	p := start(t, func(c *Config, p *person) {
		c.Limits.InFlightBytes = 100 << 10
		p.answer = func([]byte) func() wire.Answer {
			return func() wire.Answer { <-release; return wire.Answer{Code: wire.CodeOK} }
		}
	})
	t.Cleanup(func() { close(release) })
	a := attack(t, p, RoleInner, true)
	s := a.open(t, p.proto.direct)
	_ = s.SetWriteDeadline(time.Now().Add(500 * time.Millisecond))
	for id := uint32(1); id <= 100; id++ {
		if _, err := s.Write((wire.Offer{ID: id, Item: make([]byte, 40<<10)}).Append(nil)); err != nil {
			break
		}
	}
	eventually(t, "the room filled", func() bool { return len(p.received()) >= 2 })
	if n := len(p.received()); n > 3 {
		t.Fatalf("%d items of 40 KiB were taken in", n)
	}
}

func TestAFloodOfStreamsFromOneContactLeavesOthersAlone(t *testing.T) {
	p, q := start(t, fast), start(t, nil)
	a := attack(t, p, RoleInner, true)
	p.Admit([][32]byte{innerKey(a.key), innerKey(q.key)})
	q.Admit([][32]byte{innerKey(p.key)})
	ctx := within(t, 30*time.Second)
	if err := q.Send(ctx, p.Reach(), numbered(1), func(int, wire.Answer) {}); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	for range 10_000 {
		s, err := a.NewStream(ctx, a.to, p.proto.direct)
		if err != nil {
			continue // the resource manager had enough
		}
		_, _ = s.Write(u32(508))
	}
	if err := q.Send(ctx, p.Reach(), numbered(5), func(int, wire.Answer) {}); err != nil {
		t.Fatalf("somebody else's delivery: %v", err)
	}
	_ = a.Close()
	eventually(t, "the flood's goroutines end", func() bool { return runtime.NumGoroutine() < before+50 })
}

// fakeConn is what a gate is shown of a connection.
type fakeConn struct{ remote ma.Multiaddr }

func (c fakeConn) LocalMultiaddr() ma.Multiaddr  { return ma.StringCast("/ip4/10.0.0.1/tcp/1") }
func (c fakeConn) RemoteMultiaddr() ma.Multiaddr { return c.remote }

func TestTheGateLetsInContactsRelaysAndDialBacksOnly(t *testing.T) {
	contactKey, relayKey := innerKey(newKey(t)), innerKey(newKey(t))
	contact, _ := peerOf(contactKey)
	relay, _ := peerOf(relayKey)
	stranger, _ := peerOf(innerKey(newKey(t)))
	g := newGate(false)
	g.admit([][32]byte{contactKey})
	g.setRelays([]peer.AddrInfo{{ID: relay, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/198.51.100.7/tcp/4001")}}})
	elsewhere, fromRelay := ma.StringCast("/ip4/203.0.113.5/tcp/9"), ma.StringCast("/ip4/198.51.100.7/udp/999/quic-v1")
	throughRelay := ma.StringCast("/ip4/198.51.100.7/tcp/4001/p2p/" + relay.String() + "/p2p-circuit")
	for _, c := range []struct {
		name string
		p    peer.ID
		addr ma.Multiaddr
		want bool
	}{
		{"contact", contact, elsewhere, true}, {"contact over a relay", contact, throughRelay, true}, {"relay", relay, fromRelay, true},
		{"stranger", stranger, elsewhere, false}, {"dial-back", stranger, fromRelay, true}, {"stranger over a relay", stranger, throughRelay, false},
	} {
		if got := g.InterceptSecured(network.DirInbound, c.p, fakeConn{c.addr}); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if g.InterceptPeerDial(stranger) || !g.InterceptPeerDial(contact) || !g.InterceptPeerDial(relay) {
		t.Error("dials the wrong ones")
	}
	g.relayOnly = true
	if g.InterceptAddrDial(contact, elsewhere) || !g.InterceptAddrDial(contact, throughRelay) || !g.InterceptAddrDial(relay, fromRelay) {
		t.Error("relay-only: dials the wrong addresses")
	}
	if gone := g.admit(nil); len(gone) != 1 || gone[0] != contact {
		t.Errorf("removed: %v", gone)
	}
}

func TestAChangeOfNetworkTriesEveryPathAtOnceAndTellsOnce(t *testing.T) {
	inSim(t, func(w *simWorld) {
		a, b := w.person(nil), w.person(nil)
		friends(a.person, b.person)
		if err := w.send(a, b, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		w.pass(2 * time.Minute)
		told := a.moves.Load()
		w.sim.Cut(b.innerIP)
		a.networkChanged()
		a.networkChanged()
		w.pass(4 * time.Second)
		if a.Status().Contacts != 0 {
			t.Error("the dead path was not noticed")
		}
		if n := a.moves.Load() - told; n != 1 {
			t.Errorf("Moved was called %d times", n)
		}
	})
}

func TestARelayOnlyNodeDialsNoHint(t *testing.T) {
	p, q := start(t, nil), start(t, func(c *Config, _ *person) { c.RelayOnly = true })
	p.bundles[[32]byte{1}] = []byte("x")
	_, err := q.Fetch(within(t, 10*time.Second), [32]byte{1}, []string{p.Hint()})
	wantErr(t, err, wire.ErrUnreachable)
	if len(p.front.Network().Conns()) != 0 {
		t.Error("it connected")
	}
}

func TestARateLimitRefillsAndForgets(t *testing.T) {
	r := newRateLimit(1, 2, 3)
	now := time.Unix(1000, 0)
	for i, want := range []bool{true, true, false} {
		if _, ok := r.take("a", now); ok != want {
			t.Errorf("take %d: %v", i, ok)
		}
	}
	if wait, ok := r.take("a", now.Add(500*time.Millisecond)); ok || wait <= 0 || wait > time.Second {
		t.Errorf("half a second on: %v, %v", wait, ok)
	}
	if _, ok := r.take("a", now.Add(2*time.Second)); !ok {
		t.Error("it did not refill")
	}
	for _, p := range []string{"b", "c"} {
		r.take(p, now.Add(2*time.Second))
	}
	if _, ok := r.take("d", now.Add(2*time.Second)); ok {
		t.Error("a fourth prefix while all three are in use")
	}
	if _, ok := r.take("d", now.Add(time.Minute)); !ok || len(r.buckets) > 3 {
		t.Error("full buckets were not forgotten")
	}
}

func TestClosingANodeThatNeverRanIsClean(t *testing.T) {
	n, err := New(Config{NodeKey: newKey(t), Listen: loopback, AllowPrivate: true}, Handlers{})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, n.Send(context.Background(), n.Reach(), numbered(1), nil), wire.ErrUnreachable)
}

func TestIdleConnectionsAreClosedBeforeNewOnesAreRefused(t *testing.T) {
	resources, err := userResources(protocolsOf(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resources.Close() }()
	for i := range connsHigh + 1 {
		from := ma.StringCast(fmt.Sprintf("/ip4/203.0.113.%d/udp/1/quic-v1", i))
		conn, err := resources.OpenConnection(network.DirInbound, false, from)
		if err == nil {
			err = conn.SetPeer(peer.ID(fmt.Sprintf("stranger %d", i))) // the handshake is over
		}
		if err != nil {
			t.Fatalf("connection %d: %v", i+1, err)
		}
	}
}

func TestADozenAddressesThatSayNothingLeaveRoomForOthers(t *testing.T) {
	resources, err := userResources(protocolsOf(""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resources.Close() }()
	held := 0
	for i := range 12 {
		from := ma.StringCast(fmt.Sprintf("/ip4/203.0.113.%d/tcp/1", i))
		for range 100 {
			if _, err := resources.OpenConnection(network.DirInbound, true, from); err != nil {
				break
			}
			held++
		}
	}
	if held < 12 || held > 12*8 {
		t.Errorf("%d connections of twelve addresses", held)
	}
	conn, err := resources.OpenConnection(network.DirInbound, true, ma.StringCast("/ip4/198.51.100.1/tcp/1"))
	if err == nil {
		err = conn.SetPeer(peer.ID("friend"))
	}
	if err != nil {
		t.Errorf("another's connection: %v", err)
	}
}
