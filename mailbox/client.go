package mailbox

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	ma "github.com/multiformats/go-multiaddr"

	"sotto/identity"
	"sotto/internal/canon"
	"sotto/internal/clock"
	"sotto/wire"
)

// ClientConfig is what a client is told; the zero value is the default.
type ClientConfig struct {
	DialTimeout   time.Duration // 15 s
	AnswerTimeout time.Duration // 30 s without an answer while one is due
	WriteTimeout  time.Duration // 10 s for a request, and what its bytes take at 4 KiB/s
	Idle          time.Duration // 60 s after which a kept stream is closed; below the mailbox's 90 s
	Clock         clock.Clock
	// Dialable leaves of a mailbox's addresses those that may be dialled from here; nil: all.
	Dialable func([]ma.Multiaddr) []ma.Multiaddr
}

// Client speaks to mailboxes from a front host: it leaves mail for others, and opens its owner's boxes.
type Client struct {
	h     host.Host
	proto protocol.ID
	cfg   ClientConfig
	wg    sync.WaitGroup

	mu     sync.Mutex // guards what follows
	kept   map[string]*kept
	boxes  map[*Box]bool
	closed bool
}

// NewClient makes a client that dials when it is first asked to.
func NewClient(h host.Host, networkName string, cfg ClientConfig) *Client {
	cfg.DialTimeout, cfg.AnswerTimeout = cmp.Or(cfg.DialTimeout, 15*time.Second), cmp.Or(cfg.AnswerTimeout, 30*time.Second)
	cfg.WriteTimeout, cfg.Idle = cmp.Or(cfg.WriteTimeout, 10*time.Second), cmp.Or(cfg.Idle, time.Minute)
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	return &Client{h: h, proto: protocolOf(networkName), cfg: cfg, kept: map[string]*kept{}, boxes: map[*Box]bool{}}
}

// Close ends all streams, the boxes' too, and returns when nothing of the client runs any more.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	var open []*kept
	for _, k := range c.kept {
		open = append(open, k)
	}
	for b := range c.boxes {
		open = append(open, b.k)
	}
	c.mu.Unlock()
	for _, k := range open {
		k.end(errEnded)
	}
	c.wg.Wait()
	return nil
}

var (
	errEnded = fmt.Errorf("client is closed: %w", wire.ErrUnreachable)
	errStale = errors.New("the kept stream had ended")
)

// spot is a mailbox as its address names it.
type spot struct {
	peer.AddrInfo
	service [32]byte
}

// placeOf reads a multiaddr that ends in the peer id of a service host.
func (c *Client) placeOf(addr string) (p spot, err error) {
	info, err := peer.AddrInfoFromString(addr)
	if err != nil {
		return p, fmt.Errorf("mailbox address %q: %w: %w", addr, err, wire.ErrUnreachable)
	}
	p.AddrInfo = *info
	var ok bool
	if p.service, ok = keyOf(p.ID); !ok || identity.CheckKey(p.service) != nil {
		return p, fmt.Errorf("mailbox address %q: a key that no mailbox has: %w", addr, wire.ErrUnreachable)
	}
	if c.cfg.Dialable != nil {
		p.Addrs = c.cfg.Dialable(p.Addrs)
	}
	return p, nil
}

// ServiceKey reads the key of a mailbox out of its address, which ends in its peer id.
func ServiceKey(addr ma.Multiaddr) (key [32]byte, err error) {
	info, err := peer.AddrInfoFromP2pAddr(addr)
	if err != nil {
		return key, fmt.Errorf("mailbox address: %w", err)
	}
	key, ok := keyOf(info.ID)
	if !ok || identity.CheckKey(key) != nil {
		return key, errors.New("mailbox address: a key that no mailbox has")
	}
	return key, nil
}

// Terms asks a mailbox what it promises. The terms are signed by the key in its address.
func (c *Client) Terms(ctx context.Context, addr string) (wire.Terms, error) {
	return ask(ctx, c, addr, &wire.TermsRequest{}, func(p spot, result []byte) (wire.Terms, error) {
		t, err := wire.ParseTerms(result)
		if err == nil && (t.Service != p.service || !canon.Verify(p.service[:], wire.SigTerms, t.Fields(), t.Signature[:])) {
			err = errors.New("terms are not signed by this mailbox")
		}
		return t, err
	})
}

// Deposit leaves an envelope in somebody's box for one of the tokens its owner gave. The receipt is verified; asking again with the
// same token and envelope gives the same one. Deposits at one mailbox share a stream, and none waits for another's answer.
func (c *Client) Deposit(ctx context.Context, addr string, d wire.Deposit) (wire.Custody, error) {
	return ask(ctx, c, addr, &d, func(p spot, result []byte) (wire.Custody, error) {
		return receiptFor(p.service, d.Box, d.Envelope, d.NotBefore, result)
	})
}

