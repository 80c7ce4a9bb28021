package store

import (
	"fmt"
	"os"

	"sotto/internal/disk"
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
	replaceMoments = [...]string{disk.BeforeWrite, disk.BeforeSync, disk.BeforeRename, disk.BeforeDirSync, disk.AfterDirSync}
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

// stepDisk writes files so that a crash leaves the old or the new, never half of one.
type stepDisk struct{ fault *fault.Points }

func (d stepDisk) pass(s step, moment string) {
	if d.fault != nil {
		d.fault.Pass(point(s, moment))
	}
}

// replace gives a file new content.
func (d stepDisk) replace(s step, path string, data []byte) error {
	if err := disk.Replace(path, data, func(moment string) { d.pass(s, moment) }); err != nil {
		return fmt.Errorf("store: write %s: %w", s, err)
	}
	return nil
}

// writeAt changes part of a file in place; with sync it is on disk when the call returns.
func (d stepDisk) writeAt(s step, f *os.File, data []byte, off int64, sync bool) error {
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
func (d stepDisk) around(s step, act func() error) error {
	d.pass(s, "before")
	err := act()
	if err == nil {
		d.pass(s, "after")
	}
	return err
}
