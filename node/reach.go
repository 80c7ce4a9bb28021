package node

import (
	"slices"
	"strings"

	"github.com/libp2p/go-libp2p/core/host"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"sotto/wire"
)

// Reach says where this node is now, best addresses first; the caller numbers, signs and hands it to contacts only.
func (n *Node) Reach() wire.Reach {
	r := wire.Reach{FrontKey: n.frontKey, Inner: n.reachAddrs(n.inner), Front: n.reachAddrs(n.front)}
	r.InnerKey, _ = keyOf(n.inner.ID())
	return r
}

// reachKey changes when Reach does.
func (n *Node) reachKey() string {
	r := n.Reach()
	var b strings.Builder
	for _, list := range [][][]byte{r.Inner, r.Front} {
		for _, a := range list {
			b.Write(a)
		}
		b.WriteByte(0)
	}
	return b.String()
}

// reachAddrs takes the best of each kind first, so that a list cut short still has a direct path, a relay and the LAN.
func (n *Node) reachAddrs(h host.Host) [][]byte {
	all := h.Addrs()
	if !n.cfg.RelayOnly {
		if own, err := h.Network().InterfaceListenAddresses(); err == nil {
			all = append(slices.Clone(all), own...)
		}
	}
	seen := map[string]bool{}
	kinds := make([][][]byte, kindsOfAddr)
	for _, a := range all {
		k := n.kindOf(a)
		b := a.Bytes()
		if k < 0 || len(b) > wire.MaxAddr || seen[string(b)] {
			continue
		}
		seen[string(b)] = true
		kinds[k] = append(kinds[k], b)
	}
	var out [][]byte
	for round := 0; len(out) < wire.MaxAddrs; round++ {
		took := false
		for _, list := range kinds {
			if round < len(list) && len(out) < wire.MaxAddrs {
				out = append(out, list[round])
				took = true
			}
		}
		if !took {
			break
		}
	}
	return out
}

const kindsOfAddr = 6

// kindOf ranks an address, or drops it.
func (n *Node) kindOf(a ma.Multiaddr) int {
	_, errQUIC := a.ValueForProtocol(ma.P_QUIC_V1)
	tcp := 0
	if errQUIC != nil {
		tcp = 1
	}
	switch ip, err := manet.ToIP(a); {
	case isCircuit(a):
		if _, err := a.ValueForProtocol(ma.P_P2P); err != nil {
			return -1 // listening for circuits, with no relay yet
		}
		if errQUIC != nil {
			return 4
		}
		return 1
	case n.cfg.RelayOnly, err != nil, ip.IsUnspecified(), ip.IsLinkLocalUnicast():
		return -1
	case ip.IsLoopback():
		if !n.cfg.AllowPrivate {
			return -1
		}
		return []int{2, 5}[tcp]
	case manet.IsPublicAddr(a):
		return []int{0, 3}[tcp]
	default:
		return []int{2, 5}[tcp]
	}
}

// Hint is the front host's best address with /p2p, for the hints of an invite's link: it holds until the next start.
// It is empty when no address can be dialled from elsewhere.
func (n *Node) Hint() string {
	for _, b := range n.reachAddrs(n.front) {
		if a, err := ma.NewMultiaddrBytes(b); err == nil {
			return a.String() + "/p2p/" + n.front.ID().String()
		}
	}
	return ""
}
