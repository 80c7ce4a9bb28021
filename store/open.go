package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"

	"sotto/internal/disk"
)

// Files of a store's directory (PROTOCOL A.1). The engine has its own directory beside them.
const (
	lockName     = "lock"
	sentinelName = "sentinel"
	pageName     = "vault.keys"
	floorName    = "floor.log"
	headName     = "commit.head"
	keepDir      = "keep"
	readableDir  = "readable"
)

// checkedRows is how many of the newest messages every start recounts.
const checkedRows = 1000

// Open opens the store of a directory, or makes one:
//
//  1. look: who owns the directory, which format, is somebody using it, do the files agree;
//  2. make room, read the keys, read the engine's files ourselves and compare them with what was acknowledged;
//  3. only then let the engine open them: it repairs by forgetting;
//  4. look at what it gave back: counters, the vault's rows, the newest messages.
//
// A disk without room for 3 gives a copy in memory that takes no writes.
// Damage found in 2 gives a read-only store over a salvaged copy, in 4 a read-only store; Damage and the log say what to do.
// When nothing can be read safely the error is ErrDamaged.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	s := &Store{cfg: cfg, log: cfg.Log, disk: stepDisk{cfg.Fault}, news: make(chan struct{})}
	var err error
	if s.keys, err = deriveKeys(cfg.Root); err != nil {
		return nil, err
	}
	if s.rows, err = newSealer(s.keys.row); err != nil {
		return nil, err
	}
	if cfg.InMemory {
		return s, s.openInMemory()
	}
	if err := disk.Own(cfg.Dir); err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	if err := disk.Plain(cfg.Dir); err != nil {
		return nil, fmt.Errorf("store: look at the files: %w", err)
	}
	if _, _, err := readSentinel(cfg); errors.Is(err, ErrNewerFormat) {
		return nil, err // before the lock file is made: not a byte is changed
	}
	if s.lock, err = lockFile(cfg.path(lockName)); err != nil {
		return nil, err
	}
	opened, err := s.openLocked(ctx)
	if err != nil {
		_ = disk.Unlock(s.lock)
		return nil, err
	}
	return opened, nil
}

func (s *Store) openInMemory() (err error) {
	s.floor = newFloor(s.disk, "", s.keys.floor)
	first, err := randomEpoch(1)
	if err != nil {
		return err
	}
	s.ring = &ring{now: first}
	s.db, err = openEngine(engineOptions(s.cfg, s.keys.db))
	return err
}

