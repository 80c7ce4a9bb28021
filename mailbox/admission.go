package mailbox

import (
	"cmp"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	manet "github.com/multiformats/go-multiaddr/net"
)

// ServerLimits bound what one peer, one address and everybody together may cost. The zero value is the default.
type ServerLimits struct {
	StreamsPerConn   int // 4
	StreamsPerPrefix int // 256: of an IPv4 address or a /56, four times as many of a /48
	WaitsPerBox      int // 2

	// Per prefix, each a bucket of tokens that fills at a rate; a /48 has four times as much.
	VisitRate, WorkRate, ByteRate    float64 // 10, 20, 8 MiB a second
	VisitBurst, WorkBurst, ByteBurst float64 // 256, 400, 64 MiB
	Prefixes                         int     // 65 536 prefixes remembered at a time

	FirstFrame   time.Duration // 5 s from the stream's begin to its first byte, and from a frame's first byte to its length
	FrameTimeout time.Duration // 30 s for a frame
	Idle         time.Duration // 90 s between requests
	WriteTimeout time.Duration // 10 s, and what the bytes take at Floor
	Floor        int           // 4096 bytes a second: slower ones are cut

	Window       int // 64 requests unanswered on a stream
	WindowBytes  int // 4 MiB of them
	StreamBytes  int // 256 KiB of those that a stream may always have; what is above comes out of SharedBytes
	SharedBytes  int // 64 MiB
	Deposits     int // 1024 being committed at a time
	SlowDeposits int // 64 when commits are slow
	Pages        int // 64 pages of more than one envelope being written at a time
	PagesPrefix  int // 8 of them to one prefix

	SlowCommit time.Duration // 500 ms: a 99th percentile above it is slow
	PutPause   time.Duration // 30 s between looks for records that are due
}

func (l ServerLimits) withDefaults() ServerLimits {
	for _, d := range []struct {
		at    *int
		value int
	}{
		{&l.StreamsPerConn, 4}, {&l.StreamsPerPrefix, 256}, {&l.WaitsPerBox, 2}, {&l.Prefixes, 65_536}, {&l.Floor, 4096}, {&l.Window, 64},
		{&l.WindowBytes, 4 << 20}, {&l.StreamBytes, 256 << 10}, {&l.SharedBytes, 64 << 20}, {&l.Deposits, 1024}, {&l.SlowDeposits, 64},
		{&l.Pages, 64}, {&l.PagesPrefix, 8},
	} {
		*d.at = cmp.Or(*d.at, d.value)
	}
	for _, d := range []struct {
		at    *float64
		value float64
	}{
		{&l.VisitRate, 10}, {&l.VisitBurst, 256}, {&l.WorkRate, 20}, {&l.WorkBurst, 400}, {&l.ByteRate, 8 << 20}, {&l.ByteBurst, 64 << 20},
	} {
		*d.at = cmp.Or(*d.at, d.value)
	}
	for _, d := range []struct {
		at    *time.Duration
		value time.Duration
	}{
		{&l.FirstFrame, 5 * time.Second}, {&l.FrameTimeout, 30 * time.Second}, {&l.Idle, 90 * time.Second}, {&l.WriteTimeout, 10 * time.Second},
		{&l.SlowCommit, 500 * time.Millisecond}, {&l.PutPause, 30 * time.Second},
	} {
		*d.at = cmp.Or(*d.at, d.value)
	}
	return l
}

// PrefixesOf is what the limits count a connection by, narrowest first: an IPv4 address, or an IPv6 /56 and the /48 around it.
// A connection of this machine to itself is counted by nothing, as libp2p's own limits do.
func PrefixesOf(c network.Conn) []netip.Prefix {
	ip, err := manet.ToIP(c.RemoteMultiaddr())
	if err != nil {
		return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	}
	a, _ := netip.AddrFromSlice(ip)
	a = a.Unmap()
	switch {
	case a.IsLoopback():
		return nil
	case a.Is4():
		return []netip.Prefix{netip.PrefixFrom(a, 32)}
	}
	narrow, _ := a.Prefix(56)
	wide, _ := a.Prefix(48)
	return []netip.Prefix{narrow, wide}
}

// gate counts streams and keeps the buckets of each prefix. It forgets prefixes that have nothing open and whose buckets are full,
// which changes nothing, and lets no new ones in beyond its most.
type gate struct {
	limits ServerLimits

	mu sync.Mutex // guards what follows
	at map[netip.Prefix]*account
}

// account is what one prefix has open and may still spend.
type account struct {
	streams, pages      int
	visits, work, bytes float64
	seen                time.Time
}

func newGate(l ServerLimits) *gate { return &gate{limits: l, at: map[netip.Prefix]*account{}} }

// share is how much of a limit the i-th prefix of a connection has.
func share(i int) float64 {
	if i == 0 {
		return 1
	}
	return 4
}

// accounts finds the accounts of a connection's prefixes, filled up to now. Called with mu held; nil when there is no room for one.
func (g *gate) accounts(from []netip.Prefix, now time.Time) []*account {
	missing := func() (n int) {
		for _, p := range from {
			if g.at[p] == nil {
				n++
			}
		}
		return n
	}
	if n := missing(); n > 0 && len(g.at)+n > g.limits.Prefixes {
		g.shrink(now)
		if len(g.at)+missing() > g.limits.Prefixes {
			return nil
		}
	}
	list := make([]*account, 0, 2)
	for i, p := range from {
		k := share(i)
		a := g.at[p]
		if a == nil {
			a = &account{visits: k * g.limits.VisitBurst, work: k * g.limits.WorkBurst, bytes: k * g.limits.ByteBurst, seen: now}
			g.at[p] = a
		}
		g.fill(a, k, now)
		list = append(list, a)
	}
	return list
}

