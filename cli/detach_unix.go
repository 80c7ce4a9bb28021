//go:build unix

package cli

import "syscall"

// ownSession keeps a child alive when this terminal closes.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
