package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/ristretto/v2/z"
)

const engineDir = "db"

// engineOptions are measured: all values in the LSM tree, no value log, little memory, every commit synced. Four tables in level 0
// and a base level of 32 MiB halve the work of compaction under a lasting load against two and 10 MiB; what a compaction may then
// have in flight, about 100 MB, still fits the reserve.
func engineOptions(cfg Config, key []byte) badger.Options {
	opt := badger.DefaultOptions(filepath.Join(cfg.Dir, engineDir))
	if cfg.InMemory {
		opt = badger.DefaultOptions("").WithInMemory(true)
	}
	opt.Logger = engineLog{cfg.Log}
	opt.SyncWrites = !cfg.NoSync
	opt.BypassLockGuard = true // the store's own lock covers the engine; the engine's stays held while any process is being started
	opt.NumVersionsToKeep = 1
	opt.DetectConflicts = true
	opt.MemTableSize = 8 << 20
	opt.NumMemtables = 2
	opt.ValueThreshold = 1 << 20
	opt.ValueLogFileSize = 16 << 20
	opt.NumLevelZeroTables = 4
	opt.NumLevelZeroTablesStall = 8
	opt.BaseLevelSize = 32 << 20
	opt.NumCompactors = 2
	opt.Compression = options.None
	opt.BlockCacheSize = 8 << 20
	opt.IndexCacheSize = 8 << 20
	opt.ChecksumVerificationMode = options.OnBlockRead
	opt.VerifyValueChecksum = true
	opt.MetricsEnabled = false
	opt.EncryptionKey = key
	opt.EncryptionKeyRotationDuration = 10 * 24 * time.Hour
	return opt
}

// openEngine opens Badger. A kill between creating a log file and sizing it makes the first open fail and the second succeed.
func openEngine(opt badger.Options) (*badger.DB, error) {
	retry := !opt.InMemory && hasEmptyLog(opt.Dir)
	db, err := badger.Open(opt)
	if err != nil && retry && (errors.Is(err, z.NewFile) || strings.Contains(err.Error(), z.NewFile.Error())) {
		db, err = badger.Open(opt)
	}
	if err != nil {
		return nil, fmt.Errorf("store: open engine: %w", err)
	}
	return db, nil
}

// hasEmptyLog reports whether a log of the engine has no content at all.
func hasEmptyLog(dir string) bool {
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return false
		}
		for _, name := range names {
			if info, err := os.Stat(name); err == nil && info.Size() == 0 {
				return true
			}
		}
	}
	return false
}

// engineFiles lists the engine's files of a kind, oldest first.
func engineFiles(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(dir, engineDir))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			names = append(names, filepath.Join(dir, engineDir, e.Name()))
		}
	}
	return names, nil
}

// Probe opens the engine's files of a store, reads every table and closes them. It is what the guard child runs: when the
// engine crashes on damaged files, only the child dies.
func Probe(ctx context.Context, dir string, root [32]byte) error {
	k, err := deriveKeys(root)
	if err != nil {
		return err
	}
	db, err := openEngine(engineOptions(Config{Dir: dir}.withDefaults(), k.db))
	if err != nil {
		return err
	}
	err = db.VerifyChecksum()
	return errors.Join(ctx.Err(), err, db.Close())
}

// engineLog passes the engine's messages on; its chatter is for debugging.
type engineLog struct{ log *slog.Logger }

func (l engineLog) Errorf(f string, v ...any)   { l.log.Warn("engine: " + line(f, v)) }
func (l engineLog) Warningf(f string, v ...any) { l.log.Debug("engine: " + line(f, v)) }
func (l engineLog) Infof(f string, v ...any)    {}
func (l engineLog) Debugf(f string, v ...any)   {}

func line(f string, v []any) string { return strings.TrimSpace(fmt.Sprintf(f, v...)) }