// Exists reports whether a directory holds a store, whole or not; Open would make one where none is.
func Exists(dir string) bool {
	for _, name := range []string{sentinelName, engineDir, pageName} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// lockFile takes the exclusive lock that says whose directory it is; it ends with the process.
func lockFile(path string) (*os.File, error) {
	f, err := disk.Lock(path)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	return f, nil
}

// readSentinel returns the sentinel and whether there is one.
func readSentinel(cfg Config) (sentinel, bool, error) {
	b, err := os.ReadFile(cfg.path(sentinelName))
	if os.IsNotExist(err) {
		return sentinel{}, false, nil
	}
	if err != nil {
		return sentinel{}, false, fmt.Errorf("store: read sentinel: %w", err)
	}
	s, err := parseSentinel(b)
	return s, true, err
}

// stop is damage that leaves nothing to open.
func stop(where string, cause error) error {
	return fmt.Errorf("store: %s: %w: %w", where, cause, ErrDamaged)
}

func (s *Store) openLocked(ctx context.Context) (*Store, error) {
	cfg := s.cfg
	was, known, err := readSentinel(cfg)
	if errors.Is(err, errSentinel) {
		return nil, stop(cfg.path(sentinelName), err)
	}
	if err != nil {
		return nil, err
	}
	if err := agree(cfg, was, known); err != nil {
		return nil, err
	}
	if err := makeRoom(cfg); err != nil {
		if errors.Is(err, ErrFull) && known && !was.Fresh {
			return s.openFull(ctx, was, err)
		}
		return nil, err
	}
	if !known {
		if was, err = s.create(); err != nil {
			return nil, err
		}
	}
	if err := s.openPage(); err != nil {
		return nil, err
	}
	if !was.Fresh {
		found, err := s.inspect(was)
		if err != nil {
			return nil, err
		}
		if len(found) > 0 {
			_ = s.page.close()
			s.page = nil
			return s.openReadable(ctx, found)
		}
	}
	if err := s.openFiles(ctx, was); err != nil {
		_ = s.shut()
		return nil, err
	}
	return s, nil
}

// agree compares the sentinel with the directory. An engine that misses its MANIFEST deletes all tables, one that misses its
// key registry makes a new one: neither may be let near such a directory.
func agree(cfg Config, was sentinel, known bool) error {
	present := func(name string) bool {
		_, err := os.Lstat(filepath.Join(cfg.Dir, engineDir, name))
		return err == nil
	}
	tables, err := engineFiles(cfg.Dir, ".sst")
	if err != nil {
		return fmt.Errorf("store: list engine files: %w", err)
	}
	logs, err := engineFiles(cfg.Dir, ".mem")
	if err != nil {
		return fmt.Errorf("store: list engine files: %w", err)
	}
	files := len(tables)+len(logs) > 0 || present(badger.ManifestFilename)
	switch {
	case !known && files:
		return stop(cfg.path(sentinelName), errors.New("it is missing beside a database"))
	case known && !was.Fresh && !present(badger.ManifestFilename), files && !present(badger.ManifestFilename) && !was.Fresh:
		return stop(filepath.Join(cfg.path(engineDir), badger.ManifestFilename), errors.New("it is missing"))
	case known && !was.Fresh && !present(badger.KeyRegistryFileName):
		return stop(filepath.Join(cfg.path(engineDir), badger.KeyRegistryFileName), errors.New("it is missing"))
	}
	return nil
}

// create writes the small files of a new store. The sentinel comes last: until it is there, a start begins anew.
func (s *Store) create() (sentinel, error) {
	if err := os.MkdirAll(s.cfg.path(engineDir), 0o700); err != nil {
		return sentinel{}, fmt.Errorf("store: make directory: %w", err)
	}
	if err := createPage(s.disk, s.cfg.path(pageName), s.keys.page); err != nil {
		return sentinel{}, err
	}
	floor := newFloor(s.disk, s.cfg.path(floorName), s.keys.floor)
	if err := errors.Join(floor.rewrite(), floor.close()); err != nil {
		return sentinel{}, err
	}
	fresh := sentinel{Format: Format, Fresh: true, Created: s.now()}
	return fresh, s.disk.replace(stepSentinel, s.cfg.path(sentinelName), fresh.marshal())
}

// openPage reads the key page.
func (s *Store) openPage() error {
	b, err := os.ReadFile(s.cfg.path(pageName))
	if os.IsNotExist(err) {
		return stop(s.cfg.path(pageName), errors.New("it is missing: the secrets are lost, messages and contacts can be salvaged"))
	}
	if err != nil {
		return fmt.Errorf("store: read key page: %w", err)
	}
	r, current, err := readRing(s.keys.page, b)
	if err != nil {
		return stop(s.cfg.path(pageName), err)
	}
	f, err := os.OpenFile(s.cfg.path(pageName), os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("store: open key page: %w", err)
	}
	s.ring, s.slot = r, current
	s.page = &keyPage{f: f, disk: s.disk}
	return nil
}

// openFiles lets the engine and the logs open, and checks what they hold.
func (s *Store) openFiles(ctx context.Context, was sentinel) error {
	if err := s.openFloor(was); err != nil {
		return err
	}
	if !was.Clean && !was.Fresh && s.cfg.Probe != nil {
		err := s.cfg.Probe(ctx, s.cfg.Dir, s.lock)
		if ctx.Err() != nil { // the child was ended with us, and says nothing about the files
			return fmt.Errorf("store: open: %w", context.Cause(ctx))
		}
		if err != nil {
			return stop(s.cfg.path(engineDir), err)
		}
	}
	if err := s.keepCopies(); err != nil {
		return err
	}
	s.sentinel = sentinel{Format: Format, Created: was.Created, Fresh: was.Fresh, Commit: was.Commit}
	if err := s.writeSentinel(); err != nil {
		return err
	}
	registry := s.engineFile(badger.KeyRegistryFileName)
	if err := checkRegistry(registry); err != nil { // inspect did not look into a fresh store
		return stop(registry, err)
	}
	err := s.disk.around(stepEngineOpen, func() (err error) {
		s.db, err = openEngine(engineOptions(s.cfg, s.keys.db))
		return err
	})
	if errors.Is(err, ErrLocked) { // a guard child that outlived its parent
		return err
	}
	if err != nil {
		return stop(s.cfg.path(engineDir), err)
	}
	if s.place, err = os.Stat(s.cfg.path(engineDir)); err != nil {
		return fmt.Errorf("store: look at directory: %w", err)
	}
	if s.sentinel.Fresh {
		s.sentinel.Fresh = false
		if err := s.writeSentinel(); err != nil {
			return err
		}
	}
	if s.head, err = os.OpenFile(s.cfg.path(headName), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return fmt.Errorf("store: open commit head: %w", err)
	}
	if err := s.checkStart(); err != nil {
		return err
	}
	s.settleVault()
	if err := makeBallast(s.disk, s.cfg); err != nil {
		s.log.Warn("store: no ballast file", "error", err)
	}
	disk.CloseToOthers(s.cfg.path(engineDir))
	return ctx.Err()
}

func (s *Store) writeSentinel() error {
	return s.disk.replace(stepSentinel, s.cfg.path(sentinelName), s.sentinel.marshal())
}

// openFloor reads the send floor. One that is damaged is repaired in checkStart, when the sessions are known.
func (s *Store) openFloor(was sentinel) error {
	s.floor = newFloor(s.disk, s.cfg.path(floorName), s.keys.floor)
	b, err := os.ReadFile(s.cfg.path(floorName))
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("store: read send floor: %w", err)
	}
	given, err := parseFloor(b, s.keys.floor, was.Clean)
	if err == nil && was.Clean && floorHash(marshalFloor(given, s.keys.floor)) != was.Floor {
		err = errFloor
	}
	if err != nil {
		s.log.Warn("store: every session will be reset before it sends again", "error", err)
		s.floor.lost = true
		return nil
	}
	s.floor.begin(given)
	return s.floor.rewrite()
}

