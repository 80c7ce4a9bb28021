package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"io"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"sotto/internal/canon"
	"sotto/wire"
)

// attacker is a bare libp2p host that speaks our protocols by hand.
type attacker struct {
	host.Host
	key ed25519.PrivateKey
	to  peer.ID
}

// attack connects a bare host to one of p's hosts; admitted says whether p knows its key as a contact's.
func attack(t *testing.T, p *person, role Role, admitted bool) *attacker {
	t.Helper()
	key := newKey(t)
	opts, err := commonOptions(key, p.proto, time.Second, true)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(append(opts, libp2p.ListenAddrStrings(loopback...), libp2p.ResourceManager(&network.NullResourceManager{}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	if admitted {
		p.Admit([][32]byte{innerKey(key)})
	}
	target := p.inner
	if role == RoleFront {
		target = p.front
	}
	a := &attacker{Host: h, key: key, to: target.ID()}
	if err := h.Connect(within(t, 10*time.Second), peer.AddrInfo{ID: a.to, Addrs: target.Addrs()}); err != nil && admitted {
		t.Fatal(err)
	}
	return a
}

func (a *attacker) open(t *testing.T, id protocol.ID) network.Stream {
	t.Helper()
	s, err := a.NewStream(within(t, 10*time.Second), a.to, id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// say writes bytes, ends the stream's writing side and reads everything that comes back.
func say(t *testing.T, s network.Stream, b []byte) ([]byte, error) {
	t.Helper()
	_ = s.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := s.Write(b); err != nil {
		return nil, err
	}
	_ = s.CloseWrite()
	return io.ReadAll(s)
}

func (p *person) refused(name string) uint64 { return p.Status().Refused[name] }

func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func fast(c *Config, _ *person) {
	c.Limits = Limits{FrameTimeout: 300 * time.Millisecond, WriteTimeout: 300 * time.Millisecond, KnockRate: 1000, KnockBurst: 1000, GetRate: 1000, GetBurst: 1000}
}

func TestMalformedOffersEndTheStreamAndAreCounted(t *testing.T) {
	good := wire.Offer{ID: 1, Item: []byte("hello")}.Append(nil)
	second := wire.Offer{ID: 3, Item: []byte("again")}.Append(nil)
	padded := bytes.Clone(good)
	padded[len(padded)-1] = 1
	for _, c := range []struct {
		name  string
		bytes []byte
		count string
	}{
		{"length zero", u32(0), refusedFrameSize},
		{"length 2^32-1 without a body", u32(1<<32 - 1), refusedFrameSize},
		{"length one over the limit", u32(wire.MaxOfferFrame - 4 + 1), refusedFrameSize},
		{"body shorter than its length", good[:len(good)-1], refusedTruncated},
		{"valid frame, then garbage", append(bytes.Clone(good), bytes.Repeat([]byte{0xff}, 64)...), refusedFrameSize},
		{"not a multiple of 512", append(u32(100), make([]byte, 100)...), refusedOffer},
		{"item longer than the frame", append(append(u32(508), u32(1)...), append(u32(1<<31), make([]byte, 500)...)...), refusedOffer},
		{"no item", wire.Offer{ID: 1}.Append(nil), refusedOffer},
		{"padding that is not zero", padded, refusedOffer},
		{"first id is not one", second, refusedOffer},
		{"same id twice", append(bytes.Clone(good), good...), refusedOffer},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, fast)
			a := attack(t, p, RoleInner, true)
			s := a.open(t, p.proto.direct)
			if _, err := say(t, s, c.bytes); err == nil {
				t.Error("the stream ended well")
			}
			eventually(t, c.count, func() bool { return p.refused(c.count) == 1 })
		})
	}
}

func TestAnOfferCutAtAnyByteIsRefusedOrIgnoredAndNeverHandedOn(t *testing.T) {
	p := start(t, fast)
	a := attack(t, p, RoleInner, true)
	frame := wire.Offer{ID: 1, Item: []byte("hello")}.Append(nil)
	for cut := range len(frame) {
		s := a.open(t, p.proto.direct)
		_, _ = say(t, s, frame[:cut])
	}
	eventually(t, "every cut counted", func() bool { return p.refused(refusedTruncated)+p.refused(refusedStreams) >= uint64(len(frame)-1) })
	if got := p.received(); len(got) != 0 {
		t.Fatalf("%d items were handed on", len(got))
	}
}

func TestAHugeLengthAllocatesNothing(t *testing.T) {
	p := start(t, fast)
	a := attack(t, p, RoleInner, true)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 100 {
		_, _ = say(t, a.open(t, p.proto.direct), u32(1<<32-1))
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
		t.Fatalf("100 such frames allocated %d bytes", grown)
	}
}

func TestAByteAtATimeRunsIntoTheDeadline(t *testing.T) {
	p := start(t, fast)
	a := attack(t, p, RoleInner, true)
	frame := wire.Offer{ID: 1, Item: []byte("hello")}.Append(nil)
	s := a.open(t, p.proto.direct)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for i := 0; i < len(frame); i++ {
		if _, err := s.Write(frame[i : i+1]); err != nil {
			break
		}
		if p.refused(refusedSlow) == 1 {
			return
		}
		<-tick.C
	}
	eventually(t, "slow frame counted", func() bool { return p.refused(refusedSlow) == 1 })
}

func TestAStreamThatNeverWritesCostsAPlaceAndNothingElse(t *testing.T) {
	p, q := start(t, fast), start(t, nil)
	a := attack(t, p, RoleInner, true)
	p.Admit([][32]byte{innerKey(a.key), innerKey(q.key)})
	q.Admit([][32]byte{innerKey(p.key)})
	for range 20 {
		s := a.open(t, p.proto.direct)
		if _, err := s.Write(u32(508)[:1]); err != nil { // opened lazily: the first byte makes it exist
			t.Log(err)
		}
	}
	eventually(t, "streams over the limit ended", func() bool { return p.refused(refusedStreams) >= 1 && p.refused(refusedSlow) >= 1 })
	if err := q.Send(within(t, 10*time.Second), p.Reach(), numbered(3), func(int, wire.Answer) {}); err != nil {
		t.Fatalf("somebody else's delivery meanwhile: %v", err)
	}
}

func TestAPeerThatNeverReadsItsAnswersLosesTheStream(t *testing.T) {
	p := start(t, fast)
	a := attack(t, p, RoleInner, true)
	s := a.open(t, p.proto.direct)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	item := []byte("x")
	for id := uint32(1); ctx.Err() == nil; id++ {
		if _, err := s.Write((wire.Offer{ID: id, Item: item}).Append(nil)); err != nil {
			break
		}
	}
	eventually(t, "unread answers counted", func() bool { return p.refused(refusedNeverRead) >= 1 })
}

func TestAStrangerGetsNoConnectionToTheInnerHost(t *testing.T) {
	p := start(t, nil)
	a := attack(t, p, RoleInner, false)
	eventually(t, "turned away", func() bool { return p.refused(turnedAway) >= 1 })
	if _, err := a.NewStream(within(t, 5*time.Second), a.to, p.proto.direct); err == nil {
		t.Fatal("a stranger opened a stream")
	}
}

func TestARemovedContactIsCutOff(t *testing.T) {
	p, q := start(t, nil), start(t, nil)
	friends(p, q)
	if err := q.Send(within(t, 10*time.Second), p.Reach(), numbered(1), func(int, wire.Answer) {}); err != nil {
		t.Fatal(err)
	}
	p.Admit(nil)
	eventually(t, "disconnected", func() bool { return !connected(q.inner.Network(), p.inner.ID()) })
	err := q.Send(within(t, 5*time.Second), p.Reach(), numbered(1), func(int, wire.Answer) { t.Error("answered") })
	wantErr(t, err, wire.ErrUnreachable)
	wantErr(t, p.Send(within(t, 5*time.Second), q.Reach(), numbered(1), nil), wire.ErrUnreachable)
}

// liar serves the direct protocol with answers of its own making.
func liar(t *testing.T, p *person, answers func(s network.Stream)) wire.Reach {
	t.Helper()
	a := attack(t, p, RoleInner, true)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	a.SetStreamHandler(p.proto.direct, func(s network.Stream) {
		wg.Add(1)
		defer wg.Done()
		buf := make([]byte, 512)
		if _, err := io.ReadFull(s, buf); err == nil {
			answers(s)
		}
	})
	t.Cleanup(func() { _ = a.Close() })
	r := wire.Reach{InnerKey: innerKey(a.key)}
	for _, addr := range a.Addrs() {
		r.Inner = append(r.Inner, addr.Bytes())
	}
	return r
}

func TestAnswersThatLieEndTheStreamAndAreCounted(t *testing.T) {
	ok := func(id uint32) []byte { return wire.Answer{ID: id}.Append(nil) }
	for _, c := range []struct {
		name    string
		answer  []byte
		settled int
	}{
		{"id of no offer", ok(7), 0},
		{"answer twice", append(ok(1), ok(1)...), 1},
		{"length zero", u32(0), 0},
		{"length 2^32-1", u32(1<<32 - 1), 0},
		{"a byte too short", append(u32(wire.AnswerSize-1), make([]byte, wire.AnswerSize-1)...), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, nil)
			to := liar(t, p, func(s network.Stream) {
				_, _ = s.Write(c.answer)
				_, _ = io.Copy(io.Discard, s)
			})
			settled := 0
			err := p.Send(within(t, 10*time.Second), to, numbered(2), func(int, wire.Answer) { settled++ })
			wantErr(t, err, wire.ErrUnreachable)
			if settled != c.settled {
				t.Errorf("%d items were settled, want %d", settled, c.settled)
			}
			eventually(t, "counted", func() bool { return p.refused(refusedAnswer) >= 1 })
		})
	}
}

