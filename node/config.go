package node

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/protocol"

	"sotto/internal/clock"
	"sotto/wire"
)

// Config is what a node is told; everything but NodeKey has a useful zero.
type Config struct {
	NodeKey ed25519.PrivateKey // identity of the inner host; contacts learn it from the sealed reach, nobody else

	Network   string   // name of a separate network; "" is sotto itself. It goes into every protocol id
	InnerPort int      // 0 picks one; store what Status reports, a stable port keeps NAT mappings alive
	FrontPort int      // the same for the front host
	Listen    []string // multiaddrs to listen on instead of every interface; port 0 stands for the host's own port
	Bootstrap []string // multiaddrs of volunteers' DHT hosts, with /p2p
	Relays    []string // multiaddrs of volunteers' service hosts, with /p2p; more are learned from the volunteers

	AllowPrivate bool // accept loopback and private addresses from the network: demos, tests, closed networks
	MDNS         bool // announce the front host to the local network and look for others there
	RelayOnly    bool // never show an own address: listen nowhere, reach contacts and be reached through relays only
	NoPortMap    bool // do not ask the router for a port mapping

	Limits Limits
	Clock  clock.Clock  // nil is the machine's
	Log    *slog.Logger // nil discards

	// NewHost makes a host; nil is libp2p.New. Tests add the options of a simulated network to those given.
	NewHost func(role Role, opts ...libp2p.Option) (host.Host, error)
}

// Role names a host for Config.NewHost.
type Role string

// The hosts a person's node and a volunteer run.
const (
	RoleFront   Role = "front"   // a person's nameless host: DHT, LAN, knocks
	RoleInner   Role = "inner"   // a person's host for contacts and relays only
	RoleService Role = "service" // a volunteer's relay and reachability checks
	RoleDHT     Role = "dht"     // a volunteer's DHT server and bootstrap
)

// Handlers are what arrives, in the caller's hands. Each may be nil, which refuses; none may block unless it says so.
type Handlers struct {
	// Offer queues an item from an admitted peer and returns at once; the wait it returns blocks until the item's
	// fate is durable. Items of one stream arrive in the order they were sent, and are answered in that order.
	Offer func(ctx context.Context, from [32]byte, item []byte) (wait func() wire.Answer)
	// Envelope opens one knocked envelope and blocks until its fate is durable; calls come one at a time.
	Envelope func(ctx context.Context, invite [32]byte, envelope []byte) wire.KnockAnswer
	// Bundle is the record value of a live invite.
	Bundle func(name [32]byte) (value []byte, ok bool)
	// Up tells that an admitted peer connected, whoever dialled: a sign of life.
	Up func(inner [32]byte)
	// Moved tells that own addresses changed: Reach has news. At most one call in two seconds.
	Moved func()
	// Online tells that a DHT server came into reach after there was none: what could not be published can be now.
	Online func()
}

// Limits bound what others can make a node hold or do; zero fields take the default beside them.
type Limits struct {
	ContactConns  int           // 8: connections to contacts at a time; the least used one closes for a new one
	ContactIdle   time.Duration // 5 min: a contact's connection without an offer or answer for so long is closed
	InFlight      int           // 1024: offers of one stream without an answer
	InFlightBytes int           // 2 MiB: their size
	StreamsIn     int           // 2: direct streams one peer may have open; a further one replaces the oldest
	AnswerTimeout time.Duration // 5 s without an answer, plus what the bytes take at 4 KiB/s, end a stream
	FrameTimeout  time.Duration // 30 s from a frame's first byte to its last
	WriteTimeout  time.Duration // 10 s for an answer to be taken by the other side
	DialTimeout   time.Duration // 10 s for a connection
	DHTTimeout    time.Duration // 5 s for one request to one DHT server

	KnockEnvelope int           // 8 KiB: a knocked envelope
	KnockRate     float64       // 1: puts a second from one address prefix
	KnockBurst    int           // 8
	GetRate       float64       // 8: gets a second from one address prefix
	GetBurst      int           // 32
	KnockStreams  int           // 32: knocks being read or waiting at a time
	KnockWait     time.Duration // 5 s in line for the one opening at a time
	Prefixes      int           // 4096: address prefixes remembered by a rate limit

	DHTServers int // 3: DHT servers a node stays connected to
	Known      int // 30: volunteers remembered
	Neighbours int // 64: nodes on the local network remembered
}

func (l Limits) withDefaults() Limits {
	setInt(&l.ContactConns, 8)
	setDur(&l.ContactIdle, 5*time.Minute)
	setInt(&l.InFlight, 1024)
	setInt(&l.InFlightBytes, 2<<20)
	setInt(&l.StreamsIn, 2)
	setDur(&l.AnswerTimeout, 5*time.Second)
	setDur(&l.FrameTimeout, 30*time.Second)
	setDur(&l.WriteTimeout, 10*time.Second)
	setDur(&l.DialTimeout, 10*time.Second)
	setDur(&l.DHTTimeout, 5*time.Second)
	setInt(&l.KnockEnvelope, 8<<10)
	setRate(&l.KnockRate, 1)
	setInt(&l.KnockBurst, 8)
	setRate(&l.GetRate, 8)
	setInt(&l.GetBurst, 32)
	setInt(&l.KnockStreams, 32)
	setDur(&l.KnockWait, 5*time.Second)
	setInt(&l.Prefixes, 4096)
	setInt(&l.DHTServers, 3)
	setInt(&l.Known, 30)
	setInt(&l.Neighbours, 64)
	return l
}

func setInt(v *int, d int) {
	if *v <= 0 {
		*v = d
	}
}

func setDur(v *time.Duration, d time.Duration) {
	if *v <= 0 {
		*v = d
	}
}

func setRate(v *float64, d float64) {
	if *v <= 0 {
		*v = d
	}
}

// protocols are the ids a node speaks; a separate network has its own, so the two can never mix (PROTOCOL 13.1).
type protocols struct {
	prefix     string
	direct     protocol.ID
	knock      protocol.ID
	ping       protocol.ID
	volunteers protocol.ID
	mailbox    protocol.ID // served by package mailbox on the service host
	kad, lan   protocol.ID // kad-dht makes these itself from the prefix
	mdns       string
	version    string
}

func protocolsOf(network string) protocols {
	name := "sotto"
	if network != "" {
		name += "-" + network
	}
	p := "/" + name
	return protocols{
		prefix:     p,
		direct:     protocol.ID(p + "/direct/1"),
		knock:      protocol.ID(p + "/knock/1"),
		ping:       protocol.ID(p + "/ping/1"),
		volunteers: protocol.ID(p + "/volunteers/1"),
		mailbox:    protocol.ID(p + "/mailbox/1"),
		kad:        protocol.ID(p + "/kad/1.0.0"),
		lan:        protocol.ID(p + "/lan/kad/1.0.0"),
		mdns:       "_" + name + "._udp",
		version:    name + "/1",
	}
}
