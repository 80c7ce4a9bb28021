package store

import (
	"context"
	"errors"
	"time"
)

// What Run does, and how often. Nothing is polled faster: an idle store wakes six times a minute.
const (
	runTick      = 10 * time.Second
	ticksDisk    = 6   // disk watch: a minute
	ticksEpoch   = 60  // change of epoch: ten minutes
	ticksSweep   = 360 // retention: an hour
	stuckAfter   = 10 * time.Second
	keepEvents   = 1000 // newest events that stay however old
	keepFor      = 30 * 24 * time.Hour
	sweepAtATime = 1000
)

// Run does the store's upkeep until ctx ends: new epochs for the vault, a look at the disk, a warning when a commit hangs, and
// the removal of what is too old. A store works without it.
func (s *Store) Run(ctx context.Context) error {
	if s.unread {
		if err := s.db.VerifyChecksum(); err != nil {
			s.note(Damage{Where: "tables", What: err.Error()})
		}
	}
	for tick := 1; ; tick++ {
		if err := s.cfg.Clock.Wait(ctx, runTick); err != nil {
			return nil // the program ends
		}
		if age := s.commitAge(); age > stuckAfter {
			s.log.Error("store: a commit hangs: the disk is stuck", "for", age)
			continue
		}
		if tick%ticksDisk == 0 && !s.cfg.InMemory {
			s.watchDisk()
		}
		if tick%ticksEpoch == 0 && s.vaultChanged.Load() {
			s.report("change epoch", s.NewEpoch())
		}
		if tick%ticksSweep == 0 {
			s.report("remove what is too old", s.Sweep(ctx))
		}
	}
}

// report logs a failure of upkeep that the next turn may mend.
func (s *Store) report(what string, err error) {
	if err != nil && !errors.Is(err, errClosed) {
		s.log.Warn("store: could not "+what, "error", err)
	}
}

// watchDisk gives the ballast up before the engine's own work meets a full disk, and puts it back when there is room again.
func (s *Store) watchDisk() {
	roomToShut(s.cfg)
	if err := s.writable(); err == nil {
		s.report("make ballast", makeBallast(s.disk, s.cfg))
	}
}

// Sweep removes what is past its time: expired handshake marks, and events, traces and idempotency keys older than 30 days.
// The newest 1 000 events stay in any case.
func (s *Store) Sweep(ctx context.Context) error {
	now := s.now()
	old := now.Add(-keepFor)
	last := s.LastSeq()
	return errors.Join(
		sweep(ctx, s, tHandshake, func(row expiring, _ []byte) bool { return row.Until.Before(now) }),
		sweep(ctx, s, tIdempotency, func(row idempotency, _ []byte) bool { return row.At.Before(old) }),
		sweep(ctx, s, tTrace, func(row Step, _ []byte) bool { return row.At.Before(old) }),
		sweepUntil(ctx, s, tEvent, func(row Event, _ []byte) bool { return row.At.Before(old) && row.Seq+keepEvents <= last }),
	)
}

// sweep removes the rows of a table that are stale, some in each transaction.
func sweep[T any](ctx context.Context, s *Store, t table, stale func(row T, k []byte) bool) error {
	return sweepTable(ctx, s, t, false, stale)
}

// sweepUntil does the same but ends at the first row that is not: what is kept has no gaps.
func sweepUntil[T any](ctx context.Context, s *Store, t table, stale func(row T, k []byte) bool) error {
	return sweepTable(ctx, s, t, true, stale)
}

func sweepTable[T any](ctx context.Context, s *Store, t table, until bool, stale func(row T, k []byte) bool) error {
	from := []byte{byte(t)}
	for from != nil {
		if err := ctx.Err(); err != nil {
			return err
		}
		var gone [][]byte
		err := s.View(func(tx *Tx) error {
			seen, at := 0, from
			from = nil
			return tx.iterate(scan{prefix: key(t), from: at}, func(k, plain []byte) (bool, error) {
				if seen++; seen > sweepAtATime {
					from = k
					return false, nil
				}
				var row T
				if err := decode(plain, &row); err != nil {
					return false, tx.s.damaged(k, err)
				}
				if stale(row, k) {
					gone = append(gone, k)
					return true, nil
				}
				return !until, nil
			})
		})
		if err == nil && len(gone) > 0 {
			err = s.Update(func(tx *Tx) error { return tx.deleteKeys(gone) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}
