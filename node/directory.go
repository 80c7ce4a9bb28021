package node

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// directory remembers volunteers: whose DHT hosts to ask, whose service hosts relay, and what time they say it is.
type directory struct {
	max          int
	allowPrivate bool

	mu      sync.Mutex // guards what follows
	dht     map[peer.ID]*known
	service map[peer.ID]*known
	offsets map[peer.ID]time.Duration // by service host, each from its own mouth
	more    chan struct{}             // closed and replaced when a host is added
}

// known is a volunteer's host. Those the person configured are never forgotten for learned ones.
type known struct {
	info       peer.AddrInfo
	configured bool
	failed     int       // connections tried in vain since the last success
	next       time.Time // not before
}

func newDirectory(max int, allowPrivate bool) *directory {
	return &directory{max: max, allowPrivate: allowPrivate, dht: map[peer.ID]*known{}, service: map[peer.ID]*known{}, offsets: map[peer.ID]time.Duration{}, more: make(chan struct{})}
}

// configure takes the addresses a person wrote down.
func (d *directory) configure(bootstrap, relays []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, list := range []struct {
		what  string
		addrs []string
		into  map[peer.ID]*known
	}{{"bootstrap", bootstrap, d.dht}, {"relay", relays, d.service}} {
		for _, s := range list.addrs {
			info, err := peer.AddrInfoFromString(s)
			if err != nil {
				return fmt.Errorf("%s address %q: %w (want a multiaddr that ends in /p2p/ and a peer id)", list.what, s, err)
			}
			k := list.into[info.ID]
			if k == nil {
				k = &known{info: peer.AddrInfo{ID: info.ID}, configured: true}
				list.into[info.ID] = k
			}
			k.info.Addrs = append(k.info.Addrs, info.Addrs...)
		}
	}
	return nil
}

// learn adds or refreshes a host named by a volunteer's list; private addresses are dropped unless they are allowed,
// so that nobody on the network can make a node dial into its own LAN.
func (d *directory) learn(into map[peer.ID]*known, info peer.AddrInfo) {
	if !d.allowPrivate {
		info.Addrs = ma.FilterAddrs(info.Addrs, manet.IsPublicAddr)
	}
	if len(info.Addrs) == 0 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if k := into[info.ID]; k != nil {
		if !k.configured {
			k.info.Addrs = info.Addrs
		}
		return
	}
	if len(into) < d.max {
		into[info.ID] = &known{info: info}
		close(d.more)
		d.more = make(chan struct{})
	}
}

// pin adds a DHT host that a person named.
func (d *directory) pin(info peer.AddrInfo) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dht[info.ID] = &known{info: info, configured: true}
}

// anyDHT tells whether there is any DHT host to hope for.
func (d *directory) anyDHT() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.dht) > 0
}

// hope tells whether some DHT host has not been tried in vain since it was last reached. The others are dialled again and again,
// and when one answers, the caller is told; nothing is gained by waiting for that.
func (d *directory) hope() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.dht {
		if k.failed == 0 {
			return true
		}
	}
	return false
}

func (d *directory) relays() []peer.AddrInfo { return d.list(d.service) }

func (d *directory) servers() []peer.AddrInfo { return d.list(d.dht) }

func (d *directory) list(of map[peer.ID]*known) []peer.AddrInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]peer.AddrInfo, 0, len(of))
	for _, k := range of {
		out = append(out, k.info)
	}
	slices.SortFunc(out, func(a, b peer.AddrInfo) int { return compareIDs(a.ID, b.ID) })
	return out
}

// due are the DHT hosts that may be dialled now, configured ones first, at most max.
func (d *directory) due(now time.Time, max int, connected func(peer.ID) bool) []peer.AddrInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	var pinned, learned []peer.AddrInfo
	for _, k := range d.dht {
		switch {
		case now.Before(k.next) || connected(k.info.ID):
		case k.configured:
			pinned = append(pinned, k.info)
		default:
			learned = append(learned, k.info)
		}
	}
	for _, list := range [][]peer.AddrInfo{pinned, learned} {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	}
	all := append(pinned, learned...)
	return all[:min(max, len(all))]
}

// tried notes how a dial went: 1 s after the first failure, doubling to 5 min, with jitter. A learned host that failed
// eight times in a row is forgotten.
func (d *directory) tried(p peer.ID, now time.Time, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	k := d.dht[p]
	switch {
	case k == nil:
	case err == nil:
		k.failed, k.next = 0, time.Time{}
	default:
		k.failed++
		k.next = now.Add(backoff(k.failed, time.Second, 5*time.Minute))
		if k.failed >= 8 && !k.configured {
			delete(d.dht, p)
		}
	}
}

// wake lets every host be dialled at once: the network changed.
func (d *directory) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.dht {
		k.next = time.Time{}
	}
}

// heard notes one volunteer's clock, heard over a connection that proved who spoke.
func (d *directory) heard(service peer.ID, offset time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.offsets[service]; ok || len(d.offsets) < d.max {
		d.offsets[service] = offset
	}
}

// clockVotes is how many volunteers must have told the time before it counts.
const clockVotes = 3

// offset is the median of what volunteers say, relative to this machine's clock.
func (d *directory) offset() (time.Duration, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.offsets) < clockVotes {
		return 0, false
	}
	var all []time.Duration
	for _, o := range d.offsets {
		all = append(all, o)
	}
	slices.Sort(all)
	return all[len(all)/2], true
}

// backoff is first·2^(failures−1), at most max, with up to a quarter of it taken off at random.
func backoff(failures int, first, max time.Duration) time.Duration {
	d := first << min(failures-1, 20)
	if d > max || d <= 0 {
		d = max
	}
	return d - rand.N(d/4+1)
}

func compareIDs(a, b peer.ID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}
