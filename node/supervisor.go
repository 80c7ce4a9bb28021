package node

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"

	"sotto/wire"
)

// How often paths are tried (PROTOCOL 13.5). A path that carried an answer meanwhile needs no try.
const (
	checkOpen   = 5 * time.Second  // a conversation in which something was sent or received lately
	checkIdle   = 25 * time.Second // everything else
	openFor     = time.Minute      // how long such a conversation counts as going on
	pingTimeout = 3 * time.Second
	strangerFor = 15 * time.Second // a dial-back's connection
	relayPause  = 15 * time.Second // between two relays renewed: one stays
	firstPunch  = 20 * time.Second
	lastPunch   = 30 * time.Minute
)

// superviseConns closes dead paths, idle contacts and strangers, and tries to get off relays.
func (n *Node) superviseConns(ctx context.Context) {
	var relays time.Time // when they were last tried
	for {
		wait := checkIdle
		if n.anyOpen() {
			wait = checkOpen
		}
		t := time.NewTimer(wait)
		all := false
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-n.connWake: // a contact connected: look again how long to wait
			t.Stop()
			continue
		case <-n.checkWake:
			all = true
		case <-t.C:
		}
		t.Stop()
		if now := n.clock.Now(); all || now.Sub(relays) >= checkIdle {
			relays = now
			n.checkRelays(ctx)
		}
		n.check(ctx, all)
	}
}

func (n *Node) checkRelays(ctx context.Context) {
	var wg sync.WaitGroup
	for _, p := range n.connectedRelays() {
		wg.Go(func() { n.checkPeer(ctx, nil, p) })
	}
	wg.Wait()
}

func (n *Node) anyOpen() bool {
	now := n.clock.Now()
	for _, c := range n.connectedContacts() {
		if used, busy := c.state(); busy || now.Sub(used) < openFor {
			return true
		}
	}
	return false
}

// check looks at the contacts' and strangers' connections once; all says that none counts as known to be alive.
func (n *Node) check(ctx context.Context, all bool) {
	now := n.clock.Now()
	var wg sync.WaitGroup
	var mu sync.Mutex
	died := false
	for _, p := range n.inner.Network().Peers() {
		key, isContact := n.gate.contact(p)
		switch {
		case isContact:
			c := n.contact(p, key)
			used, busy := c.state()
			if !busy && now.Sub(used) >= n.limits.ContactIdle {
				_ = n.inner.Network().ClosePeer(p)
				continue
			}
			if !c.due(now, all) {
				continue
			}
			wg.Go(func() {
				if n.checkPeer(ctx, c, p) {
					mu.Lock()
					died = true
					mu.Unlock()
				}
				n.tryPunch(ctx, c)
			})
		case n.gate.relay(p): // see checkRelays
		default:
			for _, conn := range n.inner.Network().ConnsToPeer(p) {
				if now.Sub(conn.Stat().Opened) >= strangerFor {
					_ = conn.Close()
				}
			}
		}
	}
	wg.Wait()
	if n.evict("", n.limits.ContactConns); died {
		n.renewRelays(ctx)
	}
	n.dropIdleContacts()
}

// due tells whether the contact's path is to be tried now.
func (c *contact) due(now time.Time, all bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	quiet := now.Sub(c.used)
	every := checkIdle
	if quiet < openFor || c.busy > 0 {
		every = checkOpen
	}
	if !all && (now.Sub(c.pinged) < every || quiet < every && c.busy == 0) {
		return false
	}
	c.pinged = now
	return true
}

// checkPeer makes a round trip on each direct connection and closes those that do not answer.
func (n *Node) checkPeer(ctx context.Context, c *contact, p peer.ID) (died bool) {
	for _, conn := range n.inner.Network().ConnsToPeer(p) {
		if conn.Stat().Limited {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, pingTimeout)
		rtt, err := ping(ctx, conn, n.proto.ping)
		cancel()
		if err != nil {
			n.log.Debug("path is dead", "peer", short(p), "addr", conn.RemoteMultiaddr().String(), "err", err)
			_ = conn.Close()
			died = true
			continue
		}
		if c != nil {
			c.mu.Lock()
			c.rtt = rtt
			c.mu.Unlock()
		}
	}
	return died
}

