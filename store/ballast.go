package store

import (
	"fmt"
	"os"

	"sotto/internal/disk"
)

// ballastFile is given up to get a store on a full disk open again: the engine needs room merely to start.
const ballastFile = "ballast"

// openNeeds is how much the engine may write while it opens.
const openNeeds = 64 << 20

// shutNeeds is how much the engine may write while it closes: what both memtables hold.
const shutNeeds = 24 << 20

// roomToShut reports whether the engine can write out what it holds; on a full disk that would kill the process. The ballast is
// given up for it. Without room the log keeps everything for the next start.
func roomToShut(cfg Config) bool {
	if cfg.Reserve < 0 {
		return true
	}
	free, err := disk.Free(cfg.Dir)
	if err == nil && free < shutNeeds && os.Remove(cfg.path(ballastFile)) == nil {
		cfg.Log.Warn("store: the disk is full; the ballast file was given up")
		free, err = disk.Free(cfg.Dir)
	}
	return err == nil && free >= shutNeeds
}

// Free is how many bytes are free on the disk of a directory.
func Free(dir string) (int64, error) { return disk.Free(dir) }

// StartNeeds is how much must be free for a store with a reserve to be opened.
func StartNeeds(reserve int64) int64 { return min(reserve, openNeeds) }

// makeRoom gives the ballast up when the disk is too full for the engine to start.
func makeRoom(cfg Config) error {
	if cfg.Reserve < 0 {
		return nil
	}
	needs := StartNeeds(cfg.Reserve)
	free, err := disk.Free(cfg.Dir)
	if err != nil {
		return fmt.Errorf("store: ask for free space: %w", err)
	}
	if free >= needs {
		return nil
	}
	if err := os.Remove(cfg.path(ballastFile)); err == nil {
		cfg.Log.Warn("store: the disk is full; the ballast file was given up to start")
		if free, err = disk.Free(cfg.Dir); err != nil {
			return fmt.Errorf("store: ask for free space: %w", err)
		}
	}
	if free < needs {
		return fmt.Errorf("store: open %s: %d MiB free, %d MiB needed to start: %w", cfg.Dir, free>>20, needs>>20, ErrFull)
	}
	return nil
}

// makeBallast puts the ballast file in place when there is room for it above the reserve.
func makeBallast(d stepDisk, cfg Config) error {
	path := cfg.path(ballastFile)
	if cfg.Ballast < 0 || cfg.Reserve < 0 {
		return nil
	}
	if info, err := os.Stat(path); err == nil && info.Size() == cfg.Ballast {
		return nil
	}
	free, err := disk.Free(cfg.Dir)
	if err != nil || free-cfg.Ballast < cfg.Reserve {
		return err
	}
	d.pass(stepBallast, "before write")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("store: make ballast: %w", err)
	}
	err = disk.Allocate(f, cfg.Ballast)
	d.pass(stepBallast, "before sync")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("store: make ballast: %w", err)
	}
	d.pass(stepBallast, "after sync")
	return nil
}
