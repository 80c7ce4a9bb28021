package cli

import "golang.org/x/sys/unix"

// keepFiles stops files that this process was started with (a terminal, a script's lock) from living on in the child.
func keepFiles() {
	_ = unix.CloseRange(3, ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC) // kernels before 5.11 cannot
}
