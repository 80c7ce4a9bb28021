package testnet

import (
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/config"
	"github.com/libp2p/go-libp2p/p2p/transport/quicreuse"
	"github.com/marcopolo/simnet"
	"github.com/quic-go/quic-go"
	"go.uber.org/fx"
)

// Sim is a simulated network of real libp2p hosts that speak QUIC. In a testing/synctest bubble its days pass in
// seconds. It does what libp2p's x/simlibp2p does, and besides counts bytes and cuts paths.
type Sim struct {
	net *simnet.Simnet

	mu    sync.Mutex // guards what follows
	hosts int
	cut   map[string]bool
	bytes map[string]*atomic.Int64
}

// simLoss is how late a packet on a cut path arrives: after every timeout there is.
const simLoss = 10_000 * time.Hour

// NewSim starts a network where a packet takes so long from one host to another; Close ends it, after the hosts.
func NewSim(latency time.Duration) *Sim {
	s := &Sim{cut: map[string]bool{}, bytes: map[string]*atomic.Int64{}}
	s.net = &simnet.Simnet{Logger: slog.New(slog.DiscardHandler), LatencyFunc: func(p *simnet.Packet) time.Duration {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.cut[hostOf(p.From)] || s.cut[hostOf(p.To)] {
			return simLoss
		}
		return latency
	}}
	s.net.Start()
	return s
}

// Close stops the network.
func (s *Sim) Close() { s.net.Close() }

// IP is the next unused public address of the network.
func (s *Sim) IP() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hosts++
	return fmt.Sprintf("1.%d.%d.%d", s.hosts/(250*250)%250+1, s.hosts/250%250+1, s.hosts%250+1)
}

// Cut loses every packet from and to the address, silently; Heal ends that.
func (s *Sim) Cut(ip string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut[ip] = true
}

// Heal lets packets through again.
func (s *Sim) Heal(ip string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.cut, ip)
}

// Sent is how many bytes of UDP payload the address has sent.
func (s *Sim) Sent(ip string) int64 { return s.counter(ip).Load() }

func (s *Sim) counter(ip string) *atomic.Int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes[ip] == nil {
		s.bytes[ip] = &atomic.Int64{}
	}
	return s.bytes[ip]
}

// Listen is the address on which the host of that IP listens.
func Listen(ip string) string { return "/ip4/" + ip + "/udp/8000/quic-v1" }

// Options put a host on the network under that address; they come after the host's own options. What stalls virtual
// time is off: address discovery by identify, and AutoNATv2, whose second host would need an address too.
func (s *Sim) Options(ip string) []libp2p.Option {
	from := &source{ip: net.ParseIP(ip)}
	reuse := []quicreuse.Option{
		quicreuse.OverrideSourceIPSelector(func() (quicreuse.SourceIPSelector, error) { return from, nil }),
		quicreuse.OverrideListenUDP(func(_ string, addr *net.UDPAddr) (net.PacketConn, error) {
			if addr.IP == nil || addr.IP.IsUnspecified() {
				addr = &net.UDPAddr{IP: from.ip, Port: 9000}
			}
			const fast = 1_000_000_000 // bits a second: the tests are about time-outs, not about bandwidth
			link := simnet.NodeBiDiLinkSettings{Downlink: simnet.LinkSettings{BitsPerSecond: fast}, Uplink: simnet.LinkSettings{BitsPerSecond: fast}}
			return &counted{SimConn: s.net.NewEndpoint(addr, link), sent: s.counter(ip)}, nil
		}),
	}
	return []libp2p.Option{
		libp2p.QUICReuse(func(l fx.Lifecycle, reset quic.StatelessResetKey, token quic.TokenGeneratorKey, opts ...quicreuse.Option) (*quicreuse.ConnManager, error) {
			cm, err := quicreuse.NewConnManager(reset, token, opts...)
			if err == nil {
				l.Append(fx.StopHook(cm.Close))
			}
			return cm, err
		}, reuse...),
		libp2p.DisableIdentifyAddressDiscovery(),
		func(c *config.Config) error {
			c.EnableAutoNATv2, c.AutoNATConfig.EnableService = false, false
			return nil
		},
	}
}

// source is the one address a host sends from.
type source struct{ ip net.IP }

// PreferredSourceIPForDestination is always that one.
func (s *source) PreferredSourceIPForDestination(*net.UDPAddr) (net.IP, error) { return s.ip, nil }

// counted counts what it sends.
type counted struct {
	*simnet.SimConn
	sent *atomic.Int64
}

// WriteTo sends a packet.
func (c *counted) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := c.SimConn.WriteTo(b, to)
	c.sent.Add(int64(n))
	return n, err
}

func hostOf(a net.Addr) string {
	if u, ok := a.(*net.UDPAddr); ok {
		return u.IP.String()
	}
	return ""
}
