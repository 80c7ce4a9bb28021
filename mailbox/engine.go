package mailbox

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"sotto/internal/disk"
	"sotto/internal/engine"
	"sotto/internal/fault"
)

// Files of a queue's directory. The engine has its own directory beside them.
const (
	lockName     = "lock"
	sentinelName = "sentinel"
	headName     = "commit.head"
	keepDir      = "keep"
	engineDir    = "db"
	keepCopies   = 3 // of MANIFEST
)

// queueFormat is the format number of the database this version writes. A higher one is refused untouched.
const queueFormat = 1

// Errors of a start.
var (
	ErrLocked      = disk.ErrLocked
	ErrDamaged     = errors.New("the mailbox's files are damaged: keep a copy of the directory before anything else, then run the check of it")
	ErrNewerFormat = errors.New("this directory was written by a newer version: install that version; nothing was changed")
)

// engineOptions are measured: everything in the LSM tree, every commit synced, one writer, and as little memory as a machine of a volunteer
// has. Memtables of 16 MiB and the engine's own sizes of tables and blocks take twice the memory and commit no faster.
func engineOptions(cfg QueueConfig) badger.Options {
	opt := badger.DefaultOptions(filepath.Join(cfg.Dir, engineDir))
	if cfg.InMemory {
		opt = badger.DefaultOptions("").WithInMemory(true)
	}
	opt.Logger = engine.Log{To: cfg.Log}
	opt.SyncWrites = !cfg.NoSync
	opt.BypassLockGuard = true // the queue's own lock covers the engine
	opt.NumVersionsToKeep = 1
	opt.DetectConflicts = false // one loop writes
	opt.MemTableSize = 8 << 20
	opt.NumMemtables = 3
	opt.ValueThreshold = 1 << 20
	opt.ValueLogFileSize = 16 << 20
	opt.NumLevelZeroTables = 4
	opt.NumLevelZeroTablesStall = 10
	opt.BaseLevelSize = 32 << 20
	opt.NumCompactors = 2
	opt.Compression = options.None // envelopes are ciphertext
	opt.BaseTableSize = 1 << 20    // a compaction has many tables in memory at once
	opt.BlockSize = 64 << 10       // seven of the smallest envelopes: at the usual 4 KiB the engine takes three times the memory to write a table
	opt.BlockCacheSize = 16 << 20
	opt.IndexCacheSize = 16 << 20
	opt.ChecksumVerificationMode = options.OnBlockRead
	opt.VerifyValueChecksum = true
	opt.MetricsEnabled = false
	return opt
}

// step names one thing the queue does to the disk; each has crash points.
type step string

const (
	stepSentinel   step = "sentinel"
	stepCopies     step = "engine copies"
	stepHead       step = "commit head"
	stepCommit     step = "commit"
	stepDrop       step = "drop"
	stepEngineOpen step = "engine open"
	stepEngineShut step = "engine close"
)

func point(s step, moment string) string { return "mailbox: " + string(s) + ": " + moment }

// CrashPoints lists every named point a queue passes, for tests that stop a process at each.
func CrashPoints() []string {
	var points []string
	for _, s := range []step{stepSentinel, stepCopies} {
		for _, m := range []string{disk.BeforeWrite, disk.BeforeSync, disk.BeforeRename, disk.BeforeDirSync, disk.AfterDirSync} {
			points = append(points, point(s, m))
		}
	}
	for _, s := range []step{stepHead, stepCommit, stepDrop, stepEngineOpen, stepEngineShut} {
		points = append(points, point(s, "before"), point(s, "after"))
	}
	return points
}

// files is what the queue does to its directory, step by step.
type files struct {
	dir   string
	fault *fault.Points
}

func (f files) path(name string) string { return filepath.Join(f.dir, name) }

func (f files) replace(s step, name string, data []byte) error {
	if err := disk.Replace(f.path(name), data, func(moment string) { f.fault.Pass(point(s, moment)) }); err != nil {
		return fmt.Errorf("mailbox: write %s: %w", s, err)
	}
	return nil
}

// around runs one act between its two points.
func (f files) around(s step, act func() error) error {
	f.fault.Pass(point(s, "before"))
	err := act()
	if err == nil {
		f.fault.Pass(point(s, "after"))
	}
	return err
}

