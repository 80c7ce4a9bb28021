package mailbox

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"

	"sotto/internal/canon"
	"sotto/wire"
)

// some is n, or a tenth of it under the race detector, which makes everything ten times as slow.
func some(n int) int {
	if testing.Short() {
		return n / 10
	}
	return n
}

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func framed(b []byte) []byte { return wire.AppendFrame(nil, b) }

func fast(c *ServerConfig, _ *slowQueue) {
	c.Limits.FirstFrame, c.Limits.FrameTimeout, c.Limits.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond, 300*time.Millisecond
	c.Limits.Floor = 1 << 30
}

func TestMalformedRequestsEndTheStreamAndAreCounted(t *testing.T) {
	good := wire.AppendMailboxRequest(nil, &wire.TermsRequest{})
	pool := append([]byte{byte(wire.OpPool), 0x08, 0x01}, make([]byte, 16*2049+2)...)
	acks := append([]byte{byte(wire.OpAck), 0x04, 0x01}, make([]byte, 8*1025)...)
	for _, c := range []struct {
		name  string
		bytes []byte
		count string
	}{
		{"length zero", u32(0), refusedFrameSize},
		{"length 2^32-1 without a body", u32(1<<32 - 1), refusedFrameSize},
		{"length one over the limit", u32(wire.MaxMailboxRequest + 1), refusedFrameSize},
		{"body shorter than its length", append(u32(100), 1, 2, 3), refusedTruncated},
		{"length cut", u32(100)[:3], refusedTruncated},
		{"valid frame, then garbage", append(bytes.Clone(good), bytes.Repeat([]byte{0xff}, 64)...), refusedFrameSize},
		{"trailing byte", framed([]byte{byte(wire.OpTerms), 0}), refusedRequest},
		{"fields cut", framed([]byte{byte(wire.OpAuth), 0}), refusedRequest},
		{"an answer instead of a request", wire.MailboxAnswer{Code: wire.CodeRefused, RetryAfter: 1}.Append(nil), refusedRequest},
		{"a flag of 2", framed([]byte{byte(wire.OpStrangers), 2}), refusedRequest},
		{"2049 tokens", framed(pool), refusedRequest},
		{"1025 acks", framed(acks), refusedRequest},
		{"129 records", framed(append([]byte{byte(wire.OpRepublish), 129}, make([]byte, 44*129)...)), refusedRequest},
		{"a time of 2^63", wire.AppendMailboxRequest(nil, &wire.Deposit{NotBefore: -1 << 63}), refusedRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := start(t, nil)
			if got, err := say(w.attacker().open(), c.bytes); err == nil {
				t.Errorf("the stream ended well: %x", got)
			}
			eventually(t, c.count, func() bool { return w.refused(c.count) == 1 })
			if _, err := w.client().Terms(within(t), w.addr); err != nil {
				t.Errorf("somebody else meanwhile: %v", err)
			}
		})
	}
}

func TestARequestCutAtAnyByteDoesNothing(t *testing.T) {
	w := start(t, nil)
	owner := w.owner()
	d := &wire.Deposit{Box: owner.ID(), Token: w.tokens(owner, 1)[0], Envelope: sealed(1)}
	whole := wire.AppendMailboxRequest(nil, d)
	a := w.attacker()
	cuts := 0
	for cut := 0; cut < len(whole); cut += 1 + cut/8 {
		_, _ = say(a.open(), whole[:cut])
		if cut > 0 {
			cuts++
		}
	}
	eventually(t, "every cut counted", func() bool { return w.refused(refusedTruncated)+w.refused(refusedStreams) >= uint64(cuts) })
	if s, err := owner.Standing(within(t)); err != nil || s.UsedCount != 0 || s.Unspent != 1 {
		t.Errorf("standing: %+v, %v", s, err)
	}
}

func TestAHugeLengthAllocatesNothing(t *testing.T) {
	w := start(t, nil)
	a := w.attacker()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 100 {
		_, _ = say(a.open(), u32(1<<32-1))
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
		t.Fatalf("100 such frames allocated %d bytes", grown)
	}
}

