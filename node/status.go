package node

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"sotto/wire"
)

// What is refused is counted under these names, which Status shows.
const (
	refusedFrameSize  = "frame: length out of bounds"
	refusedTruncated  = "frame: truncated"
	refusedSlow       = "frame: not complete in time"
	refusedOffer      = "direct: malformed offer"
	refusedAnswer     = "direct: answer out of order or malformed"
	refusedStranger   = "direct: peer is not admitted"
	refusedStreams    = "direct: too many streams"
	refusedNeverRead  = "direct: answers never read"
	silentPeer        = "direct: no answer in time"
	refusedKnock      = "knock: malformed"
	refusedKnockRate  = "knock: too many from one address"
	refusedKnockStamp = "knock: no stamp"
	refusedKnockSize  = "knock: envelope too large"
	refusedKnockBusy  = "knock: too many at once"
	refusedPing       = "ping: malformed"
	refusedList       = "volunteers: list refused"
	refusedRecord     = "dht: record refused"
	refusedPuts       = "dht: too many puts from one address"
	refusedStored     = "dht: store is full"
	turnedAway        = "inner: connection of a stranger"
)

// counters counts by name. The zero value is ready.
type counters struct {
	mu sync.Mutex
	by map[string]uint64
}

func (c *counters) add(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil {
		c.by = map[string]uint64{}
	}
	c.by[name]++
}

// frame counts a failed read by its kind; a stream that merely ended is none.
func (c *counters) frame(err error) {
	switch {
	case errors.Is(err, wire.ErrFrameSize):
		c.add(refusedFrameSize)
	case errors.Is(err, io.ErrUnexpectedEOF):
		c.add(refusedTruncated)
	case isTimeout(err):
		c.add(refusedSlow)
	}
}

func (c *counters) snapshot() map[string]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]uint64, len(c.by))
	for k, v := range c.by {
		out[k] = v
	}
	return out
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}

// Status is what a node knows about its own place in the network.
type Status struct {
	Reachability string   // "public", "relay" or "unknown": how contacts elsewhere can reach us
	Online       bool     // at least one DHT server answers
	Inner, Front []string // own addresses
	InnerPort    int      // store these two and pass them in at the next start
	FrontPort    int
	Contacts     int // peers by role, each counted once however many connections there are
	DHTServers   int
	LAN          int
	Relays       int
	Others       int
	Known        []string          // addresses of DHT hosts known, for Config.Bootstrap at the next start
	Refused      map[string]uint64 // what others tried in vain
	Clock        time.Duration     // what volunteers say our clock lacks, when ClockKnown
	ClockKnown   bool
}

// Status tells how the node stands.
func (n *Node) Status() Status {
	s := Status{
		Reachability: "unknown",
		Inner:        addrStrings(n.inner.Addrs()), Front: addrStrings(n.front.Addrs()),
		InnerPort: n.innerPort, FrontPort: n.frontPort,
		Refused: n.counts.snapshot(),
	}
	if away := n.gate.turnedAway(); away > 0 {
		s.Refused[turnedAway] = away
	}
	counted := map[string]bool{}
	for _, p := range n.Peers() {
		if who := string(p.Role) + p.ID; counted[who] {
			continue
		} else {
			counted[who] = true
		}
		switch p.Role {
		case RoleContact:
			s.Contacts++
		case RoleServer:
			s.DHTServers++
		case RoleLAN:
			s.LAN++
		case RoleRelay:
			s.Relays++
		default:
			s.Others++
		}
	}
	for _, info := range n.known.servers() {
		if addrs, err := peer.AddrInfoToP2pAddrs(&info); err == nil {
			s.Known = append(s.Known, addrStrings(addrs)...)
		}
	}
	n.mu.Lock()
	s.Online = n.online
	reachable := n.reachable
	n.mu.Unlock()
	switch {
	case reachable:
		s.Reachability = "public"
	case slices.ContainsFunc(n.inner.Addrs(), isCircuit):
		s.Reachability = "relay"
	}
	s.Clock, s.ClockKnown = n.ClockOffset()
	return s
}

// ClockOffset is the median of what at least three volunteers say, relative to this machine's clock.
func (n *Node) ClockOffset() (time.Duration, bool) { return n.known.offset() }

// PeerRole says why a node is connected to a peer.
type PeerRole string

// The roles of peers.
const (
	RoleContact PeerRole = "contact"
	RoleServer  PeerRole = "dht"
	RoleLAN     PeerRole = "lan"
	RoleRelay   PeerRole = "relay"
	RoleOther   PeerRole = "other"
)

// PeerInfo is one connected peer. Key is the inner key for contacts, the host's key otherwise.
type PeerInfo struct {
	Role   PeerRole
	Key    [32]byte
	ID     string
	Addr   string
	Direct bool          // not over a relay
	RTT    time.Duration // 0 when not measured
}

// Peers lists who both hosts are connected to, contacts first.
func (n *Node) Peers() []PeerInfo {
	var out []PeerInfo
	for _, c := range n.inner.Network().Conns() {
		i := peerInfo(c)
		switch key, ok := n.gate.contact(c.RemotePeer()); {
		case ok:
			i.Role = RoleContact
			ct := n.contact(c.RemotePeer(), key)
			ct.mu.Lock()
			i.RTT = ct.rtt
			ct.mu.Unlock()
		case n.gate.relay(c.RemotePeer()):
			i.Role = RoleRelay
		}
		out = append(out, i)
	}
	for _, c := range n.front.Network().Conns() {
		i := peerInfo(c)
		i.Role = n.frontRole(c.RemotePeer())
		out = append(out, i)
	}
	order := []PeerRole{RoleContact, RoleServer, RoleRelay, RoleLAN, RoleOther}
	slices.SortStableFunc(out, func(a, b PeerInfo) int { return slices.Index(order, a.Role) - slices.Index(order, b.Role) })
	return out
}

func (n *Node) frontRole(p peer.ID) PeerRole {
	if n.kad.WAN.RoutingTable().Find(p) != "" {
		return RoleServer
	}
	n.mu.Lock()
	_, lan := n.neighbours[p]
	n.mu.Unlock()
	switch {
	case lan:
		return RoleLAN
	case n.gate.relay(p):
		return RoleRelay
	}
	return RoleOther
}

func peerInfo(c network.Conn) PeerInfo {
	key, _ := keyOf(c.RemotePeer())
	return PeerInfo{Role: RoleOther, Key: key, ID: c.RemotePeer().String(), Addr: c.RemoteMultiaddr().String(), Direct: !c.Stat().Limited}
}

func addrStrings(addrs []ma.Multiaddr) []string {
	out := make([]string, len(addrs))
	for i, a := range addrs {
		out[i] = a.String()
	}
	return out
}
