// Package testnet is for tests only: an in-memory network with seeded faults for the messenger's core (Net), and libp2p
// hosts on a simulated network for the node.
package testnet

import (
	"context"
	"crypto/ed25519"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"sotto/internal/clock"
	"sotto/record"
	"sotto/wire"
)

// Faults is how bad a Net is; each share lies between 0 and 1. The zero value is a perfect network.
type Faults struct {
	Loss      float64       // items that never arrive; the stream breaks there
	AckLoss   float64       // items that arrive but whose answer does not; the stream breaks there
	Duplicate float64       // items that arrive twice
	Shuffle   float64       // batches whose items arrive in another order
	Delay     time.Duration // up to so much for each item
}

// Receiver is the inbound side of a node, as the messenger has it.
type Receiver interface {
	Offer(ctx context.Context, from [32]byte, item []byte) func() wire.Answer
	Envelope(ctx context.Context, invite [32]byte, envelope []byte) wire.KnockAnswer
	Bundle(name [32]byte) ([]byte, bool)
	Up(inner [32]byte)
}

// Net connects ports. What it does to a message depends on its seed alone, so that a failing run can be had again.
type Net struct {
	Clock clock.Clock

	mu      sync.Mutex // guards what follows
	rand    *rand.Rand
	faults  Faults
	inner   map[[32]byte]*Port
	front   map[[32]byte]*Port
	records map[[32]byte][]byte
	noDHT   bool
	cut     map[[2]string]bool
	seen    [][]byte // everything that crossed the network, if Record is on
	record  bool
	fronts  byte
}

// NewNet makes a network.
func NewNet(seed uint64, faults Faults) *Net {
	return &Net{
		Clock: clock.System{}, rand: rand.New(rand.NewPCG(seed, 0)), faults: faults,
		inner: map[[32]byte]*Port{}, front: map[[32]byte]*Port{}, records: map[[32]byte][]byte{}, cut: map[[2]string]bool{},
	}
}

// SetFaults changes how bad the network is from now on.
func (n *Net) SetFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults = f
}

// Cut ends or heals the connection between two ports, both ways.
func (n *Net) Cut(a, b *Port, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{a.name, b.name}] = cut
	n.cut[[2]string{b.name, a.name}] = cut
}

// Mute ends or heals one way between two ports: nothing that from dials reaches to.
func (n *Net) Mute(from, to *Port, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from.name, to.name}] = cut
}

// LoseDHT takes the DHT away for good: nothing is found or kept there any more.
func (n *Net) LoseDHT() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.noDHT, n.records = true, map[[32]byte][]byte{}
}

// Record makes the network keep every item and envelope that crosses it.
func (n *Net) Record() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.record = true
}

// Seen returns what crossed the network since Record.
func (n *Net) Seen() [][]byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.seen)
}

// Port is one node on the network; it is a messenger.Network.
type Port struct {
	net      *Net
	name     string
	key      [32]byte // inner
	frontKey [32]byte
	to       Receiver

	mu       sync.Mutex // guards admitted
	admitted map[[32]byte]bool
}

// Join puts a node on the network; a second one with the same key takes the first one's place, as after a restart.
func (n *Net) Join(name string, key ed25519.PrivateKey, to Receiver) *Port {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fronts++
	p := &Port{net: n, name: name, key: [32]byte(key.Public().(ed25519.PublicKey)), frontKey: [32]byte{0xf0, n.fronts}, to: to, admitted: map[[32]byte]bool{}}
	n.inner[p.key], n.front[p.frontKey] = p, p
	return p
}

// Leave takes the node off the network.
func (p *Port) Leave() {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if p.net.inner[p.key] == p {
		delete(p.net.inner, p.key)
	}
	delete(p.net.front, p.frontKey)
}

// peer finds the other end if it is there, not cut off, and lets us in.
func (p *Port) peer(key [32]byte, ports map[[32]byte]*Port) (*Port, error) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	q := ports[key]
	if q == nil || p.net.cut[[2]string{p.name, q.name}] {
		return nil, wire.ErrUnreachable
	}
	return q, nil
}

func (p *Port) lets(key [32]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.admitted[key]
}

// fate is what happens to one item.
type fate struct {
	lost, ackLost, twice bool
	delay                time.Duration
}

func (n *Net) draw() fate {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := fate{lost: n.rand.Float64() < n.faults.Loss, ackLost: n.rand.Float64() < n.faults.AckLoss, twice: n.rand.Float64() < n.faults.Duplicate}
	if n.faults.Delay > 0 {
		f.delay = time.Duration(n.rand.Int64N(int64(n.faults.Delay)))
	}
	return f
}

func (n *Net) keep(b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.record {
		n.seen = append(n.seen, slices.Clone(b))
	}
}

