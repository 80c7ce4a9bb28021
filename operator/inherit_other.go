//go:build !unix

package operator

import (
	"os"
	"os/exec"
)

// inherit does nothing: here a lock belongs to one process alone. The child still ends when its parent does.
func inherit(*exec.Cmd, *os.File) {}
