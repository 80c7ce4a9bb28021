package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"sotto/wire"
)

// hear lets a and b hear of each other as mDNS would, at the same moment.
func hear(ctx context.Context, a, b *Node) {
	var wg sync.WaitGroup
	wg.Go(func() { a.neighbourFound(ctx, *host.InfoFromHost(b.front)) })
	wg.Go(func() { b.neighbourFound(ctx, *host.InfoFromHost(a.front)) })
	wg.Wait()
}

func TestTwoNeighboursMakeOneConnectionAndMeetWithoutTheInternet(t *testing.T) {
	inSim(t, func(w *simWorld) {
		lan := func(c *Config) { c.AllowPrivate = true }
		a, b := w.person(lan), w.person(lan)
		name, value := inviteRecord(t, "hello", uint64(time.Now().Unix()))
		a.bundles[name] = value
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		hear(ctx, a.Node, b.Node)
		w.pass(time.Second)
		if n := len(a.front.Network().ConnsToPeer(b.front.ID())); n != 1 {
			t.Fatalf("%d connections between neighbours", n)
		}
		if got, err := b.Fetch(ctx, name, nil); err != nil || !bytes.Equal(got, value) {
			t.Fatalf("fetch from a neighbour: %v", err)
		}
		other, otherValue := inviteRecord(t, "reach", uint64(time.Now().Unix()))
		if err := a.Publish(ctx, other, otherValue); err != nil {
			t.Fatalf("publish on the LAN: %v", err)
		}
		if got, err := b.Find(ctx, other); err != nil || !bytes.Equal(got, otherValue) {
			t.Fatalf("find on the LAN: %v", err)
		}
		if a.Status().LAN != 1 {
			t.Errorf("status: %+v", a.Status())
		}
	})
}

func TestALookupWaitsForANeighbourThatIsJustAppearing(t *testing.T) {
	p := start(t, nil)
	q, err := New(Config{NodeKey: newKey(t), Listen: loopback, AllowPrivate: true, MDNS: true}, Handlers{}) // never run, so nothing announces
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	name, value := inviteRecord(t, "hello", uint64(time.Now().Unix()))
	p.bundles[name] = value
	done := make(chan error, 1)
	ctx := within(t, 20*time.Second)
	go func() {
		got, err := q.Fetch(ctx, name, nil)
		if err == nil && !bytes.Equal(got, value) {
			err = wire.ErrNotFound
		}
		done <- err
	}()
	hear(ctx, p.Node, q)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestNeighboursRememberedAreFew(t *testing.T) {
	p := start(t, func(c *Config, _ *person) { c.Limits.Neighbours = 2 })
	for range 5 {
		q := start(t, nil)
		info := *host.InfoFromHost(q.front)
		if p.front.ID() < info.ID {
			q.neighbourFound(within(t, time.Second), *host.InfoFromHost(p.front))
		}
		p.neighbourFound(within(t, 5*time.Second), info)
	}
	if list, _ := p.lan(); len(list) > 2 {
		t.Fatalf("%d neighbours remembered", len(list))
	}
}

func TestANeighbourWhoAnnouncesThousandsMakesFewDials(t *testing.T) {
	p := start(t, func(c *Config, _ *person) { c.Limits.Neighbours = 4096 })
	ctx, cancel := context.WithCancel(t.Context())
	for range greetings {
		p.greeting <- struct{}{} // dials that wait for an answer
	}
	for range 2000 { // each comes back at once: nothing is dialled and nothing waits
		id, err := peerOf([32]byte(newKey(t).Public().(ed25519.PublicKey)))
		if err != nil {
			t.Fatal(err)
		}
		p.neighbourFound(ctx, peer.AddrInfo{ID: id, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.1/tcp/1")}})
	}
	cancel()
	if list, _ := p.lan(); len(list) != 2000 || len(p.front.Network().Peers()) != 0 {
		t.Errorf("%d neighbours, %d connections", len(list), len(p.front.Network().Peers()))
	}
}