// sentinel is the file that must agree with the directory before the engine may touch it: magic 8 || format u16 || flags u8 ||
// created u64 (Unix ms) || tables u32 || commit u64 || first 8 bytes of SHA-256.
type sentinel struct {
	Fresh   bool // the engine never opened: an empty directory is as it should be
	Clean   bool // the last shutdown was in order; Tables and Commit are exact
	Created time.Time
	Tables  uint32
	Commit  uint64
}

const (
	sentinelMagic = "sottombx"
	sentinelSize  = 8 + 2 + 1 + 8 + 4 + 8 + 8
	flagFresh     = 1
	flagClean     = 2
)

var errSentinel = errors.New("the sentinel file is damaged")

func (s sentinel) marshal() []byte {
	var flags byte
	if s.Fresh {
		flags |= flagFresh
	}
	if s.Clean {
		flags |= flagClean
	}
	b := append(be.AppendUint16([]byte(sentinelMagic), queueFormat), flags)
	b = be.AppendUint64(b, uint64(s.Created.UnixMilli()))
	b = be.AppendUint64(be.AppendUint32(b, s.Tables), s.Commit)
	sum := sha256.Sum256(b)
	return append(b, sum[:8]...)
}

// parseSentinel reads a sentinel. Of a newer format nothing but magic and number is looked at.
func parseSentinel(b []byte) (sentinel, error) {
	if len(b) < 10 || string(b[:8]) != sentinelMagic {
		return sentinel{}, errSentinel
	}
	if format := be.Uint16(b[8:]); format > queueFormat {
		return sentinel{}, fmt.Errorf("format %d, this version knows %d: %w", format, queueFormat, ErrNewerFormat)
	}
	sum := sha256.Sum256(b[:len(b)-8])
	if len(b) != sentinelSize || string(sum[:8]) != string(b[len(b)-8:]) || be.Uint16(b[8:]) == 0 || b[10]&^(flagFresh|flagClean) != 0 {
		return sentinel{}, errSentinel
	}
	return sentinel{
		Fresh: b[10]&flagFresh != 0, Clean: b[10]&flagClean != 0,
		Created: time.UnixMilli(int64(be.Uint64(b[11:]))).UTC(), Tables: be.Uint32(b[19:]), Commit: be.Uint64(b[23:]),
	}, nil
}

// commit.head repeats the number of the newest durable commit outside the database, in two slots written in turn: an engine that
// silently lost commits is behind it. Slot: commit u64 || first 8 bytes of SHA-256("head" || commit).
const headSlot = 16

func headRecord(commit uint64) []byte {
	b := be.AppendUint64(nil, commit)
	sum := sha256.Sum256(append([]byte("head"), b...))
	return append(b, sum[:8]...)
}

// parseHead returns the highest commit number a head file proves, 0 for none.
func parseHead(b []byte) (commit uint64) {
	for ; len(b) >= headSlot; b = b[headSlot:] {
		if n := be.Uint64(b); string(headRecord(n)) == string(b[:headSlot]) {
			commit = max(commit, n)
		}
	}
	return commit
}

// database is the engine with the small files that watch over it.
type database struct {
	*badger.DB
	files    files
	log      *slog.Logger
	lock     *os.File
	head     *os.File // nil in memory
	proven   uint64   // the newest commit that was durable by the head file
	unclean  bool
	sentinel sentinel
}

