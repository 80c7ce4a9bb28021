package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sotto/internal/disk"
)

func TestBelowTheReserveReadingGoesOnAndWritingIsRefused(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	putMessages(t, s, id16(1), 1, 5)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Reserve = 1 << 60 // more than any disk has
	s = open(t, cfg)
	err := s.Update(func(tx *Tx) error { return tx.PutSetting("x", nil) })
	wantErr(t, err, ErrFull)
	if !strings.Contains(err.Error(), "free") || !s.Stats().Full {
		t.Fatalf("%v, %+v", err, s.Stats())
	}
	view(t, s, func(tx *Tx) error {
		list, err := tx.Messages(id16(1), MessagesQuery{})
		if len(list) != 5 {
			t.Errorf("%d messages", len(list))
		}
		return err
	})
	s.cfg.Reserve = 1 // room again, without a restart
	update(t, s, func(tx *Tx) error { return tx.PutSetting("x", nil) })
	if s.Stats().Full {
		t.Fatal("still full")
	}
}

// smallDisk is a file system of its own where the test may mount one, else a directory on a disk that the reserve makes small.
func smallDisk(t *testing.T, size int64) (dir string, fill func(leave int64)) {
	t.Helper()
	dir = t.TempDir()
	real := mountTmpfs(t, dir, size)
	fill = func(leave int64) {
		path := filepath.Join(dir, "filler")
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if !real {
			return
		}
		free, err := disk.Free(dir)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(path)
		if err == nil && free > leave {
			err = errors.Join(disk.WriteZeros(f, free-leave), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, fill
}

func TestAFullDiskLosesNothingAndIsLeftAgain(t *testing.T) {
	const reserve, ballast = 24 << 20, 24 << 20
	dir, fill := smallDisk(t, 160<<20)
	cfg := Config{Dir: filepath.Join(dir, "store"), Root: testRoot, Reserve: reserve, Ballast: ballast}
	s := open(t, cfg)
	if !s.Stats().Ballast {
		t.Fatal("no ballast")
	}
	free, err := disk.Free(dir)
	if err != nil {
		t.Fatal(err)
	}
	if free > 1<<30 { // no small file system: the reserve switch does it
		s.cfg.Reserve = 1 << 60
	}
	fill(reserve + 4<<20)
	written := 0
	for err = nil; err == nil && written < 100_000; written++ {
		err = s.Update(func(tx *Tx) error { return tx.PutSetting(fmt.Sprint(written), make([]byte, 20_000)) })
	}
	wantErr(t, err, ErrFull)
	fill(0) // somebody else takes the rest
	view(t, s, func(tx *Tx) error {
		all, err := tx.Settings()
		if len(all) != written-1 {
			t.Errorf("%d settings, %d written", len(all), written-1)
		}
		return err
	})
	if err := s.Close(); err != nil && free < 1<<30 {
		t.Log("closing on a full disk: ", err)
	}
	s, err = Open(context.Background(), cfg) // the ballast makes room for the start
	if err != nil {
		wantErr(t, err, ErrFull)
	} else {
		if free < 1<<30 {
			wantErr(t, s.Update(func(tx *Tx) error { return tx.PutSetting("x", nil) }), ErrFull)
		}
		if err := s.Close(); err != nil {
			t.Log("closing on a full disk: ", err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil && free < 1<<30 {
		t.Fatal(err)
	}
	s = open(t, cfg)
	if d := s.Damage(); len(d) > 0 {
		t.Fatal(d)
	}
	update(t, s, func(tx *Tx) error { return tx.PutSetting("x", nil) })
	view(t, s, func(tx *Tx) error {
		all, err := tx.Settings()
		if len(all) != written {
			t.Errorf("%d settings after the disk was full, want %d", len(all), written)
		}
		return err
	})
	s.watchDisk()
	if !s.Stats().Ballast {
		t.Fatal("the ballast is not back")
	}
}

func TestTheBallastIsGivenUpToStart(t *testing.T) {
	cfg := testConfig(t)
	cfg.Reserve, cfg.Ballast = 1<<20, 1<<20
	if err := open(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(cfg.Dir, ballastFile)
	if info, err := os.Stat(ballast); err != nil || info.Size() != 1<<20 {
		t.Fatal(err)
	}
	if err := makeRoom(cfg.withDefaults()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ballast); err != nil {
		t.Fatal("the ballast was given up without need")
	}
}

// fullDisk opens a store as a start does that finds no room for the engine, on a small file system where the test may mount one.
func fullDisk(t *testing.T, cfg Config, real bool) *Store {
	t.Helper()
	if real {
		return open(t, cfg)
	}
	s := &Store{cfg: cfg.withDefaults(), log: slog.New(slog.DiscardHandler)}
	var err error
	if s.keys, err = deriveKeys(cfg.Root); err == nil {
		s.rows, err = newSealer(s.keys.row)
	}
	if err == nil {
		s.lock, err = lockFile(cfg.path(lockName))
	}
	if err != nil {
		t.Fatal(err)
	}
	was, _, err := readSentinel(cfg)
	if err != nil {
		t.Fatal(err)
	}
	copied, err := s.openFull(context.Background(), was, fmt.Errorf("no room: %w", ErrFull))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = copied.Close() })
	return copied
}

func TestAStoreOnAFullDiskIsReadAndNotWritten(t *testing.T) {
	source := killedStore(t)
	for name, prepare := range map[string]func(t *testing.T, cfg Config){
		"after a kill": func(*testing.T, Config) {},
		"after an end": func(t *testing.T, cfg Config) { _ = open(t, cfg).Close() },
		"with damage":  func(t *testing.T, cfg Config) { edit(t, newest(cfg.Dir), flipAt(0.6)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, fill := smallDisk(t, 160<<20)
			free, err := disk.Free(dir)
			if err != nil {
				t.Fatal(err)
			}
			real := free < 1<<30
			cfg := source
			cfg.Dir, cfg.Reserve = filepath.Join(dir, "store"), 32<<20
			copyDir(t, source.Dir, cfg.Dir)
			prepare(t, cfg)
			fill(0)
			before := engineNames(t, cfg.Dir)
			s := fullDisk(t, cfg, real)
			damaged := name == "with damage"
			if len(s.Damage()) > 0 != damaged || !s.Stats().Full || s.Stats().Free < 0 {
				t.Errorf("%v, %+v", s.Damage(), s.Stats())
			}
			refusal := ErrFull
			if damaged {
				refusal = ErrDamaged
			}
			wantErr(t, s.Update(func(tx *Tx) error { return tx.PutSetting("x", nil) }), refusal)
			view(t, s, func(tx *Tx) error {
				list, err := tx.Messages(id16(1), MessagesQuery{})
				events, err2 := tx.EventsAfter(0, 0)
				if want := flushed + logged; !damaged && (len(list) != want || len(events) != logged) || len(list) < logged {
					t.Errorf("%d messages, %d events", len(list), len(events))
				}
				return errors.Join(err, err2)
			})
			wantLocked(t, cfg)
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			if after := engineNames(t, cfg.Dir); after != before {
				t.Errorf("the store was changed:\n%s\n%s", before, after)
			}
			if err := os.Remove(filepath.Join(dir, "filler")); err != nil && real {
				t.Fatal(err)
			}
			if s = open(t, cfg); len(s.Damage()) > 0 != damaged {
				t.Fatal(s.Damage())
			}
			if !damaged {
				update(t, s, func(tx *Tx) error { return tx.PutSetting("x", nil) })
			}
		})
	}
}

// wantLocked checks that nobody else gets the directory.
func wantLocked(t *testing.T, cfg Config) {
	t.Helper()
	_, err := lockFile(cfg.path(lockName))
	wantErr(t, err, ErrLocked)
}

func TestAStoreTooLargeForMemoryIsNotReadIntoIt(t *testing.T) {
	cfg := testConfig(t)
	if err := open(t, cfg).Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		name := filepath.Join(cfg.Dir, engineDir, fmt.Sprintf("%06d.sst", 100+i))
		if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, mostInMemory/2+1)); err != nil {
			t.Fatal(err)
		}
	}
	s := &Store{cfg: cfg.withDefaults()}
	_, err := s.openFull(context.Background(), sentinel{}, fmt.Errorf("no room: %w", ErrFull))
	wantErr(t, err, ErrFull)
	if !strings.Contains(err.Error(), "128 MiB are more") {
		t.Error(err)
	}
}
