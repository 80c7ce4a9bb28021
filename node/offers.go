package node

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"sotto/wire"
)

// serveDirect takes a contact's offers: reads in order, hands each to the messenger, answers in order once durable.
// Two goroutines of its own live as long as the stream: one waits for fates, one writes while that one waits.
func (n *Node) serveDirect(ctx context.Context, s network.Stream) {
	p := s.Conn().RemotePeer()
	key, ok := n.gate.contact(p)
	if !ok || n.h.Offer == nil {
		n.counts.add(refusedStranger)
		_ = s.Reset()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in := &inbound{n: n, c: n.contact(p, key), s: s, queue: make(chan offered, n.limits.InFlight), freed: make(chan struct{}, 1), kick: make(chan struct{}, 1)}
	seat := in.c.enter(s, n.limits.StreamsIn, &n.counts)
	defer in.c.leave(seat)
	select { // a stream that was replaced keeps its place until all it offered was decided: else replacing would multiply what is in hand
	case in.c.places <- struct{}{}:
		defer func() { <-in.c.places }()
	case <-seat.replaced:
		return
	case <-ctx.Done():
		_ = s.Reset()
		return
	}
	var wg sync.WaitGroup
	wg.Go(in.answer)
	wg.Go(in.write)
	err := in.read(ctx, key)
	close(in.queue)
	if err != nil {
		cancel()
		_ = s.Reset()
	}
	wg.Wait()
	if err == nil {
		_ = s.Close()
		return
	}
	if !errors.Is(err, network.ErrReset) {
		n.log.Debug("direct stream ended", "peer", short(p), "err", err)
	}
}

// seat is a stream that a peer opened and that no later one replaced.
type seat struct {
	s        network.Stream
	replaced chan struct{} // closed when a later one did
}

// enter notes a stream; one more than a peer may have ends the oldest, which a restarted peer left behind.
func (c *contact) enter(s network.Stream, max int, counts *counters) *seat {
	mine := &seat{s: s, replaced: make(chan struct{})}
	c.mu.Lock()
	var oldest *seat
	if len(c.inbound) >= max {
		oldest, c.inbound = c.inbound[0], c.inbound[1:]
	}
	c.inbound = append(c.inbound, mine)
	c.mu.Unlock()
	if oldest != nil {
		counts.add(refusedStreams)
		close(oldest.replaced)
		_ = oldest.s.Reset()
	}
	return mine
}

func (c *contact) leave(mine *seat) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if i := slices.Index(c.inbound, mine); i >= 0 {
		c.inbound = slices.Delete(c.inbound, i, i+1)
	}
}

// inbound is one stream of offers being taken.
type inbound struct {
	n     *Node
	c     *contact
	s     network.Stream
	queue chan offered  // in order; its capacity is the window
	freed chan struct{} // signals that bytes went down
	kick  chan struct{} // signals that out holds answers

	mu      sync.Mutex // guards what follows
	bytes   int        // of items in the queue
	out     []byte
	writing sync.Mutex // held while writing, so that answers keep their order
}

type offered struct {
	id    uint32
	bytes int
	wait  func() wire.Answer
}

// read takes offers until the stream ends: nil when the other side closed it between two frames.
func (in *inbound) read(ctx context.Context, key [32]byte) error {
	limits := &in.n.limits
	r := bufio.NewReaderSize(in.s, 16<<10)
	last := uint32(0)
	for {
		body, err := readTimed(in.s, r, wire.MaxOfferFrame-4, limits.FrameTimeout)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			in.n.counts.frame(err)
			return err
		}
		o, err := wire.ParseOffer(body)
		if err == nil && o.ID != last+1 {
			err = fmt.Errorf("offer %d after %d", o.ID, last)
		}
		if err != nil {
			in.n.counts.add(refusedOffer)
			return err
		}
		last = o.ID
		if err := in.makeRoom(ctx, len(o.Item)); err != nil {
			return err
		}
		in.c.touch(in.n.clock.Now(), 1)
		select {
		case in.queue <- offered{id: o.ID, bytes: len(o.Item), wait: in.n.h.Offer(ctx, key, o.Item)}:
		case <-ctx.Done(): // the item is queued with the messenger; its answer has nowhere to go
			in.c.touch(in.n.clock.Now(), -1)
			return ctx.Err()
		}
	}
}

// makeRoom waits until the item fits the stream's share of memory: meanwhile nothing is read, and the sender stalls.
func (in *inbound) makeRoom(ctx context.Context, size int) error {
	for {
		in.mu.Lock()
		fits := in.bytes == 0 || in.bytes+size <= in.n.limits.InFlightBytes
		if fits {
			in.bytes += size
		}
		in.mu.Unlock()
		if fits {
			return nil
		}
		select {
		case <-in.freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// answer waits for each fate in turn. The last one in line it writes itself, which is the shortest way for a lone
// message; while more wait, writing is left to write, so that a finished answer never waits for an unfinished one.
func (in *inbound) answer() {
	for o := range in.queue {
		a := o.wait()
		a.ID = o.id
		in.c.touch(in.n.clock.Now(), -1)
		in.mu.Lock()
		in.out = a.Append(in.out)
		in.bytes -= o.bytes
		in.mu.Unlock()
		select {
		case in.freed <- struct{}{}:
		default:
		}
		if len(in.queue) == 0 {
			in.flush()
			continue
		}
		select {
		case in.kick <- struct{}{}:
		default:
		}
	}
	in.n.roomFreed()
	close(in.kick)
}

func (in *inbound) write() {
	for range in.kick {
		in.flush()
	}
	in.flush()
}

// flush writes the answers so far. A peer that does not take them in time loses the stream.
func (in *inbound) flush() {
	in.writing.Lock()
	defer in.writing.Unlock()
	in.mu.Lock()
	buf := in.out
	in.out = nil
	in.mu.Unlock()
	if len(buf) == 0 {
		return
	}
	_ = in.s.SetWriteDeadline(time.Now().Add(in.n.limits.WriteTimeout))
	if _, err := in.s.Write(buf); err != nil {
		if isTimeout(err) {
			in.n.counts.add(refusedNeverRead)
		}
		_ = in.s.Reset()
	}
}

// readTimed reads one frame. Waiting for its first byte is free; from then on it has limit for all of it.
func readTimed(s network.Stream, r *bufio.Reader, max int, limit time.Duration) ([]byte, error) {
	if _, err := r.Peek(1); err != nil {
		return nil, err
	}
	if !wholeFrame(r) {
		_ = s.SetReadDeadline(time.Now().Add(limit))
		defer func() { _ = s.SetReadDeadline(time.Time{}) }()
	}
	body, err := wire.ReadFrame(r, max)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return body, err
}

func wholeFrame(r *bufio.Reader) bool {
	if r.Buffered() < 4 {
		return false
	}
	head, _ := r.Peek(4)
	return uint64(r.Buffered()) >= 4+uint64(binary.BigEndian.Uint32(head))
}
