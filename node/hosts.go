package node

import (
	"crypto/ed25519"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/host/autorelay"
	rcmgr "github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	"github.com/libp2p/go-libp2p/p2p/transport/tcp"
	ma "github.com/multiformats/go-multiaddr"
)

type protocolID = protocol.ID

// agent is the same in every version: what a peer can do is read from its protocols, never from this.
const agent = "sotto"

// commonOptions are those of every host of every role.
func commonOptions(sk ed25519.PrivateKey, proto protocols, dial time.Duration, allowPrivate bool) ([]libp2p.Option, error) {
	key, err := crypto.UnmarshalEd25519PrivateKey(sk)
	if err != nil {
		return nil, fmt.Errorf("host key: %w", err)
	}
	opts := []libp2p.Option{
		libp2p.Identity(key),
		libp2p.Transport(tcp.NewTCPTransport), libp2p.Transport(libp2pquic.NewTransport),
		libp2p.UserAgent(agent), libp2p.ProtocolVersion(proto.version),
		libp2p.SwarmOpts(swarm.WithDialTimeout(dial)),
		libp2p.Ping(false), libp2p.DisableMetrics(),
	}
	if !allowPrivate {
		opts = append(opts, libp2p.NonPublicAddrPublishing(false))
	}
	return opts, nil
}

// Above connsHigh connections the idlest are closed until connsLow are left. It must be below what userResources lets in (letIn):
// else strangers who connect and say nothing would keep everybody else out for good.
const connsLow, connsHigh = 32, 64

// newHost makes one of a person's hosts. A stored port that someone else took meanwhile gives way to a new one.
func (n *Node) newHost(role Role, sk ed25519.PrivateKey, port int) (host.Host, int, error) {
	var err error
	for range 3 {
		use := port
		if use == 0 && !n.cfg.RelayOnly {
			if use, err = freePort(); err != nil {
				return nil, 0, err
			}
		}
		var opts []libp2p.Option
		if opts, err = n.userOptions(role, sk, use); err != nil {
			return nil, 0, err
		}
		var h host.Host
		if h, err = makeHost(n.cfg.NewHost, role, opts); err == nil {
			return h, use, nil
		}
		if port != 0 {
			n.log.Warn("stored port is taken, using another", "host", string(role), "port", port, "err", err)
		}
		port = 0
	}
	return nil, 0, err
}

func makeHost(make func(Role, ...libp2p.Option) (host.Host, error), role Role, opts []libp2p.Option) (host.Host, error) {
	if make != nil {
		return make(role, opts...)
	}
	return libp2p.New(opts...)
}

// userOptions are for people's hosts: they assume a NAT and take a relay until AutoNATv2 proves otherwise, because most people
// are behind one and an address that nobody reaches costs every dialler its timeout.
func (n *Node) userOptions(role Role, sk ed25519.PrivateKey, port int) ([]libp2p.Option, error) {
	opts, err := commonOptions(sk, n.proto, n.limits.DialTimeout, n.cfg.AllowPrivate)
	if err != nil {
		return nil, err
	}
	conns, err := connmgr.NewConnManager(connsLow, connsHigh, connmgr.WithGracePeriod(30*time.Second))
	if err != nil {
		return nil, err
	}
	resources, err := userResources(n.proto)
	if err != nil {
		return nil, err
	}
	relays := 2
	if role == RoleFront {
		relays = 1
	}
	opts = append(opts,
		libp2p.ConnectionManager(conns), libp2p.ResourceManager(resources),
		libp2p.ForceReachabilityPrivate(), libp2p.EnableAutoNATv2(),
		libp2p.EnableRelay(),
		libp2p.EnableAutoRelayWithPeerSource(n.relaySource, autorelay.WithNumRelays(relays), autorelay.WithMinCandidates(1),
			autorelay.WithMaxCandidates(8), autorelay.WithBootDelay(0), autorelay.WithBackoff(30*time.Second), autorelay.WithMinInterval(10*time.Second)),
	)
	if role == RoleInner {
		opts = append(opts, libp2p.ConnectionGater(n.gate))
	}
	if n.cfg.RelayOnly {
		return append(opts, libp2p.NoListenAddrs, libp2p.EnableRelay(), libp2p.AddrsFactory(onlyCircuits)), nil
	}
	opts = append(opts, libp2p.ListenAddrStrings(listenAddrs(n.cfg.Listen, port)...))
	if role == RoleInner {
		opts = append(opts, libp2p.EnableHolePunching())
	}
	if !n.cfg.AllowPrivate && !n.cfg.NoPortMap {
		opts = append(opts, libp2p.NATPortMap())
	}
	return opts, nil
}