func TestAPeerThatNeverAnswersIsNoticed(t *testing.T) {
	p := start(t, func(c *Config, _ *person) { c.Limits.AnswerTimeout = 200 * time.Millisecond })
	to := liar(t, p, func(s network.Stream) { _, _ = io.Copy(io.Discard, s) })
	err := p.Send(within(t, 10*time.Second), to, numbered(2), func(int, wire.Answer) { t.Error("settled") })
	wantErr(t, err, wire.ErrUnreachable)
	if p.refused(silentPeer) != 1 {
		t.Fatalf("counters: %v", p.Status().Refused)
	}
}

func TestAStreamResetAfterEveryByteOfAnAnswerFailsTheSend(t *testing.T) {
	answer := wire.Answer{ID: 1}.Append(nil)
	for cut := range len(answer) {
		p := start(t, nil)
		to := liar(t, p, func(s network.Stream) {
			_, _ = s.Write(answer[:cut])
			_ = s.Reset()
		})
		err := p.Send(within(t, 10*time.Second), to, numbered(1), func(int, wire.Answer) { t.Error("settled") })
		wantErr(t, err, wire.ErrUnreachable)
	}
}

func TestOversizeItemsAreRefusedBeforeAnythingIsSent(t *testing.T) {
	p := start(t, nil)
	wantErr(t, p.Send(context.Background(), wire.Reach{}, [][]byte{make([]byte, wire.MaxItem+1)}, nil), wire.ErrTooLarge)
	wantErr(t, p.Send(context.Background(), wire.Reach{}, [][]byte{{}}, nil), wire.ErrTooLarge)
	_, err := p.Knock(context.Background(), wire.Reach{}, [32]byte{}, make([]byte, wire.MaxEnvelope+1))
	wantErr(t, err, wire.ErrTooLarge)
}

