package testnet

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"sotto/internal/clock"
	"sotto/messenger"
	"sotto/wire"
)

// Mailboxes are volunteers' mailboxes in memory, by the rules of PROTOCOL 17 but without network, signatures and quotas. Each is named by one
// byte. It is a messenger.Mailboxes for everybody at once.
type Mailboxes struct {
	Clock clock.Clock

	mu    sync.Mutex // guards what follows
	boxes map[byte]*mailbox
	known []messenger.KnownMailbox
}

// mailbox is one of them.
type mailbox struct {
	service [32]byte
	down    bool // does not answer
	drops   bool // says that it keeps, and does not
	boxes   map[wire.BoxID]*box
	seen    []wire.Deposit
	records map[[32]byte][]byte
	uploads int
	shown   map[[16]byte]Shown
}

// Shown is where a mailbox first saw the hash of a token: in which upload, at which place.
type Shown struct{ Upload, Place int }

type box struct {
	pool  map[[16]byte]bool
	spent map[[16]byte][32]byte // hash of the envelope a token paid for
	mail  []wire.Mail
	next  uint64
	news  chan struct{} // closed and replaced when mail comes
}

// NewMailboxes makes mailboxes with these names, all of which everybody knows.
func NewMailboxes(names ...byte) *Mailboxes {
	n := &Mailboxes{Clock: clock.System{}, boxes: map[byte]*mailbox{}}
	for _, name := range names {
		n.boxes[name] = &mailbox{service: [32]byte{name}, boxes: map[wire.BoxID]*box{}, records: map[[32]byte][]byte{}, shown: map[[16]byte]Shown{}}
		n.known = append(n.known, messenger.KnownMailbox{Addr: []byte{name}})
	}
	return n
}

// SetDown takes a mailbox off the network, or brings it back.
func (n *Mailboxes) SetDown(name byte, down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.boxes[name].down = down
	for _, b := range n.boxes[name].boxes {
		b.wake()
	}
}

// SetLying has a mailbox promise to keep what it throws away.
func (n *Mailboxes) SetLying(name byte, lying bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.boxes[name].drops = lying
}

// Wipe has a mailbox forget everything.
func (n *Mailboxes) Wipe(name byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.boxes[name].boxes {
		b.wake()
	}
	n.boxes[name].boxes = map[wire.BoxID]*box{}
}

// Waiting is how many envelopes a mailbox keeps.
func (n *Mailboxes) Waiting(name byte) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.boxes[name].boxes {
		count += len(b.mail)
	}
	return count
}

// WaitingIn is how many envelopes wait in the box whose id begins with the digits, whichever mailbox has it.
func (n *Mailboxes) WaitingIn(digits string) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, at := range n.boxes {
		for id, b := range at.boxes {
			if strings.HasPrefix(hex.EncodeToString(id[:]), digits) {
				count += len(b.mail)
			}
		}
	}
	return count
}

// Unspent is how many tokens a mailbox knows.
func (n *Mailboxes) Unspent(name byte) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, b := range n.boxes[name].boxes {
		count += len(b.pool)
	}
	return count
}

// Seen is every deposit that a mailbox was asked to keep.
func (n *Mailboxes) Seen(name byte) []wire.Deposit {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.boxes[name].seen)
}

// Shown tells where a mailbox first saw a token's hash.
func (n *Mailboxes) Shown(name byte, hash [16]byte) Shown {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.boxes[name].shown[hash]
}

// Record is what a mailbox was asked to put into the DHT.
func (n *Mailboxes) Record(name byte, record [32]byte) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.boxes[name].records[record]
}

// wake has everybody look who waits for mail.
func (b *box) wake() {
	close(b.news)
	b.news = make(chan struct{})
}

const addrPrefix = "/mailbox/"

// ParseAddr reads "/mailbox/" and two hex digits.
func (n *Mailboxes) ParseAddr(text string) ([]byte, [32]byte, error) {
	raw, err := hex.DecodeString(strings.TrimPrefix(text, addrPrefix))
	if err != nil || len(raw) != 1 || !strings.HasPrefix(text, addrPrefix) {
		return nil, [32]byte{}, fmt.Errorf("%q is no mailbox", text)
	}
	return raw, [32]byte{raw[0]}, nil
}

// FormatAddr is what ParseAddr reads.
func (n *Mailboxes) FormatAddr(addr []byte) string { return addrPrefix + hex.EncodeToString(addr) }

// Known lists all mailboxes.
func (n *Mailboxes) Known() []messenger.KnownMailbox { return n.known }

// at finds a mailbox that answers. The lock is held.
func (n *Mailboxes) at(addr []byte) (*mailbox, error) {
	if len(addr) != 1 || n.boxes[addr[0]] == nil || n.boxes[addr[0]].down {
		return nil, wire.ErrUnreachable
	}
	return n.boxes[addr[0]], nil
}

// Terms are those of an open mailbox that keeps mail for 30 days.
func (n *Mailboxes) Terms(ctx context.Context, addr []byte) (wire.Terms, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, err := n.at(addr)
	if err != nil {
		return wire.Terms{}, err
	}
	return wire.Terms{Service: at.service, Mode: wire.ModeOpen, KeepDays: wire.MaxKeepDays, MaxBytes: 64 << 20, MaxCount: 4096}, nil
}

