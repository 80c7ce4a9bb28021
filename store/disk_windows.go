package store

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/windows"
)

// allocate makes a file really take its space.
func allocate(f *os.File, size int64) error { return writeZeros(f, size) }

func freeSpace(dir string) (int64, error) {
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return 0, err
	}
	var free uint64
	if err := windows.GetDiskFreeSpaceEx(name, &free, nil, nil); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(min(free, 1<<62)), nil
}

// lockFile takes the exclusive lock that says whose directory it is; it ends with the process.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("store: open lock file: %w", err)
	}
	flags := uint32(windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY)
	err = windows.LockFileEx(windows.Handle(f.Fd()), flags, 0, 1, 0, &windows.Overlapped{})
	if errors.Is(err, windows.ERROR_LOCK_VIOLATION) {
		_ = f.Close()
		return nil, fmt.Errorf("store: %s: %w", path, ErrLocked)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("store: lock %s: %w", path, err)
	}
	return f, nil
}

// unlockFile gives the lock up.
func unlockFile(f *os.File) error { return f.Close() }

// syncDir does nothing: the system keeps its directories itself.
func syncDir(string) error { return nil }

// foreign reports whether a file belongs to another user; here the directory's own rights decide.
func foreign(os.FileInfo) bool { return false }
