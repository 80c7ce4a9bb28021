package mailbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"sotto/wire"
)

// talk is one stream being served (PROTOCOL 17.1). Its stages:
//
//  1. read takes a frame: length, then the prefix's bytes, then room, then the body, as fast as it comes.
//  2. A deposit is handed to the queue at once, in a goroutine of its own: many commit together. Everything else is done in its turn.
//  3. answer does what is in its turn, waits for deposits, and writes, all in the order of the requests.
//
// A stream that waits for its owner's next request costs one goroutine and this struct; there is an answering goroutine only while
// something is unanswered.
type talk struct {
	srv   *Server
	s     network.Stream
	from  []netip.Prefix
	front [32]byte // the peer's key

	box  wire.BoxID // named by AUTH; touched in turn only
	key  [32]byte   // the box's
	auth bool

	seated bool // it is in Server.waits; guarded by the server's mutex

	wg    sync.WaitGroup
	freed chan struct{} // signals that something was answered
	more  chan struct{} // signals that another frame has begun, or that none will: a WAIT is over then
	kick  chan struct{} // closed when a newer stream took this one's place

	mu      sync.Mutex // guards what follows
	pending []*asked   // unanswered, oldest first
	bytes   int        // of their bodies
	shared  int        // of those, what came out of the server's common room
	framing bool       // a frame is half read
	heard   bool       // there was a request
	over    bool       // the opener writes no more
	running bool       // answer runs
	dead    bool       // nothing will be answered any more
}

// asked is a request that was not answered yet.
type asked struct {
	q    wire.MailboxRequest
	size int
	done chan wire.MailboxAnswer // of a deposit; nil for what is done in its turn
}

var errSlow = errors.New("too slow")

// read takes requests until the stream ends: nil when the opener closed it between two frames, or was silent for long.
func (l *talk) read(ctx context.Context) error {
	limits := &l.srv.limits
	var head [4]byte
	for {
		l.rest()
		if _, err := io.ReadFull(l.s, head[:1]); err != nil {
			if errors.Is(err, io.EOF) || isTimeout(err) && l.spoke() {
				return nil
			}
			return err
		}
		l.begin()
		if _, err := io.ReadFull(l.s, head[1:]); err != nil {
			return unfinished(err)
		}
		n := int(binary.BigEndian.Uint32(head[:]))
		if n == 0 || n > wire.MaxMailboxRequest {
			return fmt.Errorf("%w: %d", wire.ErrFrameSize, n)
		}
		if err := l.pay(ctx, n); err != nil {
			return err
		}
		if err := l.room(ctx, n); err != nil {
			return err
		}
		limit := min(limits.FrameTimeout, limits.FirstFrame+l.atFloor(n))
		_ = l.s.SetReadDeadline(time.Now().Add(limit))
		body, err := readBody(l.s, n)
		if err != nil {
			return unfinished(err)
		}
		q, err := wire.ParseMailboxRequest(body)
		if err != nil {
			l.srv.counts.add(refusedRequest)
			return err
		}
		l.take(ctx, q, n)
	}
}

// spoke reports whether there was a request.
func (l *talk) spoke() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard
}

// atFloor is how long n bytes may take at the slowest speed that is served.
func (l *talk) atFloor(n int) time.Duration {
	return time.Duration(n) * time.Second / time.Duration(l.srv.limits.Floor)
}

// unfinished makes an end inside a frame an error of its own.
func unfinished(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// readBody reads n bytes, with memory for not much more than what has come.
func readBody(r io.Reader, n int) ([]byte, error) {
	const step = 16 << 10
	body := make([]byte, min(n, step))
	for have := 0; ; {
		if _, err := io.ReadFull(r, body[have:]); err != nil {
			return nil, err
		}
		if have = len(body); have == n {
			return body, nil
		}
		more := make([]byte, min(n, 3*have))
		copy(more, body)
		body = more
	}
}

// rest sets how long there may be silence now: after 90 s without a request the stream ends, but not while one is unanswered.
func (l *talk) rest() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.framing = false
	l.setRest()
}

func (l *talk) setRest() {
	switch limits := &l.srv.limits; {
	case l.framing:
	case len(l.pending) > 0:
		_ = l.s.SetReadDeadline(time.Time{})
	case l.heard:
		_ = l.s.SetReadDeadline(time.Now().Add(limits.Idle))
	default:
		_ = l.s.SetReadDeadline(time.Now().Add(limits.FirstFrame))
	}
}

// begin notes that a frame has begun.
func (l *talk) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.framing = true
	_ = l.s.SetReadDeadline(time.Now().Add(l.srv.limits.FirstFrame))
	signal(l.more)
}

// signal wakes who reads from a channel of one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// finish notes that the opener writes no more.
func (l *talk) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	signal(l.more)
}

