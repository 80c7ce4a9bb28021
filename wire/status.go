package wire

import (
	"errors"
	"fmt"
)

// Code is the answer to an offer or a knock, as one byte on the wire (PROTOCOL 11.3).
type Code uint8

// The codes; every other value is treated as CodeRefused.
const (
	CodeOK         Code = 0 // committed and synced on the other side
	CodeRefused    Code = 1 // will never be taken
	CodeLater      Code = 2 // a passing failure: offer the same bytes again
	CodeLost       Code = 3 // the receiver holds no state that opens this: encrypt the text anew
	CodeOverloaded Code = 4 // come back after the seconds named
	CodeTooLarge   Code = 5 // over the receiver's limit
	CodeNotFound   Code = 6 // nothing under that name
)

// The ways a delivery fails, the same on the wire and inside the program.
var (
	ErrUnreachable = errors.New("unreachable")
	ErrRefused     = errors.New("refused")
	ErrLater       = errors.New("not now")
	ErrLost        = errors.New("receiver cannot open it")
	ErrOverloaded  = errors.New("overloaded")
	ErrTooLarge    = errors.New("too large")
	ErrNotFound    = errors.New("not found")
	// ErrUntrusted has no code: what came is not what its sender must have sent, or not signed by who must have signed it.
	ErrUntrusted = errors.New("not to be trusted")
)

var codeErrors = [...]error{nil, ErrRefused, ErrLater, ErrLost, ErrOverloaded, ErrTooLarge, ErrNotFound}

// Err is the sentinel that pairs with the code, nil for CodeOK.
func (c Code) Err() error {
	if int(c) < len(codeErrors) {
		return codeErrors[c]
	}
	return ErrRefused
}

// CodeOf is the code that tells a peer of err; errors without a pair are passing failures.
func CodeOf(err error) Code {
	if err == nil {
		return CodeOK
	}
	for c, e := range codeErrors {
		if e != nil && errors.Is(err, e) {
			return Code(c)
		}
	}
	return CodeLater
}

// String names the code in traces.
func (c Code) String() string {
	if c == CodeOK {
		return "ok"
	}
	if int(c) < len(codeErrors) {
		return codeErrors[c].Error()
	}
	return fmt.Sprintf("code %d", uint8(c))
}