// checkStart reads what the engine gave back: counters, the vault, the newest messages. What it finds makes the store
// read-only.
func (s *Store) checkStart() error {
	err := s.View(func(tx *Tx) error {
		state, err := get[counters](tx, key(tState))
		if _, err = found(err); err != nil {
			return err
		}
		s.state = state
		if s.floor.lost {
			if err := tx.resetFloor(); err != nil {
				return err
			}
		}
		if err := tx.checkVault(); err != nil {
			return err
		}
		return tx.checkNewest(checkedRows)
	})
	if errors.Is(err, ErrDamaged) {
		return nil // noted: read-only
	}
	return err
}

// resetFloor puts every session there is behind its floor: what its lost log promised is unknown.
func (tx *Tx) resetFloor() error {
	given := map[floorTag]position{}
	err := tx.iterate(scan{prefix: key(tSessionID), keysOnly: true}, func(k, _ []byte) (bool, error) {
		given[tx.s.floor.tag([16]byte(k[1:]))] = resetPosition
		return true, nil
	})
	if err != nil {
		return err
	}
	tx.s.floor.begin(given)
	return tx.s.floor.rewrite()
}

// settleVault ends a change of epoch that a crash cut off, and clears a slot that it tore.
func (s *Store) settleVault() {
	if s.usable() != nil {
		return
	}
	s.epochMu.Lock()
	defer s.epochMu.Unlock()
	b, err := os.ReadFile(s.cfg.path(pageName))
	if err == nil {
		var slots [2]slot
		if slots, err = parsePage(b); err == nil && slots[1-s.slot].state != slotEmpty {
			err = s.finishEpoch()
		}
	}
	if err != nil {
		s.log.Warn("store: a change of epoch stays unfinished until later", "error", err)
	}
}