func TestMalformedKnocksAreRefusedAndCounted(t *testing.T) {
	get := (&wire.KnockGet{}).Append(nil)
	put := (&wire.KnockPut{Envelope: []byte("e")}).Append(nil)
	for _, c := range []struct {
		name  string
		bytes []byte
		count string
	}{
		{"length zero", u32(0), refusedFrameSize},
		{"length 2^32-1 without a body", u32(1<<32 - 1), refusedFrameSize},
		{"envelope one over the limit", (&wire.KnockPut{Envelope: make([]byte, 8<<10+1)}).Append(nil), refusedFrameSize},
		{"body shorter than its length", get[:len(get)-1], refusedTruncated},
		{"unknown request", append(u32(1), 9), refusedKnock},
		{"valid frame, then garbage", append(bytes.Clone(get), 1), refusedKnock},
		{"two requests", append(bytes.Clone(get), get...), refusedKnock},
		{"envelope longer than the frame", append(append(u32(45), 2), make([]byte, 40)...), refusedTruncated},
		{"no stamp", put, refusedKnockStamp},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, fast)
			a := attack(t, p, RoleFront, false)
			_, _ = say(t, a.open(t, p.proto.knock), c.bytes)
			eventually(t, c.count, func() bool { return p.refused(c.count) == 1 })
			if len(p.knocks) != 0 {
				t.Error("an envelope was handed on")
			}
		})
	}
}

