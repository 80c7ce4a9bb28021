package store

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// A store that must not or cannot be opened where it is, is read over a copy: a damaged one beside itself, one on a full disk in
// memory. Its own files stay as they are.

// openReadable opens a read-only store over a salvaged copy of this one, whose own files stay as they are.
func (s *Store) openReadable(ctx context.Context, found []Damage) (*Store, error) {
	fail := func(err error) (*Store, error) {
		return nil, stop(found[0].Where, fmt.Errorf("%s; reading the rest: %w", found[0].What, err))
	}
	cfg := s.cfg
	cfg.Dir, cfg.Ballast, cfg.Probe, cfg.Fault = s.cfg.path(readableDir), -1, nil, nil
	if err := os.RemoveAll(cfg.Dir); err != nil {
		return fail(err)
	}
	v, err := salvage(ctx, s.cfg.Dir, cfg)
	if v != nil {
		err = errors.Join(err, v.to.Close())
	}
	if err != nil {
		_ = os.RemoveAll(cfg.Dir) // half a copy only takes room
		return fail(err)
	}
	copied, err := Open(ctx, cfg)
	if err != nil {
		return fail(err)
	}
	copied.outer = s
	for _, d := range found {
		copied.note(d)
	}
	return copied, nil
}

// mostInMemory is how many bytes of the engine's files are read into memory when the disk has no room to open them.
const mostInMemory = 128 << 20

// openFull reads a store into memory that cannot be opened where it is, since the engine needs room to start. It takes no
// writes, and of its files not a byte is changed.
func (s *Store) openFull(ctx context.Context, was sentinel, full error) (*Store, error) {
	size, err := engineBytes(s.cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("store: list engine files: %w", err)
	}
	if size > mostInMemory {
		return nil, fmt.Errorf("%w (%d MiB are more than is read into memory instead)", full, size>>20)
	}
	found, err := s.inspect(was)
	if err != nil {
		return nil, err
	}
	cfg := s.cfg
	cfg.Dir, cfg.InMemory, cfg.Probe, cfg.Fault = "", true, nil, nil
	copied, err := Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	v := newSalvager(copied)
	v.exact = len(found) == 0
	if err := v.run(ctx, s.cfg.Dir); err != nil {
		return nil, errors.Join(full, err, copied.Close())
	}
	copied.outer, copied.cramped = s, full
	s.log.Warn("store: the disk is too full to open the database: it was read into memory and takes no writes", "error", full)
	for _, d := range found {
		copied.note(d)
	}
	return copied, nil
}

// engineBytes is how much the engine's tables and logs hold, at most.
func engineBytes(dir string) (sum int64, err error) {
	for _, suffix := range []string{".sst", ".mem"} {
		names, err := engineFiles(dir, suffix)
		if err != nil {
			return 0, err
		}
		for _, name := range names {
			info, err := os.Stat(name)
			if err != nil {
				return 0, err
			}
			sum += info.Size()
		}
	}
	return sum, nil
}