// Close ends the epoch if the vault changed, lets queued writes finish, and marks the shutdown as clean. Views that are under
// way are waited for.
func (s *Store) Close() error {
	s.queue.mu.Lock()
	again := s.queue.closed
	s.queue.closed = true
	s.queue.mu.Unlock()
	if again {
		return nil
	}
	if s.cfg.InMemory {
		return s.closeMemory()
	}
	var last error
	err := s.bounded(func() error { // whatever was queued is done
		last = s.submit(func(*Tx) error { return nil }, true).Wait()
		return nil
	})
	if err != nil { // a commit hangs, or there is nothing left to commit into: the engine would not close either
		s.mu.Lock()
		s.closed, s.left = true, true
		s.mu.Unlock()
		return errors.Join(err, s.shut())
	}
	if last == nil && s.vaultChanged.Load() {
		err = s.NewEpoch()
	}
	s.mu.Lock()
	s.closed = true
	clean := s.failed == nil && len(s.damage) == 0 && s.outer == nil
	s.mu.Unlock()
	s.views.Wait()
	return errors.Join(err, s.closeFiles(clean))
}

// closeMemory closes a store that has no files of its own.
func (s *Store) closeMemory() error {
	_ = s.submit(func(*Tx) error { return nil }, true).Wait()
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.views.Wait()
	err := s.db.Close()
	if s.outer != nil {
		err = errors.Join(err, s.outer.shut())
	}
	return err
}

// closeWithin is how long the engine may take to end: it writes out 16 MiB at most, and ends compactions that are under way.
const closeWithin = time.Minute

// bounded does what the engine may never come back from: when it cannot write a table it tries again each second, for as long
// as the program runs. It is given up at once when the directory was deleted or moved away, and else after a minute. Then the
// engine stays open until the program ends, which is about to happen; its log keeps everything for the next start.
func (s *Store) bounded(act func() error) error {
	if err := s.present(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- act() }()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for range closeWithin / time.Second {
		select {
		case err := <-done:
			return err
		case <-tick.C:
			if err := s.present(); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("store: close %s: the engine does not end; its log has everything for the next start", s.cfg.Dir)
}

// present reports when the engine's directory is no more the one that was opened.
func (s *Store) present() error {
	info, err := os.Stat(s.cfg.path(engineDir))
	if err == nil && os.SameFile(info, s.place) {
		return nil
	}
	return fmt.Errorf("store: %s was deleted or moved while it was open: what was written last is lost unless the directory is somewhere else now", s.cfg.Dir)
}

func (s *Store) closeFiles(clean bool) error {
	err := s.present()
	switch {
	case err != nil:
	case roomToShut(s.cfg):
		db := s.db
		err = s.bounded(func() error { return s.disk.around(stepEngineShut, db.Close) })
	default:
		err = fmt.Errorf("store: close: %w", ErrFull)
	}
	s.db = nil
	disk.CloseToOthers(s.cfg.path(engineDir))
	if clean && err == nil {
		err = s.markClean()
	}
	return errors.Join(err, s.shut())
}

// markClean lets the next start trust every number exactly.
func (s *Store) markClean() error {
	if err := s.head.Sync(); err != nil {
		return fmt.Errorf("store: sync commit head: %w", err)
	}
	hash, err := s.floor.settle()
	if err != nil {
		return err
	}
	tables, err := liveTables(s.cfg.path(engineDir))
	if err != nil {
		return fmt.Errorf("store: list tables: %w", err)
	}
	s.sentinel.Clean, s.sentinel.Tables, s.sentinel.Commit, s.sentinel.Floor = true, uint32(len(tables)), s.state.Commit, hash
	return s.writeSentinel()
}

// shut closes whatever is open, in any state.
func (s *Store) shut() error {
	var errs []error
	if s.db != nil && !s.left {
		errs = append(errs, s.bounded(s.db.Close))
		s.db = nil
	}
	if s.floor != nil {
		errs = append(errs, s.floor.close())
	}
	if s.head != nil {
		errs = append(errs, s.head.Close())
	}
	errs = append(errs, s.page.close())
	if s.lock != nil {
		errs = append(errs, disk.Unlock(s.lock))
	}
	s.head, s.page, s.lock = nil, nil, nil
	if s.outer != nil {
		errs = append(errs, s.outer.shut(), os.RemoveAll(s.cfg.Dir)) // the copy; the next start makes it anew
	}
	return errors.Join(errs...)
}
