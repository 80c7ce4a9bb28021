package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"strings"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	dssync "github.com/ipfs/go-datastore/sync"
	pb "github.com/libp2p/go-libp2p-kad-dht/pb"
	libp2precord "github.com/libp2p/go-libp2p-record"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"sotto/record"
	"sotto/wire"
)

// put sends a PUT_VALUE by hand and reports what the server made of it.
func put(t *testing.T, p *person, server peer.ID, key string, value []byte) error {
	t.Helper()
	s := &kadSender{h: p.front, ids: []protocol.ID{p.proto.kad}, timeout: 5 * time.Second}
	m := pb.NewMessage(pb.Message_PUT_VALUE, []byte(key), 0)
	m.Record = libp2precord.MakePutRecord(key, value)
	_, err := s.SendRequest(within(t, 10*time.Second), server, m)
	return err
}

func TestADHTServerRefusesWhatNoOwnerSigned(t *testing.T) {
	v := startVolunteer(t, nil)
	p := start(t, func(c *Config, _ *person) { c.Bootstrap = v.Addrs() })
	eventually(t, "online", func() bool { return p.Status().Online })
	now := time.Now()
	var seed, other [32]byte
	_, _ = rand.Read(seed[:])
	_, _ = rand.Read(other[:])
	name, good := sealRecord(t, seed, "two", uint64(now.Unix()), now.Add(time.Hour))
	_, older := sealRecord(t, seed, "one", uint64(now.Unix())-10, now.Add(time.Hour))
	_, expired := sealRecord(t, seed, "old", 1, now.Add(-48*time.Hour))
	_, distant := sealRecord(t, seed, "far", 1, now.Add(90*24*time.Hour))
	_, foreign := sealRecord(t, other, "foreign", uint64(now.Unix())+5, now.Add(time.Hour))
	forged := bytes.Clone(good)
	forged[len(forged)-1] ^= 1
	unstamped := bytes.Clone(good)
	unstamped[len(unstamped)-65] ^= 1
	if err := put(t, p, v.dht.ID(), record.Key(name), good); err != nil {
		t.Fatalf("a good record: %v", err)
	}
	for what, value := range map[string][]byte{
		"lower seq": older, "expired": expired, "too far ahead": distant, "another owner's under this name": foreign,
		"bad signature": forged, "bad stamp": unstamped, "9 KiB": append(bytes.Clone(good), make([]byte, 1024)...),
		"empty": {}, "one byte": {1},
	} {
		if err := put(t, p, v.dht.ID(), record.Key(name), value); err == nil {
			t.Errorf("%s: stored", what)
		}
	}
	for _, key := range []string{"/pk/x", "/ipns/x", "/sotto/short", "/other/" + strings.TrimPrefix(record.Key(name), "/sotto/"), ""} {
		if err := put(t, p, v.dht.ID(), key, good); err == nil {
			t.Errorf("key %q: stored", key)
		}
	}
	if got, err := p.Find(within(t, 10*time.Second), name); err != nil || !bytes.Equal(got, good) {
		t.Fatalf("the good record after all that: %v", err)
	}
	if n := v.Status().Refused[refusedRecord]; n < 8 {
		t.Errorf("%d records counted as refused", n)
	}
	if err := p.Publish(within(t, 10*time.Second), name, forged); err == nil {
		t.Error("published a forged record")
	}
}

func TestANewerRecordReplacesAnOlderOne(t *testing.T) {
	v := startVolunteer(t, nil)
	boot := func(c *Config, _ *person) { c.Bootstrap = v.Addrs() }
	a, b := start(t, boot), start(t, boot)
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	now := uint64(time.Now().Unix())
	for i, text := range []string{"one", "two"} {
		name, value := sealRecord(t, seed, text, now+uint64(i), time.Now().Add(time.Hour))
		if err := a.Publish(within(t, 10*time.Second), name, value); err != nil {
			t.Fatal(err)
		}
		if got, err := b.Find(within(t, 10*time.Second), name); err != nil || !bytes.Equal(got, value) {
			t.Fatalf("record %s: %v", text, err)
		}
	}
}

func TestPuttingInAFloodIsCutOff(t *testing.T) {
	v := startVolunteer(t, nil)
	p := start(t, func(c *Config, _ *person) { c.Bootstrap = v.Addrs() })
	eventually(t, "online", func() bool { return p.Status().Online })
	failed := 0
	for range 2 * putBurst {
		if put(t, p, v.dht.ID(), "/sotto/none", []byte("junk")) != nil {
			failed++
		}
	}
	if v.Status().Refused[refusedPuts] == 0 || failed != 2*putBurst {
		t.Fatalf("%d failed, counters %v", failed, v.Status().Refused)
	}
}

