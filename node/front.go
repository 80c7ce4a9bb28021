package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/discovery/mdns"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"

	"sotto/record"
	"sotto/wire"
)

// Knock hands one sealed envelope to a front host, under an invite's record name or, with zeros, under a stamp of work.
func (n *Node) Knock(ctx context.Context, at wire.Reach, invite [32]byte, envelope []byte) (wire.KnockAnswer, error) {
	if len(envelope) == 0 || len(envelope) > wire.MaxEnvelope {
		return wire.KnockAnswer{}, fmt.Errorf("knock with %d bytes: %w", len(envelope), wire.ErrTooLarge)
	}
	p, err := peerOf(at.FrontKey)
	if err != nil {
		return wire.KnockAnswer{}, fmt.Errorf("knock: front key: %w: %w", err, wire.ErrUnreachable)
	}
	put := &wire.KnockPut{Name: invite, Envelope: envelope}
	if invite == ([32]byte{}) {
		put.Stamp = wire.StampKnock(at.FrontKey, hourOf(n.now()), envelope)
	}
	addrs := n.dialable(at.Front)
	if n.cfg.RelayOnly {
		addrs = onlyCircuits(addrs)
	}
	if len(addrs) == 0 && !connected(n.front.Network(), p) {
		return wire.KnockAnswer{}, fmt.Errorf("knock at %s: no address known that can be dialled from here: %w", short(p), wire.ErrUnreachable)
	}
	n.clearBackoff(n.front, p)
	n.front.Peerstore().AddAddrs(p, addrs, addrLife)
	return n.knock(ctx, p, put)
}

func hourOf(t time.Time) uint32 { return uint32(t.Unix() / 3600) }

func (n *Node) knockGet(ctx context.Context, p peer.ID, name [32]byte) ([]byte, error) {
	a, err := n.knock(ctx, p, &wire.KnockGet{Name: name})
	if err != nil {
		return nil, err
	}
	if err := a.Code.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", short(p), err)
	}
	return a.Record, nil
}

// knock makes one request and reads its answer.
func (n *Node) knock(ctx context.Context, p peer.ID, k wire.Knock) (wire.KnockAnswer, error) {
	fail := func(what string, err error) (wire.KnockAnswer, error) {
		return wire.KnockAnswer{}, fmt.Errorf("knock at %s: %s: %w: %w", short(p), what, err, wire.ErrUnreachable)
	}
	dial, cancel := context.WithTimeout(network.WithAllowLimitedConn(ctx, "knock"), n.limits.DialTimeout)
	defer cancel()
	s, err := n.front.NewStream(dial, p, n.proto.knock)
	if err != nil {
		return fail("connect", err)
	}
	defer func() { _ = s.Reset() }() // after a Close it does nothing
	defer context.AfterFunc(ctx, func() { _ = s.Reset() })()
	_ = s.SetDeadline(time.Now().Add(n.limits.FrameTimeout))
	if _, err := s.Write(k.Append(nil)); err != nil {
		return fail("write", err)
	}
	_ = s.CloseWrite()
	body, err := wire.ReadFrame(s, wire.MaxKnockAnswer)
	if err != nil {
		return fail("read answer", err)
	}
	a, err := wire.ParseKnockAnswer(body)
	if err != nil {
		return fail("read answer", err)
	}
	_ = s.Close()
	return a, nil
}