func TestBodiesThatNeverEndCostWhatHasCome(t *testing.T) {
	w := start(t, func(c *ServerConfig, q *slowQueue) { fast(c, q); c.Limits.StreamsPerConn = 200 })
	a := w.attacker()
	half := append(u32(wire.MaxMailboxRequest), make([]byte, 1000)...)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 100 {
		_, _ = a.open().Write(half)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d bytes are held for 100 000 that came", grown)
	}
	eventually(t, "they are cut", func() bool { return w.refused(refusedSlow) == 100 })
}

func TestAByteAtATimeRunsIntoTheDeadline(t *testing.T) {
	w := start(t, fast)
	s := w.attacker().open()
	whole := wire.AppendMailboxRequest(nil, &wire.Deposit{Envelope: sealed(1)})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := range whole {
		if _, err := s.Write(whole[i : i+1]); err != nil || w.refused(refusedSlow) == 1 {
			break
		}
		<-tick.C
	}
	eventually(t, "slow frame counted", func() bool { return w.refused(refusedSlow) == 1 })
}

func TestAStreamThatNeverAsksIsCut(t *testing.T) {
	w := start(t, fast)
	s := w.attacker().open()
	if _, err := s.Write(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(s); err == nil {
		t.Error("the stream ended well")
	}
	eventually(t, "silent stream counted", func() bool { return w.refused(refusedSlow) == 1 })
}

func TestWhoNeverReadsItsAnswersLosesTheStream(t *testing.T) {
	w := start(t, fast)
	s := w.attacker().open()
	q := wire.AppendMailboxRequest(nil, &wire.TermsRequest{})
	for range 1_000_000 {
		if _, err := s.Write(q); err != nil {
			break
		}
	}
	eventually(t, "unread answers counted", func() bool { return w.refused(refusedNeverRead) >= 1 })
}

func TestStreamsResetAtEveryStepLeaveNothingBehind(t *testing.T) {
	w := start(t, nil)
	key := newKey(t)
	w.register(w.client(), key)
	a := w.attacker()
	steps := [][]byte{
		u32(100)[:2], wire.AppendMailboxRequest(nil, &wire.TermsRequest{}), wire.AppendMailboxRequest(nil, auth(key, w.srv.key, ownerKey(a.key))),
		wire.AppendMailboxRequest(wire.AppendMailboxRequest(nil, auth(key, w.srv.key, ownerKey(a.key))), &wire.Wait{Seconds: 900}),
		wire.AppendMailboxRequest(nil, &wire.Deposit{Envelope: sealed(1)}), append(u32(9000), sealed(1)...),
	}
	for range 10 {
		for _, step := range steps {
			s := a.open()
			_, _ = s.Write(step)
			_ = s.Reset()
		}
	}
	eventually(t, "only the owner is left", func() bool { st := w.srv.Status(); return st.Streams == 1 && st.Waiting == 0 })
}

func TestThousandsOfStreamsOfOneConnectionKeepFourPlaces(t *testing.T) {
	w := start(t, nil)
	honest := w.client()
	a := w.attacker()
	before := runtime.NumGoroutine()
	for range some(2000) {
		if s, err := a.NewStream(within(t), w.host.ID(), protocolOf("")); err == nil {
			_, _ = s.Write(u32(100)[:1])
		}
	}
	eventually(t, "four are left", func() bool { return w.srv.Status().Streams <= 4 })
	if _, err := honest.Terms(within(t), w.addr); err != nil {
		t.Error(err)
	}
	_ = a.Close()
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() < before+20 })
}

func TestAWaitingStreamKeepsItsPlaceWhenOthersAreOpened(t *testing.T) {
	w := start(t, nil)
	key := newKey(t)
	w.register(w.client(), key)
	a := w.attacker()
	waiting := a.open()
	if got := ask1(t, waiting, auth(key, w.srv.key, ownerKey(a.key))); got.Code != wire.CodeOK {
		t.Fatal(got.Code)
	}
	if _, err := waiting.Write(wire.AppendMailboxRequest(nil, &wire.Wait{Seconds: 900})); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits", func() bool { return w.srv.Status().Waiting == 1 })
	for range 10 {
		if got := ask1(t, a.open(), &wire.TermsRequest{}); got.Code != wire.CodeOK {
			t.Fatal(got.Code)
		}
	}
	if w.srv.Status().Waiting != 1 || w.refused(refusedStreams) != 7 {
		t.Errorf("waiting %d, gave way %d", w.srv.Status().Waiting, w.refused(refusedStreams))
	}
}

