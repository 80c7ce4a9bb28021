package node

import (
	"slices"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// What a person's node lends to a client of mailboxes (PROTOCOL 17): its front host, whose key says nothing about the person.

// Front is the nameless host.
func (n *Node) Front() host.Host { return n.front }

// Mailboxes lists the service hosts of volunteers that are known, with /p2p, those the person configured first: each may keep mail.
func (n *Node) Mailboxes() []string {
	var out []string
	for _, info := range n.known.services() {
		info.Addrs = n.Dialable(info.Addrs)
		slices.SortStableFunc(info.Addrs, func(a, b ma.Multiaddr) int { return publicFirst(a) - publicFirst(b) })
		if addrs, err := peer.AddrInfoToP2pAddrs(&info); err == nil && len(addrs) > 0 {
			out = append(out, addrs[0].String())
		}
	}
	return out
}

func publicFirst(a ma.Multiaddr) int {
	if manet.IsPublicAddr(a) {
		return 0
	}
	return 1
}

// Dialable leaves out the private addresses of networks that this machine is not in.
func (n *Node) Dialable(addrs []ma.Multiaddr) []ma.Multiaddr {
	raw := make([][]byte, len(addrs))
	for i, a := range addrs {
		raw[i] = a.Bytes()
	}
	return n.dialable(raw)
}

// services lists the service hosts, configured ones first.
func (d *directory) services() []peer.AddrInfo {
	d.mu.Lock()
	configured := map[peer.ID]bool{}
	for id, k := range d.service {
		configured[id] = k.configured
	}
	d.mu.Unlock()
	list := d.relays()
	slices.SortStableFunc(list, func(a, b peer.AddrInfo) int {
		switch {
		case configured[a.ID] == configured[b.ID]:
			return 0
		case configured[a.ID]:
			return -1
		}
		return 1
	})
	return list
}
