package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"sotto/wire"
)

// Send offers items to a contact in order, on the one long-lived stream kept for it, and returns when each is answered
// or will not be. settled is called once for each answered item, in order, and never after Send returned; the error
// says why the others got no answer. Offering the same bytes again is always safe.
func (n *Node) Send(ctx context.Context, to wire.Reach, items [][]byte, settled func(i int, a wire.Answer)) error {
	for _, item := range items {
		if len(item) == 0 || len(item) > wire.MaxItem {
			return fmt.Errorf("offer of %d bytes: %w", len(item), wire.ErrTooLarge)
		}
	}
	b := &batch{settled: settled, done: make(chan struct{})}
	defer b.abandon()
	// A kept stream may have died unnoticed while nobody used it: what it did not answer goes out once more on a new one.
	for first := true; ; first = false {
		from := b.answered()
		if from == len(items) {
			return nil
		}
		c, err := n.connect(ctx, to)
		if err != nil {
			return err
		}
		st, kept, err := c.link.open(ctx)
		if err != nil {
			return err
		}
		err = b.run(ctx, st, items[from:])
		if err == nil || !first || !kept || ctx.Err() != nil || errors.Is(err, errSilent) {
			return err
		}
	}
}

// batch is the items of one Send.
type batch struct {
	mu      sync.Mutex
	settled func(int, wire.Answer) // nil once Send returned
	base    int                    // items settled before this stream
	count   int                    // items settled
	want    int                    // items that must be settled
	err     error
	done    chan struct{} // closed when want are settled or the stream failed
}

func (b *batch) answered() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

func (b *batch) abandon() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.settled = nil
}

// run offers the items on st and waits for their fate.
func (b *batch) run(ctx context.Context, st *stream, items [][]byte) error {
	b.mu.Lock()
	b.base, b.want, b.err, b.done = b.count, b.count+len(items), nil, make(chan struct{})
	done := b.done
	b.mu.Unlock()
	for i, item := range items {
		if err := st.offer(ctx, b, b.base+i, item); err != nil {
			return err
		}
	}
	st.flush()
	select {
	case <-done:
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.err
	case <-ctx.Done():
		return fmt.Errorf("wait for an answer from %s: %w: %w", short(st.c.id), ctx.Err(), wire.ErrUnreachable)
	}
}

func (b *batch) settle(i int, a wire.Answer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.settled == nil || i != b.count {
		return
	}
	b.settled(i, a)
	if b.count++; b.count == b.want {
		close(b.done)
	}
}

func (b *batch) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil && b.count < b.want {
		b.err = err
		close(b.done)
	}
}

// link is our side of deliveries to one contact: at most one stream, opened when first needed.
type link struct {
	n    *Node
	c    *contact
	dial chan struct{} // held while a stream is being opened

	mu sync.Mutex
	st *stream
}

// open returns the stream in use, or a new one. A stream over a relay gives way to a direct connection once it is quiet.
func (l *link) open(ctx context.Context) (st *stream, kept bool, err error) {
	select {
	case l.dial <- struct{}{}:
		defer func() { <-l.dial }()
	case <-ctx.Done():
		return nil, false, fmt.Errorf("open stream to %s: %w: %w", short(l.c.id), ctx.Err(), wire.ErrUnreachable)
	}
	if st := l.current(); st != nil {
		if !st.s.Conn().Stat().Limited || l.n.inner.Network().Connectedness(l.c.id) != network.Connected || !st.retire() {
			return st, true, nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, l.n.limits.DialTimeout)
	defer cancel()
	s, err := l.n.inner.NewStream(network.WithAllowLimitedConn(ctx, "direct"), l.c.id, l.n.proto.direct)
	if err != nil {
		return nil, false, fmt.Errorf("open stream to %s: %w: %w", short(l.c.id), err, wire.ErrUnreachable)
	}
	st = &stream{n: l.n, c: l.c, s: s, next: 1, room: make(chan struct{}, 1), failed: make(chan struct{})}
	if !l.n.tasks.start() {
		_ = s.Reset()
		return nil, false, fmt.Errorf("open stream to %s: node is closing: %w", short(l.c.id), wire.ErrUnreachable)
	}
	l.mu.Lock()
	l.st = st
	l.mu.Unlock()
	go func() {
		defer l.n.tasks.done()
		err := st.readAnswers()
		l.mu.Lock()
		if l.st == st {
			l.st = nil
		}
		l.mu.Unlock()
		st.fail(err)
	}()
	return st, false, nil
}

func (l *link) current() *stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.st
}

func (l *link) drop(err error) {
	if st := l.current(); st != nil {
		st.fail(err)
	}
}

// stream is one open direct stream with its window of offers.
type stream struct {
	n *Node
	c *contact
	s network.Stream

	mu       sync.Mutex // guards what follows
	next     uint32
	pending  []pending // offered, in order
	bytes    int       // in pending
	out      []byte    // frames to be written, which whoever holds writing takes along
	spare    []byte
	writing  bool
	err      error
	progress time.Time // of the last answer, or of the offer that ended a silence
	watch    *time.Timer
	watching bool

	room   chan struct{} // signals that the window moved
	failed chan struct{} // closed with err
}

type pending struct {
	b     *batch
	i     int
	id    uint32
	bytes int
}

// slowest is the slowest path on which a stream is not taken for dead, in bytes a second.
const slowest = 4 << 10