func TestNoMoreIsReadOfAStreamThanMayBeUnanswered(t *testing.T) {
	hold, begun := make(chan struct{}), make(chan struct{}, 10_000)
	w := start(t, func(_ *ServerConfig, q *slowQueue) { q.hold, q.begun = hold, begun })
	s := w.attacker().open()
	one := wire.AppendMailboxRequest(nil, &wire.Deposit{Envelope: sealed(1)})
	_ = s.SetWriteDeadline(time.Now().Add(2 * time.Second))
	for range 1000 {
		if _, err := s.Write(one); err != nil {
			break // the window is shut
		}
	}
	if n := len(begun); n > 64 {
		t.Errorf("%d deposits are in hand", n)
	}
	close(hold)
}

func TestAnOverloadedMailboxTurnsDepositsAwayAndServesOwners(t *testing.T) {
	hold, begun := make(chan struct{}), make(chan struct{}, 100)
	w := start(t, func(c *ServerConfig, q *slowQueue) { q.hold, q.begun, c.Limits.Deposits = hold, begun, 8 })
	owner := w.owner()
	tokens := w.tokens(owner, 20)
	s := w.attacker().open()
	for i := range 8 {
		if _, err := s.Write(wire.AppendMailboxRequest(nil, &wire.Deposit{Box: owner.ID(), Token: tokens[i], Envelope: sealed(i)})); err != nil {
			t.Fatal(err)
		}
		<-begun
	}
	sender := w.client()
	_, err := sender.Deposit(within(t), w.addr, wire.Deposit{Box: owner.ID(), Token: tokens[9], Envelope: sealed(9)})
	var refusal *AnswerError
	if !errors.As(err, &refusal) || !errors.Is(err, wire.ErrOverloaded) || refusal.RetryAfter <= 0 {
		t.Errorf("the ninth deposit: %v", err)
	}
	if _, err := owner.Fetch(within(t), 0, 0); err != nil {
		t.Errorf("fetch: %v", err)
	}
	if _, err := owner.Ack(within(t), []uint64{1}); err != nil {
		t.Errorf("ack: %v", err)
	}
	late := newKey(t)
	b, err := w.client().Open(within(t), w.addr, late)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Register(within(t), w.work(late))
	wantIs(t, "a new box meanwhile", err, wire.ErrOverloaded)
	close(hold)
	for range 8 {
		if a := hear(t, s); a.Code != wire.CodeOK {
			t.Errorf("one that was taken: %v", a.Code)
		}
	}
	if _, err := sender.Deposit(within(t), w.addr, wire.Deposit{Box: owner.ID(), Token: tokens[9], Envelope: sealed(9)}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := b.Register(within(t), w.work(late)); err != nil {
		t.Errorf("a new box afterwards: %v", err)
	}
}

func TestSlowCommitsLowerHowManyMayWaitUntilTheyAreFastAgain(t *testing.T) {
	now := time.Unix(1_795_000_000, 0)
	l := &pressure{limits: ServerLimits{Deposits: 100, SlowDeposits: 10}.withDefaults()}
	fill := func() (n int) {
		for l.begin(false, now) {
			n++
		}
		for range n {
			l.end(0, now)
		}
		return n
	}
	if n := fill(); n != 100 {
		t.Errorf("%d places on a quick disk", n)
	}
	l.begin(false, now)
	l.end(600*time.Millisecond, now)
	if n := fill(); n != 10 {
		t.Errorf("%d places after a slow commit", n)
	}
	if l.overloaded(now) {
		t.Error("slow, and nothing waits: not overloaded")
	}
	strangers := 0
	for l.begin(true, now) {
		strangers++
	}
	if strangers != 2 {
		t.Errorf("%d strangers", strangers)
	}
	for range strangers {
		l.end(0, now)
	}
	now = now.Add(recently)
	if n := fill(); n != 100 {
		t.Errorf("%d places some time later", n)
	}
}

func TestAFailureOfTheQueueIsAPassingOneAndTellsNothing(t *testing.T) {
	w := start(t, func(_ *ServerConfig, q *slowQueue) {
		q.before = func(wire.Deposit) error { return errors.New("the disk says /secret/path") }
	})
	a := ask1(t, w.attacker().open(), &wire.Deposit{Envelope: sealed(1)})
	if a.Code != wire.CodeLater || a.RetryAfter == 0 || len(a.Result) != 0 {
		t.Errorf("%+v", a)
	}
}

func TestAFloodOfNewKeysFromOneAddressIsTurnedAwayAndOwnersAreServed(t *testing.T) {
	elsewhere := netip.MustParsePrefix("198.51.100.7/32")
	var first sync.Map
	w := start(t, func(c *ServerConfig, _ *slowQueue) {
		c.Prefixes = func(n network.Conn) []netip.Prefix {
			if honest, _ := first.LoadOrStore("peer", n.RemotePeer()); honest == n.RemotePeer() {
				return []netip.Prefix{elsewhere}
			}
			return one(n)
		}
		c.Limits.WorkRate, c.Limits.WorkBurst = 0.001, 40
	})
	owner := w.owner() // the first to connect
	a := w.attacker()
	made, turned := 0, 0
	for range 200 {
		s, key := a.open(), newKey(t)
		got := ask1(t, s, auth(key, w.srv.key, ownerKey(a.key)))
		if got.Code == wire.CodeOK {
			how := w.work(key)
			got = ask1(t, s, &how)
		}
		switch got.Code {
		case wire.CodeOK:
			made++
		case wire.CodeOverloaded:
			turned++
			if got.RetryAfter == 0 {
				t.Error("turned away without a time to come back")
			}
		default:
			t.Errorf("answered %v", got.Code)
		}
		_ = s.Reset()
	}
	if made != 20 || turned != 180 {
		t.Errorf("%d boxes made, %d turned away", made, turned)
	}
	for range 100 {
		if _, err := owner.Fetch(within(t), 0, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimitsOfAnAddressHoldOnLoopbackToo(t *testing.T) {
	w := start(t, func(c *ServerConfig, _ *slowQueue) {
		c.Prefixes = one
		c.Limits.StreamsPerPrefix, c.Limits.VisitRate, c.Limits.VisitBurst = 6, 0.001, 5
	})
	var last []*attacker
	for range 2 {
		a := w.attacker()
		for range 3 {
			ask1(t, a.open(), &wire.TermsRequest{})
		}
		last = append(last, a)
	}
	if _, err := say(last[0].open(), wire.AppendMailboxRequest(nil, &wire.TermsRequest{})); err == nil || w.refused(refusedPrefixStreams) != 1 {
		t.Errorf("a seventh stream: %v", err)
	}
	for _, a := range last {
		_ = a.Close()
	}
	eventually(t, "places are free", func() bool { return w.srv.Status().Streams == 0 })
	for range 3 {
		a := w.attacker()
		ask1(t, a.open(), &wire.TermsRequest{})
	}
	if _, err := say(w.attacker().open(), wire.AppendMailboxRequest(nil, &wire.TermsRequest{})); err == nil || w.refused(refusedVisits) != 1 {
		t.Errorf("a sixth connection: %v", err)
	}
}

func TestBytesOfAnAddressRunOutAndComeBack(t *testing.T) {
	l := ServerLimits{ByteRate: 1000, ByteBurst: 5000}.withDefaults()
	g := newGate(l)
	now := time.Unix(1_795_000_000, 0)
	narrow, wide := netip.MustParsePrefix("2001:db8:0:100::/56"), netip.MustParsePrefix("2001:db8::/48")
	from := []netip.Prefix{narrow, wide}
	if wait := g.bytes(from, 5000, now); wait != 0 {
		t.Errorf("the burst waits %v", wait)
	}
	if wait := g.bytes(from, 3000, now); wait != 3*time.Second {
		t.Errorf("3000 bytes more wait %v", wait)
	}
	now = now.Add(3 * time.Second)
	if wait := g.bytes(from, 0, now); wait != 0 {
		t.Errorf("3 s later they wait %v", wait)
	}
	for i := range 20 { // many /56 of one /48
		p := netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 0, byte(i + 2)}), 56)
		if wait := g.bytes([]netip.Prefix{p, wide}, 5000, now); i == 19 && wait == 0 {
			t.Error("a /48 has no end")
		}
	}
	if wait := g.bytes(nil, 1<<40, now); wait != 0 {
		t.Error("an exempt connection waits")
	}
}

func TestPrefixesAreForgottenOnceTheyAreAsGoodAsNewAndBounded(t *testing.T) {
	g := newGate(ServerLimits{Prefixes: 4}.withDefaults())
	now := time.Unix(1_795_000_000, 0)
	at := func(i int) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)}
	}
	for i := range 4 {
		if why := g.enter(at(i), true, now); why != "" {
			t.Fatal(why)
		}
	}
	if why := g.enter(at(4), true, now); why != refusedPrefixes {
		t.Errorf("a fifth address: %q", why)
	}
	g.leave(at(0))
	if why := g.enter(at(4), true, now.Add(time.Hour)); why != "" {
		t.Errorf("in the place of one that left: %q", why)
	}
}

