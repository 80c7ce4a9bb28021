//go:build !linux

package mailbox

import "testing"

// mountTmpfs mounts nothing here: the reserve makes the disk small.
func mountTmpfs(*testing.T, string, int64) bool { return false }
