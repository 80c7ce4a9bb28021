package node

import (
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// rateLimit gives each address prefix a bucket of tokens. It forgets the fullest buckets first, which costs nothing,
// and never holds more than max of them.
type rateLimit struct {
	rate  float64 // tokens a second
	burst float64
	max   int

	mu      sync.Mutex
	buckets map[string]bucket
}

type bucket struct {
	tokens float64
	at     time.Time
}

func newRateLimit(rate float64, burst, max int) *rateLimit {
	return &rateLimit{rate: rate, burst: float64(burst), max: max, buckets: map[string]bucket{}}
}

// take spends one token of the prefix, or tells in how long there will be one.
func (r *rateLimit) take(prefix string, now time.Time) (wait time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b, seen := r.buckets[prefix]
	if !seen {
		if len(r.buckets) >= r.max && !r.shrink(now) {
			return time.Second, false
		}
		b = bucket{tokens: r.burst, at: now}
	}
	b = r.fill(b, now)
	if b.tokens < 1 {
		r.buckets[prefix] = b
		return time.Duration((1 - b.tokens) / r.rate * float64(time.Second)), false
	}
	b.tokens--
	r.buckets[prefix] = b
	return 0, true
}

func (r *rateLimit) fill(b bucket, now time.Time) bucket {
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(r.burst, b.tokens+d.Seconds()*r.rate)
	}
	b.at = now
	return b
}

// shrink drops the buckets that have filled up again and reports whether there is room.
func (r *rateLimit) shrink(now time.Time) bool {
	for p, b := range r.buckets {
		if r.fill(b, now).tokens >= r.burst {
			delete(r.buckets, p)
		}
	}
	return len(r.buckets) < r.max
}

// prefixOf is what a limit counts by: an IPv4 address, an IPv6 /56, or the relay through which a stranger came,
// whose own identities cost nothing.
func prefixOf(c network.Conn) string {
	addr := c.RemoteMultiaddr()
	if isCircuit(addr) {
		if relay, err := addr.ValueForProtocol(ma.P_P2P); err == nil {
			return "relay " + relay
		}
		return "relay"
	}
	ip, err := manet.ToIP(addr)
	if err != nil {
		return "unknown"
	}
	a, _ := netip.AddrFromSlice(ip)
	if a = a.Unmap(); a.Is4() {
		return a.String()
	}
	p, _ := a.Prefix(56)
	return p.String()
}
