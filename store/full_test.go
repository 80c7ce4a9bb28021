package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		free, err := freeSpace(dir)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(path)
		if err == nil && free > leave {
			err = errors.Join(writeZeros(f, free-leave), f.Close())
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
	free, err := freeSpace(dir)
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
