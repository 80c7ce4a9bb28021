package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"sotto/internal/canon"
	"sotto/wire"
)

// Limits of the volunteers protocol (PROTOCOL 13.6).
const (
	maxTerms   = 2 << 10  // one volunteer's own entry
	maxList    = 32 << 10 // a list
	maxListed  = 32       // entries in a list
	termsLife  = 7 * 24 * time.Hour
	termsSkew  = 24 * time.Hour
	termsFresh = 24 * time.Hour // how often a volunteer signs its entry anew
)

const (
	termsVersion = 1
	listVersion  = 1
	termsType    = "volunteer"
	listType     = "volunteers"
)

// Terms is what a volunteer says of itself, signed by its service key: where its two hosts are.
type Terms struct {
	Service [32]byte // key of the service host, which also signs
	DHT     [32]byte // key of the DHT host
	Issued  time.Time
	ServiceAddrs,
	DHTAddrs [][]byte // binary multiaddrs without the peer id
	Exts []canon.Extension
	raw  []byte // as it was signed, to be passed on
}

// marshal signs the terms: version u8, two keys, issued u64 s, two address lists, extensions, signature.
func (t Terms) marshal(service ed25519.PrivateKey) []byte {
	var w canon.Writer
	w.U8(termsVersion).Raw(t.Service[:]).Raw(t.DHT[:]).U64(uint64(t.Issued.Unix()))
	writeAddrs(&w, t.ServiceAddrs)
	writeAddrs(&w, t.DHTAddrs)
	w.Extensions(t.Exts)
	return append(w.Bytes(), canon.Sign(service, termsType, w.Bytes())...)
}

func writeAddrs(w *canon.Writer, addrs [][]byte) {
	addrs = addrs[:min(len(addrs), wire.MaxAddrs)]
	w.U8(uint8(len(addrs)))
	for _, a := range addrs {
		w.LP(a)
	}
}

// parseTerms reads and verifies one entry.
func parseTerms(b []byte) (Terms, error) {
	if len(b) > maxTerms || len(b) < ed25519.SignatureSize {
		return Terms{}, fmt.Errorf("volunteer's terms of %d bytes: %w", len(b), canon.ErrTooLong)
	}
	fields, sig := b[:len(b)-ed25519.SignatureSize], b[len(b)-ed25519.SignatureSize:]
	r := canon.NewReader(fields)
	if v := r.U8(); r.Err() == nil && v != termsVersion {
		return Terms{}, fmt.Errorf("volunteer's terms: needs a newer version: %d", v)
	}
	var t Terms
	r.Copy(t.Service[:])
	r.Copy(t.DHT[:])
	t.Issued = readUnix(r)
	t.ServiceAddrs, t.DHTAddrs = readAddrs(r), readAddrs(r)
	t.Exts = r.Extensions()
	if err := r.Close(); err != nil {
		return Terms{}, fmt.Errorf("volunteer's terms: %w", err)
	}
	if !canon.Verify(t.Service[:], termsType, fields, sig) {
		return Terms{}, errors.New("volunteer's terms: bad signature")
	}
	t.raw = b
	return t, nil
}

func readUnix(r *canon.Reader) time.Time {
	v := r.U64()
	if v > 1<<40 {
		r.Fail(errors.New("time out of range"))
		v = 0
	}
	return time.Unix(int64(v), 0)
}

func readAddrs(r *canon.Reader) [][]byte {
	count := int(r.U8())
	if count > wire.MaxAddrs {
		r.Fail(canon.ErrTooLong)
	}
	var out [][]byte
	for i := 0; i < count && r.Err() == nil; i++ {
		b := r.LP(wire.MaxAddr)
		if _, err := ma.NewMultiaddrBytes(b); err != nil {
			r.Fail(errors.New("malformed address"))
		}
		out = append(out, b)
	}
	return out
}

// list is a volunteer's answer: its clock, its own terms first, then others' it spoke to; signed by the first one's key.
type list struct {
	Time    time.Time
	Entries [][]byte // marshalled terms
	Exts    []canon.Extension
}

// marshal signs the list: version u8, time u64 ms, count u8, lp(terms)…, extensions, signature.
func (l list) marshal(service ed25519.PrivateKey) []byte {
	var w canon.Writer
	entries := l.Entries[:min(len(l.Entries), maxListed)]
	w.U8(listVersion).U64(uint64(l.Time.UnixMilli())).U8(uint8(len(entries)))
	for _, e := range entries {
		w.LP(e)
	}
	w.Extensions(l.Exts)
	return append(w.Bytes(), canon.Sign(service, listType, w.Bytes())...)
}

