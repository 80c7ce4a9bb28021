//go:build unix

package daemon

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Free reports whether no process has the home's store. It takes a shared lock for a moment; a start that meets it tries again.
func (h Home) Free() bool {
	f, err := os.Open(filepath.Join(h.Store(), "lock"))
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer func() { _ = f.Close() }()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) == nil
}
