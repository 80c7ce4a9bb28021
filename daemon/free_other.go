//go:build !unix

package daemon

// Free cannot be asked here without disturbing the owner; a start that finds the home taken tries again.
func (h Home) Free() bool { return true }
