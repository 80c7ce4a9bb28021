package node

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/control"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"sotto/wire"
)

// gate is the inner host's door: contacts and relays, nobody else. The one exception is the dial-back by which a
// volunteer checks whether we can be reached: it comes from a volunteer's address under a throw-away key, gets no
// stream of ours, and is closed soon (PROTOCOL 13.3).
type gate struct {
	relayOnly bool

	mu       sync.RWMutex
	admitted map[peer.ID][32]byte
	relays   map[peer.ID]bool
	relayIPs map[string]bool
	refused  uint64
}

func newGate(relayOnly bool) *gate {
	return &gate{relayOnly: relayOnly, admitted: map[peer.ID][32]byte{}, relays: map[peer.ID]bool{}, relayIPs: map[string]bool{}}
}

// admit replaces the set of contacts and returns those no longer in it.
func (g *gate) admit(keys [][32]byte) (gone []peer.ID) {
	next := make(map[peer.ID][32]byte, len(keys))
	for _, k := range keys {
		if p, err := peerOf(k); err == nil {
			next[p] = k
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for p := range g.admitted {
		if _, ok := next[p]; !ok {
			gone = append(gone, p)
		}
	}
	g.admitted = next
	return gone
}

func (g *gate) setRelays(relays []peer.AddrInfo) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, r := range relays {
		g.relays[r.ID] = true
		for _, a := range r.Addrs {
			if ip, err := manet.ToIP(a); err == nil {
				g.relayIPs[ip.String()] = true
			}
		}
	}
}

// contact is the key of an admitted peer.
func (g *gate) contact(p peer.ID) (key [32]byte, ok bool) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	key, ok = g.admitted[p]
	return key, ok
}

func (g *gate) relay(p peer.ID) bool {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.relays[p]
}

// InterceptPeerDial lets us dial contacts and relays.
func (g *gate) InterceptPeerDial(p peer.ID) bool {
	if _, ok := g.contact(p); ok {
		return true
	}
	return g.relay(p)
}

// InterceptAddrDial keeps contacts from seeing our address in relay-only mode.
func (g *gate) InterceptAddrDial(p peer.ID, a ma.Multiaddr) bool {
	if !g.relayOnly || isCircuit(a) {
		return true
	}
	return g.relay(p)
}

// InterceptAccept lets every connection prove who it is.
func (g *gate) InterceptAccept(network.ConnMultiaddrs) bool { return true }

// InterceptSecured judges by the proven key.
func (g *gate) InterceptSecured(dir network.Direction, p peer.ID, addrs network.ConnMultiaddrs) bool {
	if dir == network.DirOutbound || g.InterceptPeerDial(p) {
		return true
	}
	remote := addrs.RemoteMultiaddr()
	ip, err := manet.ToIP(remote)
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil && !isCircuit(remote) && g.relayIPs[ip.String()] {
		return true
	}
	g.refused++
	return false
}

// InterceptUpgraded has nothing to add.
func (g *gate) InterceptUpgraded(network.Conn) (bool, control.DisconnectReason) { return true, 0 }

func (g *gate) turnedAway() uint64 {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.refused
}

// Admit sets which inner keys may connect: the whole set, every time. Peers that fell out of it are disconnected.
func (n *Node) Admit(keys [][32]byte) {
	for _, p := range n.gate.admit(keys) {
		_ = n.inner.Network().ClosePeer(p)
		n.forget(p)
	}
}

// contact is what the node keeps about an admitted peer while it has to do with it.
type contact struct {
	id   peer.ID
	key  [32]byte
	link *link // our offers to it

	places chan struct{} // a slot for each of its streams that is read or whose offers are not all decided

	mu      sync.Mutex // guards what follows
	used    time.Time  // last offer or answer, either way
	busy    int        // offers without an answer, both ways
	inbound []*seat    // oldest first
	pinged  time.Time
	rtt     time.Duration
	punched int // failed tries to get off the relay
	punch   time.Time
}

// touch notes use; delta changes the number of open offers.
func (c *contact) touch(now time.Time, delta int) {
	c.mu.Lock()
	c.used = now
	c.busy += delta
	c.mu.Unlock()
}

func (c *contact) state() (used time.Time, busy bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used, c.busy > 0
}

func (n *Node) contact(p peer.ID, key [32]byte) *contact {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.contacts[p]
	if c == nil {
		c = &contact{id: p, key: key, used: n.clock.Now(), places: make(chan struct{}, n.limits.StreamsIn)}
		c.link = &link{n: n, c: c, dial: make(chan struct{}, 1)}
		n.contacts[p] = c
	}
	return c
}

func (n *Node) forget(p peer.ID) {
	n.mu.Lock()
	c := n.contacts[p]
	delete(n.contacts, p)
	n.mu.Unlock()
	if c != nil {
		c.link.drop(wire.ErrUnreachable)
	}
}

// connectedContacts are the contacts with a connection, direct or relayed.
func (n *Node) connectedContacts() []*contact {
	var out []*contact
	for _, p := range n.inner.Network().Peers() {
		if key, ok := n.gate.contact(p); ok {
			out = append(out, n.contact(p, key))
		}
	}
	return out
}

