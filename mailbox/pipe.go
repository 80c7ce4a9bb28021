package mailbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"sotto/wire"
)

// pipe is the opener's end of a stream: requests are written as they come, answers are matched to them in order. One goroutine writes,
// one reads.
type pipe struct {
	s    network.Stream
	cfg  *ClientConfig
	out  chan *call
	done chan struct{} // closed when err is set

	mu      sync.Mutex // guards what follows
	waiting []*call    // written or being written, oldest first
	bytes   int        // of frames from ask to answer
	open    int        // requests from ask to answer
	freed   chan struct{}
	used    bool // something was answered
	err     error
}

// call is one request until its answer.
type call struct {
	frame  []byte
	limit  time.Duration // for its answer's first byte
	answer chan wire.MailboxAnswer
}

// The opener keeps to what 17.1 lets be unanswered.
const (
	windowRequests = 64
	windowBytes    = 4 << 20
)

func newPipe(s network.Stream, cfg *ClientConfig) *pipe {
	return &pipe{s: s, cfg: cfg, out: make(chan *call, windowRequests), done: make(chan struct{}), freed: make(chan struct{})}
}

// ask makes one request. When ctx ends, its answer is dropped where it comes; the stream goes on.
func (p *pipe) ask(ctx context.Context, q wire.MailboxRequest) (wire.MailboxAnswer, error) {
	c := &call{frame: wire.AppendMailboxRequest(nil, q), limit: p.cfg.AnswerTimeout, answer: make(chan wire.MailboxAnswer, 1)}
	if len(c.frame)-4 > wire.MaxMailboxRequest {
		return wire.MailboxAnswer{}, fmt.Errorf("request of %d bytes: %w", len(c.frame)-4, wire.ErrTooLarge)
	}
	if w, ok := q.(*wire.Wait); ok {
		c.limit += time.Duration(w.Seconds) * time.Second
	}
	if err := p.enter(ctx, len(c.frame)); err != nil {
		return wire.MailboxAnswer{}, err
	}
	p.out <- c // has room for as many as enter lets in
	select {
	case a := <-c.answer:
		return a, nil
	case <-ctx.Done():
		return wire.MailboxAnswer{}, fmt.Errorf("%w: %w", ctx.Err(), wire.ErrUnreachable)
	case <-p.done:
	}
	select {
	case a := <-c.answer: // it came before the end
		return a, nil
	default:
		return wire.MailboxAnswer{}, p.failure()
	}
}

// enter waits until the request fits the window.
func (p *pipe) enter(ctx context.Context, n int) error {
	for {
		p.mu.Lock()
		fits := p.open == 0 || p.open < windowRequests && p.bytes+n <= windowBytes
		if fits {
			p.open++
			p.bytes += n
		}
		freed, err := p.freed, p.err
		p.mu.Unlock()
		switch {
		case err != nil:
			return p.failure()
		case fits:
			return nil
		}
		select {
		case <-freed:
		case <-p.done:
			return p.failure()
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), wire.ErrUnreachable)
		}
	}
}

func (p *pipe) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err == nil
}

// failure is why the stream ended.
func (p *pipe) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// fail ends the stream; the first reason counts.
func (p *pipe) fail(err error) {
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return
	}
	p.err = err
	close(p.done)
	p.mu.Unlock()
	_ = p.s.Reset()
}

func (p *pipe) write() {
	for {
		select {
		case c := <-p.out:
			p.mu.Lock()
			p.waiting = append(p.waiting, c)
			if len(p.waiting) == 1 {
				p.setDeadline()
			}
			p.mu.Unlock()
			_ = p.s.SetWriteDeadline(time.Now().Add(p.cfg.WriteTimeout + atLeast(len(c.frame))))
			if _, err := p.s.Write(c.frame); err != nil {
				p.fail(p.broken("write", err))
				return
			}
		case <-p.done:
			return
		}
	}
}

// atLeast is how long n bytes take on the slowest path that is of use.
func atLeast(n int) time.Duration { return time.Duration(n) * time.Second / 4096 }

// setDeadline gives the next answer its time, or the stream the time it may be kept for nothing. Called with mu held.
func (p *pipe) setDeadline() {
	limit := p.cfg.Idle
	if len(p.waiting) > 0 {
		limit = p.waiting[0].limit + atLeast(len(p.waiting[0].frame))
	}
	_ = p.s.SetReadDeadline(time.Now().Add(limit))
}

func (p *pipe) read() {
	p.mu.Lock()
	p.setDeadline()
	p.mu.Unlock()
	for {
		a, err := p.next()
		if err != nil {
			p.fail(err)
			return
		}
		p.mu.Lock()
		if len(p.waiting) == 0 {
			p.mu.Unlock()
			p.fail(fmt.Errorf("an answer that nobody asked for: %w", wire.ErrUntrusted))
			return
		}
		c := p.waiting[0]
		p.waiting = p.waiting[1:]
		p.open--
		p.bytes -= len(c.frame)
		p.used = true
		close(p.freed)
		p.freed = make(chan struct{})
		p.setDeadline()
		p.mu.Unlock()
		c.answer <- a
	}
}

// next reads one answer. Once its length is there, it has the time its bytes take.
func (p *pipe) next() (wire.MailboxAnswer, error) {
	var head [4]byte
	if _, err := io.ReadFull(p.s, head[:]); err != nil {
		return wire.MailboxAnswer{}, p.broken("read", err)
	}
	n := int(binary.BigEndian.Uint32(head[:]))
	if n == 0 || n > wire.MaxMailboxAnswer {
		return wire.MailboxAnswer{}, fmt.Errorf("answer: %w: %d: %w", wire.ErrFrameSize, n, wire.ErrUntrusted)
	}
	_ = p.s.SetReadDeadline(time.Now().Add(p.cfg.WriteTimeout + atLeast(n)))
	body, err := readBody(p.s, n)
	if err != nil {
		return wire.MailboxAnswer{}, p.broken("read", err)
	}
	a, err := wire.ParseMailboxAnswer(body)
	if err != nil {
		return a, fmt.Errorf("%w: %w", err, wire.ErrUntrusted)
	}
	return a, nil
}

// broken tells a stream that had ended meanwhile, which is opened anew without ado, from one that failed us.
func (p *pipe) broken(what string, err error) error {
	p.mu.Lock()
	used := p.used
	p.mu.Unlock()
	switch {
	case isTimeout(err):
		return fmt.Errorf("no answer in time: %w", wire.ErrUnreachable)
	case used || errors.Is(err, io.EOF):
		return fmt.Errorf("%s: %w: %w: %w", what, errStale, err, wire.ErrUnreachable)
	}
	return fmt.Errorf("%s: %w: %w", what, err, wire.ErrUnreachable)
}
