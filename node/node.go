// Package node is a peer on the network: two libp2p hosts, the Kademlia DHT, the local network, knocks and direct streams.
//
// The front host has a new key at each start and talks to anyone: DHT, mDNS, knocks. The inner host has the node key,
// which only contacts learn, and accepts only them and relays. Nothing links the two but the sealed reach (PROTOCOL 13).
//
// Begin with New and Run here; then front.go (who may knock), records.go (DHT), inner.go (who may connect), direct.go and
// offers.go (the two ends of a delivery), supervisor.go (dead paths), volunteer.go (the other role).
package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p-kad-dht/dual"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"sotto/internal/clock"
)

// Node is one person's peer. Make it with New, keep it going with Run.
type Node struct {
	cfg    Config
	limits Limits
	clock  clock.Clock
	log    *slog.Logger
	proto  protocols
	h      Handlers

	front, inner         host.Host
	frontPort, innerPort int
	frontKey             [32]byte
	kad                  *dual.DHT
	gate                 *gate
	known                *directory // volunteers: DHT servers and relays
	counts               counters
	puts, gets           *rateLimit
	opening              chan struct{} // one knocked envelope is opened at a time
	greeting             chan struct{} // a slot for each neighbour being dialled because it was announced
	knocking             chan struct{} // a slot for each knock being read
	news                 *news
	bootWake             chan struct{} // look after DHT servers now
	learnWake            chan struct{} // ask volunteers now
	checkWake            chan struct{} // check every connection now
	connWake             chan struct{} // a contact connected
	tasks                *tasks
	close                sync.Once
	closeErr             error

	mu         sync.Mutex // guards what follows
	contacts   map[peer.ID]*contact
	neighbours map[peer.ID]*neighbour
	changed    chan struct{} // closed and replaced when this machine's network changed
	lanNews    chan struct{} // closed and replaced when a neighbour appears
	room       chan struct{} // closed and replaced when a contact's connection may have become free
	reachable  bool          // an own address was confirmed from outside
	online     bool          // at least one DHT server answers
}

// New makes both hosts, which listen when it returns. Their doors are there from the first moment, so that whoever connects
// early is not told that this node speaks none of its protocols; they open, and something is dialled, when Run begins.
func New(cfg Config, h Handlers) (*Node, error) {
	if len(cfg.NodeKey) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("start node: node key of %d bytes, want %d", len(cfg.NodeKey), ed25519.PrivateKeySize)
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.RelayOnly {
		cfg.MDNS = false // an announcement is an own address
	}
	l := cfg.Limits.withDefaults()
	n := &Node{
		cfg: cfg, limits: l, clock: cfg.Clock, log: cfg.Log, proto: protocolsOf(cfg.Network), h: h,
		puts:     newRateLimit(l.KnockRate, l.KnockBurst, l.Prefixes),
		gets:     newRateLimit(l.GetRate, l.GetBurst, l.Prefixes),
		opening:  make(chan struct{}, 1),
		knocking: make(chan struct{}, l.KnockStreams), greeting: make(chan struct{}, greetings),
		news:     newNews(),
		tasks:    newTasks(),
		contacts: map[peer.ID]*contact{}, neighbours: map[peer.ID]*neighbour{},
		changed: make(chan struct{}), lanNews: make(chan struct{}), room: make(chan struct{}),
		bootWake: make(chan struct{}, 1), learnWake: make(chan struct{}, 1), checkWake: make(chan struct{}, 1), connWake: make(chan struct{}, 1),
	}
	n.gate = newGate(cfg.RelayOnly)
	n.known = newDirectory(l.Known, cfg.AllowPrivate)
	if err := n.known.configure(cfg.Bootstrap, cfg.Relays); err != nil {
		return nil, err
	}
	n.gate.setRelays(n.known.relays())
	if err := n.makeHosts(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	n.serve()
	return n, nil
}

func (n *Node) makeHosts() error {
	_, frontKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	if n.front, n.frontPort, err = n.newHost(RoleFront, frontKey, n.cfg.FrontPort); err != nil {
		return fmt.Errorf("start front host: %w", err)
	}
	copy(n.frontKey[:], frontKey.Public().(ed25519.PublicKey))
	if n.inner, n.innerPort, err = n.newHost(RoleInner, n.cfg.NodeKey, n.cfg.InnerPort); err != nil {
		return fmt.Errorf("start inner host: %w", err)
	}
	n.front.Network().Notify(&network.NotifyBundle{DisconnectedF: func(network.Network, network.Conn) { wake(n.bootWake) }})
	n.inner.Network().Notify(&network.NotifyBundle{ConnectedF: n.innerConnected, DisconnectedF: n.innerDisconnected})
	if n.kad, err = n.newDHT(); err != nil {
		return fmt.Errorf("start DHT: %w", err)
	}
	return nil
}

// Run serves and supervises until ctx ends, then closes the node and returns when nothing of it runs any more.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context){
		n.tellNews, n.keepBootstrapped, n.superviseConns, n.watchHosts, n.watchInterfaces, n.learnVolunteers, n.keepMDNS, n.tasks.admit,
	} {
		wg.Go(func() { loop(ctx) })
	}
	<-ctx.Done()
	err := n.Close()
	wg.Wait()
	return err
}

