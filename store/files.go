package store

import (
	"fmt"
	"os"
	"path/filepath"

	"sotto/internal/fault"
)

// step names one thing the store does to the disk. Every commit, sync and rename of this package goes through one of the
// functions below or through commit, so that each has crash points and a new one cannot be without.
type step string

const (
	stepSentinel   step = "sentinel"
	stepPage       step = "key page"
	stepFloor      step = "floor log"
	stepCopies     step = "engine copies"
	stepNewSlot    step = "new epoch slot"
	stepEraseSlot  step = "erase epoch slot"
	stepReserve    step = "floor reservation"
	stepHead       step = "commit head"
	stepCommit     step = "commit"
	stepReencrypt  step = "re-encryption"
	stepEngineOpen step = "engine open"
	stepEngineShut step = "engine close"
	stepBallast    step = "ballast"
)

// Moments of a step at which a crash is tried.
var (
	replaceMoments = [...]string{"before write", "before sync", "before rename", "before dir sync", "after dir sync"}
	writeMoments   = [...]string{"before write", "before sync", "after sync"}
	aroundMoments  = [...]string{"before", "after"}
)

func point(s step, moment string) string { return "store: " + string(s) + ": " + moment }

// CrashPoints lists every named point a store passes, for tests that stop a process at each.
func CrashPoints() []string {
	var points []string
	for _, s := range []step{stepSentinel, stepPage, stepFloor, stepCopies} {
		for _, m := range replaceMoments {
			points = append(points, point(s, m))
		}
	}
	for _, s := range []step{stepNewSlot, stepEraseSlot, stepReserve, stepHead, stepBallast} {
		for _, m := range writeMoments {
			points = append(points, point(s, m))
		}
	}
	for _, s := range []step{stepCommit, stepReencrypt, stepEngineOpen, stepEngineShut} {
		for _, m := range aroundMoments {
			points = append(points, point(s, m))
		}
	}
	return points
}

// disk writes files so that a crash leaves the old or the new, never half of one.
type disk struct{ fault *fault.Points }

func (d disk) pass(s step, moment string) {
	if d.fault != nil {
		d.fault.Pass(point(s, moment))
	}
}

// replace gives a file new content: temporary file, sync, rename, sync of the directory.
func (d disk) replace(s step, path string, data []byte) error {
	d.pass(s, "before write")
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("store: write %s: %w", s, err)
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("store: write %s: %w", s, err)
	}
	_, err = f.Write(data)
	d.pass(s, "before sync")
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	d.pass(s, "before rename")
	if err == nil {
		err = os.Rename(tmp, path)
	}
	d.pass(s, "before dir sync")
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("store: write %s: %w", s, err)
	}
	d.pass(s, "after dir sync")
	return nil
}

// writeAt changes part of a file in place; with sync it is on disk when the call returns.
func (d disk) writeAt(s step, f *os.File, data []byte, off int64, sync bool) error {
	d.pass(s, "before write")
	if _, err := f.WriteAt(data, off); err != nil {
		return fmt.Errorf("store: write %s: %w", s, err)
	}
	d.pass(s, "before sync")
	if sync {
		if err := f.Sync(); err != nil {
			return fmt.Errorf("store: sync %s: %w", s, err)
		}
	}
	d.pass(s, "after sync")
	return nil
}

// around runs one act of the engine between its two points.
func (d disk) around(s step, act func() error) error {
	d.pass(s, "before")
	err := act()
	if err == nil {
		d.pass(s, "after")
	}
	return err
}
