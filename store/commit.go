package store

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// Writes are grouped without a goroutine of their own:
//
//  1. Submit queues a function.
//  2. Wait: whoever waits and finds no leader leads. The leader takes the whole queue,
//  3. runs the functions in order on one overlay, drops the writes of those that fail,
//  4. seals each touched row once, makes one synced commit, beside it one sync of the send floor log when needed,
//  5. answers all, and wakes one waiter of the next batch to lead it.

const (
	batchRows  = 8000    // the engine takes 13 100 rows of one transaction
	batchBytes = 1 << 20 // and 1.2 MB
	maxDeletes = 4000    // rows one sweep removes at once
)

// Pending is a queued write.
type Pending struct {
	s       *Store
	fn      func(*Tx) error
	err     error
	done    bool
	waiting bool
	wake    chan struct{} // 1: look again
	after   []func()
	vault   bool // it wrote into the vault
}

// queue is the state of the group commit.
type queue struct {
	mu      sync.Mutex
	list    []*Pending
	leading bool
	closed  bool
	last    int       // size of the last batch
	since   time.Time // when the commit under way began; zero between commits
}

// Update runs fn in the next batch and returns when its writes are durable, or with the error that dropped them.
func (s *Store) Update(fn func(*Tx) error) error { return s.Submit(fn).Wait() }

// Submit queues fn for the next batch. Somebody must Wait, or nothing may happen; functions run in the order they were
// submitted in.
func (s *Store) Submit(fn func(*Tx) error) *Pending { return s.submit(fn, false) }

// submit queues a function; the store's own are taken during Close too.
func (s *Store) submit(fn func(*Tx) error, own bool) *Pending {
	p := &Pending{s: s, fn: fn, wake: make(chan struct{}, 1)}
	q := &s.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed && !own {
		p.err, p.done = errClosed, true
		return p
	}
	q.list = append(q.list, p)
	return p
}

// Wait returns when the function's writes are durable, or with the error that dropped them. It may be called more than once,
// by one goroutine.
func (p *Pending) Wait() error {
	q := &p.s.queue
	q.mu.Lock()
	defer q.mu.Unlock()
	p.waiting = true
	for !p.done {
		if q.leading {
			q.mu.Unlock()
			<-p.wake
			q.mu.Lock()
			continue
		}
		p.s.lead()
	}
	return p.err
}

// lead commits what is queued and passes the lead on. It is called and returns with the queue's lock held.
func (s *Store) lead() {
	q := &s.queue
	q.leading = true
	s.gather()
	batch := q.list
	q.list, q.last = nil, len(batch)
	q.since = s.now()
	q.mu.Unlock()
	s.runBatch(batch)
	q.mu.Lock()
	q.since = time.Time{}
	q.leading = false
	for _, p := range batch {
		p.done = true
		p.signal()
	}
	for _, p := range q.list {
		if p.waiting {
			p.signal()
			break
		}
	}
}

// gather lets goroutines that were just answered queue their next write, so that they share a sync instead of every second
// batch holding one entry. Alone, nobody waits.
func (s *Store) gather() {
	q := &s.queue
	for range 8 {
		if n := len(q.list); n >= q.last || q.closed {
			return
		}
		q.mu.Unlock()
		runtime.Gosched()
		q.mu.Lock()
	}
}

func (p *Pending) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// group is the part of a batch that shares one commit.
type group struct {
	read    *badger.Txn
	ring    *ring
	base    *overlay
	seen    map[string][]byte
	state   counters
	floor   []reservation
	members []*Pending
}

func (g *group) close() { g.read.Discard() }

func (s *Store) begin() *group {
	read, ring := s.snapshot()
	return &group{read: read, ring: ring, base: newOverlay(), seen: map[string][]byte{}, state: s.state}
}