// serve puts up the doors.
func (n *Node) serve() {
	n.tasks.handle(n.front, n.proto.knock, n.serveKnock)
	n.tasks.handle(n.inner, n.proto.direct, n.serveDirect)
	n.tasks.handle(n.inner, n.proto.ping, func(_ context.Context, s network.Stream) { servePing(s, &n.counts) })
}

// Close shuts both hosts and waits for what runs on their behalf. Run calls it; a node that never ran needs it.
func (n *Node) Close() error {
	n.close.Do(func() {
		n.tasks.stop()
		var errs []error
		for _, c := range []io.Closer{closer(n.kad), closer(n.front), closer(n.inner)} {
			if c != nil {
				errs = append(errs, c.Close())
			}
		}
		n.closeErr = errors.Join(errs...)
		n.tasks.wait()
	})
	return n.closeErr
}

// closer makes a nil pointer or interface a nil io.Closer.
func closer[T interface {
	comparable
	io.Closer
}](c T) io.Closer {
	var zero T
	if c == zero {
		return nil
	}
	return c
}

// tasks counts the goroutines that work for a node outside Run's own loops: stream handlers, stream readers.
type tasks struct {
	open  chan context.Context // Run gives its context to each handler that begins
	ended chan struct{}

	mu      sync.Mutex
	stopped bool
	wg      sync.WaitGroup
}

func newTasks() *tasks { return &tasks{open: make(chan context.Context), ended: make(chan struct{})} }

// handle registers a stream handler that waits for Run and that wait waits for.
func (t *tasks) handle(h host.Host, id protocolID, serve func(context.Context, network.Stream)) {
	h.SetStreamHandler(id, func(s network.Stream) {
		if !t.start() {
			_ = s.Reset()
			return
		}
		defer t.done()
		select {
		case ctx := <-t.open:
			serve(ctx, s)
		case <-t.ended:
			_ = s.Reset()
		}
	})
}

// admit lets handlers begin until ctx ends.
func (t *tasks) admit(ctx context.Context) {
	for {
		select {
		case t.open <- ctx:
		case <-ctx.Done():
			return
		}
	}
}

func (t *tasks) start() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.stopped {
		return false
	}
	t.wg.Add(1)
	return true
}

func (t *tasks) done() { t.wg.Done() }

func (t *tasks) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.stopped {
		t.stopped = true
		close(t.ended)
	}
}

func (t *tasks) wait() { t.wg.Wait() }

// news is what the caller has yet to be told, kept apart from libp2p's callbacks, which must not block.
type news struct {
	mu            sync.Mutex
	ups           map[[32]byte]bool
	moved, online bool
	crowded       bool // a contact connected: there may be one connection too many
	wake          chan struct{}
}

func newNews() *news { return &news{ups: map[[32]byte]bool{}, wake: make(chan struct{}, 1)} }

func (w *news) tell(change func(*news)) {
	w.mu.Lock()
	change(w)
	w.mu.Unlock()
	wake(w.wake)
}

// wake signals a loop that reads from a channel of one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// movedPause lets a burst of address changes settle into one call of Moved.
const movedPause = 2 * time.Second

// tellNews calls Up, Online and Moved, the latter at most once in movedPause.
func (n *Node) tellNews(ctx context.Context) {
	var pause <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.news.wake:
		case <-pause:
			pause = nil
			if n.h.Moved != nil {
				n.h.Moved()
			}
		}
		n.news.mu.Lock()
		ups, online, moved, crowded := n.news.ups, n.news.online, n.news.moved, n.news.crowded
		n.news.ups, n.news.online, n.news.moved, n.news.crowded = map[[32]byte]bool{}, false, false, false
		n.news.mu.Unlock()
		if crowded {
			n.evict("", n.limits.ContactConns)
		}
		if moved && pause == nil {
			pause = time.After(movedPause)
		}
		if online && n.h.Online != nil {
			n.h.Online()
		}
		for key := range ups {
			if n.h.Up != nil {
				n.h.Up(key)
			}
		}
	}
}