// Deposit keeps an envelope if its token is in the pool.
func (n *Mailboxes) Deposit(ctx context.Context, addr []byte, d wire.Deposit) (wire.Custody, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, err := n.at(addr)
	if err != nil {
		return wire.Custody{}, err
	}
	at.seen = append(at.seen, d)
	b := at.boxes[d.Box]
	if b == nil {
		return wire.Custody{}, wire.ErrRefused
	}
	hash, pool := sha256.Sum256(d.Envelope), wire.PoolHash(d.Token)
	now := n.Clock.Now().Unix()
	if before, ok := b.spent[pool]; !ok || before != hash {
		if !b.pool[pool] {
			return wire.Custody{}, wire.ErrRefused
		}
		delete(b.pool, pool)
		b.spent[pool] = hash
		if !at.drops {
			b.next++
			b.mail = append(b.mail, wire.Mail{ID: b.next, Spent: pool, Arrived: now, Envelope: d.Envelope})
			b.wake()
		}
	}
	return wire.Custody{Box: d.Box, Hash: hash, Arrived: now, HeldUntil: wire.HeldUntil(now, wire.MaxKeepDays)}, nil
}

// Open opens a box, registered or not.
func (n *Mailboxes) Open(ctx context.Context, addr []byte, key ed25519.PrivateKey) (messenger.BoxStream, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	at, err := n.at(addr)
	if err != nil {
		return nil, err
	}
	return &boxStream{net: n, at: at, addr: addr, id: wire.NewBoxID(at.service, [32]byte(key.Public().(ed25519.PublicKey)))}, nil
}

// boxStream is one owner's connection.
type boxStream struct {
	net  *Mailboxes
	at   *mailbox
	addr []byte
	id   wire.BoxID
}

// box finds the stream's box. The lock is held.
func (s *boxStream) box() (*box, error) {
	if _, err := s.net.at(s.addr); err != nil {
		return nil, err
	}
	b := s.at.boxes[s.id]
	if b == nil {
		return nil, wire.ErrNotFound
	}
	return b, nil
}

func (s *boxStream) lock() func() {
	s.net.mu.Lock()
	return s.net.mu.Unlock
}

func (s *boxStream) Register(context.Context, wire.Admission) (wire.Standing, error) {
	defer s.lock()()
	if _, err := s.net.at(s.addr); err != nil {
		return wire.Standing{}, err
	}
	if s.at.boxes[s.id] == nil {
		s.at.boxes[s.id] = &box{pool: map[[16]byte]bool{}, spent: map[[16]byte][32]byte{}, news: make(chan struct{})}
	}
	return wire.Standing{Bytes: 64 << 20, Count: 4096, KeepDays: wire.MaxKeepDays}, nil
}

func (s *boxStream) Standing(context.Context) (wire.Standing, error) {
	defer s.lock()()
	b, err := s.box()
	if err != nil {
		return wire.Standing{}, err
	}
	return wire.Standing{Bytes: 64 << 20, Count: 4096, UsedCount: uint32(len(b.mail)), Unspent: uint32(len(b.pool)), KeepDays: wire.MaxKeepDays}, nil
}

func (s *boxStream) Pool(_ context.Context, add, drop [][16]byte) error {
	defer s.lock()()
	b, err := s.box()
	if err != nil {
		return err
	}
	s.at.uploads++
	for i, h := range add {
		s.at.shown[h] = Shown{s.at.uploads, i}
		if _, spent := b.spent[h]; !spent {
			b.pool[h] = true
		}
	}
	for _, h := range drop {
		delete(b.pool, h)
	}
	return nil
}

func (s *boxStream) Wait(ctx context.Context, after uint64, most int, within time.Duration) (wire.Page, error) {
	ctx, cancel := context.WithCancel(ctx)
	over := make(chan struct{})
	go func() { defer close(over); _ = s.net.Clock.Wait(ctx, within) }()
	defer func() { cancel(); <-over }()
	for {
		page, news, err := s.page(after, most)
		if err != nil || len(page.Mail) > 0 {
			return page, err
		}
		select {
		case <-news:
		case <-over:
			return wire.Page{}, ctx.Err()
		}
	}
}

func (s *boxStream) page(after uint64, most int) (page wire.Page, news chan struct{}, err error) {
	defer s.lock()()
	b, err := s.box()
	if err != nil {
		return page, nil, err
	}
	for _, one := range b.mail {
		if one.ID > after && len(page.Mail) < max(most, 16) {
			page.Mail = append(page.Mail, one)
		}
	}
	return page, b.news, nil
}

func (s *boxStream) Ack(_ context.Context, ids []uint64) error {
	defer s.lock()()
	b, err := s.box()
	if err != nil {
		return err
	}
	b.mail = slices.DeleteFunc(b.mail, func(one wire.Mail) bool { return slices.Contains(ids, one.ID) })
	return nil
}

func (s *boxStream) Republish(_ context.Context, list []wire.Republish) error {
	defer s.lock()()
	for _, r := range list {
		s.at.records[r.Name] = r.Record
	}
	return nil
}

func (s *boxStream) Remove(context.Context) error {
	defer s.lock()()
	delete(s.at.boxes, s.id)
	return nil
}

func (s *boxStream) Close() error { return nil }