// parseList reads and verifies a list heard from a peer with that key. Entries after the first that do not verify, or
// are older than a week by the list's own clock, are left out; the reader's clock plays no part, as it may be wrong.
func parseList(b []byte, from [32]byte) (at time.Time, all []Terms, err error) {
	if len(b) > maxList || len(b) < ed25519.SignatureSize {
		return at, nil, fmt.Errorf("volunteers' list of %d bytes: %w", len(b), canon.ErrTooLong)
	}
	fields, sig := b[:len(b)-ed25519.SignatureSize], b[len(b)-ed25519.SignatureSize:]
	r := canon.NewReader(fields)
	if v := r.U8(); r.Err() == nil && v != listVersion {
		return at, nil, fmt.Errorf("volunteers' list: needs a newer version: %d", v)
	}
	ms := r.U64()
	if ms > 1<<50 {
		r.Fail(errors.New("time out of range"))
	}
	count := int(r.U8())
	if count == 0 || count > maxListed {
		r.Fail(canon.ErrTooLong)
	}
	var entries [][]byte
	for i := 0; i < count && r.Err() == nil; i++ {
		entries = append(entries, r.LP(maxTerms))
	}
	r.Extensions()
	if err := r.Close(); err != nil {
		return at, nil, fmt.Errorf("volunteers' list: %w", err)
	}
	at = time.UnixMilli(int64(ms))
	for i, e := range entries {
		t, err := parseTerms(e)
		if i == 0 {
			switch {
			case err != nil:
				return at, nil, fmt.Errorf("volunteers' list: first entry: %w", err)
			case t.Service != from && t.DHT != from:
				return at, nil, errors.New("volunteers' list: heard from somebody else than who signed it")
			case !canon.Verify(t.Service[:], listType, fields, sig):
				return at, nil, errors.New("volunteers' list: bad signature")
			}
		}
		if err != nil || at.Sub(t.Issued) > termsLife || t.Issued.Sub(at) > termsSkew {
			continue
		}
		all = append(all, t)
	}
	return at, all, nil
}

// askVolunteer fetches a list; offset is how far the volunteer's clock is ahead of ours.
func askVolunteer(ctx context.Context, h host.Host, p peer.ID, id protocolID, now func() time.Time) (all []Terms, offset time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, pingDeadline)
	defer cancel()
	from, ok := keyOf(p)
	if !ok {
		return nil, 0, fmt.Errorf("ask %s for volunteers: not an Ed25519 key", short(p))
	}
	s, err := h.NewStream(ctx, p, id)
	if err != nil {
		return nil, 0, fmt.Errorf("ask %s for volunteers: %w: %w", short(p), err, wire.ErrUnreachable)
	}
	defer func() { _ = s.Reset() }()
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	_ = s.SetDeadline(time.Now().Add(pingDeadline))
	asked := now()
	if err := s.CloseWrite(); err != nil {
		return nil, 0, fmt.Errorf("ask %s for volunteers: %w: %w", short(p), err, wire.ErrUnreachable)
	}
	body, err := wire.ReadFrame(s, maxList)
	if err != nil {
		return nil, 0, fmt.Errorf("ask %s for volunteers: %w: %w", short(p), err, wire.ErrUnreachable)
	}
	heard := now()
	if !ended(s) {
		return nil, 0, fmt.Errorf("ask %s for volunteers: %w", short(p), canon.ErrTrailing)
	}
	_ = s.Close()
	at, all, err := parseList(body, from)
	if err != nil {
		return nil, 0, err
	}
	return all, at.Sub(asked.Add(heard.Sub(asked) / 2)), nil
}

// How often volunteers are asked: enough votes for the clock, then once an hour.
const (
	askAtOnce = 5
	askAgain  = time.Hour
	askRetry  = time.Minute
)

// learnVolunteers asks known volunteers for others, for relays, and for the time.
func (n *Node) learnVolunteers(ctx context.Context) {
	for {
		wait := askAgain
		if heard := n.askVolunteers(ctx); heard == 0 {
			wait = askRetry
			if !n.known.anyDHT() {
				wait = askAgain // until there is one: wake comes
			}
		}
		wait += rand.N(wait / 4)
		select {
		case <-ctx.Done():
			return
		case <-n.learnWake:
		case <-time.After(wait):
		}
	}
}

