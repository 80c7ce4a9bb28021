// Package store is the local database: contacts, history, outbox, session state, secrets that can be erased, and the log of events.
//
// It is one Badger database whose types never leave the package, and a few small files beside it that notice when the
// engine, the disk or a restored copy gave back something else than was written. Begin with Open and commit.go (how writes
// become durable); keys.go has the layout, vault.go the secrets, damage.go and check.go the checks, salvage.go what is done when they fail.
package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dgraph-io/badger/v4"

	"sotto/internal/clock"
	"sotto/internal/disk"
	"sotto/internal/fault"
)

// Errors a caller branches on.
var (
	ErrNotFound    = errors.New("not found")
	ErrLocked      = disk.ErrLocked
	ErrFull        = errors.New("the disk is too full to write: free some space; reading goes on, and writing will as soon as there is room")
	ErrDamaged     = errors.New(whatToDo)
	ErrNewerFormat = errors.New("this directory was written by a newer version: install that version; nothing was changed")
	ErrReadOnly    = errors.New("the store takes no writes after a failed one: restart sotto")
	ErrNameTaken   = errors.New("the name is in use: choose another one")
	ErrExists      = errors.New("it was here before")
	ErrTooLarge    = errors.New("too large")
	ErrRolledBack  = errors.New("the session's counter may have been used before: reset the session")
)

var errClosed = errors.New("store: closed")

const defaultReserve = 128 << 20

// Config says where the store is and what it may use. The zero value of everything but Dir and Root is useful.
type Config struct {
	Dir     string
	Root    [32]byte // root of the store's keys, from the key file
	Clock   clock.Clock
	Fault   *fault.Points
	Log     *slog.Logger
	Reserve int64 // bytes of the disk to leave free; 0 is 128 MiB, below 0 none
	Ballast int64 // bytes of a file kept to be given up on a full disk; 0 is 128 MiB, below 0 none
	// Probe opens the engine's files in a guard child when the last shutdown was not clean, so that a crash of the engine
	// becomes an error. The child calls Probe of this package. It must inherit the lock: if this process dies, nobody may touch
	// the files while the child still does.
	Probe    func(ctx context.Context, dir string, lock *os.File) error
	InMemory bool // nothing touches the disk; for tests
	NoSync   bool // nothing is synced: only for the comparison rows of benchmarks
}

func (c Config) withDefaults() Config {
	if c.Clock == nil {
		c.Clock = clock.System{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Reserve == 0 {
		c.Reserve = defaultReserve
	}
	if c.Ballast == 0 {
		c.Ballast = defaultReserve
	}
	return c
}

func (c Config) path(name string) string { return filepath.Join(c.Dir, name) }

// Store is an open store. Its methods may be called by many goroutines.
type Store struct {
	cfg   Config
	log   *slog.Logger
	disk  stepDisk
	keys  keys
	rows  *sealer
	db    *badger.DB
	place os.FileInfo // the engine's directory when it was opened
	lock  *os.File
	head  *os.File
	floor *floorLog
	page  *keyPage
	queue queue
	views sync.WaitGroup

	outbox outboxHeads

	epochMu      sync.Mutex // one change of epoch at a time; guards slot
	slot         int        // slot of the epoch in use
	vaultChanged atomic.Bool
	ringMu       sync.RWMutex
	ring         *ring

	sentinel sentinel
	unread   bool   // some tables were not read through at the start
	outer    *Store // when this store is the readable copy of a damaged one

	mu      sync.Mutex // guards what follows; state is also read by the leader, who alone writes it
	state   counters
	damage  []Damage
	failed  error
	closed  bool
	left    bool // the engine could not be closed and stays open until the program ends
	full    bool
	cramped error // why this copy in memory takes no writes: the disk has no room to open the store itself
	news    chan struct{}
	stats   Stats
}

// Stats is what status and doctor show.
type Stats struct {
	Commits      uint64 // since the start
	Updates      uint64
	LargestBatch int
	Events       uint64 // number of the newest event
	Epoch        uint64
	Free         int64 // bytes free on the disk, -1 when unknown
	Reserve      int64
	Full         bool // writes are refused
	Ballast      bool // the ballast file is there
	Stuck        time.Duration
	Size         int64 // bytes of the engine's tables
	Damage       []Damage
}

// Stats returns the store's figures.
func (s *Store) Stats() Stats {
	free, on := int64(-1), s
	if s.outer != nil {
		on = s.outer // the disk of the store that this is a copy of
	}
	if !on.cfg.InMemory {
		if n, err := disk.Free(on.cfg.Dir); err == nil {
			free = n
		}
	}
	s.ringMu.RLock()
	epoch := s.ring.now.epoch
	s.ringMu.RUnlock()
	size, _ := s.db.Size()
	_, err := os.Stat(s.cfg.path(ballastFile))
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.stats
	out.Events, out.Epoch, out.Free, out.Reserve = s.state.Event, epoch, free, s.cfg.Reserve
	out.Full = s.full || s.cramped != nil
	out.Ballast = err == nil && !s.cfg.InMemory
	out.Stuck, out.Size = s.commitAge(), size
	out.Damage = append([]Damage(nil), s.damage...)
	return out
}

// commitAge is how long the commit under way has taken.
func (s *Store) commitAge() time.Duration {
	s.queue.mu.Lock()
	defer s.queue.mu.Unlock()
	if s.queue.since.IsZero() {
		return 0
	}
	return s.now().Sub(s.queue.since)
}

func (s *Store) now() time.Time { return s.cfg.Clock.Now() }

// LastSeq is the number of the newest event.
func (s *Store) LastSeq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state.Event
}

// Notify returns a channel that is closed at the next commit with events. Take it before reading, then nothing is missed.
func (s *Store) Notify() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.news
}

func (s *Store) announce() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.news)
	s.news = make(chan struct{})
}

// usable reports why no write can be taken at all.
func (s *Store) usable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != nil {
		return fmt.Errorf("store: %w: %w", ErrReadOnly, s.failed)
	}
	if len(s.damage) > 0 {
		return fmt.Errorf("store: %s: %w", s.damage[0], ErrDamaged)
	}
	return nil
}

// writable reports why a batch cannot be taken: a failure, damage, or a disk below the reserve.
func (s *Store) writable() error {
	if err := s.usable(); err != nil {
		return err
	}
	if s.cramped != nil {
		return s.cramped
	}
	if s.cfg.InMemory || s.cfg.Reserve < 0 {
		return nil
	}
	free, err := disk.Free(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("store: ask for free space: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.full = free < s.cfg.Reserve
	if s.full {
		return fmt.Errorf("store: %d MiB free, %d MiB kept in reserve: %w", free>>20, s.cfg.Reserve>>20, ErrFull)
	}
	return nil
}

// fail ends writing until the next start.
func (s *Store) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == nil {
		s.failed = err
		s.log.Error("store: a write failed; nothing more is written until the next start", "error", err)
	}
	return fmt.Errorf("%w: %w", err, ErrReadOnly)
}

func (s *Store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	s.views.Add(1)
	return nil
}
