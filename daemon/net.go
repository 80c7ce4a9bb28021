package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"time"

	"sotto/control"
	"sotto/messenger"
	"sotto/node"
	"sotto/wire"
)

// network shows the node to the local API, with contacts by their names.
type network struct {
	node *node.Node
	m    *messenger.Messenger
	away *outage
}

// Warnings are what a person should know about the network.
func (n network) Warnings() []control.Warning { return n.away.warnings() }

// NetStatus tells how the node stands in the network.
func (n network) NetStatus() control.NetStatus {
	s := n.node.Status()
	return control.NetStatus{Reachability: s.Reachability, Addrs: append(s.Inner, s.Front...), Peers: s.Contacts + s.DHTServers + s.LAN + s.Relays + s.Others,
		Contacts: s.Contacts, DHT: s.DHTServers, LAN: s.LAN, Relays: s.Relays, Online: s.Online, Named: n.away.named}
}

// Peers lists the connections.
func (n network) Peers() []control.Peer {
	var out []control.Peer
	for _, p := range n.node.Peers() {
		c := control.Peer{V: 1, Role: string(p.Role), Key: hex.EncodeToString(p.Key[:]), Addr: p.Addr, Direct: p.Direct, RTT: millis(p.RTT)}
		if p.Role == node.RoleContact {
			c.Name, _ = n.m.ContactByInner(p.Key)
		}
		out = append(out, c)
	}
	return out
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// Ping measures the way to a contact.
func (n network) Ping(ctx context.Context, name string) (control.Ping, error) {
	if c, err := n.m.Contact(ctx, name); err == nil {
		name = c.Name // it may have been shortened
	}
	reach, err := n.m.ReachOf(name)
	if err != nil {
		var known *messenger.Error
		if errors.As(err, &known) {
			return control.Ping{}, control.FromCore(err)
		}
		return control.Ping{}, control.Errorf(control.ExitNotInTime, "no_address", "Wait until they have answered your invite.", "%s has not told where it can be reached", name)
	}
	rtt, err := n.node.Ping(ctx, reach)
	if err != nil {
		return control.Ping{}, unreachable(name, err)
	}
	return control.Ping{V: 1, Name: name, RTT: millis(rtt)}, nil
}

// Connect connects to an address, a volunteer's or anyone's.
func (n network) Connect(ctx context.Context, addr string) error {
	if err := CheckAddr(addr); err != nil {
		return control.Errorf(control.ExitUsage, "bad_address", "Write it like /ip4/203.0.113.7/udp/4002/quic-v1/p2p/12D3Koo…", "%v", err)
	}
	if err := n.node.Connect(ctx, addr); err != nil {
		return unreachable(addr, err)
	}
	return nil
}

func unreachable(who string, err error) error {
	if errors.Is(err, wire.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded) {
		return control.Errorf(control.ExitNotInTime, "unreachable", "They may be offline; messages wait and go out by themselves.", "%s does not answer", who)
	}
	return control.Errorf(control.ExitFailed, "unreachable", "See what the node reaches: sotto peers list", "cannot reach %s: %v", who, err)
}
