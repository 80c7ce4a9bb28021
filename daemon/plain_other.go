//go:build !unix

package daemon

import "os"

// openPlain opens a file of a home and refuses whatever is not one.
func openPlain(path string, flag int) (*os.File, error) {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil, notPlain(path)
	}
	return os.OpenFile(path, flag, 0o600)
}
