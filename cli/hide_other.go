//go:build !unix

package cli

import (
	"errors"

	"github.com/charmbracelet/x/term"
)

// showInput is ENABLE_ECHO_INPUT of the console's mode.
const showInput = 0x4

// takeKeys is not there: lines are edited by the console itself.
func takeKeys(uintptr) (giveBack func(), err error) { return nil, errors.ErrUnsupported }

// hideTyping keeps a console from showing what is typed, until show is called.
func hideTyping(fd uintptr) (show func(), err error) {
	was, err := term.GetState(fd)
	if err != nil {
		return nil, err
	}
	hidden := *was
	hidden.Mode &^= showInput
	if err := term.SetState(fd, &hidden); err != nil {
		return nil, err
	}
	return func() { _ = term.SetState(fd, was) }, nil
}
