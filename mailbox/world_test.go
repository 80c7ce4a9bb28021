package mailbox

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"go.uber.org/goleak"

	"sotto/internal/canon"
	"sotto/wire"
)

// world is one mailbox on a real host of this machine.
type world struct {
	t    *testing.T
	q    *Queue
	slow *slowQueue
	srv  *Server
	host host.Host
	key  ed25519.PrivateKey
	addr string
}

// slowQueue is the queue, but for deposits that wait until they may begin.
type slowQueue struct {
	*Queue
	hold   chan struct{} // nil: they may
	begun  chan struct{} // told of each
	before func(wire.Deposit) error
}

func (q *slowQueue) Deposit(ctx context.Context, d wire.Deposit, from netip.Prefix) (int64, int64, error) {
	if q.begun != nil {
		q.begun <- struct{}{}
	}
	if q.before != nil {
		if err := q.before(d); err != nil {
			return 0, 0, err
		}
	}
	if q.hold != nil {
		select {
		case <-q.hold:
		case <-ctx.Done():
			return 0, 0, ctx.Err()
		}
	}
	return q.Queue.Deposit(ctx, d, from)
}

const testBits = 4 // of work: enough to tell right from wrong, quick to find

// one counts every connection as of one address: the limits, too, are to be tested on loopback.
func one(network.Conn) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")} }

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newHost(t *testing.T, key ed25519.PrivateKey) host.Host {
	t.Helper()
	k, err := crypto.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(k), libp2p.ListenAddrStrings("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"),
		libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableMetrics(), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

// start runs a mailbox until the test ends.
func start(t *testing.T, change func(*ServerConfig, *slowQueue)) *world {
	t.Helper()
	nothingLeft(t)
	w := &world{t: t, key: newKey(t)}
	w.q = openTestQueue(t)
	w.slow = &slowQueue{Queue: w.q}
	w.host = newHost(t, w.key)
	cfg := ServerConfig{Key: w.key, Terms: wire.Terms{RegisterBits: testBits}}
	if change != nil {
		change(&cfg, w.slow)
	}
	var err error
	if w.srv, err = NewServer(w.q, w.host, "", cfg); err != nil {
		t.Fatal(err)
	}
	w.srv.queue = w.slow
	w.addr = addrOf(w.host)
	run(t, w.srv.Run)
	return w
}

// watched are the tests that nothingLeft watches: a second mailbox of a test would find the first one's goroutines.
var watched sync.Map

// nothingLeft fails the test when goroutines that it began outlast it.
func nothingLeft(t *testing.T) {
	if _, already := watched.LoadOrStore(t, true); already {
		return
	}
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		goleak.VerifyNone(t, before, goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
	})
}

// run runs a loop until the test ends.
func run(t *testing.T, f func(context.Context) error) {
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

func addrOf(h host.Host) string {
	return fmt.Sprintf("%s/p2p/%s", h.Addrs()[0], h.ID())
}

func (w *world) client() *Client {
	w.t.Helper()
	c := NewClient(newHost(w.t, newKey(w.t)), "", ClientConfig{AnswerTimeout: 10 * time.Second})
	w.t.Cleanup(func() { _ = c.Close() })
	return c
}

// owner opens a registered box from a host of its own.
func (w *world) owner() *Box {
	w.t.Helper()
	return w.register(w.client(), newKey(w.t))
}

func (w *world) register(c *Client, key ed25519.PrivateKey) *Box {
	w.t.Helper()
	b, err := c.Open(within(w.t), w.addr, key)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := b.Register(within(w.t), w.work(key)); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// work is the admission of a fresh box.
func (w *world) work(key ed25519.PrivateKey) wire.Admission {
	hour := uint32(time.Now().Unix() / 3600)
	nonce, err := RegisterStamp(context.Background(), w.srv.key, ownerKey(key), hour, testBits)
	if err != nil {
		w.t.Fatal(err)
	}
	return wire.Admission{Hour: hour, Nonce: nonce}
}

// tokens puts n tokens into a box's pool.
func (w *world) tokens(b *Box, n int) [][16]byte {
	w.t.Helper()
	var seed [32]byte
	_, _ = rand.Read(seed[:])
	var tokens, hashes [][16]byte
	for i := range n {
		tokens = append(tokens, wire.BoxToken(seed, uint32(i), b.ID()))
		hashes = append(hashes, wire.PoolHash(tokens[i]))
	}
	if _, err := b.Pool(within(w.t), hashes, nil); err != nil {
		w.t.Fatal(err)
	}
	return tokens
}

func (w *world) refused(name string) uint64 { return w.srv.Status().Refused[name] }

func sealed(n int) []byte {
	b := make([]byte, 8192)
	binary.BigEndian.PutUint64(b, uint64(n))
	return b
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits for what others do in their own time.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("never: %s", what)
		}
	}
}

// attacker is a bare host that speaks the protocol by hand.
type attacker struct {
	host.Host
	key ed25519.PrivateKey
	w   *world
}

func (w *world) attacker() *attacker {
	w.t.Helper()
	a := &attacker{key: newKey(w.t), w: w}
	a.Host = newHost(w.t, a.key)
	if err := a.Connect(within(w.t), peer.AddrInfo{ID: w.host.ID(), Addrs: w.host.Addrs()}); err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (a *attacker) open() network.Stream {
	a.w.t.Helper()
	s, err := a.NewStream(within(a.w.t), a.w.host.ID(), protocolOf(""))
	if err != nil {
		a.w.t.Fatal(err)
	}
	_ = s.SetDeadline(time.Now().Add(30 * time.Second))
	return s
}

// say writes bytes, ends the stream's writing side and reads everything that comes back.
func say(s network.Stream, b []byte) ([]byte, error) {
	if _, err := s.Write(b); err != nil {
		return nil, err
	}
	_ = s.CloseWrite()
	return io.ReadAll(s)
}

// ask writes one request and reads one answer.
func ask1(t *testing.T, s network.Stream, q wire.MailboxRequest) wire.MailboxAnswer {
	t.Helper()
	if _, err := s.Write(wire.AppendMailboxRequest(nil, q)); err != nil {
		t.Fatal(err)
	}
	return hear(t, s)
}

func hear(t *testing.T, s network.Stream) wire.MailboxAnswer {
	t.Helper()
	body, err := wire.ReadFrame(s, wire.MaxMailboxAnswer)
	if err != nil {
		t.Fatal(err)
	}
	a, err := wire.ParseMailboxAnswer(body)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// auth is the attacker's claim to a box, signed for the connection between service and front.
func auth(bk ed25519.PrivateKey, service, front [32]byte) *wire.Auth {
	q := &wire.Auth{Key: ownerKey(bk)}
	copy(q.Signature[:], canon.Sign(bk, wire.SigOwner, wire.OwnerFields(service, front)))
	return q
}

func wantIs(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func hashOf(b []byte) [32]byte { return sha256.Sum256(b) }

// openTestQueue is a queue that runs until the test ends, on disk and synced.
func openTestQueue(t *testing.T) *Queue {
	t.Helper()
	return open(t, QueueConfig{Dir: fastDir(t) + "/queue", Inspect: InspectRecord, Limits: Limits{Reserve: -1, Slow: -1}}).Queue
}
