//go:build unix

package daemon

import (
	"errors"
	"os"
	"syscall"
)

// openPlain opens a file of a home and refuses whatever is not one: a link could point to another file of this person, and
// a pipe would have us wait.
func openPlain(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.EMLINK) || errors.Is(err, syscall.ENXIO) {
		return nil, notPlain(path)
	}
	return f, err
}
