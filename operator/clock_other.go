//go:build !linux

package operator

// clockKept is known on Linux only.
func clockKept() (kept, known bool) { return false, false }