// serveKnock takes one request from anyone, cheapest check first: how many from there, how long, how much work.
func (n *Node) serveKnock(ctx context.Context, s network.Stream) {
	defer func() { _ = s.Close() }()
	answer := func(a wire.KnockAnswer) {
		_ = s.SetWriteDeadline(time.Now().Add(n.limits.WriteTimeout))
		_, _ = s.Write(a.Append(nil))
	}
	busy := func(count string, wait time.Duration) {
		n.counts.add(count)
		answer(wire.KnockAnswer{Code: wire.CodeOverloaded, RetryAfter: seconds(wait)})
	}
	select {
	case n.knocking <- struct{}{}:
		defer func() { <-n.knocking }()
	default:
		busy(refusedKnockBusy, n.limits.KnockWait)
		return
	}
	if wait, ok := n.gets.take(prefixOf(s.Conn()), n.clock.Now()); !ok {
		busy(refusedKnockRate, wait)
		return
	}
	_ = s.SetReadDeadline(time.Now().Add(n.limits.FrameTimeout))
	body, err := wire.ReadFrame(s, knockHead+n.limits.KnockEnvelope)
	if err != nil {
		n.counts.frame(err)
		if errors.Is(err, wire.ErrFrameSize) {
			answer(wire.KnockAnswer{Code: wire.CodeTooLarge})
		}
		_ = s.Reset()
		return
	}
	k, err := wire.ParseKnock(body)
	if err != nil || !ended(s) {
		n.counts.add(refusedKnock)
		_ = s.Reset()
		return
	}
	switch k := k.(type) {
	case *wire.KnockGet:
		answer(n.serveGet(k))
	case *wire.KnockPut:
		if wait, ok := n.puts.take(prefixOf(s.Conn()), n.clock.Now()); !ok {
			busy(refusedKnockRate, wait)
			return
		}
		answer(n.servePut(ctx, k))
	}
}

// knockHead is what a put carries besides its envelope: op, name, stamp, length.
const knockHead = 1 + 32 + 8 + 4

// ended reports that the other side sent one request and nothing after it.
func ended(s network.Stream) bool {
	var one [1]byte
	_, err := io.ReadFull(s, one[:])
	return errors.Is(err, io.EOF)
}

func (n *Node) serveGet(k *wire.KnockGet) wire.KnockAnswer {
	if n.h.Bundle != nil {
		if value, ok := n.h.Bundle(k.Name); ok && len(value) <= wire.MaxRecord {
			return wire.KnockAnswer{Code: wire.CodeOK, Record: value}
		}
	}
	return wire.KnockAnswer{Code: wire.CodeNotFound}
}

// servePut opens one envelope at a time, and none from a stranger without work.
func (n *Node) servePut(ctx context.Context, k *wire.KnockPut) wire.KnockAnswer {
	if n.h.Envelope == nil {
		return wire.KnockAnswer{Code: wire.CodeRefused}
	}
	live := false
	if k.Name != ([32]byte{}) && n.h.Bundle != nil {
		_, live = n.h.Bundle(k.Name)
	}
	if !live && !wire.CheckKnock(n.frontKey, hourOf(n.now()), k.Envelope, k.Stamp) {
		n.counts.add(refusedKnockStamp)
		return wire.KnockAnswer{Code: wire.CodeRefused}
	}
	line := time.NewTimer(n.limits.KnockWait)
	defer line.Stop()
	select {
	case n.opening <- struct{}{}:
		defer func() { <-n.opening }()
	case <-line.C:
		n.counts.add(refusedKnockBusy)
		return wire.KnockAnswer{Code: wire.CodeOverloaded, RetryAfter: seconds(n.limits.KnockWait)}
	case <-ctx.Done():
		return wire.KnockAnswer{Code: wire.CodeLater}
	}
	return n.h.Envelope(ctx, k.Name, k.Envelope)
}

// seconds is a wait as answers carry it: rounded up, with up to half more, so that those told to wait do not return at once.
func seconds(d time.Duration) uint16 {
	d += rand.N(d/2 + time.Second)
	return uint16(min(int64(d/time.Second)+1, 1<<16-1))
}

// neighbour is a front host on the local network.
type neighbour struct{ info peer.AddrInfo }

// fetchNeighbours asks everyone on the local network, also those that appear within lanWait.
func (n *Node) fetchNeighbours(ctx context.Context, name [32]byte) ([]byte, error) {
	wait := lanWait
	if !n.cfg.MDNS {
		wait = 0
	}
	end := time.NewTimer(wait)
	defer end.Stop()
	type result struct {
		value []byte
		err   error
	}
	results := make(chan result, n.limits.Neighbours)
	asked := map[peer.ID]bool{}
	open := 0
	defer func() { // ctx has ended or all have answered: the rest comes at once
		for ; open > 0; open-- {
			<-results
		}
	}()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	waiting := n.cfg.MDNS
	err := error(errNoServer)
	for {
		list, more := n.lan()
		for _, p := range list {
			if !asked[p] && len(asked) < n.limits.Neighbours {
				asked[p] = true
				open++
				go func() {
					n.letDial(ctx, p)
					value, err := n.knockGet(ctx, p, name)
					if err == nil {
						err = record.Validate(name, value, n.now())
					}
					results <- result{value, err}
				}()
			}
		}
		if open == 0 && !waiting {
			return nil, err
		}
		select {
		case r := <-results:
			open--
			if r.err == nil {
				return r.value, nil
			}
			if errors.Is(r.err, wire.ErrNotFound) {
				err = r.err
			}
		case <-more:
		case <-end.C:
			waiting = false
		case <-ctx.Done():
			return nil, fmt.Errorf("ask neighbours: %w: %w", ctx.Err(), wire.ErrUnreachable)
		}
	}
}