// DepositStranger leaves an envelope without a token, for the work of StrangerStamp.
func (c *Client) DepositStranger(ctx context.Context, addr string, d wire.StrangerDeposit) (wire.Custody, error) {
	return ask(ctx, c, addr, &d, func(p spot, result []byte) (wire.Custody, error) {
		return receiptFor(p.service, d.Box, d.Envelope, 0, result)
	})
}

// receiptFor believes a receipt only for this very envelope in this box, by this mailbox, and beyond the date from which the owner may have it.
func receiptFor(service [32]byte, box wire.BoxID, envelope []byte, notBefore int64, result []byte) (wire.Custody, error) {
	r, err := wire.ParseCustody(result)
	switch {
	case err != nil:
	case r.Box != box:
		err = errors.New("receipt is for another box")
	case r.Hash != sha256.Sum256(envelope):
		err = errors.New("receipt is for another envelope")
	case r.HeldUntil <= notBefore:
		err = errors.New("receipt ends before the envelope may be handed out")
	case !canon.Verify(service[:], wire.SigCustody, r.Fields(), r.Signature[:]):
		err = errors.New("receipt is not signed by this mailbox")
	}
	return r, err
}

// Prove asks whether an envelope is still there. The proof is signed; whoever kept wire.ProofAnswer for the nonce compares it with the answer.
func (c *Client) Prove(ctx context.Context, addr string, box wire.BoxID, hash, nonce [32]byte) (wire.Proof, error) {
	q := wire.Prove{Box: box, Hash: hash, Nonce: nonce}
	return ask(ctx, c, addr, &q, func(p spot, result []byte) (wire.Proof, error) {
		proof, err := wire.ParseProof(result)
		if err == nil && !canon.Verify(p.service[:], wire.SigProof, proof.Fields(q), proof.Signature[:]) {
			err = errors.New("proof is not signed by this mailbox")
		}
		return proof, err
	})
}

// ask makes a request on the stream kept for a mailbox, and believes the answer if check does.
func ask[T any](ctx context.Context, c *Client, addr string, q wire.MailboxRequest, check func(spot, []byte) (T, error)) (T, error) {
	var zero T
	p, err := c.placeOf(addr)
	if err != nil {
		return zero, err
	}
	k, err := c.keep(p)
	if err != nil {
		return zero, fmt.Errorf("%v at %s: %w", q.Op(), short(p.ID), err)
	}
	return believe(ctx, k, q, func(b []byte) (T, error) { return check(p, b) })
}

// believe makes a request and judges its result. A mailbox whose result is not what it must be lies or is broken: its stream ends.
func believe[T any](ctx context.Context, k *kept, q wire.MailboxRequest, check func([]byte) (T, error)) (T, error) {
	var zero T
	result, p, err := k.ask(ctx, q)
	if err != nil {
		return zero, fmt.Errorf("%v at %s: %w", q.Op(), short(k.at.ID), err)
	}
	v, err := check(result)
	if err != nil {
		err = fmt.Errorf("%v at %s: %w: %w", q.Op(), short(k.at.ID), err, wire.ErrUntrusted)
		p.fail(err)
		return zero, err
	}
	return v, nil
}

// keep finds the stream kept for a mailbox.
func (c *Client) keep(p spot) (*kept, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errEnded
	}
	k := c.kept[string(p.ID)]
	if k == nil {
		if len(c.kept) >= keptMost { // mailboxes that nobody asks any more
			maps.DeleteFunc(c.kept, func(_ string, k *kept) bool { return k.idle() })
		}
		k = &kept{c: c, turn: make(chan struct{}, 1)}
		c.kept[string(p.ID)] = k
	}
	k.setPlace(p)
	return k, nil
}

// keptMost is how many mailboxes are remembered before those without a stream are forgotten.
const keptMost = 256

// open dials a mailbox and begins a stream.
func (c *Client) open(ctx context.Context, at spot) (*pipe, error) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	if sw, ok := c.h.Network().(*swarm.Swarm); ok {
		sw.Backoff().Clear(at.ID)
	}
	if err := c.h.Connect(ctx, at.AddrInfo); err != nil {
		return nil, fmt.Errorf("connect: %w: %w", err, wire.ErrUnreachable)
	}
	s, err := c.h.NewStream(ctx, at.ID, c.proto)
	if err != nil {
		return nil, fmt.Errorf("open stream: %w: %w", err, wire.ErrUnreachable)
	}
	p := newPipe(s, &c.cfg)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = s.Reset()
		return nil, errEnded
	}
	c.wg.Go(p.write)
	c.wg.Go(p.read)
	return p, nil
}

