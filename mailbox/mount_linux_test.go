package mailbox

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// mountTmpfs mounts a file system of a size when the test may.
func mountTmpfs(t *testing.T, dir string, size int64) bool {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		return false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return true
}
