package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	libp2precord "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-msgio"
	"google.golang.org/protobuf/proto"

	"sotto/record"
	"sotto/wire"
)

// falseServer is a DHT server that looks like one and answers requests for records as it likes.
func falseServer(t *testing.T, lie func(s network.Stream, req *pb.Message)) (addr string, id peer.ID, mute *atomic.Bool) {
	t.Helper()
	mute = new(atomic.Bool) // lie about where other servers are, too
	proto1 := protocolsOf("")
	opts, err := commonOptions(newKey(t), proto1, time.Second, true)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(append(opts, libp2p.ListenAddrStrings(loopback...), libp2p.ResourceManager(&network.NullResourceManager{}))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	h.SetStreamHandler(proto1.kad, func(s network.Stream) {
		defer func() { _ = s.Close() }()
		b, err := msgio.NewVarintReaderSize(s, 1<<20).ReadMsg()
		req := new(pb.Message)
		if err != nil || proto.Unmarshal(b, req) != nil {
			return
		}
		if req.GetType() == pb.Message_FIND_NODE && !mute.Load() { // without this it would get no place in anybody's table
			answer := pb.NewMessage(req.GetType(), req.GetKey(), 0)
			answer.CloserPeers = []*pb.Message_Peer{{Id: []byte(h.ID()), Addrs: addrBytes(h)}}
			_ = writeDelimited(s, answer)
			return
		}
		lie(s, req)
	})
	return fmt.Sprintf("%s/p2p/%s", h.Addrs()[0], h.ID()), h.ID(), mute
}

func addrBytes(h host.Host) (out [][]byte) {
	for _, a := range h.Addrs() {
		out = append(out, a.Bytes())
	}
	return out
}

// lies about a record: each is an answer to GET_VALUE.
func lies(older, foreign []byte) map[string]func(s network.Stream, req *pb.Message) {
	with := func(value []byte) func(network.Stream, *pb.Message) {
		return func(s network.Stream, req *pb.Message) {
			answer := pb.NewMessage(req.GetType(), req.GetKey(), 0)
			answer.Record = libp2precord.MakePutRecord(string(req.GetKey()), value)
			_ = writeDelimited(s, answer)
		}
	}
	return map[string]func(s network.Stream, req *pb.Message){
		"another's record": with(foreign),
		"an old record":    with(older),
		"an empty record":  with(nil),
		"a huge record":    with(make([]byte, 100<<10)),
		"more than any":    with(make([]byte, maxKadAnswer+1)),
		"a length of 2^63": func(s network.Stream, _ *pb.Message) { _, _ = s.Write(bytes.Repeat([]byte{0xff}, 9)) },
		"garbage":          func(s network.Stream, _ *pb.Message) { _, _ = s.Write([]byte("\x07garbage")) },
		"a reset":          func(s network.Stream, _ *pb.Message) { _ = s.Reset() },
		"never":            func(s network.Stream, _ *pb.Message) { _, _ = s.Read(make([]byte, 1)) },
	}
}

func TestADHTServerThatLiesHidesNothingAnHonestOneHas(t *testing.T) {
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	now := time.Now()
	name, good := sealRecord(t, seed, "new", uint64(now.Unix()), now.Add(time.Hour))
	_, older := sealRecord(t, seed, "old", uint64(now.Unix())-100, now.Add(time.Hour))
	_, foreign := inviteRecord(t, "foreign", uint64(now.Unix()))
	for what, lie := range lies(older, foreign) {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			v := startVolunteer(t, nil)
			addr, id, _ := falseServer(t, lie)
			p := start(t, func(c *Config, _ *person) {
				c.Bootstrap = append(v.Addrs(), addr)
				c.Limits.DHTTimeout = time.Second
			})
			eventually(t, "both servers are known", func() bool {
				return p.kad.WAN.RoutingTable().Find(id) != "" && p.kad.WAN.RoutingTable().Find(v.dht.ID()) != ""
			})
			if err := put(t, p, v.dht.ID(), record.Key(name), good); err != nil {
				t.Fatal(err)
			}
			if got, err := p.Find(within(t, 20*time.Second), name); err != nil || !bytes.Equal(got, good) {
				t.Errorf("Find: the newest: %v, %v", bytes.Equal(got, good), err)
			}
			got, err := p.Fetch(within(t, 20*time.Second), name, nil)
			if err != nil || !bytes.Equal(got, good) && !bytes.Equal(got, older) { // of an invite any that its owner made will do
				t.Errorf("Fetch: %v", err)
			}
		})
	}
}