// kept is a stream that is opened when it is needed and kept while it is used.
type kept struct {
	c     *Client
	begin func(context.Context, *pipe) error // what a new stream begins with; nil: nothing
	turn  chan struct{}                      // held while a stream is being opened
	asked atomic.Uint64                      // requests made

	mu   sync.Mutex // guards what follows
	at   spot
	p    *pipe
	over error // it is not opened any more
}

// idle reports whether there is no stream, and nobody is opening one.
func (k *kept) idle() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.turn) == 0 && (k.p == nil || !k.p.alive())
}

func (k *kept) setPlace(at spot) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.at = at
}

func (k *kept) end(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.over = err
	if k.p != nil {
		k.p.fail(err)
	}
}

// ask makes a request on the kept stream, once more on a new one if that had ended: every request may be made twice.
func (k *kept) ask(ctx context.Context, q wire.MailboxRequest) ([]byte, *pipe, error) {
	k.asked.Add(1)
	for again := false; ; again = true {
		p, fresh, err := k.pipe(ctx)
		if err != nil {
			return nil, nil, err
		}
		a, err := p.ask(ctx, q)
		if errors.Is(err, errStale) && !fresh && !again && ctx.Err() == nil {
			continue
		}
		if err == nil {
			err = answerError(a)
		}
		return a.Result, p, err
	}
}

// pipe is the kept stream, opened if need be.
func (k *kept) pipe(ctx context.Context) (p *pipe, fresh bool, err error) {
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return nil, false, fmt.Errorf("%w: %w", ctx.Err(), wire.ErrUnreachable)
	}
	k.mu.Lock()
	p, at, over := k.p, k.at, k.over
	k.mu.Unlock()
	if over != nil {
		return nil, false, over
	}
	if p != nil && p.alive() {
		return p, false, nil
	}
	if p, err = k.c.open(ctx, at); err != nil {
		return nil, false, err
	}
	if k.begin != nil {
		if err := k.begin(ctx, p); err != nil {
			p.fail(err)
			return nil, false, err
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over != nil {
		p.fail(k.over)
		return nil, false, k.over
	}
	k.p = p
	return p, true, nil
}

// AnswerError is a mailbox's refusal; it unwraps to the code's sentinel.
type AnswerError struct {
	Code       wire.Code
	RetryAfter time.Duration // 0: the mailbox did not say
}

// Error says what the mailbox answered.
func (e *AnswerError) Error() string {
	if e.RetryAfter > 0 {
		return fmt.Sprintf("mailbox answered: %v, again in %v", e.Code, e.RetryAfter)
	}
	return "mailbox answered: " + e.Code.String()
}

// Unwrap is the sentinel of the code.
func (e *AnswerError) Unwrap() error { return e.Code.Err() }

func answerError(a wire.MailboxAnswer) error {
	if a.Code == wire.CodeOK {
		return nil
	}
	return &AnswerError{Code: a.Code, RetryAfter: time.Duration(a.RetryAfter) * time.Second}
}

func short(p peer.ID) string {
	s := p.String()
	return s[max(0, len(s)-8):]
}

// RegisterStamp finds the work for a new box at a mailbox in that hour of Unix time; each bit more takes twice as long.
func RegisterStamp(ctx context.Context, service, bk [32]byte, hour uint32, bits uint8) (nonce uint64, err error) {
	return search(ctx, func(n uint64) bool { return wire.RegisterFits(service, bk, hour, n, bits) })
}

// StrangerStamp finds the work for an envelope without a token.
func StrangerStamp(ctx context.Context, service [32]byte, box wire.BoxID, hour uint32, envelope []byte, bits uint8) (nonce uint64, err error) {
	hash := sha256.Sum256(envelope)
	return search(ctx, func(n uint64) bool { return wire.StrangerFits(service, box, hour, hash, n, bits) })
}

func search(ctx context.Context, fits func(uint64) bool) (uint64, error) {
	for n := uint64(0); ; n++ {
		if fits(n) {
			return n, nil
		}
		if n%4096 == 0 && ctx.Err() != nil {
			return 0, fmt.Errorf("look for work: %w", ctx.Err())
		}
	}
}

// ownerKey is an Ed25519 key's public half as the protocol writes it.
func ownerKey(key ed25519.PrivateKey) (pub [32]byte) {
	copy(pub[:], key.Public().(ed25519.PublicKey))
	return pub
}

// Work is the admission of a fresh box by RegisterStamp's nonce.
func Work(hour uint32, nonce uint64) wire.Admission { return wire.Admission{Hour: hour, Nonce: nonce} }