// offer queues one item; frames leave with the next flush, or when the window is full.
func (st *stream) offer(ctx context.Context, b *batch, i int, item []byte) error {
	st.mu.Lock()
	for st.err == nil && len(st.pending) > 0 && (len(st.pending) >= st.n.limits.InFlight || st.bytes+len(item) > st.n.limits.InFlightBytes) {
		st.mu.Unlock()
		st.flush()
		select {
		case <-st.room:
		case <-st.failed:
		case <-ctx.Done():
			return fmt.Errorf("offer to %s: %w: %w", short(st.c.id), ctx.Err(), wire.ErrUnreachable)
		}
		st.mu.Lock()
	}
	defer st.mu.Unlock()
	if st.err != nil {
		return st.err
	}
	if len(st.pending) == 0 {
		st.progress = time.Now()
		st.startWatch()
	}
	st.pending = append(st.pending, pending{b: b, i: i, id: st.next, bytes: len(item)})
	st.bytes += len(item)
	st.out = wire.Offer{ID: st.next, Item: item}.Append(st.out)
	st.next++
	st.c.touch(st.n.clock.Now(), 1)
	return nil
}

// flush writes what is queued, together with what others queue meanwhile, in as few writes as possible.
func (st *stream) flush() {
	st.mu.Lock()
	if st.writing {
		st.mu.Unlock()
		return // the one who writes takes ours along
	}
	st.writing = true
	for len(st.out) > 0 && st.err == nil {
		buf := st.out
		st.out, st.spare = st.spare[:0], nil
		st.mu.Unlock()
		_, err := st.s.Write(buf)
		if err != nil {
			st.fail(fmt.Errorf("write to %s: %w: %w", short(st.c.id), err, wire.ErrUnreachable))
		}
		st.mu.Lock()
		if cap(buf) <= 256<<10 {
			st.spare = buf
		}
	}
	st.writing = false
	st.mu.Unlock()
}

// readAnswers settles offers in order until the stream ends; its error says why.
func (st *stream) readAnswers() error {
	r := bufio.NewReaderSize(st.s, 4<<10)
	for {
		body, err := wire.ReadFrame(r, wire.AnswerSize)
		if err != nil {
			if errors.Is(err, wire.ErrFrameSize) {
				st.n.counts.add(refusedAnswer)
			}
			return fmt.Errorf("read answer of %s: %w: %w", short(st.c.id), err, wire.ErrUnreachable)
		}
		a, err := wire.ParseAnswer(body)
		if err == nil {
			err = st.settle(a)
		}
		if err != nil {
			st.n.counts.add(refusedAnswer)
			return fmt.Errorf("answer of %s: %w: %w", short(st.c.id), err, wire.ErrUnreachable)
		}
	}
}

func (st *stream) settle(a wire.Answer) error {
	st.mu.Lock()
	if len(st.pending) == 0 || st.pending[0].id != a.ID {
		st.mu.Unlock()
		return fmt.Errorf("id %d answers nothing that waits next", a.ID)
	}
	p := st.pending[0]
	st.pending = st.pending[1:]
	st.bytes -= p.bytes
	st.progress = time.Now()
	st.mu.Unlock()
	st.c.touch(st.n.clock.Now(), -1)
	select {
	case st.room <- struct{}{}:
	default:
	}
	p.b.settle(p.i, a)
	return nil
}

// fail ends the stream and every offer on it. The first reason counts.
func (st *stream) fail(err error) {
	st.mu.Lock()
	if st.err != nil {
		st.mu.Unlock()
		return
	}
	st.err = err
	lost := st.pending
	st.pending, st.out, st.spare, st.bytes = nil, nil, nil, 0
	if st.watch != nil {
		st.watch.Stop()
	}
	close(st.failed)
	st.mu.Unlock()
	_ = st.s.Reset()
	st.c.touch(st.n.clock.Now(), -len(lost))
	for _, p := range lost {
		p.b.fail(err)
	}
	st.n.roomFreed()
}

// retire closes a stream that nothing waits on, and reports whether it could.
func (st *stream) retire() bool {
	st.mu.Lock()
	quiet := len(st.pending) == 0
	st.mu.Unlock()
	if quiet {
		st.fail(fmt.Errorf("stream to %s replaced: %w", short(st.c.id), wire.ErrUnreachable))
	}
	return quiet
}

// errSilent is a stream whose other end stopped answering.
var errSilent = errors.New("no answer in time")

// startWatch arms the one timer that notices silence; it is left alone while answers come. Called with st.mu held.
func (st *stream) startWatch() {
	if st.watching {
		return
	}
	st.watching = true
	if st.watch == nil {
		st.watch = time.AfterFunc(st.n.limits.AnswerTimeout, st.checkSilence)
	} else {
		st.watch.Reset(st.n.limits.AnswerTimeout)
	}
}

func (st *stream) checkSilence() {
	st.mu.Lock()
	if st.err != nil || len(st.pending) == 0 {
		st.watching = false
		st.mu.Unlock()
		return
	}
	allowed := st.n.limits.AnswerTimeout + time.Duration(st.bytes)*time.Second/slowest
	left := allowed - time.Since(st.progress)
	if left > 0 {
		st.watch.Reset(left)
		st.mu.Unlock()
		return
	}
	st.mu.Unlock()
	st.n.counts.add(silentPeer)
	st.fail(fmt.Errorf("%s: %w: %w", short(st.c.id), errSilent, wire.ErrUnreachable))
	_ = st.s.Conn().Close() // the path is dead or the peer is: the next try dials anew
}
