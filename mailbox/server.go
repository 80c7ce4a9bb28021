package mailbox

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"

	"sotto/internal/canon"
	"sotto/internal/clock"
	"sotto/record"
	"sotto/wire"
)

// ServerConfig is what a mailbox is told; the key is required.
type ServerConfig struct {
	Key   ed25519.PrivateKey // the service host's
	Terms wire.Terms         // mode, bits, flags and note of what it promises; the rest is filled in from the queue's limits, and signed
	// Put gives a record to the DHT. Without it records are not taken.
	Put func(ctx context.Context, name [32]byte, record []byte) error
	// Prefixes is what the limits count a connection by, narrowest first; nothing: no limit. PrefixesOf when nil.
	Prefixes func(network.Conn) []netip.Prefix
	Limits   ServerLimits
	Clock    clock.Clock
	Log      *slog.Logger
}

// keeper is what the server asks of a Queue; tests put slow and failing ones in its place.
type keeper interface {
	Register(id wire.BoxID, how Admit) (wire.Standing, error)
	Standing(id wire.BoxID) (wire.Standing, error)
	Pool(id wire.BoxID, add, drop [][16]byte) (unspent uint32, err error)
	Deposit(ctx context.Context, d wire.Deposit, from netip.Prefix) (arrived, heldUntil int64, err error)
	DepositStranger(ctx context.Context, id wire.BoxID, envelope []byte, from netip.Prefix) (arrived, heldUntil int64, err error)
	Fetch(id wire.BoxID, after uint64, max int) (wire.Page, error)
	Watch(id wire.BoxID) (news <-chan struct{}, stop func())
	Ack(ctx context.Context, id wire.BoxID, ids []uint64) (removed int, err error)
	Republish(ctx context.Context, id wire.BoxID, list []wire.Republish) (kept int, err error)
	DueRecords(now time.Time, limit int) ([]wire.Republish, error)
	RecordPut(name [32]byte, at time.Time) error
	SetStrangers(id wire.BoxID, open bool) error
	CloseBox(ctx context.Context, id wire.BoxID) error
	Envelope(id wire.BoxID, hash [32]byte) (envelope []byte, there bool, err error)
	Allowed(hash [32]byte) bool
	drainUntil() int64
}

// Server speaks the mailbox protocol on a service host, in front of a Queue.
type Server struct {
	queue  keeper
	h      host.Host
	proto  protocol.ID
	cfg    ServerConfig
	key    [32]byte
	limits ServerLimits
	clock  clock.Clock
	log    *slog.Logger
	gate   *gate
	load   *pressure
	counts counters
	pages  chan struct{} // a slot for each large page being written
	wg     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	stopped bool
	conns   map[string][]*talk // by connection, oldest stream first
	waits   map[wire.BoxID][]*talk
	lent    int // of SharedBytes
	warned  time.Time
	terms   []byte
	signed  wire.Terms // what terms are made of
}

// protocolOf is the mailbox protocol's name in a network.
func protocolOf(name string) protocol.ID {
	if name != "" {
		name = "-" + name
	}
	return protocol.ID("/sotto" + name + "/mailbox/1")
}

// NewServer puts a server in front of the queue; it serves while Run runs.
func NewServer(q *Queue, h host.Host, networkName string, cfg ServerConfig) (*Server, error) {
	if len(cfg.Key) != ed25519.PrivateKeySize {
		return nil, errors.New("mailbox server: needs a service key")
	}
	if cfg.Clock == nil {
		cfg.Clock = clock.System{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Prefixes == nil {
		cfg.Prefixes = PrefixesOf
	}
	s := &Server{
		queue: q, h: h, proto: protocolOf(networkName), cfg: cfg, limits: cfg.Limits.withDefaults(), clock: cfg.Clock, log: cfg.Log,
		conns: map[string][]*talk{}, waits: map[wire.BoxID][]*talk{},
	}
	s.gate, s.load, s.pages = newGate(s.limits), &pressure{limits: s.limits}, make(chan struct{}, s.limits.Pages)
	copy(s.key[:], cfg.Key.Public().(ed25519.PublicKey))
	if own, ok := keyOf(h.ID()); !ok || own != s.key {
		return nil, errors.New("mailbox server: the service key is not the host's")
	}
	l := q.limits
	s.cfg.Terms.MaxBytes, s.cfg.Terms.MaxCount, s.cfg.Terms.KeepDays = l.MaxBytes, l.MaxCount, l.KeepDays
	s.cfg.Terms.StartBytes, s.cfg.Terms.StartCount = l.StartBytes, l.StartCount
	s.cfg.Terms.StrangerBits = max(cfg.Terms.StrangerBits, wire.MinStrangerBits)
	s.cfg.Terms.Flags &^= wire.FlagRepublishes
	if cfg.Put != nil {
		s.cfg.Terms.Flags |= wire.FlagRepublishes
	}
	if _, err := wire.ParseTerms(s.signTerms()); err != nil {
		return nil, fmt.Errorf("mailbox server: %w", err)
	}
	return s, nil
}

// Run serves until ctx ends and returns when nothing of it runs any more.
func (s *Server) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s.h.SetStreamHandler(s.proto, func(st network.Stream) {
		if !s.start() {
			_ = st.Reset()
			return
		}
		defer s.wg.Done()
		s.serve(ctx, st)
	})
	if s.cfg.Put != nil {
		s.wg.Go(func() { s.republish(ctx) })
	}
	<-ctx.Done()
	s.h.RemoveStreamHandler(s.proto)
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Server) start() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.wg.Add(1)
	return true
}

