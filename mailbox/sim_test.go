package mailbox

import (
	"context"
	"crypto/rand"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"

	"sotto/internal/clock"
	"sotto/internal/testnet"
	"sotto/wire"
)

// simWorld is a mailbox and people on a simulated network, in a bubble where time is virtual.
type simWorld struct {
	t   *testing.T
	sim *testnet.Sim
	q   *Queue
	srv *Server
	ip  string
	h   host.Host
	end []func()
}

func inSim(t *testing.T, f func(w *simWorld)) {
	synctest.Test(t, func(t *testing.T) {
		w := &simWorld{t: t, sim: testnet.NewSim(20 * time.Millisecond)}
		defer w.sim.Close()
		defer func() {
			for _, end := range slices.Backward(w.end) {
				end()
			}
		}()
		key := newKey(t)
		w.ip = w.sim.IP()
		w.h = w.host(w.ip, key)
		w.q = openSimQueue(w)
		var err error
		if w.srv, err = NewServer(w.q, w.h, "", ServerConfig{Key: key, Terms: wire.Terms{RegisterBits: testBits}}); err != nil {
			t.Fatal(err)
		}
		w.run(w.srv.Run)
		f(w)
	})
}

func (w *simWorld) run(f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	w.end = append(w.end, func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
}

func (w *simWorld) host(ip string, key []byte) host.Host {
	w.t.Helper()
	k, err := crypto.UnmarshalEd25519PrivateKey(key)
	if err != nil {
		w.t.Fatal(err)
	}
	opts := append([]libp2p.Option{
		libp2p.Identity(k), libp2p.Transport(libp2pquic.NewTransport), libp2p.ListenAddrStrings(testnet.Listen(ip)), libp2p.DisableMetrics(),
		libp2p.DisableRelay(), libp2p.ResourceManager(&network.NullResourceManager{}),
	}, w.sim.Options(ip)...)
	h, err := libp2p.New(opts...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.end = append(w.end, func() { _ = h.Close() })
	return h
}

func (w *simWorld) client() *Client {
	c := NewClient(w.host(w.sim.IP(), newKey(w.t)), "", ClientConfig{})
	w.end = append(w.end, func() { _ = c.Close() })
	return c
}

func (w *simWorld) owner() *Box {
	w.t.Helper()
	key := newKey(w.t)
	b, err := w.client().Open(context.Background(), addrOf(w.h), key)
	if err != nil {
		w.t.Fatal(err)
	}
	hour := uint32(time.Now().Unix() / 3600)
	nonce, err := RegisterStamp(context.Background(), w.srv.key, ownerKey(key), hour, testBits)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := b.Register(context.Background(), wire.Admission{Hour: hour, Nonce: nonce}); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *simWorld) pass(d time.Duration) { _ = clock.System{}.Wait(context.Background(), d) }

func (w *simWorld) token(b *Box) [16]byte {
	w.t.Helper()
	var token [16]byte
	_, _ = rand.Read(token[:])
	if _, err := b.Pool(context.Background(), [][16]byte{wire.PoolHash(token)}, nil); err != nil {
		w.t.Fatal(err)
	}
	return token
}

func TestAWaitOutlastsSilenceAndMailEndsItAtOnce(t *testing.T) {
	inSim(t, func(w *simWorld) {
		owner, sender := w.owner(), w.client()
		token := w.token(owner)
		type result struct {
			page wire.Page
			err  error
			at   time.Time
		}
		got := make(chan result, 1)
		go func() {
			page, err := owner.Wait(context.Background(), 0, 0, time.Hour) // four times as long as a mailbox waits
			got <- result{page, err, time.Now()}
		}()
		w.pass(50 * time.Minute)
		if st := w.srv.Status(); st.Waiting != 1 || st.Streams != 1 {
			t.Fatalf("after 50 minutes: %+v", st)
		}
		sent := time.Now()
		if _, err := sender.Deposit(context.Background(), addrOf(w.h), wire.Deposit{Box: owner.ID(), Token: token, Envelope: sealed(1)}); err != nil {
			t.Fatal(err)
		}
		r := <-got
		if late := r.at.Sub(sent); r.err != nil || len(r.page.Mail) != 1 || late > 5*time.Second {
			t.Errorf("%d envelopes after %v, %v", len(r.page.Mail), late, r.err)
		}
	})
}

func TestAWaitWithoutMailEndsWhenItsTimeIsOver(t *testing.T) {
	inSim(t, func(w *simWorld) {
		owner := w.owner()
		for _, d := range []time.Duration{3 * time.Second, 5 * time.Minute, 40 * time.Minute} {
			began := time.Now()
			page, err := owner.Wait(context.Background(), 0, 0, d)
			if took := time.Since(began); err != nil || len(page.Mail) != 0 || took < d || took > d+10*time.Second {
				t.Errorf("wait of %v: %d envelopes after %v, %v", d, len(page.Mail), took, err)
			}
		}
	})
}

func TestStreamsThatAreNotUsedEndAndTheNextRequestOpensOne(t *testing.T) {
	inSim(t, func(w *simWorld) {
		owner, sender := w.owner(), w.client()
		if _, err := sender.Terms(context.Background(), addrOf(w.h)); err != nil {
			t.Fatal(err)
		}
		w.pass(50 * time.Second)
		if n := w.srv.Status().Streams; n != 2 {
			t.Errorf("%d streams after 50 s", n)
		}
		w.pass(20 * time.Second)
		if n := w.srv.Status().Streams; n != 0 {
			t.Errorf("%d streams after 70 s", n)
		}
		if _, err := sender.Terms(context.Background(), addrOf(w.h)); err != nil {
			t.Error(err)
		}
		if _, err := owner.Standing(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func TestASilentOpenerIsCutAfterNinetySecondsAndAMuteOneAfterFive(t *testing.T) {
	inSim(t, func(w *simWorld) {
		a := w.host(w.sim.IP(), newKey(t))
		if err := a.Connect(context.Background(), *host.InfoFromHost(w.h)); err != nil {
			t.Fatal(err)
		}
		var streams []network.Stream
		for _, first := range [][]byte{wire.AppendMailboxRequest(nil, &wire.TermsRequest{}), {0}} {
			s, err := a.NewStream(context.Background(), w.h.ID(), protocolOf(""))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Write(first); err != nil {
				t.Fatal(err)
			}
			streams = append(streams, s)
		}
		w.pass(4 * time.Second)
		if n := w.srv.Status().Streams; n != 2 {
			t.Errorf("%d streams after 4 s", n)
		}
		w.pass(4 * time.Second)
		if n := w.srv.Status().Streams; n != 1 {
			t.Errorf("%d streams after 8 s", n)
		}
		w.pass(80 * time.Second)
		if n := w.srv.Status().Streams; n != 1 {
			t.Errorf("%d streams after 88 s", n)
		}
		w.pass(5 * time.Second)
		if n := w.srv.Status().Streams; n != 0 {
			t.Errorf("%d streams after 93 s", n)
		}
		for _, s := range streams {
			_ = s.Reset()
		}
	})
}

func TestADeadPathIsToldInTimeAndAHealedOneServes(t *testing.T) {
	inSim(t, func(w *simWorld) {
		owner, sender := w.owner(), w.client()
		token := w.token(owner)
		if _, err := sender.Terms(context.Background(), addrOf(w.h)); err != nil {
			t.Fatal(err)
		}
		w.sim.Cut(w.ip)
		began := time.Now()
		d := wire.Deposit{Box: owner.ID(), Token: token, Envelope: sealed(1)}
		_, err := sender.Deposit(context.Background(), addrOf(w.h), d)
		wantIs(t, "over a dead path", err, wire.ErrUnreachable)
		if took := time.Since(began); took > time.Minute {
			t.Errorf("told after %v", took)
		}
		w.pass(time.Minute)
		w.sim.Heal(w.ip)
		w.pass(time.Minute)
		if _, err := sender.Deposit(context.Background(), addrOf(w.h), d); err != nil {
			t.Errorf("healed: %v", err)
		}
		if page, err := owner.Fetch(context.Background(), 0, 0); err != nil || len(page.Mail) != 1 {
			t.Errorf("%d envelopes, %v", len(page.Mail), err)
		}
	})
}

func TestAPageHoldsNoMoreThanItMay(t *testing.T) {
	inSim(t, func(w *simWorld) {
		owner := w.owner()
		for i := range 7 {
			token := w.token(owner)
			large := make([]byte, wire.MaxEnvelope)
			large[0] = byte(i)
			if _, err := w.client().Deposit(context.Background(), addrOf(w.h), wire.Deposit{Box: owner.ID(), Token: token, Envelope: large}); err != nil {
				t.Fatal(err)
			}
			w.pass(time.Millisecond)
		}
		page, err := owner.Fetch(context.Background(), 0, 0)
		if err != nil || len(page.Mail) != 6 || !page.More {
			t.Errorf("a page of %d envelopes, more %v, %v", len(page.Mail), page.More, err)
		}
	})
}

// openSimQueue is a queue in memory that runs until the bubble ends.
func openSimQueue(w *simWorld) *Queue {
	w.t.Helper()
	q, err := OpenQueue(QueueConfig{InMemory: true, Limits: Limits{Reserve: -1, Slow: -1}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.end = append(w.end, func() {
		if err := q.Close(); err != nil {
			w.t.Error(err)
		}
	})
	w.run(q.Run)
	return q
}