func (g *gate) fill(a *account, k float64, now time.Time) {
	if d := now.Sub(a.seen).Seconds(); d > 0 {
		a.visits = min(k*g.limits.VisitBurst, a.visits+d*k*g.limits.VisitRate)
		a.work = min(k*g.limits.WorkBurst, a.work+d*k*g.limits.WorkRate)
		a.bytes = min(k*g.limits.ByteBurst, a.bytes+d*k*g.limits.ByteRate)
	}
	a.seen = now
}

// shrink drops the accounts that are as good as new.
func (g *gate) shrink(now time.Time) {
	l := &g.limits
	for p, a := range g.at {
		k := 1.0
		if p.Bits() == 48 {
			k = share(1)
		}
		g.fill(a, k, now)
		if a.streams == 0 && a.pages == 0 && a.visits >= k*l.VisitBurst && a.work >= k*l.WorkBurst && a.bytes >= k*l.ByteBurst {
			delete(g.at, p)
		}
	}
}

// enter lets a stream in, or tells what there is too much of. visit: it is the first stream of its connection.
func (g *gate) enter(from []netip.Prefix, visit bool, now time.Time) (refused string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := g.accounts(from, now)
	if len(list) < len(from) {
		return refusedPrefixes
	}
	for i, a := range list {
		if a.streams >= int(share(i))*g.limits.StreamsPerPrefix {
			return refusedPrefixStreams
		}
		if visit && a.visits < 1 {
			return refusedVisits
		}
	}
	for _, a := range list {
		a.streams++
		if visit {
			a.visits--
		}
	}
	return ""
}

// leave gives back the place of a stream that was let in.
func (g *gate) leave(from []netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range from {
		g.at[p].streams--
	}
}

// work spends one token on something that costs a signature, a hash or a read of the disk, or tells in how long there will be one.
func (g *gate) work(from []netip.Prefix, now time.Time) (wait time.Duration, ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	list := g.accounts(from, now)
	for i, a := range list {
		if a.work < 1 {
			wait = max(wait, time.Duration((1-a.work)/(share(i)*g.limits.WorkRate)*float64(time.Second)))
		}
	}
	if wait > 0 || len(list) < len(from) {
		return max(wait, time.Second), false
	}
	for _, a := range list {
		a.work--
	}
	return 0, true
}

// bytes spends n, on credit if need be, and tells how long to wait before spending more.
func (g *gate) bytes(from []netip.Prefix, n int, now time.Time) (wait time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, a := range g.accounts(from, now) {
		a.bytes -= float64(n)
		if a.bytes < 0 {
			wait = max(wait, time.Duration(-a.bytes/(share(i)*g.limits.ByteRate)*float64(time.Second)))
		}
	}
	return wait
}

// page takes a place for a page of many envelopes to the prefix; without one the page is of one envelope.
func (g *gate) page(from []netip.Prefix) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, p := range from {
		if a := g.at[p]; a == nil || a.pages >= int(share(i))*g.limits.PagesPrefix {
			return false
		}
	}
	for _, p := range from {
		g.at[p].pages++
	}
	return true
}

func (g *gate) pageDone(from []netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range from {
		g.at[p].pages--
	}
}

// pressure watches how long commits take, and how many deposits wait for one. Slow commits alone turn nobody away: a slow disk that keeps
// up is slow, not overloaded. They lower how many may wait.
type pressure struct {
	limits ServerLimits

	mu      sync.Mutex // guards what follows
	waiting int
	recent  [128]sample // a ring
	next    int
}

type sample struct {
	took time.Duration
	at   time.Time
}

// recently is how long a sample counts, so that a disk that was slow is tried again.
const recently = 10 * time.Second

// begin takes a place for a deposit; strangers have a quarter of the places.
func (l *pressure) begin(stranger bool, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	most := l.limits.Deposits
	if l.slow(now) {
		most = l.limits.SlowDeposits
	}
	if stranger {
		most = max(1, most/4)
	}
	if l.waiting >= most {
		return false
	}
	l.waiting++
	return true
}

// end gives the place back; took is 0 for a deposit that committed nothing.
func (l *pressure) end(took time.Duration, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting--
	if took > 0 {
		l.recent[l.next] = sample{took: took, at: now}
		l.next = (l.next + 1) % len(l.recent)
	}
}

// overloaded reports whether new boxes must wait: commits are slow, or most of the places are taken.
func (l *pressure) overloaded(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.waiting >= max(1, l.limits.Deposits*3/4) || l.slow(now) && l.waiting >= max(1, l.limits.SlowDeposits/2)
}

// slow reports whether more than one in a hundred of the recent commits took longer than they may. Called with mu held.
func (l *pressure) slow(now time.Time) bool {
	over, of := 0, 0
	for _, s := range l.recent {
		if s.took > 0 && now.Sub(s.at).Abs() < recently {
			of++
			if s.took > l.limits.SlowCommit {
				over++
			}
		}
	}
	return over*100 > of
}