// followed reports whether the request being done is not the last one: something is behind it, or coming, or nothing ever will.
func (l *talk) followed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.framing || l.over || len(l.pending) > 1
}

// pay waits until the prefix may have more bytes; one that is far behind is cut.
func (l *talk) pay(ctx context.Context, n int) error {
	wait := l.srv.gate.bytes(l.from, n, l.srv.clock.Now())
	if wait > l.srv.limits.FrameTimeout {
		l.srv.counts.add(refusedBytes)
		return fmt.Errorf("%w: prefix has %v to wait", errSlow, wait)
	}
	if wait > 0 {
		return l.srv.clock.Wait(ctx, wait)
	}
	return nil
}

// room waits until a body of n bytes fits the window.
func (l *talk) room(ctx context.Context, n int) error {
	for {
		l.mu.Lock()
		limits := &l.srv.limits
		fits := len(l.pending) == 0 || len(l.pending) < limits.Window && l.bytes+n <= limits.WindowBytes
		if over := l.bytes + n - l.shared - limits.StreamBytes; fits && over > 0 && len(l.pending) > 0 {
			if fits = l.srv.borrow(over); fits {
				l.shared += over
			}
		}
		if fits {
			l.bytes += n
		}
		dead := l.dead
		l.mu.Unlock()
		switch {
		case dead:
			return errSlow
		case fits:
			return nil
		}
		select {
		case <-l.freed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// take puts a request in line, and begins on it at once if it is a deposit.
func (l *talk) take(ctx context.Context, q wire.MailboxRequest, n int) {
	a := &asked{q: q, size: n}
	switch q := q.(type) {
	case *wire.Deposit:
		a.done = make(chan wire.MailboxAnswer, 1)
		l.wg.Go(func() { a.done <- l.srv.deposit(ctx, l, q) })
	case *wire.StrangerDeposit:
		a.done = make(chan wire.MailboxAnswer, 1)
		l.wg.Go(func() { a.done <- l.srv.strangerDeposit(ctx, l, q) })
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = true
	l.pending = append(l.pending, a)
	if !l.running && !l.dead {
		l.running = true
		l.wg.Go(func() { l.answer(ctx) })
	}
}

// flushAt is how many bytes of answers are written together at most, but for one that is longer.
const flushAt = 64 << 10

// answer works through what is unanswered and returns when nothing is.
func (l *talk) answer(ctx context.Context) {
	var out []byte
	written := 0 // requests whose answers are in out
	flush := func() bool {
		ok := l.write(out)
		l.settle(written, ok)
		out, written = nil, 0
		return ok
	}
	for {
		l.mu.Lock()
		if len(l.pending) == 0 {
			l.running = false
			l.pending = nil
			l.mu.Unlock()
			return
		}
		var a *asked
		if written < len(l.pending) {
			a = l.pending[written]
		}
		l.mu.Unlock()
		var answer wire.MailboxAnswer
		var page func()
		switch {
		case a == nil:
			if !flush() {
				return
			}
			continue
		case a.done == nil:
			if written > 0 && !flush() { // it may take long
				return
			}
			answer, page = l.srv.do(ctx, l, a.q)
		default:
			select {
			case answer = <-a.done:
			default:
				if written > 0 && !flush() {
					return
				}
				answer = <-a.done
			}
		}
		out = answer.Append(out)
		written++
		if len(out) >= flushAt || page != nil {
			ok := flush()
			if page != nil {
				page()
			}
			if !ok {
				return
			}
		}
	}
}

// settle forgets the n oldest requests, which were answered; or all of them when nothing can be answered any more.
func (l *talk) settle(n int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !ok {
		l.dead, l.running = true, false
	}
	for _, a := range l.pending[:n] {
		l.bytes -= a.size
	}
	clear(l.pending[:n])
	l.pending = l.pending[n:]
	if give := l.shared - max(0, l.bytes-l.srv.limits.StreamBytes); give > 0 {
		l.srv.giveBack(give)
		l.shared -= give
	}
	l.setRest()
	signal(l.freed)
}

// write sends answers piece by piece. Who takes them too slowly loses the stream.
func (l *talk) write(b []byte) bool {
	const piece = 64 << 10
	l.srv.gate.bytes(l.from, len(b), l.srv.clock.Now()) // owed: the next request waits for it
	for len(b) > 0 {
		n := min(len(b), piece)
		_ = l.s.SetWriteDeadline(time.Now().Add(l.srv.limits.WriteTimeout + l.atFloor(n)))
		if _, err := l.s.Write(b[:n]); err != nil {
			if isTimeout(err) {
				l.srv.counts.add(refusedNeverRead)
			}
			_ = l.s.Reset()
			return false
		}
		b = b[n:]
	}
	return true
}
