package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"

	"sotto/internal/engine"
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
	opt.Logger = engine.Log{To: cfg.Log}
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

// openEngine opens Badger.
func openEngine(opt badger.Options) (*badger.DB, error) {
	db, err := engine.Open(opt)
	if err != nil {
		return nil, fmt.Errorf("store: open engine: %w", err)
	}
	return db, nil
}

// engineFiles lists the engine's files of a kind, oldest first.
func engineFiles(dir, suffix string) ([]string, error) {
	return engine.Files(filepath.Join(dir, engineDir), suffix)
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
