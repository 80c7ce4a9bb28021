//go:build unix

package cli

import (
	"github.com/charmbracelet/x/term"
	"golang.org/x/sys/unix"
)

// takeKeys hands out keys as they are typed, without showing them, until giveBack is called. Signals work as ever.
func takeKeys(fd uintptr) (giveBack func(), err error) {
	was, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	keys := *was
	keys.Lflag = keys.Lflag&^(unix.ECHO|unix.ICANON) | unix.ISIG
	keys.Iflag |= unix.ICRNL
	keys.Cc[unix.VMIN], keys.Cc[unix.VTIME] = 1, 0
	if err := term.SetState(fd, &keys); err != nil {
		return nil, err
	}
	return func() { _ = term.SetState(fd, was) }, nil
}

// hideTyping keeps a terminal from showing what is typed, until show is called. Lines and signals work as ever.
func hideTyping(fd uintptr) (show func(), err error) {
	was, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	hidden := *was
	hidden.Lflag = hidden.Lflag&^unix.ECHO | unix.ICANON | unix.ISIG
	hidden.Iflag |= unix.ICRNL
	if err := term.SetState(fd, &hidden); err != nil {
		return nil, err
	}
	return func() { _ = term.SetState(fd, was) }, nil
}