// at is a connection from an address.
type at struct {
	network.Conn
	addr string
}

func (c at) RemoteMultiaddr() ma.Multiaddr { return ma.StringCast(c.addr) }

func TestConnectionsAreCountedByTheirNetworksAndOwnOnesByNothing(t *testing.T) {
	for addr, want := range map[string]string{
		"/ip4/127.0.0.1/tcp/1":                  "[]",
		"/ip6/::1/udp/1/quic-v1":                "[]",
		"/ip4/192.0.2.7/tcp/1":                  "[192.0.2.7/32]",
		"/ip6/::ffff:192.0.2.7/tcp/1":           "[192.0.2.7/32]",
		"/ip6/2001:db8:0:1234::5/udp/1/quic-v1": "[2001:db8:0:1200::/56 2001:db8::/48]",
		"/ip6/fe80::1/tcp/1":                    "[fe80::/56 fe80::/48]",
		"/dns4/mailbox.example.org/tcp/1":       "[0.0.0.0/0]",
		"/p2p-circuit/ip4/192.0.2.7/tcp/1":      "[0.0.0.0/0]",
	} {
		if got := fmt.Sprint(PrefixesOf(at{addr: addr})); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
}

func TestRoomForAPrefixIsNeverMadeByForgettingTheOneBesideIt(t *testing.T) {
	g := newGate(ServerLimits{Prefixes: 2}.withDefaults())
	now := time.Unix(1_795_000_000, 0)
	from := func(i byte) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, i, 0, 0, 0, 0, 1}), 56), netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, i}), 48)}
	}
	for i := range byte(10) {
		if why := g.enter(from(i), true, now); why != "" {
			t.Fatalf("%d: %s", i, why)
		}
		g.bytes(from(i), 1, now)
		g.leave(from(i))
		now = now.Add(time.Hour)
	}
	if len(g.at) > 2 {
		t.Errorf("%d prefixes are remembered", len(g.at))
	}
}