// openDatabase opens the engine of a directory, or makes one. It never lets the engine near files that do not agree with each other:
// without its MANIFEST the engine deletes all tables.
func openDatabase(cfg QueueConfig) (*database, error) {
	d := &database{files: files{cfg.Dir, cfg.Fault}, log: cfg.Log}
	if cfg.InMemory {
		db, err := engine.Open(engineOptions(cfg))
		if err != nil {
			return nil, fmt.Errorf("mailbox: open engine: %w", err)
		}
		d.DB = db
		return d, nil
	}
	if err := disk.Own(cfg.Dir); err != nil {
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	if err := disk.Plain(cfg.Dir); err != nil {
		return nil, fmt.Errorf("mailbox: look at the files: %w", err)
	}
	if _, _, err := d.readSentinel(); errors.Is(err, ErrNewerFormat) {
		return nil, err // before the lock file is made: not a byte is changed
	}
	lock, err := disk.Lock(d.files.path(lockName))
	if err != nil {
		return nil, fmt.Errorf("mailbox: %w", err)
	}
	d.lock = lock
	if err := d.openLocked(cfg); err != nil {
		return nil, errors.Join(err, d.shut())
	}
	return d, nil
}

func (d *database) openLocked(cfg QueueConfig) error {
	was, known, err := d.readSentinel()
	if err != nil {
		return err
	}
	if err := d.agree(was, known); err != nil {
		return err
	}
	if err := roomToOpen(cfg); err != nil {
		return err
	}
	if !known {
		was = sentinel{Fresh: true, Created: cfg.Clock.Now()}
		if err := os.MkdirAll(d.files.path(engineDir), 0o700); err != nil {
			return fmt.Errorf("mailbox: make directory: %w", err)
		}
		if err := d.files.replace(stepSentinel, sentinelName, was.marshal()); err != nil {
			return err
		}
	}
	d.unclean = !was.Clean && !was.Fresh
	if d.unclean && cfg.Probe != nil {
		if err := cfg.Probe(cfg.Dir, d.lock); err != nil {
			return stop(d.files.path(engineDir), err)
		}
	}
	if d.head, err = os.OpenFile(d.files.path(headName), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return fmt.Errorf("mailbox: open commit head: %w", err)
	}
	slots := make([]byte, 2*headSlot)
	n, _ := d.head.ReadAt(slots, 0) // a short file proves less
	d.proven = max(parseHead(slots[:n]), was.Commit)
	if err := d.keepManifest(); err != nil {
		return err
	}
	d.sentinel = sentinel{Created: was.Created, Fresh: was.Fresh, Commit: was.Commit}
	if !was.Fresh {
		if err := d.files.replace(stepSentinel, sentinelName, d.sentinel.marshal()); err != nil {
			return err
		}
	}
	err = d.files.around(stepEngineOpen, func() (err error) {
		d.DB, err = engine.Open(engineOptions(cfg))
		return err
	})
	if err != nil {
		return stop(d.files.path(engineDir), err)
	}
	disk.CloseToOthers(d.files.path(engineDir))
	if was.Fresh {
		d.sentinel.Fresh = false
		return d.files.replace(stepSentinel, sentinelName, d.sentinel.marshal())
	}
	return nil
}

// roomToOpen refuses a disk on which the engine would die while it opens: it writes through maps of sparse files.
func roomToOpen(cfg QueueConfig) error {
	if cfg.Limits.Reserve < 0 {
		return nil
	}
	free, err := disk.Free(cfg.Dir)
	if err != nil {
		return fmt.Errorf("mailbox: ask for free space: %w", err)
	}
	if needs := min(cfg.Limits.Reserve, 64<<20); free < needs {
		return fmt.Errorf("mailbox: open %s: %d MiB free, %d MiB needed to start", cfg.Dir, free>>20, needs>>20)
	}
	return nil
}

// readSentinel returns the sentinel and whether there is one.
func (d *database) readSentinel() (sentinel, bool, error) {
	b, err := os.ReadFile(d.files.path(sentinelName))
	if os.IsNotExist(err) {
		return sentinel{}, false, nil
	}
	if err != nil {
		return sentinel{}, false, fmt.Errorf("mailbox: read sentinel: %w", err)
	}
	s, err := parseSentinel(b)
	if errors.Is(err, errSentinel) {
		err = stop(d.files.path(sentinelName), err)
	}
	return s, true, err
}

// stop is damage that leaves nothing to open.
func stop(where string, cause error) error {
	return fmt.Errorf("mailbox: %s: %w: %w", where, cause, ErrDamaged)
}

// agree compares the sentinel with the directory.
func (d *database) agree(was sentinel, known bool) error {
	dir := d.files.path(engineDir)
	tables, err := engine.Files(dir, ".sst")
	if err != nil {
		return fmt.Errorf("mailbox: list engine files: %w", err)
	}
	logs, err := engine.Files(dir, ".mem")
	if err != nil {
		return fmt.Errorf("mailbox: list engine files: %w", err)
	}
	manifest := filepath.Join(dir, badger.ManifestFilename)
	_, err = os.Lstat(manifest)
	hasManifest := err == nil
	switch {
	case !known && (len(tables)+len(logs) > 0 || hasManifest):
		return stop(d.files.path(sentinelName), errors.New("it is missing beside a database"))
	case known && !hasManifest && (!was.Fresh || len(tables) > 0):
		return stop(manifest, errors.New("it is missing"))
	case !known || was.Fresh:
		return nil
	}
	named, err := engine.Tables(dir)
	if err != nil {
		return stop(manifest, err)
	}
	if was.Clean && uint32(len(named)) != was.Tables {
		return stop(manifest, fmt.Errorf("it names %d tables, at the last end it named %d", len(named), was.Tables))
	}
	there := map[string]bool{}
	for _, name := range tables {
		there[filepath.Base(name)] = true
	}
	for id := range named {
		if name := fmt.Sprintf("%06d.sst", id); !there[name] {
			return stop(filepath.Join(dir, name), errors.New("it is missing"))
		}
	}
	return nil
}

// keepManifest copies MANIFEST aside, newest first, for whoever must repair by hand.
func (d *database) keepManifest() error {
	b, err := os.ReadFile(filepath.Join(d.files.path(engineDir), badger.ManifestFilename))
	if err != nil {
		return nil // a fresh database has none
	}
	if err := os.MkdirAll(d.files.path(keepDir), 0o700); err != nil {
		return fmt.Errorf("mailbox: make directory: %w", err)
	}
	name := func(n int) string { return filepath.Join(keepDir, fmt.Sprintf("%s.%d", badger.ManifestFilename, n)) }
	for n := keepCopies; n > 1; n-- {
		if err := os.Rename(d.files.path(name(n-1)), d.files.path(name(n))); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("mailbox: keep a copy of MANIFEST: %w", err)
		}
	}
	return d.files.replace(stepCopies, name(1), b)
}