// makeRoom frees one of the few contact connections for a new one: the least used that waits for nothing. When all
// are at work it waits for one, as long as ctx lasts.
func (n *Node) makeRoom(ctx context.Context, for_ peer.ID) error {
	for {
		n.mu.Lock()
		room := n.room
		n.mu.Unlock()
		if n.evict(for_, n.limits.ContactConns-1) {
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return fmt.Errorf("all %d contact connections are at work: %w", n.limits.ContactConns, wire.ErrOverloaded)
		}
	}
}

// evict closes idle contact connections, oldest use first, until at most keep remain besides that to spare.
func (n *Node) evict(spare peer.ID, keep int) bool {
	for {
		var oldest *contact
		var when time.Time
		count := 0
		for _, c := range n.connectedContacts() {
			if c.id == spare {
				continue
			}
			count++
			if used, busy := c.state(); !busy && (oldest == nil || used.Before(when)) {
				oldest, when = c, used
			}
		}
		switch {
		case count <= keep:
			return true
		case oldest == nil:
			return false
		}
		_ = n.inner.Network().ClosePeer(oldest.id)
	}
}

// roomFreed wakes those that wait in makeRoom.
func (n *Node) roomFreed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	close(n.room)
	n.room = make(chan struct{})
}

// innerConnected and innerDisconnected run inside libp2p and must not block.
func (n *Node) innerConnected(_ network.Network, c network.Conn) {
	p := c.RemotePeer()
	if n.gate.relay(p) {
		n.gate.setRelays([]peer.AddrInfo{{ID: p, Addrs: []ma.Multiaddr{c.RemoteMultiaddr()}}}) // it may be known by name only
	}
	key, ok := n.gate.contact(p)
	if !ok {
		return
	}
	n.contact(p, key).touch(n.clock.Now(), 0)
	n.news.tell(func(w *news) { w.ups[key] = true; w.crowded = true })
	wake(n.connWake)
}

func (n *Node) innerDisconnected(net network.Network, c network.Conn) {
	p := c.RemotePeer()
	if _, ok := n.gate.contact(p); ok && net.Connectedness(p) == network.NotConnected {
		n.roomFreed()
	}
}

// connect reaches a contact's inner host, over a relay if need be. Only the addresses given count: those of an older
// reach are gone.
func (n *Node) connect(ctx context.Context, to wire.Reach) (*contact, error) {
	p, err := peerOf(to.InnerKey)
	if err != nil {
		return nil, fmt.Errorf("contact's node key: %w: %w", err, wire.ErrUnreachable)
	}
	key, ok := n.gate.contact(p)
	if !ok {
		return nil, fmt.Errorf("%s is not admitted: %w", short(p), wire.ErrUnreachable)
	}
	c := n.contact(p, key)
	if connected(n.inner.Network(), p) {
		return c, nil
	}
	addrs := n.dialable(to.Inner)
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%s: no address known that can be dialled from here: %w", short(p), wire.ErrUnreachable)
	}
	if err := n.makeRoom(ctx, p); err != nil {
		return nil, err
	}
	if sw, ok := n.inner.Network().(*swarm.Swarm); ok {
		sw.Backoff().Clear(p) // when to try again is the messenger's decision
	}
	n.inner.Peerstore().ClearAddrs(p)
	n.inner.Peerstore().AddAddrs(p, addrs, addrLife)
	ctx, cancel := context.WithTimeout(ctx, n.limits.DialTimeout)
	defer cancel()
	if err := n.inner.Connect(network.WithAllowLimitedConn(ctx, "contact"), peer.AddrInfo{ID: p}); err != nil {
		return nil, fmt.Errorf("connect to %s: %w: %w", short(p), err, wire.ErrUnreachable)
	}
	return c, nil
}

// addrLife is how long a dialled address is kept: records are the source, not the peerstore.
const addrLife = 15 * time.Minute

func connected(net network.Network, p peer.ID) bool {
	s := net.Connectedness(p)
	return s == network.Connected || s == network.Limited
}

// Touch connects to a contact, so that both notice each other's presence.
func (n *Node) Touch(ctx context.Context, to wire.Reach) error {
	_, err := n.connect(ctx, to)
	return err
}

// dialable turns a reach's addresses into multiaddrs and leaves out private ones of networks we are not in.
func (n *Node) dialable(list [][]byte) []ma.Multiaddr {
	var out []ma.Multiaddr
	var nets []net.Addr
	for _, b := range list {
		a, err := ma.NewMultiaddrBytes(b)
		if err != nil {
			continue
		}
		if !n.cfg.AllowPrivate && !isCircuit(a) && !manet.IsPublicAddr(a) {
			if nets == nil {
				nets, _ = net.InterfaceAddrs()
			}
			if !onOurLAN(a, nets) {
				continue
			}
		}
		out = append(out, a)
	}
	return out
}

// onOurLAN tells whether one of our own networks, the loopback excepted, contains the address; this machine is in it.
func onOurLAN(a ma.Multiaddr, nets []net.Addr) bool {
	ip, err := manet.ToIP(a)
	if err != nil || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
		return false
	}
	for _, x := range nets {
		if ours, ok := x.(*net.IPNet); ok && ours.Contains(ip) {
			return true
		}
	}
	return false
}

// short is how peers appear in logs and errors.
func short(p peer.ID) string {
	s := p.String()
	if len(s) <= 10 {
		return s
	}
	return s[:6] + "…" + s[len(s)-4:]
}
