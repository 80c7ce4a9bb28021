package session

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	"sotto/identity"
)

// The model: two nodes that use the package as a messenger must, over a network that does what it likes.

// sentItem is one accepted message on its way.
type sentItem struct {
	sealed  Sealed
	session [16]byte
	text    string
	opened  int  // how often the other side took it as new
	lost    bool // the network dropped every copy
}

// node is one side with its sessions, its store of keys and its floor log.
type node struct {
	*person
	sessions map[[16]byte]*end
	order    [][16]byte             // sessions by the last that opened something, newest last
	floors   map[[16]byte][2]uint32 // the log outside the database: chain and first free position
	outbox   []*sentItem
	spent    map[string]bool // (session, chain, n) that left this node
}

func newNode(p *person) *node {
	own := *p
	own.oneTime = maps.Clone(p.oneTime)
	return &node{person: &own, sessions: map[[16]byte]*end{}, floors: map[[16]byte][2]uint32{}, spent: map[string]bool{}}
}

// sendingSession is the one to send on; of two begun at once, the agreed one.
func (n *node) sendingSession() *end {
	if len(n.order) == 0 {
		return nil
	}
	best := n.sessions[n.order[0]]
	for _, id := range n.order {
		if s := n.sessions[id]; s.SmallerInitiator(best.Session) {
			best = s
		}
	}
	return best
}

func (n *node) touch(id [16]byte) {
	for i, other := range n.order {
		if other == id {
			n.order = append(n.order[:i], n.order[i+1:]...)
			break
		}
	}
	n.order = append(n.order, id)
}

// send accepts a text: reserve the floor, encrypt, commit, hand over.
func (n *node) send(t *rapid.T, to *node, text string, useOneTime bool) {
	s := n.sendingSession()
	if s == nil {
		var opk *identity.Prekey
		if useOneTime && to.oneTime[9] != nil {
			opk = to.publicOneTime()
		}
		fresh, err := Initiate(n.local, to.card, opk, rand.Reader)
		if err != nil {
			t.Fatalf("initiate: %v", err)
		}
		s = &end{fresh, keyStore{}, nil}
		n.sessions[s.ID()] = s
		n.touch(s.ID())
	}
	n.reserve(s)
	sealed, err := s.Encrypt([]byte(text), rand.Reader)
	if err != nil {
		t.Fatalf("encrypt: %v", err)
	}
	position := fmt.Sprintf("%x/%d/%d", s.ID(), sealed.Chain, sealed.N)
	if n.spent[position] {
		t.Fatalf("position %s spent twice", position)
	}
	n.spent[position] = true
	n.outbox = append(n.outbox, &sentItem{sealed: sealed, session: s.ID(), text: text})
}

func (n *node) reserve(s *end) {
	chain, next := s.NextSend()
	if f := n.floors[s.ID()]; f[0] != chain || f[1] <= next {
		n.floors[s.ID()] = [2]uint32{chain, next + 4}
	}
}

// crash reloads every session; rollback also forgets what the last send committed.
func (n *node) crash(t *rapid.T) {
	for id, s := range n.sessions {
		fresh, err := Unmarshal(s.Marshal())
		if err != nil {
			t.Fatalf("reload: %v", err)
		}
		if !bytes.Equal(fresh.Marshal(), s.Marshal()) {
			t.Fatal("state changes in the store")
		}
		s.Session = fresh
		n.applyFloor(t, id)
	}
}

func (n *node) applyFloor(t *rapid.T, id [16]byte) {
	s, f := n.sessions[id], n.floors[id]
	if chain, _ := s.NextSend(); chain == f[0] {
		if err := s.SkipTo(f[1]); err != nil {
			t.Fatalf("floor: %v", err)
		}
	}
}

// abort does what a send does up to the moment before its commit, then loses the memory.
func (n *node) abort(t *rapid.T) {
	s := n.sendingSession()
	if s == nil {
		return
	}
	n.reserve(s)
	before := s.Marshal()
	if _, err := s.Encrypt([]byte("never committed"), rand.Reader); err != nil {
		t.Fatalf("encrypt: %v", err)
	}
	fresh, err := Unmarshal(before)
	if err != nil {
		t.Fatalf("reload: %v", err)
	}
	s.Session = fresh
	n.applyFloor(t, s.ID())
}

// receive takes an item as PROTOCOL 7.5 and 8.5 say and returns the session that opened it.
func (n *node) receive(item []byte) (*end, Opened, error) {
	it, err := ParseItem(item)
	if err != nil {
		return nil, Opened{}, err
	}
	if it.Initial != nil && n.sessions[it.Initial.ID()] == nil {
		s, o, err := Accept(n.local, it, n.keys(it.Initial))
		if err != nil {
			return nil, Opened{}, err
		}
		if it.Initial.OneTime {
			delete(n.oneTime, it.Initial.OPKID) // only now
		}
		e := &end{s, keyStore{}, nil}
		n.sessions[s.ID()] = e
		return e, o, n.commit(e, o)
	}
	candidates := n.order
	if it.Initial != nil {
		candidates = [][16]byte{it.Initial.ID()}
	}
	for i := len(candidates) - 1; i >= 0; i-- {
		e := n.sessions[candidates[i]]
		o, err := e.Decrypt(it, e.keys)
		if errors.Is(err, ErrNotOurs) {
			continue
		}
		if err != nil {
			return e, Opened{}, err
		}
		return e, o, n.commit(e, o)
	}
	return nil, Opened{}, ErrNotOurs
}

