// Package disk is what the databases of this program ask of the file system beyond reading and writing: a lock on a directory, files
// replaced so that a crash leaves the old one or the new one, names made durable, free space, files that really take their space.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrLocked says that another process has the lock.
var ErrLocked = errors.New("another process uses this directory: stop it, or talk to it")

// Moments of Replace, passed in this order, at which a crash is worth a try.
const (
	BeforeWrite   = "before write"
	BeforeSync    = "before sync"
	BeforeRename  = "before rename"
	BeforeDirSync = "before dir sync"
	AfterDirSync  = "after dir sync"
)

// Replace gives a file new content: temporary file, sync, rename, sync of the directory. It calls pass at each moment.
func Replace(path string, data []byte, pass func(moment string)) error {
	pass(BeforeWrite)
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !os.IsNotExist(err) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	pass(BeforeSync)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	pass(BeforeRename)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	pass(BeforeDirSync)
	if err == nil {
		err = SyncDir(filepath.Dir(path))
	}
	if err == nil {
		pass(AfterDirSync)
	}
	return err
}

// WriteZeros writes size zero bytes.
func WriteZeros(f *os.File, size int64) error {
	zeros := make([]byte, 1<<20)
	for size > 0 {
		n, err := f.Write(zeros[:min(size, int64(len(zeros)))])
		if err != nil {
			return err
		}
		size -= int64(n)
	}
	return nil
}

// Own makes a directory that is closed to others, or checks that it is one of ours and closes it.
func Own(dir string) error {
	info, err := os.Lstat(dir)
	if os.IsNotExist(err) {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		return nil
	}
	switch {
	case err != nil:
		return fmt.Errorf("look at directory: %w", err)
	case info.Mode()&os.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link: give the real directory", dir)
	case !info.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	case Foreign(info):
		return fmt.Errorf("%s belongs to another user: take it over or choose another directory", dir)
	case info.Mode().Perm()&0o200 == 0:
		return fmt.Errorf("%s is read-only: allow its owner to write", dir)
	}
	if info.Mode().Perm() != 0o700 {
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("close directory to others: %w", err)
		}
	}
	return nil
}

// Plain refuses a directory that holds anything but files and directories: a link would have us overwrite what it points to, and
// a pipe would have us wait for ever.
func Plain(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if !d.IsDir() && !d.Type().IsRegular() {
			return fmt.Errorf("%s is not a plain file: move it away, or put the file it stands for in its place", path)
		}
		return nil
	})
}

// CloseToOthers takes group and others off the files of a directory.
func CloseToOthers(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		_ = os.Chmod(filepath.Join(dir, e.Name()), 0o600)
	}
}
