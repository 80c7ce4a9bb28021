//go:build unix

package operator

import (
	"os"
	"os/exec"
)

// inherit lets a child hold a locked file: the lock lasts until the last who has the file is gone.
func inherit(cmd *exec.Cmd, lock *os.File) {
	if lock != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, lock)
	}
}