// serve is one stream, from its first limit to its last answer.
func (s *Server) serve(ctx context.Context, st network.Stream) {
	l, refused := s.enter(st)
	if refused != "" {
		s.counts.add(refused)
		_ = st.Reset()
		return
	}
	defer s.leave(l)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = st.Reset() })()
	err := l.read(ctx)
	if err != nil {
		s.counts.frame(err)
		cancel()
		_ = st.Reset()
	}
	l.finish()
	l.wg.Wait()
	if err == nil {
		_ = st.Close()
	}
}

// enter finds a place for a stream, cheapest check first.
func (s *Server) enter(st network.Stream) (l *talk, refused string) {
	front, ok := keyOf(st.Conn().RemotePeer())
	if !ok || st.Conn().Stat().Limited {
		return nil, refusedPeer
	}
	l = &talk{
		srv: s, s: st, from: s.cfg.Prefixes(st.Conn()), front: front,
		freed: make(chan struct{}, 1), more: make(chan struct{}, 1), kick: make(chan struct{}),
	}
	id := st.Conn().ID()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.conns[id]
	var oldest *talk
	if len(list) >= s.limits.StreamsPerConn {
		i := slices.IndexFunc(list, func(o *talk) bool { return !o.seated })
		if i < 0 {
			return nil, refusedStreams
		}
		oldest = list[i]
	}
	if refused = s.gate.enter(l.from, len(list) == 0, s.clock.Now()); refused != "" {
		return nil, refused
	}
	if oldest != nil {
		s.counts.add(refusedStreams)
		list = slices.DeleteFunc(list, func(o *talk) bool { return o == oldest })
		_ = oldest.s.Reset()
	}
	s.conns[id] = append(list, l)
	return l, ""
}

// leave gives back all that a stream had.
func (s *Server) leave(l *talk) {
	s.gate.leave(l.from)
	s.giveBack(l.shared)
	id := l.s.Conn().ID()
	s.mu.Lock()
	defer s.mu.Unlock()
	list := slices.DeleteFunc(s.conns[id], func(o *talk) bool { return o == l })
	if s.conns[id] = list; len(list) == 0 {
		delete(s.conns, id)
	}
}

// borrow takes n bytes of the common room for requests.
func (s *Server) borrow(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lent+n > s.limits.SharedBytes {
		return false
	}
	s.lent += n
	return true
}

func (s *Server) giveBack(n int) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lent -= n
}

// deposit takes an envelope for a token. The receipt is signed only after the queue's synced commit.
func (s *Server) deposit(ctx context.Context, l *talk, q *wire.Deposit) wire.MailboxAnswer {
	if !wire.EnvelopeSize(len(q.Envelope)) {
		s.counts.add(refusedSize)
		return wire.MailboxAnswer{Code: wire.CodeTooLarge}
	}
	return s.commit(q.Box, q.Envelope, false, func() (int64, int64, error) { return s.queue.Deposit(ctx, *q, narrowest(l.from)) })
}