// sequence is the order in which a batch arrives.
func (n *Net) sequence(count int) []int {
	n.mu.Lock()
	defer n.mu.Unlock()
	order := make([]int, count)
	for i := range order {
		order[i] = i
	}
	if n.rand.Float64() < n.faults.Shuffle {
		n.rand.Shuffle(count, func(i, j int) { order[i], order[j] = order[j], order[i] })
	}
	return order
}

// Send offers items to the peer with that inner key.
func (p *Port) Send(ctx context.Context, to wire.Reach, items [][]byte, settled func(i int, a wire.Answer)) error {
	q, err := p.peer(to.InnerKey, p.net.inner)
	if err != nil {
		return err
	}
	if !q.lets(p.key) || !p.lets(q.key) {
		return wire.ErrRefused
	}
	q.to.Up(p.key)
	for _, i := range p.net.sequence(len(items)) {
		f := p.net.draw()
		if err := p.net.Clock.Wait(ctx, f.delay); err != nil {
			return err
		}
		if _, err := p.peer(to.InnerKey, p.net.inner); err != nil || f.lost {
			return wire.ErrUnreachable
		}
		p.net.keep(items[i])
		answer := q.to.Offer(ctx, p.key, slices.Clone(items[i]))()
		if f.twice {
			answer = q.to.Offer(ctx, p.key, slices.Clone(items[i]))()
		}
		if f.ackLost {
			return wire.ErrUnreachable
		}
		settled(i, answer)
	}
	return nil
}

// maxKnock is the largest envelope that a front door takes.
const maxKnock = 8 << 10

// Knock hands an envelope to the node with that front key.
func (p *Port) Knock(ctx context.Context, at wire.Reach, invite [32]byte, envelope []byte) (wire.KnockAnswer, error) {
	q, err := p.peer(at.FrontKey, p.net.front)
	if err != nil {
		return wire.KnockAnswer{}, err
	}
	f := p.net.draw()
	if err := p.net.Clock.Wait(ctx, f.delay); err != nil {
		return wire.KnockAnswer{}, err
	}
	if f.lost {
		return wire.KnockAnswer{}, wire.ErrUnreachable
	}
	if len(envelope) > maxKnock {
		return wire.KnockAnswer{Code: wire.CodeTooLarge}, nil
	}
	p.net.keep(envelope)
	answer := q.to.Envelope(ctx, invite, slices.Clone(envelope))
	if f.twice {
		answer = q.to.Envelope(ctx, invite, slices.Clone(envelope))
	}
	if f.ackLost {
		return wire.KnockAnswer{}, wire.ErrUnreachable
	}
	return answer, nil
}

// Fetch finds an invite record in the DHT, or at a front host that serves it.
func (p *Port) Fetch(ctx context.Context, name [32]byte, hints []string) ([]byte, error) {
	return p.Find(ctx, name)
}

// Publish keeps a record as a DHT server would: a valid one that is not older than the one held.
func (p *Port) Publish(ctx context.Context, name [32]byte, value []byte) error {
	if err := record.Validate(name, value, p.net.Clock.Now()); err != nil {
		return err
	}
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	if p.net.noDHT {
		return wire.ErrUnreachable
	}
	if held := p.net.records[name]; held != nil {
		if best, err := record.Select([][]byte{value, held}); err != nil || best != 0 {
			return err
		}
	}
	p.net.records[name] = slices.Clone(value)
	return nil
}

// Find gets a record.
func (p *Port) Find(ctx context.Context, name [32]byte) ([]byte, error) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	value := p.net.records[name]
	if value == nil || record.Validate(name, value, p.net.Clock.Now()) != nil {
		return nil, wire.ErrNotFound
	}
	return slices.Clone(value), nil
}

// Admit names who may connect.
func (p *Port) Admit(keys [][32]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.admitted = map[[32]byte]bool{}
	for _, k := range keys {
		p.admitted[k] = true
	}
}

// Touch connects and shows both sides a sign of life.
func (p *Port) Touch(ctx context.Context, to wire.Reach) error {
	q, err := p.peer(to.InnerKey, p.net.inner)
	if err != nil {
		return err
	}
	if !q.lets(p.key) || !p.lets(q.key) {
		return wire.ErrRefused
	}
	q.to.Up(p.key)
	p.to.Up(q.key)
	return nil
}

// Reach is where the port is: its keys, and one made-up address each.
func (p *Port) Reach() wire.Reach {
	return wire.Reach{InnerKey: p.key, FrontKey: p.frontKey, Inner: [][]byte{[]byte(p.name)}, Front: [][]byte{[]byte(p.name)}}
}

// ClockOffset knows nothing.
func (p *Port) ClockOffset() (time.Duration, bool) { return 0, false }