// renewRelays drops relay connections one after the other: after a change of address they still carry the old one,
// which would make every punch miss. AutoRelay takes each up again.
func (n *Node) renewRelays(ctx context.Context) {
	for i, r := range n.connectedRelays() {
		if i > 0 && n.clock.Wait(ctx, relayPause) != nil {
			return
		}
		_ = n.inner.Network().ClosePeer(r)
	}
}

func (n *Node) connectedRelays() []peer.ID {
	return slices.DeleteFunc(n.inner.Network().Peers(), func(p peer.ID) bool {
		_, contact := n.gate.contact(p)
		return contact || !n.gate.relay(p)
	})
}

// tryPunch replaces a relayed connection that is in use by a new one, because libp2p looks for a direct path only when
// a relayed connection comes in. Of the two the smaller id does so, at doubling intervals.
func (n *Node) tryPunch(ctx context.Context, c *contact) {
	if n.cfg.RelayOnly || n.inner.ID() > c.id || n.inner.Network().Connectedness(c.id) != network.Limited {
		return
	}
	now := n.clock.Now()
	c.mu.Lock()
	ready := c.busy == 0 && now.Sub(c.used) < openFor && !now.Before(c.punch)
	if ready {
		c.punched++
		c.punch = now.Add(backoff(c.punched, firstPunch, lastPunch))
	}
	c.mu.Unlock()
	if !ready {
		return
	}
	addrs := n.inner.Peerstore().Addrs(c.id)
	_ = n.inner.Network().ClosePeer(c.id)
	ctx, cancel := context.WithTimeout(ctx, n.limits.DialTimeout)
	defer cancel()
	_ = n.inner.Connect(network.WithAllowLimitedConn(ctx, "punch"), peer.AddrInfo{ID: c.id, Addrs: addrs})
}

// dropIdleContacts forgets what is kept about contacts that are not connected and wait for nothing.
func (n *Node) dropIdleContacts() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for p, c := range n.contacts {
		if _, busy := c.state(); !busy && c.link.current() == nil && !connected(n.inner.Network(), p) && n.clock.Now().Sub(c.punch) > lastPunch {
			delete(n.contacts, p)
		}
	}
}

// watchHosts turns libp2p's events into news.
func (n *Node) watchHosts(ctx context.Context) {
	inner, err := n.inner.EventBus().Subscribe([]any{
		new(event.EvtLocalAddressesUpdated), new(event.EvtAutoRelayAddrsUpdated), new(event.EvtHostReachableAddrsChanged),
	})
	if err != nil {
		n.log.Error("cannot watch the inner host", "err", err)
		return
	}
	defer func() { _ = inner.Close() }()
	front, err := n.front.EventBus().Subscribe([]any{new(event.EvtLocalAddressesUpdated), new(event.EvtAutoRelayAddrsUpdated)})
	if err != nil {
		n.log.Error("cannot watch the front host", "err", err)
		return
	}
	defer func() { _ = front.Close() }()
	last := n.reachKey()
	for {
		var e any
		var ok bool
		select {
		case <-ctx.Done():
			return
		case e, ok = <-inner.Out():
		case e, ok = <-front.Out():
		}
		if !ok {
			return
		}
		if r, isReach := e.(event.EvtHostReachableAddrsChanged); isReach {
			n.mu.Lock()
			n.reachable = len(r.Reachable) > 0
			n.mu.Unlock()
		}
		if now := n.reachKey(); now != last {
			last = now
			n.news.tell(func(w *news) { w.moved = true })
		}
	}
}

// watchInterval is how often the machine's own addresses are looked at: libp2p notices a change late, and sleep not at all.
const watchInterval = 10 * time.Second

