package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sotto/record"
	"sotto/wire"
)

func TestMain(m *testing.M) {
	// A host that is closed while it still learns whether it can be reached may start its search for relays after it was
	// stopped; libp2p's Close does not wait for that.
	const finder = "github.com/libp2p/go-libp2p/p2p/host/autorelay.(*relayFinder)."
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction(finder+"background"), goleak.IgnoreAnyFunction(finder+"background.func1"),
		goleak.IgnoreAnyFunction(finder+"background.func2"), goleak.IgnoreAnyFunction(finder+"cleanupDisconnectedPeers"),
		goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"))
}

// loopback is where real hosts of tests listen.
var loopback = []string{"/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func innerKey(k ed25519.PrivateKey) (out [32]byte) {
	copy(out[:], k.Public().(ed25519.PublicKey))
	return out
}

// person is a running node with a box for what arrives.
type person struct {
	*Node
	key ed25519.PrivateKey

	mu      sync.Mutex
	items   [][]byte
	knocks  [][]byte
	bundles map[[32]byte][]byte
	ups     int
	onlines atomic.Int32
	moves   atomic.Int32
	answer  func(item []byte) func() wire.Answer
}

func ackOf(item []byte) (a wire.Ack) {
	sum := sha256.Sum256(item)
	copy(a[:], sum[:])
	return a
}

func (p *person) handlers() Handlers {
	return Handlers{
		Offer: func(_ context.Context, _ [32]byte, item []byte) func() wire.Answer {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.items = append(p.items, item)
			if p.answer != nil {
				return p.answer(item)
			}
			return func() wire.Answer { return wire.Answer{Code: wire.CodeOK, Ack: ackOf(item)} }
		},
		Envelope: func(_ context.Context, _ [32]byte, envelope []byte) wire.KnockAnswer {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.knocks = append(p.knocks, envelope)
			return wire.KnockAnswer{Code: wire.CodeOK, Acks: []wire.Ack{ackOf(envelope)}}
		},
		Bundle: func(name [32]byte) ([]byte, bool) {
			p.mu.Lock()
			defer p.mu.Unlock()
			v, ok := p.bundles[name]
			return v, ok
		},
		Up: func([32]byte) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.ups++
		},
		Online: func() { p.onlines.Add(1) },
		Moved:  func() { p.moves.Add(1) },
	}
}

func (p *person) received() [][]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.items
}

// start runs a node until the test ends.
func start(t testing.TB, change func(*Config, *person)) *person {
	t.Helper()
	p := &person{key: newKey(t), bundles: map[[32]byte][]byte{}}
	cfg := Config{NodeKey: p.key, Listen: loopback, AllowPrivate: true}
	if change != nil {
		change(&cfg, p)
	}
	n, err := New(cfg, p.handlers())
	if err != nil {
		t.Fatal(err)
	}
	p.Node = n
	run(t, n.Run)
	return p
}

// run runs something until the test ends and checks that it ends well.
func run(t testing.TB, f func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

func startVolunteer(t testing.TB, change func(*VolunteerConfig)) *Volunteer {
	t.Helper()
	cfg := VolunteerConfig{ServiceKey: newKey(t), DHTKey: newKey(t), ServicePort: -1, DHTPort: -1, Listen: loopback, AllowPrivate: true, MaxUsers: 50}
	if change != nil {
		change(&cfg)
	}
	v, err := NewVolunteer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	run(t, v.Run)
	return v
}

func friends(a, b *person) {
	a.Admit([][32]byte{innerKey(b.key)})
	b.Admit([][32]byte{innerKey(a.key)})
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for a condition, looking again every few milliseconds.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx := within(t, 20*time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		}
	}
}

// invite makes an invite record as identity would: the owner's key, a secret, no daily change.
func inviteRecord(t testing.TB, plain string, seq uint64) (name [32]byte, value []byte) {
	t.Helper()
	var seed [32]byte
	copy(seed[:], newKey(t).Seed())
	return sealRecord(t, seed, plain, seq, time.Now().Add(24*time.Hour))
}

func sealRecord(t testing.TB, seed [32]byte, plain string, seq uint64, until time.Time) (name [32]byte, value []byte) {
	t.Helper()
	var s record.Secret
	copy(s[:], seed[:])
	name, value, err := record.Seal(record.NewOwner(seed), s, record.Fixed, seq, until, []byte(plain), record.Invite, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return name, value
}

func numbered(n int) [][]byte {
	items := make([][]byte, n)
	for i := range items {
		items[i] = []byte(fmt.Sprintf("item %d", i))
	}
	return items
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got error %v, want one that is %v", err, want)
	}
}