func TestOwnersAndTheirSendersAreServedThroughAFloodFromManyAddresses(t *testing.T) {
	var names sync.Map // which address a peer is counted by
	w := start(t, func(c *ServerConfig, q *slowQueue) {
		c.Prefixes = func(n network.Conn) []netip.Prefix {
			p, ok := names.Load(n.RemotePeer())
			if !ok {
				return []netip.Prefix{netip.MustParsePrefix("203.0.113.1/32")}
			}
			return []netip.Prefix{p.(netip.Prefix)}
		}
		c.Limits.VisitBurst, c.Limits.WorkBurst, c.Limits.ByteBurst, c.Limits.ByteRate = 30, 30, 1<<20, 256<<10
	})
	owner, sender := w.owner(), w.client()
	if _, err := sender.Terms(within(t), w.addr); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var flood sync.WaitGroup
	for i := range 1 + some(16) {
		a := w.attacker()
		names.Store(a.ID(), netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), 32))
		var mine []byte
		for j := range 20 {
			key := newKey(t)
			how := w.work(key)
			mine = wire.AppendMailboxRequest(mine, auth(key, w.srv.key, ownerKey(a.key)))
			mine = wire.AppendMailboxRequest(mine, &how)
			mine = wire.AppendMailboxRequest(mine, &wire.Deposit{Box: owner.ID(), Token: [16]byte{byte(j)}, Envelope: sealed(j)})
			mine = wire.AppendMailboxRequest(mine, &wire.Prove{Box: owner.ID()})
		}
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s, err := a.NewStream(context.Background(), w.host.ID(), protocolOf(""))
				if err != nil {
					return
				}
				_ = s.SetDeadline(time.Now().Add(time.Second))
				_, _ = s.Write(mine)
				_, _ = io.CopyN(io.Discard, s, 100)
				_ = s.Reset()
			}
		})
	}
	after := uint64(0)
	for i := range some(100) {
		d := wire.Deposit{Box: owner.ID(), Token: w.tokens(owner, 1)[0], Envelope: sealed(i)}
		if _, err := sender.Deposit(within(t), w.addr, d); err != nil {
			t.Errorf("deposit %d: %v", i, err)
			continue
		}
		page, err := owner.Wait(within(t), after, 0, time.Minute)
		if err != nil || len(page.Mail) != 1 {
			t.Errorf("wait %d: %d envelopes, %v", i, len(page.Mail), err)
			continue
		}
		after = page.Mail[0].ID
		if _, err := owner.Ack(within(t), []uint64{after}); err != nil {
			t.Errorf("ack %d: %v", i, err)
		}
	}
	close(stop)
	flood.Wait()
	if w.refused(refusedWork)+w.refused(refusedVisits)+w.refused(refusedBytes) == 0 {
		t.Error("the flood met no limit, so this proves nothing")
	}
	if st := w.q.Stats(); st.Unaccounted != 0 || st.Bytes > st.Ceiling {
		t.Errorf("%+v", st)
	}
}