// watchInterfaces notices another network or a wake from sleep, and has everything checked at once.
func (n *Node) watchInterfaces(ctx context.Context) {
	last, at := interfaces(), time.Now().Round(0) // without the monotonic reading, which stands still during sleep
	t := time.NewTicker(watchInterval)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		now, then := interfaces(), at
		at = time.Now().Round(0)
		if now == last && at.Sub(then) < 3*watchInterval {
			continue
		}
		last = now
		n.networkChanged()
	}
}

// networkChanged has every path tried, every back-off forgotten, the local network looked at afresh.
func (n *Node) networkChanged() {
	n.log.Info("network changed")
	n.known.wake()
	for _, p := range n.inner.Peerstore().Peers() {
		n.clearBackoff(n.inner, p)
	}
	for _, p := range n.front.Peerstore().Peers() {
		n.clearBackoff(n.front, p)
	}
	wake(n.checkWake)
	wake(n.bootWake)
	n.mu.Lock()
	close(n.changed)
	n.changed = make(chan struct{})
	n.mu.Unlock()
	n.news.tell(func(w *news) { w.moved = true })
}

func (n *Node) watchChange() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

func interfaces() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	var all []string
	for _, a := range addrs {
		all = append(all, a.String())
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// How the DHT is kept: quietly, since records are looked up rarely.
const (
	settleServer = 3 * time.Second // from a connection to its place in the table
	retryIdle    = time.Minute
	refreshEvery = time.Hour
)

// keepBootstrapped keeps up to Limits.DHTServers connections to DHT servers, and the table fresh once an hour.
func (n *Node) keepBootstrapped(ctx context.Context) {
	var refreshed time.Time
	for {
		n.dialServers(ctx)
		up := n.noteOnline()
		now := n.clock.Now()
		if up && now.Sub(refreshed) >= refreshEvery && n.kad.WAN.RoutingTable().Size() > 1 {
			refreshed = now
			_ = n.kad.WAN.RefreshRoutingTable() // its answer comes on a buffered channel nobody needs
		}
		wait := retryIdle
		if !up && n.known.anyDHT() {
			wait = time.Second
		}
		select {
		case <-ctx.Done():
			return
		case <-n.bootWake:
		case <-time.After(wait):
		}
	}
}

// noteOnline tells the caller when the DHT came into reach.
func (n *Node) noteOnline() (up bool) {
	up = slices.ContainsFunc(n.kad.WAN.RoutingTable().ListPeers(), func(p peer.ID) bool { return connected(n.front.Network(), p) })
	n.mu.Lock()
	came := up && !n.online
	n.online = up
	n.mu.Unlock()
	if came {
		n.news.tell(func(w *news) { w.online = true })
		wake(n.learnWake)
	}
	return up
}

// dialServers connects to as many known DHT hosts as are missing, all at once.
func (n *Node) dialServers(ctx context.Context) {
	net := n.front.Network()
	have := 0
	for _, s := range n.known.servers() {
		if connected(net, s.ID) {
			have++
		}
	}
	list := n.known.due(n.clock.Now(), max(n.limits.DHTServers-have, 0), func(p peer.ID) bool { return connected(net, p) })
	if len(list) == 0 {
		return
	}
	var wg sync.WaitGroup
	for _, info := range list {
		wg.Go(func() {
			dial, cancel := context.WithTimeout(ctx, n.limits.DialTimeout)
			defer cancel()
			err := n.front.Connect(dial, info)
			n.known.tried(info.ID, n.clock.Now(), err)
			if err != nil {
				if ctx.Err() == nil {
					n.log.Info("DHT host cannot be reached", "peer", short(info.ID), "err", err)
				}
				return
			}
			settle, stop := context.WithTimeout(ctx, settleServer)
			defer stop()
			if waitServer(settle, n.kad.WAN) == nil {
				n.noteOnline() // without waiting for those that do not answer
			}
		})
	}
	wg.Wait()
}

// Ping measures a round trip to a contact, end to end between the two inner hosts.
func (n *Node) Ping(ctx context.Context, to wire.Reach) (time.Duration, error) {
	c, err := n.connect(ctx, to)
	if err != nil {
		return 0, err
	}
	return pingPeer(ctx, n.inner, c.id, n.proto.ping)
}