func TestAKnockCutAtAnyByteIsRefused(t *testing.T) {
	p := start(t, fast)
	a := attack(t, p, RoleFront, false)
	frame := (&wire.KnockPut{Name: [32]byte{1}, Envelope: []byte("e")}).Append(nil)
	p.bundles[[32]byte{1}] = []byte("live")
	for cut := 1; cut < len(frame); cut++ {
		_, _ = say(t, a.open(t, p.proto.knock), frame[:cut])
	}
	eventually(t, "every cut counted", func() bool { return p.refused(refusedTruncated) == uint64(len(frame)-1) })
	if len(p.knocks) != 0 {
		t.Error("an envelope was handed on")
	}
}

func TestKnocksFromOneAddressAreLimited(t *testing.T) {
	p := start(t, func(c *Config, _ *person) { c.Limits = Limits{KnockRate: 0.001, KnockBurst: 3} })
	q := start(t, nil)
	name := [32]byte{1}
	p.bundles[name] = []byte("live")
	for i := range 5 {
		a, err := q.Knock(within(t, 10*time.Second), p.Reach(), name, []byte("e"))
		want := wire.CodeOK
		if i >= 3 {
			want = wire.CodeOverloaded
		}
		if err != nil || a.Code != want || (want != wire.CodeOK && a.RetryAfter == 0) {
			t.Fatalf("knock %d: %+v, %v", i, a, err)
		}
	}
	if p.refused(refusedKnockRate) != 2 {
		t.Fatalf("counters: %v", p.Status().Refused)
	}
}

func TestASilentKnockIsCutOffAndOthersAreServedMeanwhile(t *testing.T) {
	p := start(t, fast)
	a := attack(t, p, RoleFront, false)
	for range 5 {
		s := a.open(t, p.proto.knock)
		if _, err := s.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
	}
	q := start(t, nil)
	name, value := inviteRecord(t, "hello", 1)
	p.bundles[name] = value
	if _, err := q.Fetch(within(t, 10*time.Second), name, []string{p.Hint()}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "silent knocks cut off", func() bool { return p.refused(refusedSlow) == 5 })
}

func TestMalformedPingsAreRefusedAndCounted(t *testing.T) {
	p := start(t, nil)
	a := attack(t, p, RoleInner, true)
	for i, b := range [][]byte{u32(0), u32(1<<32 - 1), append(u32(3), 1, 2, 3), append(u32(17), make([]byte, 17)...), append(u32(16), make([]byte, 15)...), append(u32(16), make([]byte, 20)...)} {
		if _, err := say(t, a.open(t, p.proto.ping), b); err == nil {
			t.Errorf("ping %d ended well", i)
		}
	}
	eventually(t, "counted", func() bool { return p.refused(refusedPing) == 6 })
	back, err := say(t, a.open(t, p.proto.ping), append(u32(16), bytes.Repeat([]byte{7}, 16)...))
	if err != nil || !bytes.Equal(back, append(u32(16), bytes.Repeat([]byte{7}, 16)...)) {
		t.Fatalf("a good ping after them: %x, %v", back, err)
	}
}

func TestPingMeasuresARoundTrip(t *testing.T) {
	a, b := start(t, nil), start(t, nil)
	friends(a, b)
	rtt, err := a.Ping(within(t, 10*time.Second), b.Reach())
	if err != nil || rtt <= 0 {
		t.Fatalf("ping: %v, %v", rtt, err)
	}
}

// FuzzVolunteerLists: no panic, and what is read back marshals to the same bytes.
func FuzzVolunteerLists(f *testing.F) {
	service := ed25519.NewKeyFromSeed(make([]byte, 32))
	terms := Terms{Service: innerKey(service), Issued: time.Unix(1e9, 0), ServiceAddrs: [][]byte{ma.StringCast("/ip4/1.2.3.4/tcp/1").Bytes()}}
	f.Add(terms.marshal(service))
	f.Add(list{Time: time.Unix(1e9, 0), Entries: [][]byte{terms.marshal(service)}}.marshal(service))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got, err := parseTerms(b); err == nil && !bytes.Equal(got.marshal(service), b) {
			t.Error("terms do not read back the same")
		}
		if at, all, err := parseList(b, innerKey(service)); err == nil && len(all) > 0 && at.IsZero() {
			t.Error("list without a time")
		}
	})
}