func TestTenThousandFramesOfEveryKindAgainstALiveMailbox(t *testing.T) {
	w := start(t, fast)
	owner, sender := w.owner(), w.client()
	tokens := w.tokens(owner, 30)
	good := [][]byte{
		wire.AppendMailboxRequest(nil, &wire.TermsRequest{}), wire.AppendMailboxRequest(nil, &wire.Fetch{}), wire.AppendMailboxRequest(nil, &wire.Prove{}),
		wire.AppendMailboxRequest(nil, &wire.PoolChange{Add: make([][16]byte, 9)}), wire.AppendMailboxRequest(nil, &wire.AckMail{IDs: make([]uint64, 9)}),
		wire.AppendMailboxRequest(nil, &wire.Admission{Voucher: make([]byte, 9)}), wire.AppendMailboxRequest(nil, &wire.Wait{Seconds: 1}),
		wire.AppendMailboxRequest(nil, &wire.RepublishList{List: make([]wire.Republish, 2)}), wire.AppendMailboxRequest(nil, &wire.Auth{}),
		wire.AppendMailboxRequest(nil, &wire.Deposit{Envelope: make([]byte, 100)}),
	}
	rnd := canon.SigInput("seed", nil)
	next := func(n int) int { h := hashOf(rnd); rnd = h[:]; return int(binary.BigEndian.Uint32(rnd)>>1) % n }
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	a := w.attacker()
	for i := 0; i < some(10_000); {
		s, err := a.NewStream(within(t), w.host.ID(), protocolOf(""))
		if err != nil {
			t.Fatal(err)
		}
		_ = s.SetDeadline(time.Now().Add(5 * time.Second))
		var all []byte
		for range 100 {
			f := bytes.Clone(good[next(len(good))])
			if next(4) == 0 {
				f[next(len(f))] ^= byte(1 << next(8))
			}
			all = append(all, f...)
			i++
		}
		go func() { _, _ = io.Copy(io.Discard, s) }()
		_, _ = s.Write(all)
		_ = s.CloseWrite()
		if i%1000 == 0 {
			d := wire.Deposit{Box: owner.ID(), Token: tokens[i/1000], Envelope: sealed(i)}
			if _, err := sender.Deposit(within(t), w.addr, d); err != nil {
				t.Fatalf("an honest deposit meanwhile: %v", err)
			}
		}
	}
	_ = a.Close()
	eventually(t, "only the honest are left", func() bool { return w.srv.Status().Streams <= 2 })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("%d bytes are held afterwards", grown)
	}
	if page, err := owner.Fetch(context.Background(), 0, 0); err != nil || len(page.Mail) != some(10_000)/1000 {
		t.Errorf("%d envelopes, %v", len(page.Mail), err)
	}
}
