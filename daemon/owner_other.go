//go:build !unix

package daemon

import "os"

// foreign cannot be told here; the directory's own rights decide.
func foreign(os.FileInfo) bool { return false }

// openFiles is how many files this process may have open, 0 when unknown.
func openFiles() uint64 { return 0 }