// askVolunteers asks up to askAtOnce DHT hosts, those the first answers name included, and returns how many answered.
func (n *Node) askVolunteers(ctx context.Context) (heard int) {
	asked := map[peer.ID]bool{}
	for len(asked) < askAtOnce && ctx.Err() == nil {
		next, ok := n.nextToAsk(asked)
		if !ok {
			break
		}
		asked[next.ID] = true
		was := connected(n.front.Network(), next.ID)
		if !was && (heard >= clockVotes || n.connectTo(ctx, next) != nil) {
			continue
		}
		all, offset, err := askVolunteer(ctx, n.front, next.ID, n.proto.volunteers, n.clock.Now)
		if err != nil {
			if !errors.Is(err, wire.ErrUnreachable) {
				n.counts.add(refusedList)
			}
			n.log.Debug("no list of volunteers", "err", err)
			continue
		}
		heard++
		n.learn(all, offset)
		if !was {
			n.letGo(next.ID)
		}
	}
	return heard
}

func (n *Node) nextToAsk(asked map[peer.ID]bool) (peer.AddrInfo, bool) {
	var rest []peer.AddrInfo
	for _, info := range n.known.servers() {
		if asked[info.ID] {
			continue
		}
		if connected(n.front.Network(), info.ID) {
			return info, true
		}
		rest = append(rest, info)
	}
	if len(rest) == 0 {
		return peer.AddrInfo{}, false
	}
	return rest[rand.IntN(len(rest))], true
}

func (n *Node) connectTo(ctx context.Context, info peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(ctx, n.limits.DialTimeout)
	defer cancel()
	err := n.front.Connect(ctx, info)
	n.known.tried(info.ID, n.clock.Now(), err)
	return err
}

// letGo closes a connection opened for one question, unless there is use for it as a DHT server.
func (n *Node) letGo(p peer.ID) {
	servers := 0
	for _, s := range n.known.servers() {
		if s.ID != p && connected(n.front.Network(), s.ID) {
			servers++
		}
	}
	if servers >= n.limits.DHTServers {
		_ = n.front.Network().ClosePeer(p)
	}
}

// learn takes in a verified list. Only its first entry speaks for itself about the time.
func (n *Node) learn(all []Terms, offset time.Duration) {
	for i, t := range all {
		service, errS := peerOf(t.Service)
		server, errD := peerOf(t.DHT)
		if errS != nil || errD != nil {
			continue
		}
		if i == 0 {
			n.known.heard(service, offset)
		}
		n.known.learn(n.known.service, peer.AddrInfo{ID: service, Addrs: multiaddrs(t.ServiceAddrs)})
		n.known.learn(n.known.dht, peer.AddrInfo{ID: server, Addrs: multiaddrs(t.DHTAddrs)})
	}
	n.gate.setRelays(n.known.relays())
}

func multiaddrs(list [][]byte) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, b := range list {
		if a, err := ma.NewMultiaddrBytes(b); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// relaySource gives AutoRelay volunteers' service hosts, as soon as there is one: AutoRelay asks again only later.
// Relays without a public address would give no address that AutoRelay announces.
func (n *Node) relaySource(ctx context.Context, max int) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo, max)
	if !n.tasks.start() {
		close(out)
		return out
	}
	go func() {
		defer n.tasks.done()
		defer close(out)
		for {
			relays, more := n.known.publicRelays()
			if len(relays) > 0 {
				rand.Shuffle(len(relays), func(i, j int) { relays[i], relays[j] = relays[j], relays[i] })
				for _, r := range relays[:min(max, len(relays))] {
					out <- r
				}
				return
			}
			select {
			case <-more:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out
}

// publicRelays lists the relays AutoRelay can use and gives a channel that closes when one is added.
func (d *directory) publicRelays() ([]peer.AddrInfo, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []peer.AddrInfo
	for _, k := range d.service {
		if len(ma.FilterAddrs(k.info.Addrs, manet.IsPublicAddr)) > 0 {
			out = append(out, k.info)
		}
	}
	return out, d.more
}

// serveList answers with the list that make gives.
func serveList(s network.Stream, counts *counters, make func() []byte) {
	_ = s.SetDeadline(time.Now().Add(pingDeadline))
	if !ended(s) {
		counts.add(refusedList)
		_ = s.Reset()
		return
	}
	if err := wire.WriteFrame(s, make()); err != nil {
		_ = s.Reset()
		return
	}
	_ = s.Close()
}