// strangerDeposit takes an envelope for work.
func (s *Server) strangerDeposit(ctx context.Context, l *talk, q *wire.StrangerDeposit) wire.MailboxAnswer {
	if len(q.Envelope) != wire.StrangerEnvelope {
		s.counts.add(refusedSize)
		return wire.MailboxAnswer{Code: wire.CodeTooLarge}
	}
	if wait, ok := s.gate.work(l.from, s.clock.Now()); !ok {
		return s.busy(refusedWork, wait)
	}
	if !s.thisHour(q.Hour) || !wire.StrangerFits(s.key, q.Box, q.Hour, sha256.Sum256(q.Envelope), q.Nonce, s.cfg.Terms.StrangerBits) {
		s.counts.add(refusedProof)
		return wire.MailboxAnswer{Code: wire.CodeRefused}
	}
	return s.commit(q.Box, q.Envelope, true, func() (int64, int64, error) {
		return s.queue.DepositStranger(ctx, q.Box, q.Envelope, narrowest(l.from))
	})
}

func narrowest(from []netip.Prefix) (p netip.Prefix) {
	if len(from) > 0 {
		p = from[0]
	}
	return p
}

// commit gives an envelope to the queue unless too many wait there, and signs for it.
func (s *Server) commit(box wire.BoxID, envelope []byte, stranger bool, keep func() (arrived, heldUntil int64, err error)) wire.MailboxAnswer {
	began := s.clock.Now()
	if !s.load.begin(stranger, began) {
		return s.busy(refusedLoad, s.limits.SlowCommit*4)
	}
	arrived, heldUntil, err := keep()
	now := s.clock.Now()
	if err != nil {
		s.load.end(0, now)
		if errors.Is(err, wire.ErrOverloaded) && s.queue.drainUntil() != 0 {
			err = wire.ErrRefused // there is no use in coming back
		}
		return s.failed(wire.OpDeposit, err)
	}
	s.load.end(max(now.Sub(began), 1), now)
	receipt := wire.Custody{Box: box, Hash: sha256.Sum256(envelope), Arrived: arrived, HeldUntil: heldUntil}
	copy(receipt.Signature[:], canon.Sign(s.cfg.Key, wire.SigCustody, receipt.Fields()))
	return wire.MailboxAnswer{Result: receipt.Marshal()}
}

func (s *Server) thisHour(hour uint32) bool {
	now := s.clock.Now().Unix() / 3600
	return int64(hour) >= now-1 && int64(hour) <= now+1
}

// failed is the answer to an op that the queue did not do. What is not one of the queue's own refusals is a passing failure of ours.
func (s *Server) failed(op wire.Op, err error) wire.MailboxAnswer {
	code := wire.CodeOf(err)
	switch code {
	case wire.CodeOverloaded:
		if errors.Is(err, errBusy) || errors.Is(err, errSlowDisk) {
			return s.busy(refusedLoad, s.limits.SlowCommit*4)
		}
		return s.busy(refusedFull, fullPause)
	case wire.CodeLater:
		if !errors.Is(err, wire.ErrLater) && !errors.Is(err, context.Canceled) {
			s.warn(op, err)
		}
		return wire.MailboxAnswer{Code: code, RetryAfter: seconds(laterPause)}
	}
	s.counts.add(op.String() + ": " + code.String())
	return wire.MailboxAnswer{Code: code}
}

// warn tells the operator of a failure of ours, seldom enough that nobody fills a disk with asking.
func (s *Server) warn(op wire.Op, err error) {
	s.counts.add(refusedFailed)
	now := s.clock.Now()
	s.mu.Lock()
	seldom := now.Sub(s.warned).Abs() >= warnPause
	if seldom {
		s.warned = now
	}
	s.mu.Unlock()
	if seldom {
		s.log.Warn("mailbox cannot serve", "op", op.String(), "err", err)
	}
}

const warnPause = time.Minute

// How long those wait who are told to come back: to a mailbox that is full, and to one that failed.
const (
	fullPause  = 5 * time.Minute
	laterPause = 10 * time.Second
)

// busy turns somebody away for a while.
func (s *Server) busy(why string, wait time.Duration) wire.MailboxAnswer {
	s.counts.add(why)
	return wire.MailboxAnswer{Code: wire.CodeOverloaded, RetryAfter: seconds(wait)}
}

// seconds is a wait as answers carry it: rounded up, with up to half more, so that those told to wait do not return at once.
func seconds(d time.Duration) uint16 {
	d += rand.N(d/2 + time.Second)
	return uint16(min(int64(d/time.Second)+1, 1<<16-1))
}

// termsFresh is how long a signature under the terms is used.
const termsFresh = time.Hour