// greetings is how many announced neighbours are dialled at a time.
const greetings = 8

// dialTurn is how long the greater id leaves it to the smaller one to dial.
const dialTurn = 300 * time.Millisecond

// letDial waits until the neighbour whose turn it is has dialled, or for dialTurn.
func (n *Node) letDial(ctx context.Context, p peer.ID) {
	if n.front.ID() < p || connected(n.front.Network(), p) {
		return
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(dialTurn)
	defer end.Stop()
	for !connected(n.front.Network(), p) {
		select {
		case <-tick.C:
		case <-end.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// lan lists the neighbours and gives a channel that closes when there are more.
func (n *Node) lan() ([]peer.ID, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []peer.ID
	for p := range n.neighbours {
		out = append(out, p)
	}
	return out, n.lanNews
}

// found adapts a function to mDNS.
type found func(peer.AddrInfo)

// HandlePeerFound is called by mDNS for each announcement, in a goroutine of its own.
func (f found) HandlePeerFound(info peer.AddrInfo) { f(info) }

// neighbourFound notes a node on the local network. The smaller id dials, so that there is one connection.
func (n *Node) neighbourFound(ctx context.Context, info peer.AddrInfo) {
	if info.ID == n.front.ID() || !n.tasks.start() {
		return
	}
	defer n.tasks.done()
	n.mu.Lock()
	_, seen := n.neighbours[info.ID]
	if !seen && len(n.neighbours) >= n.limits.Neighbours {
		for p := range n.neighbours { // those who left make room first
			if !connected(n.front.Network(), p) {
				delete(n.neighbours, p)
			}
		}
	}
	if !seen && len(n.neighbours) >= n.limits.Neighbours {
		n.mu.Unlock()
		return
	}
	n.neighbours[info.ID] = &neighbour{info}
	n.front.Peerstore().AddAddrs(info.ID, info.Addrs, addrLife)
	if !seen {
		close(n.lanNews)
		n.lanNews = make(chan struct{})
	}
	n.mu.Unlock()
	if n.front.ID() < info.ID && !connected(n.front.Network(), info.ID) {
		select {
		case n.greeting <- struct{}{}:
			defer func() { <-n.greeting }()
		default:
			return // announcements cost their sender nothing; who is real is dialled once something is looked for
		}
		ctx, cancel := context.WithTimeout(ctx, n.limits.DialTimeout)
		defer cancel()
		if err := n.front.Connect(ctx, info); err != nil {
			n.log.Debug("neighbour cannot be reached", "peer", short(info.ID), "err", err)
		}
	}
}

// keepMDNS announces and looks around, and starts over when the network changes: the library does not notice.
func (n *Node) keepMDNS(ctx context.Context) {
	if !n.cfg.MDNS {
		return
	}
	for ctx.Err() == nil {
		retry := time.Hour
		changed := n.watchChange()
		s := mdns.NewMdnsService(n.front, n.proto.mdns, found(func(i peer.AddrInfo) { n.neighbourFound(ctx, i) }))
		if err := s.Start(); err != nil {
			n.log.Warn("cannot announce on the local network", "err", err)
			retry = time.Minute
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-time.After(retry):
		}
		_ = s.Close()
	}
}

func (n *Node) clearBackoff(h host.Host, p peer.ID) {
	if sw, ok := h.Network().(*swarm.Swarm); ok {
		sw.Backoff().Clear(p)
	}
}