// libp2p lets one address have eight connections, and by default no more than 36 in all that have not said yet who they are: five
// addresses that say nothing would shut everybody out. One that waits costs a few KiB, and 15 s later it is closed.
const (
	halfOpen = 256 // connections let in that have not proved a key yet
	letIn    = 512 // connections let in

	// A stream that has not said yet what it is for counts among few for all; one peer must not be able to fill them.
	unsaid     = 512 // such streams let in
	peerOpened = 64  // streams that one peer may open
)

// userResources are libp2p's defaults for a small machine, with more patience for connections that are just being made, and
// tighter ones for our own protocols.
func userResources(proto protocols) (network.ResourceManager, error) {
	scaling := rcmgr.DefaultLimits
	libp2p.SetDefaultServiceLimits(&scaling)
	scaling.TransientBaseLimit.ConnsInbound, scaling.TransientBaseLimit.Conns, scaling.TransientBaseLimit.FD = halfOpen, halfOpen+64, halfOpen+64
	scaling.SystemBaseLimit.ConnsInbound, scaling.SystemBaseLimit.Conns, scaling.SystemBaseLimit.FD = letIn, letIn+128, letIn+128
	scaling.TransientBaseLimit.StreamsInbound, scaling.TransientBaseLimit.Streams = unsaid, unsaid+256
	scaling.PeerBaseLimit.StreamsInbound, scaling.PeerLimitIncrease.StreamsInbound = peerOpened, 0
	for _, id := range []protocol.ID{proto.direct, proto.knock, proto.ping} {
		scaling.AddProtocolLimit(id, rcmgr.BaseLimit{Streams: 128, StreamsInbound: 64, StreamsOutbound: 64, Memory: 32 << 20}, rcmgr.BaseLimitIncrease{})
		scaling.AddProtocolPeerLimit(id, rcmgr.BaseLimit{Streams: 16, StreamsInbound: 8, StreamsOutbound: 8, Memory: 8 << 20}, rcmgr.BaseLimitIncrease{})
	}
	return rcmgr.NewResourceManager(rcmgr.NewFixedLimiter(scaling.Scale(256<<20, 1024)), rcmgr.WithMetricsDisabled())
}

// listenAddrs puts the port into every address of the list that leaves it open.
func listenAddrs(list []string, port int) []string {
	if len(list) == 0 {
		list = []string{"/ip4/0.0.0.0/udp/0/quic-v1", "/ip4/0.0.0.0/tcp/0", "/ip6/::/udp/0/quic-v1", "/ip6/::/tcp/0"}
	}
	p := strconv.Itoa(port)
	out := make([]string, len(list))
	for i, a := range list {
		parts := strings.Split(a, "/")
		for j := 1; j < len(parts); j++ {
			if parts[j] == "0" && (parts[j-1] == "udp" || parts[j-1] == "tcp") {
				parts[j] = p
			}
		}
		out[i] = strings.Join(parts, "/")
	}
	return out
}

// freePort finds a port that is free for UDP and TCP alike, so that one number names the host for good.
func freePort() (int, error) {
	var err error
	for range 10 {
		var u net.PacketConn
		if u, err = net.ListenPacket("udp", ":0"); err != nil {
			continue
		}
		port := u.LocalAddr().(*net.UDPAddr).Port
		var t net.Listener
		t, err = net.Listen("tcp", ":"+strconv.Itoa(port))
		_ = u.Close()
		if err == nil {
			_ = t.Close()
			return port, nil
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}

func onlyCircuits(addrs []ma.Multiaddr) []ma.Multiaddr { return ma.FilterAddrs(addrs, isCircuit) }

func isCircuit(a ma.Multiaddr) bool {
	_, err := a.ValueForProtocol(ma.P_CIRCUIT)
	return err == nil
}

// peerOf is the peer id that belongs to a raw Ed25519 key.
func peerOf(key [32]byte) (peer.ID, error) {
	pub, err := crypto.UnmarshalEd25519PublicKey(key[:])
	if err != nil {
		return "", err
	}
	return peer.IDFromPublicKey(pub)
}

// keyOf is the raw Ed25519 key inside a peer id.
func keyOf(p peer.ID) (key [32]byte, ok bool) {
	pub, err := p.ExtractPublicKey()
	if err != nil || pub.Type() != crypto.Ed25519 {
		return key, false
	}
	raw, err := pub.Raw()
	if err != nil {
		return key, false
	}
	return key, copy(key[:], raw) == len(key)
}