func TestListsOfVolunteersThatLieAreRefused(t *testing.T) {
	service, other := newKey(t), newKey(t)
	now := time.Unix(1_700_000_000, 0)
	terms := func(k ed25519.PrivateKey, at time.Time) []byte {
		return Terms{Service: innerKey(k), DHT: [32]byte{1}, Issued: at}.marshal(k)
	}
	good := list{Time: now, Entries: [][]byte{terms(service, now), terms(other, now), terms(other, now.Add(-8*24*time.Hour)), []byte("garbage")}}.marshal(service)
	if at, all, err := parseList(good, innerKey(service)); err != nil || len(all) != 2 || !at.Equal(now) {
		t.Fatalf("a good list: %v, %d, %v", at, len(all), err)
	}
	flip := func(i int) []byte { b := bytes.Clone(good); b[i] ^= 1; return b }
	for name, b := range map[string][]byte{
		"empty": {}, "newer": flip(0), "time changed": flip(3), "signature": flip(len(good) - 1),
		"signed by another":       list{Time: now, Entries: [][]byte{terms(service, now)}}.marshal(other),
		"no entry":                list{Time: now}.marshal(service),
		"first entry by another":  list{Time: now, Entries: [][]byte{terms(other, now)}}.marshal(service),
		"trailing byte":           append(bytes.Clone(good), 0),
		"too long":                make([]byte, maxList+1),
		"critical extension":      list{Time: now, Entries: [][]byte{terms(service, now)}}.marshalWith(service, 0x8001),
		"address that is no such": Terms{Service: innerKey(service), ServiceAddrs: [][]byte{{0xff}}}.marshal(service),
	} {
		if _, _, err := parseList(b, innerKey(service)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for cut := range good {
		if _, _, err := parseList(good[:cut], innerKey(service)); err == nil {
			t.Errorf("cut at %d: accepted", cut)
		}
	}
	if _, _, err := parseList(good, innerKey(other)); err == nil {
		t.Error("a list heard from somebody else was accepted")
	}
}

// marshalWith signs the list with one extension.
func (l list) marshalWith(service ed25519.PrivateKey, id uint16) []byte {
	var w canon.Writer
	w.U8(listVersion).U64(uint64(l.Time.UnixMilli())).U8(uint8(len(l.Entries)))
	for _, e := range l.Entries {
		w.LP(e)
	}
	w.Extensions([]canon.Extension{{ID: id, Data: []byte("x")}})
	return append(w.Bytes(), canon.Sign(service, listType, w.Bytes())...)
}

func TestAHostileVolunteerIsCountedAndTeachesNothing(t *testing.T) {
	v := startVolunteer(t, nil)
	evil := func(s network.Stream) {
		_, _ = s.Write(u32(1<<32 - 1))
		_ = s.CloseWrite()
	}
	v.dht.SetStreamHandler(v.proto.volunteers, evil)
	p := start(t, nil)
	if err := p.Connect(within(t, 10*time.Second), v.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	v.dht.SetStreamHandler(v.proto.volunteers, func(s network.Stream) {
		_ = wire.WriteFrame(s, []byte("no list at all, but long enough to hold a signature of sixty-four bytes"))
		_ = s.CloseWrite()
	})
	wake(p.learnWake)
	eventually(t, "counted", func() bool { return p.refused(refusedList) >= 1 })
	if len(p.known.relays()) != 0 {
		t.Fatal("learned a relay")
	}
}

func TestRequestsForAListThatCarryBytesAreRefused(t *testing.T) {
	v := startVolunteer(t, nil)
	p := start(t, nil)
	if err := p.Connect(within(t, 10*time.Second), v.Addrs()[0]); err != nil {
		t.Fatal(err)
	}
	s, err := p.front.NewStream(within(t, 10*time.Second), v.dht.ID(), v.proto.volunteers)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := say(t, s, []byte("please")); err == nil {
		t.Fatalf("answered with %d bytes", len(b))
	}
	eventually(t, "counted", func() bool { return v.Status().Refused[refusedList] == 1 })
}
