//go:build !linux

package store

import "testing"

// mountTmpfs mounts nothing here: the reserve makes the disk small.
func mountTmpfs(*testing.T, string, int64) bool { return false }