func (n *node) commit(e *end, o Opened) error {
	e.keys.commit(o)
	n.touch(e.ID())
	if e.SkippedTotal() != len(e.keys) {
		return fmt.Errorf("session counts %d skipped keys, the store has %d", e.SkippedTotal(), len(e.keys))
	}
	return nil
}

// snapshot is everything that a refused message must not change.
func (n *node) snapshot() string {
	var b bytes.Buffer
	for _, id := range n.order {
		e := n.sessions[id]
		fmt.Fprintf(&b, "%x %x %d;", id, e.Marshal(), len(e.keys))
	}
	return b.String()
}

// deliver gives one copy to the other side and checks what came of it.
func (to *node) deliver(t *rapid.T, m *sentItem) {
	before := to.snapshot()
	e, o, err := to.receive(m.sealed.Item)
	switch {
	case err == nil:
		m.opened++
		if m.opened > 1 {
			t.Fatalf("%q taken as new twice", m.text)
		}
		if string(o.Payload) != m.text || o.Chain != m.sealed.Chain || o.N != m.sealed.N || e.ID() != m.session {
			t.Fatalf("%q at %d/%d opened as %q at %d/%d", m.text, m.sealed.Chain, m.sealed.N, o.Payload, o.Chain, o.N)
		}
		if Ack(m.sealed.AckKey, m.sealed.Item) != Ack(o.AckKey, m.sealed.Item) {
			t.Fatalf("%q: acknowledgement does not verify", m.text)
		}
	case m.opened > 0 && (errors.Is(err, ErrDuplicate) || errors.Is(err, ErrNotOurs)):
	default:
		t.Fatalf("%q, opened %d times before: %v", m.text, m.opened, err)
	}
	if err != nil && before != to.snapshot() {
		t.Fatalf("%q was refused and changed the state", m.text)
	}
}

func TestTwoNodesOverAnyNetwork(t *testing.T) {
	alice, bob := newPerson(t, "alice"), newPerson(t, "bob")
	rapid.Check(t, func(t *rapid.T) {
		nodes := map[string]*node{"alice": newNode(alice), "bob": newNode(bob)}
		other := map[string]string{"alice": "bob", "bob": "alice"}
		count := 0
		who := func(t *rapid.T) string { return rapid.SampledFrom([]string{"alice", "bob"}).Draw(t, "who") }
		pick := func(t *rapid.T) (*sentItem, *node) {
			from := who(t)
			out := nodes[from].outbox
			if len(out) == 0 {
				t.Skip("nothing on its way") // rapid draws another action
			}
			// Mostly near the end: a network reorders a little more often than a lot.
			back := rapid.IntRange(0, min(len(out), 12)-1).Draw(t, "back")
			m := out[len(out)-1-back]
			if m.lost {
				t.Skip("lost")
			}
			return m, nodes[other[from]]
		}
		actions := map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				from := who(t)
				for range rapid.IntRange(1, 3).Draw(t, "messages") {
					count++
					nodes[from].send(t, nodes[other[from]], fmt.Sprint("text ", count), rapid.Bool().Draw(t, "one-time"))
				}
			},
			"deliver": func(t *rapid.T) {
				m, to := pick(t)
				to.deliver(t, m)
			},
			"deliver the newest": func(t *rapid.T) {
				from := who(t)
				if out := nodes[from].outbox; len(out) > 0 && !out[len(out)-1].lost {
					nodes[other[from]].deliver(t, out[len(out)-1])
				}
			},
			"drop": func(t *rapid.T) {
				m, _ := pick(t)
				m.lost = true
			},
			"corrupt": func(t *rapid.T) {
				m, to := pick(t)
				changed := bytes.Clone(m.sealed.Item)
				changed[rapid.IntRange(0, len(changed)-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
				before := to.snapshot()
				if _, _, err := to.receive(changed); err == nil || !isRefusal(err) && !errors.Is(err, ErrDuplicate) {
					t.Fatalf("a changed item: %v", err)
				}
				if before != to.snapshot() {
					t.Fatal("a changed item changed the state")
				}
			},
			"crash":               func(t *rapid.T) { nodes[who(t)].crash(t) },
			"crash before commit": func(t *rapid.T) { nodes[who(t)].abort(t) },
			"": func(t *rapid.T) {
				for _, n := range nodes {
					for _, e := range n.sessions {
						if e.SkippedTotal() != len(e.keys) || e.SkippedTotal() > MaxSkipped || len(e.closed) > maxClosedTotal {
							t.Fatal("a bound does not hold")
						}
					}
				}
			},
		}
		for range 3 { // one Repeat is about 30 steps
			t.Repeat(actions)
		}
		// In the end everything that was not lost arrives, late and in reverse.
		for from, n := range nodes {
			to := nodes[other[from]]
			for i := len(n.outbox) - 1; i >= 0; i-- {
				if m := n.outbox[i]; !m.lost && m.opened == 0 {
					to.deliver(t, m)
				}
			}
		}
	})
}
