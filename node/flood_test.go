package node

import (
	"bytes"
	"net"
	"runtime"
	"testing"
	"time"

	manet "github.com/multiformats/go-multiaddr/net"

	"sotto/wire"
)

func TestAContactWhoReplacesItsStreamsHasNoMoreInHandThanTwoMayHold(t *testing.T) {
	const window, streams = 16, 30
	release := make(chan struct{})
	p := start(t, func(c *Config, p *person) {
		c.Limits.InFlight = window
		p.answer = func(item []byte) func() wire.Answer {
			if !bytes.HasPrefix(item, []byte("flood")) {
				return func() wire.Answer { return wire.Answer{Code: wire.CodeOK} }
			}
			return func() wire.Answer { <-release; return wire.Answer{Code: wire.CodeOK} } // a disk that has stopped
		}
	})
	t.Cleanup(func() { close(release) })
	q := start(t, nil)
	a := attack(t, p, RoleInner, true)
	p.Admit([][32]byte{innerKey(a.key), innerKey(q.key)})
	q.Admit([][32]byte{innerKey(p.key)})
	before := runtime.NumGoroutine()
	var frames []byte
	for id := uint32(1); id <= 3*window; id++ {
		frames = wire.Offer{ID: id, Item: []byte("flood")}.Append(frames)
	}
	for i := range streams {
		s := a.open(t, p.proto.direct)
		_ = s.SetWriteDeadline(time.Now().Add(5 * time.Second))
		_, _ = s.Write(frames) // it is reset as soon as two more have come
		eventually(t, "the stream is noticed", func() bool { return p.refused(refusedStreams)+1 >= uint64(i) })
	}
	if err := q.Send(within(t, 10*time.Second), p.Reach(), numbered(3), func(int, wire.Answer) {}); err != nil {
		t.Fatalf("somebody else's delivery meanwhile: %v", err)
	}
	if n := len(p.received()) - 3; n > 2*(window+2) { // of each stream one is being answered and one is in the reader's hand
		t.Errorf("%d offers were taken in at once", n)
	}
	if grown := runtime.NumGoroutine() - before; grown > 200 {
		t.Errorf("%d goroutines for one contact", grown)
	}
}

func TestThousandsOfPingsFromOneContactLeaveOthersAlone(t *testing.T) {
	p, q := start(t, nil), start(t, nil)
	a := attack(t, p, RoleInner, true)
	p.Admit([][32]byte{innerKey(a.key), innerKey(q.key)})
	q.Admit([][32]byte{innerKey(p.key)})
	ctx := within(t, 60*time.Second)
	if _, err := q.Ping(ctx, p.Reach()); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	most := 0
	for i := range 5000 {
		s, err := a.NewStream(ctx, a.to, p.proto.ping)
		if err != nil {
			continue // the resource manager had enough
		}
		_, _ = s.Write(u32(pingSize)) // and never the rest
		if i%100 == 0 {
			most = max(most, runtime.NumGoroutine())
		}
	}
	if grown := most - before; grown > 500 { // those of the attacker's own end of its streams are among them
		t.Errorf("%d goroutines more", grown)
	}
	if _, err := q.Ping(ctx, p.Reach()); err != nil {
		t.Errorf("somebody else's ping: %v", err)
	}
	if err := q.Send(ctx, p.Reach(), numbered(5), func(int, wire.Answer) {}); err != nil {
		t.Errorf("somebody else's delivery: %v", err)
	}
	_ = a.Close()
	eventually(t, "the flood's goroutines end", func() bool { return runtime.NumGoroutine() < before+20 })
}

func TestLargeFramesThatNeverEndCostTwoFramesAndAreCutOff(t *testing.T) {
	p, q := start(t, fast), start(t, nil)
	a := attack(t, p, RoleInner, true)
	p.Admit([][32]byte{innerKey(a.key), innerKey(q.key)})
	q.Admit([][32]byte{innerKey(p.key)})
	half := append(u32(wire.MaxOfferFrame-4), make([]byte, wire.MaxOfferFrame/2)...)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 100 {
		_, _ = a.open(t, p.proto.direct).Write(half)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 16<<20 {
		t.Errorf("%d bytes are held for frames that are not there", grown)
	}
	if err := q.Send(within(t, 10*time.Second), p.Reach(), numbered(5), func(int, wire.Answer) {}); err != nil {
		t.Errorf("somebody else's delivery meanwhile: %v", err)
	}
	eventually(t, "what is left is cut off", func() bool { return p.refused(refusedSlow) >= 1 })
	if n := len(p.received()); n != 5 {
		t.Errorf("%d items were handed on, of which 5 were sent", n)
	}
}

func TestStrangersAtTheInnerHostKeepNoContactOut(t *testing.T) {
	p, q := start(t, nil), start(t, nil)
	friends(p, q)
	for range 20 { // whole connections under keys that nobody knows
		attack(t, p, RoleInner, false)
	}
	for _, addr := range p.inner.Addrs() { // and half ones, which never say who they are
		network, host, err := manet.DialArgs(addr)
		if err != nil || network != "tcp4" {
			continue
		}
		for range halfOpen - 50 {
			c, err := net.Dial(network, host)
			if err != nil {
				break
			}
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	if err := q.Send(within(t, 20*time.Second), p.Reach(), numbered(5), func(int, wire.Answer) {}); err != nil {
		t.Fatalf("a contact's delivery: %v", err)
	}
	eventually(t, "all strangers turned away", func() bool { return p.refused(turnedAway) >= 20 })
}