func TestADHTServerThatLiesAloneIsNotBelieved(t *testing.T) {
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	now := time.Now()
	name, older := sealRecord(t, seed, "old", uint64(now.Unix())-100, now.Add(time.Hour))
	_, foreign := inviteRecord(t, "foreign", uint64(now.Unix()))
	for what, lie := range lies(older, foreign) {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			addr, id, _ := falseServer(t, lie)
			p := start(t, func(c *Config, _ *person) { c.Bootstrap, c.Limits.DHTTimeout = []string{addr}, time.Second })
			eventually(t, "the server is known", func() bool { return p.kad.WAN.RoutingTable().Find(id) != "" })
			got, err := p.Find(within(t, 20*time.Second), name)
			if what == "an old record" { // its owner did sign it: whoever reads it compares its number
				if err != nil || !bytes.Equal(got, older) {
					t.Errorf("%v", err)
				}
			} else if err == nil {
				t.Errorf("%d bytes were believed", len(got))
			}
		})
	}
}

func TestAFrontHostThatLiesAboutAnInviteIsPassedOver(t *testing.T) {
	name, good := inviteRecord(t, "hello", uint64(time.Now().Unix()))
	_, foreign := inviteRecord(t, "foreign", uint64(time.Now().Unix()))
	flipped := bytes.Clone(good)
	flipped[100] ^= 1
	for what, answer := range map[string][]byte{
		"another's record": wire.KnockAnswer{Record: foreign}.Append(nil),
		"a flipped bit":    wire.KnockAnswer{Record: flipped}.Append(nil),
		"cut":              wire.KnockAnswer{Record: good[:4000]}.Append(nil),
		"nothing":          wire.KnockAnswer{}.Append(nil),
		"too long":         u32(1 << 30),
		"garbage":          append(u32(5), "12345"...),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			honest, liar, p := start(t, nil), start(t, nil), start(t, nil)
			honest.mu.Lock()
			honest.bundles[name] = good
			honest.mu.Unlock()
			liar.front.SetStreamHandler(liar.proto.knock, func(s network.Stream) {
				_, _ = s.Write(answer)
				_ = s.Close()
			})
			if _, err := p.Fetch(within(t, 20*time.Second), name, []string{liar.Hint()}); err == nil {
				t.Error("it was believed")
			}
			got, err := p.Fetch(within(t, 20*time.Second), name, []string{liar.Hint(), honest.Hint()})
			if err != nil || !bytes.Equal(got, good) {
				t.Errorf("with an honest one beside it: %v", err)
			}
		})
	}
}

func TestAServerThatNeverAnswersKeepsNoRecordFromTheOthers(t *testing.T) {
	addr, id, mute := falseServer(t, func(s network.Stream, _ *pb.Message) { _, _ = s.Read(make([]byte, 1)) })
	v := startVolunteer(t, nil)
	p := start(t, func(c *Config, _ *person) {
		c.Bootstrap = append(v.Addrs(), addr)
		c.Limits.DHTTimeout = time.Minute // far beyond what the caller has
	})
	eventually(t, "both servers are known", func() bool {
		return p.kad.WAN.RoutingTable().Find(id) != "" && p.kad.WAN.RoutingTable().Find(v.dht.ID()) != ""
	})
	mute.Store(true)
	name, value := inviteRecord(t, "hello", uint64(time.Now().Unix()))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := p.Publish(ctx, name, value); err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Error("it took all the time there was")
	}
	if n := v.Status().Records; n != 1 {
		t.Errorf("%d records at the server that answers", n)
	}
}

func TestServersThatWereDialledInVainAreNotWaitedFor(t *testing.T) {
	gone := startVolunteer(t, nil).Addrs()[0]
	p := start(t, func(c *Config, _ *person) {
		c.Bootstrap = []string{gone[:len(gone)-52] + newPeerID(t)} // somebody else answers there
	})
	eventually(t, "it was dialled", func() bool { return !p.known.hope() })
	name, value := inviteRecord(t, "hello", uint64(time.Now().Unix()))
	ctx, cancel := context.WithTimeout(t.Context(), serverWait/2)
	defer cancel()
	wantErr(t, p.Publish(ctx, name, value), wire.ErrUnreachable)
	if ctx.Err() != nil {
		t.Error("it took all the time there was")
	}
}

func newPeerID(t *testing.T) string {
	t.Helper()
	id, err := peerOf(innerKey(newKey(t)))
	if err != nil {
		t.Fatal(err)
	}
	return id.String()
}