// committed notes outside the engine that a commit is durable.
func (d *database) committed(commit uint64) {
	if d.head == nil {
		return
	}
	err := d.files.around(stepHead, func() error {
		_, err := d.head.WriteAt(headRecord(commit), int64(commit%2)*headSlot)
		return err
	})
	if err != nil {
		d.log.Warn("mailbox: commit head not written; losses of the engine would go unnoticed", "error", err)
	}
}

// close ends the engine, and marks the end as clean when everything is as commit says.
func (d *database) close(commit uint64, clean bool) error {
	if d.lock == nil { // in memory
		return d.DB.Close()
	}
	db := d.DB
	d.DB = nil
	err := d.files.around(stepEngineShut, db.Close)
	disk.CloseToOthers(d.files.path(engineDir))
	if err == nil && clean {
		var named map[uint64]badger.TableManifest
		if named, err = engine.Tables(d.files.path(engineDir)); err == nil {
			d.sentinel.Clean, d.sentinel.Tables, d.sentinel.Commit = true, uint32(len(named)), commit
			err = d.files.replace(stepSentinel, sentinelName, d.sentinel.marshal())
		}
	}
	return errors.Join(err, d.shut())
}

// shut closes whatever is open, in any state.
func (d *database) shut() error {
	var errs []error
	if d.DB != nil {
		errs = append(errs, d.DB.Close())
	}
	if d.head != nil {
		errs = append(errs, d.head.Close())
	}
	if d.lock != nil {
		errs = append(errs, disk.Unlock(d.lock))
	}
	d.DB, d.head, d.lock = nil, nil, nil
	return errors.Join(errs...)
}

// ProbeQueue opens the engine's files of a queue's directory, reads every table and closes them: what a guard child runs, so that only
// the child dies when the engine crashes on damaged files.
func ProbeQueue(dir string) error {
	db, err := engine.Open(engineOptions(QueueConfig{Dir: dir}.withDefaults()))
	if err != nil {
		return fmt.Errorf("mailbox: open engine: %w", err)
	}
	return errors.Join(verifyTables(db), db.Close())
}
