package disk

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Allocate makes a file really take its space.
func Allocate(f *os.File, size int64) error {
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		return WriteZeros(f, size) // not every file system can
	}
	return nil
}

// Free is how many bytes of the disk under a directory this user may still write.
func Free(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}