// signTerms are the terms as of now, signed anew when an hour went by or something changed.
func (s *Server) signTerms() []byte {
	drain := s.queue.drainUntil()
	now := s.clock.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terms != nil && s.signed.DrainUntil == drain && now.Sub(time.Unix(s.signed.Issued, 0)).Abs() < termsFresh {
		return s.terms
	}
	t := s.cfg.Terms
	t.Service, t.Issued, t.DrainUntil = s.key, now.Unix(), drain
	copy(t.Signature[:], canon.Sign(s.cfg.Key, wire.SigTerms, t.Fields()))
	s.terms, s.signed = t.Marshal(), t
	return s.terms
}

// prove says whether an envelope is there, and signs for it either way.
func (s *Server) prove(l *talk, q *wire.Prove) wire.MailboxAnswer {
	if wait, ok := s.gate.work(l.from, s.clock.Now()); !ok {
		return s.busy(refusedWork, wait)
	}
	envelope, there, err := s.queue.Envelope(q.Box, q.Hash)
	if err != nil && !errors.Is(err, wire.ErrNotFound) {
		return s.failed(q.Op(), err)
	}
	p := wire.Proof{Present: there && err == nil, Time: s.clock.Now().Unix()}
	if p.Present {
		p.Answer = wire.ProofAnswer(q.Nonce, envelope)
	}
	copy(p.Signature[:], canon.Sign(s.cfg.Key, wire.SigProof, p.Fields(*q)))
	return wire.MailboxAnswer{Result: p.Marshal()}
}

// republish puts records when they are due.
func (s *Server) republish(ctx context.Context) {
	for s.clock.Wait(ctx, s.limits.PutPause) == nil {
		due, err := s.queue.DueRecords(s.clock.Now(), putsAtOnce)
		if err != nil {
			s.log.Warn("mailbox cannot list records that are due", "err", err)
			continue
		}
		for _, r := range due {
			if err := s.put(ctx, r); err != nil && ctx.Err() == nil {
				s.counts.add(refusedPut)
				s.log.Debug("record not put", "err", err)
			}
		}
	}
}

const (
	putsAtOnce = 64
	putTimeout = time.Minute
)

// put gives one record to the DHT. One whose dates have passed, or that cannot be put, waits for its next turn like one that was put:
// its owner hands over newer ones.
func (s *Server) put(ctx context.Context, r wire.Republish) error {
	ctx, cancel := context.WithTimeout(ctx, putTimeout)
	defer cancel()
	now := s.clock.Now()
	err := record.Validate(r.Name, r.Record, now)
	if err == nil {
		err = s.cfg.Put(ctx, r.Name, r.Record)
	}
	return errors.Join(err, s.queue.RecordPut(r.Name, now))
}

// drainUntil is when a draining mailbox ends, in Unix seconds; 0: it is not draining.
func (q *Queue) drainUntil() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.state.DrainUntil
}

// FlagRelay in the terms says that the service host relays, too.
const FlagRelay = wire.FlagRelay

// ParseMode reads a mode as config names it.
func ParseMode(name string) (wire.Mode, error) {
	for m := wire.ModeOpen; m <= wire.ModeClosed; m++ {
		if m.String() == name {
			return m, nil
		}
	}
	return wire.ModeClosed, fmt.Errorf("%q: want open, invite, allowlist or closed", name)
}

// InspectRecord reads number and last date of a DHT record, for QueueConfig.
func InspectRecord(value []byte) (seq uint64, notAfter time.Time, err error) {
	return record.Seq(value)
}

// ServerStatus is what an operator sees of the protocol's side.
type ServerStatus struct {
	Streams int               `json:"streams"`
	Waiting int               `json:"waiting"` // owners who wait for mail
	Refused map[string]uint64 `json:"refused"`
}

// Status tells how the server stands.
func (s *Server) Status() ServerStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := ServerStatus{Refused: s.counts.snapshot()}
	for _, list := range s.conns {
		st.Streams += len(list)
	}
	for _, list := range s.waits {
		st.Waiting += len(list)
	}
	return st
}

// keyOf is the raw Ed25519 key inside a peer id.
func keyOf(p peer.ID) (key [32]byte, ok bool) {
	pub, err := p.ExtractPublicKey()
	if err != nil || pub.Type() != crypto.Ed25519 {
		return key, false
	}
	raw, err := pub.Raw()
	if err != nil {
		return key, false
	}
	return key, copy(key[:], raw) == len(key)
}