// runBatch runs every function of a batch; more than one commit is made only when one would be too large for the engine.
func (s *Store) runBatch(batch []*Pending) {
	if err := s.writable(); err != nil {
		for _, p := range batch {
			p.err = err
		}
		return
	}
	g := s.begin()
	for _, p := range batch {
		tx := &Tx{s: s, read: g.read, ring: g.ring, base: g.base, own: newOverlay(), seen: g.seen, state: g.state}
		if p.err = p.fn(tx); p.err != nil {
			continue
		}
		if !fits(tx.own) {
			p.err = fmt.Errorf("store: one transaction of %d bytes: %w", tx.own.size, ErrTooLarge)
			continue
		}
		if g.base.size+tx.own.size > batchBytes || len(g.base.keys)+len(tx.own.keys) > batchRows {
			before := g
			err := s.commit(before)
			before.close()
			g = s.begin()
			if err != nil { // what this function read is gone
				p.err = err
				continue
			}
			tx.state.Commit = g.state.Commit
		}
		g.base.merge(tx.own)
		g.state = tx.state
		g.floor = append(g.floor, tx.floor...)
		p.after, p.vault = tx.after, tx.vault
		g.members = append(g.members, p)
	}
	_ = s.commit(g) // each member has the error
	g.close()
}

func fits(o *overlay) bool { return o.size <= batchBytes && len(o.keys) <= batchRows }

// commit makes a group durable and then visible, or fails all of it.
func (s *Store) commit(g *group) error {
	err := s.makeDurable(g)
	for _, p := range g.members {
		if err != nil {
			p.err = err
			continue
		}
		for _, fn := range p.after {
			fn()
		}
	}
	return err
}

func (s *Store) makeDurable(g *group) error {
	if err := s.usable(); err != nil {
		return err
	}
	if len(g.base.keys) == 0 {
		return s.cover(g.floor)
	}
	g.state.Commit++
	plain, err := encMode.Marshal(g.state)
	if err != nil {
		return fmt.Errorf("store: encode counters: %w", err)
	}
	g.base.set(string(key(tState)), plain)
	txn, err := s.seal(g)
	if err != nil {
		return err
	}
	defer txn.Discard()

	floor := make(chan error, 1)
	if len(g.floor) > 0 {
		go func() { floor <- s.floor.cover(g.floor) }()
	} else {
		floor <- nil
	}
	err = s.disk.around(stepCommit, txn.Commit)
	if err = errors.Join(err, <-floor); err != nil {
		// After a failed sync nobody knows what the disk holds: only a restart tells.
		return s.fail(fmt.Errorf("store: commit: %w", err))
	}
	s.committed(g)
	return nil
}

// cover reserves counters for functions that wrote nothing.
func (s *Store) cover(list []reservation) error {
	if len(list) == 0 {
		return nil
	}
	if err := s.floor.cover(list); err != nil {
		return s.fail(err)
	}
	s.floor.done(list)
	return nil
}

// seal turns the overlay into one transaction of the engine.
func (s *Store) seal(g *group) (*badger.Txn, error) {
	txn := s.db.NewTransaction(true)
	for _, k := range g.base.keys {
		var err error
		if plain := g.base.rows[k]; plain == nil {
			err = txn.Delete([]byte(k))
		} else {
			err = txn.SetEntry(badger.NewEntry([]byte(k), s.rows.seal(g.ring, []byte(k), plain)))
		}
		if err != nil {
			txn.Discard()
			return nil, fmt.Errorf("store: prepare commit: %w", err)
		}
	}
	return txn, nil
}

// committed publishes a durable group: the head file, the counters, and the news.
func (s *Store) committed(g *group) {
	if s.head != nil {
		off := int64(g.state.Commit%2) * headSlot
		if err := s.disk.writeAt(stepHead, s.head, headRecord(g.state.Commit), off, false); err != nil {
			s.log.Warn("store: commit head not written; losses of the engine would go unnoticed", "error", err)
		}
	}
	s.floor.done(g.floor)
	for _, p := range g.members {
		if p.vault {
			s.vaultChanged.Store(true)
		}
	}
	news := g.state.Event != s.state.Event
	s.mu.Lock()
	s.state = g.state
	s.stats.Commits++
	s.stats.Updates += uint64(len(g.members))
	s.stats.LargestBatch = max(s.stats.LargestBatch, len(g.members))
	s.mu.Unlock()
	if news {
		s.announce()
	}
}

// View runs fn on a snapshot of what is durable.
func (s *Store) View(fn func(*Tx) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.views.Done()
	read, ring := s.snapshot()
	defer read.Discard()
	return fn(&Tx{s: s, read: read, ring: ring})
}

// snapshot begins a read with the epoch keys that fit it.
func (s *Store) snapshot() (*badger.Txn, *ring) {
	s.ringMu.RLock()
	defer s.ringMu.RUnlock()
	return s.db.NewTransaction(false), s.ring
}