func TestAFullRecordStoreRefusesNewOnesAndRenewsThoseItHas(t *testing.T) {
	var counts counters
	s := newCappedStore(dssync.MutexWrap(ds.NewMapDatastore()), 2, 0, &counts)
	ctx := context.Background()
	for i, want := range []bool{true, true, false} {
		if err := s.Put(ctx, ds.NewKey(string(rune('a'+i))), nil); (err == nil) != want {
			t.Fatalf("put %d: %v", i, err)
		}
	}
	if err := s.Put(ctx, ds.NewKey("a"), []byte("again")); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, ds.NewKey("none")); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(ctx, ds.NewKey("a")); err != nil || s.size() != 1 {
		t.Fatalf("delete: %v, %d left", err, s.size())
	}
	if err := s.Put(ctx, ds.NewKey("c"), nil); err != nil {
		t.Fatal(err)
	}
	if n, err := countRecords(ctx, s); err != nil || n != 2 || counts.snapshot()[refusedStored] != 1 {
		t.Fatalf("%d records, %v, %v", n, err, counts.snapshot())
	}
}

func TestAVolunteersRecordsSurviveItsRestart(t *testing.T) {
	dir := t.TempDir()
	service, dhtKey := newKey(t), newKey(t)
	var name [32]byte
	var value []byte
	for round := range 2 {
		v, err := NewVolunteer(VolunteerConfig{ServiceKey: service, DHTKey: dhtKey, ServicePort: -1, DHTPort: -1, Listen: loopback, AllowPrivate: true, MaxUsers: 10, DataDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- v.Run(ctx) }()
		p := start(t, func(c *Config, _ *person) { c.Bootstrap = v.Addrs() })
		if round == 0 {
			name, value = inviteRecord(t, "hello", uint64(time.Now().Unix()))
			err = p.Publish(within(t, 20*time.Second), name, value)
		} else {
			var got []byte
			if got, err = p.Find(within(t, 20*time.Second), name); !bytes.Equal(got, value) {
				t.Error("another value came back")
			}
		}
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if n := v.Status().Records; n != 1 {
			t.Errorf("round %d: %d records", round, n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func TestWithoutAnybodyToAskALookupSaysSo(t *testing.T) {
	p := start(t, nil)
	name, value := inviteRecord(t, "hello", 1)
	_, err := p.Find(within(t, 10*time.Second), name)
	wantErr(t, err, wire.ErrUnreachable)
	_, err = p.Fetch(within(t, 10*time.Second), name, []string{"/ip4/127.0.0.1/tcp/1/p2p/" + p.inner.ID().String(), "nonsense"})
	wantErr(t, err, wire.ErrUnreachable)
	wantErr(t, p.Publish(within(t, 10*time.Second), name, value), wire.ErrUnreachable)
}

func TestALookupRightAfterTheStartWaitsForAServer(t *testing.T) {
	v := startVolunteer(t, nil)
	a := start(t, func(c *Config, _ *person) { c.Bootstrap = v.Addrs() })
	name, value := inviteRecord(t, "hello", uint64(time.Now().Unix()))
	if err := a.Publish(within(t, 10*time.Second), name, value); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		b := start(t, func(c *Config, _ *person) { c.Bootstrap = v.Addrs() })
		if got, err := b.Fetch(within(t, 10*time.Second), name, nil); err != nil || !bytes.Equal(got, value) {
			t.Fatal(err)
		}
	}
}

func TestConfigThatCannotBeMeantIsNamed(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no key":                   {},
		"bootstrap junk":           {NodeKey: newKey(t), Bootstrap: []string{"example.org:4001"}},
		"bootstrap without a peer": {NodeKey: newKey(t), Bootstrap: []string{"/ip4/1.2.3.4/tcp/1"}},
		"relay junk":               {NodeKey: newKey(t), Relays: []string{"x"}},
	} {
		if n, err := New(cfg, Handlers{}); err == nil {
			_ = n.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	k := newKey(t)
	if _, err := NewVolunteer(VolunteerConfig{ServiceKey: k, DHTKey: k}); err == nil {
		t.Error("one key for both hosts: accepted")
	}
}

func TestAPersonServesTheLANsTableAndNeverTheWideOne(t *testing.T) {
	p, v := start(t, nil), startVolunteer(t, nil)
	has := func(protos []protocol.ID, id protocol.ID) bool { return slices.Contains(protos, id) }
	if m := p.front.Mux().Protocols(); has(m, p.proto.kad) || !has(m, p.proto.lan) {
		t.Errorf("front host serves %v", m)
	}
	if m := p.inner.Mux().Protocols(); has(m, p.proto.kad) || has(m, p.proto.lan) || has(m, p.proto.knock) {
		t.Errorf("inner host serves %v", m)
	}
	if m := v.dht.Mux().Protocols(); !has(m, p.proto.kad) || !has(m, p.proto.lan) {
		t.Errorf("DHT host serves %v", m)
	}
	if m := v.service.Mux().Protocols(); has(m, p.proto.kad) || has(m, p.proto.lan) {
		t.Errorf("service host serves %v", m)
	}
}
