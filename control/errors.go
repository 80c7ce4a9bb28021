package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/creachadair/jrpc2"
)

// Exit codes of the command line; every error carries the one it leads to.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotFound    = 3
	ExitNoNode      = 4
	ExitNotInTime   = 5
	ExitLocked      = 6
	ExitUnverified  = 7
	ExitRefused     = 8
	ExitInterrupted = 130
)

// Error says what happened and what to do next, for a person (Message, Hint) and for a program (Code, Exit).
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
	Exit    int    `json:"exit"`
}

// Error is the message alone; the hint is printed apart.
func (e *Error) Error() string { return e.Message }

// Is makes two errors of one code equal for errors.Is.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Errorf makes an error; the hint says what to do next.
func Errorf(exit int, code, hint, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint, Exit: exit}
}

// ErrNoNode is returned by Connect when nothing answers at the socket.
var ErrNoNode = &Error{Code: "node_not_running", Message: "the node is not running",
	Hint: "Start it: sotto up", Exit: ExitNoNode}

// errOffline is what network methods answer when only the store is open.
var errOffline = &Error{Code: "node_offline", Message: "the store is open without networking",
	Hint: "Start the node: sotto up", Exit: ExitNoNode}

// hinted is how the core's own errors tell more than their text.
type hinted interface {
	error
	Hint() string
}

// asError turns whatever a handler returned into an Error.
func asError(err error) *Error {
	var e *Error
	var h hinted
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: "timeout", Message: "no answer in time", Hint: "Try again, or give more time with --timeout.", Exit: ExitNotInTime}
	case errors.Is(err, context.Canceled):
		return &Error{Code: "interrupted", Message: "interrupted before it was done", Hint: "Nothing is lost; run it again.", Exit: ExitInterrupted}
	case errors.As(err, &h):
		return &Error{Code: "failed", Message: err.Error(), Hint: h.Hint(), Exit: ExitFailed}
	default:
		return &Error{Code: "failed", Message: err.Error(), Hint: "Run it again; if it stays, look into the log: sotto config path", Exit: ExitFailed}
	}
}

// appCode is the JSON-RPC code of an Error; -32000 downwards is the range that the standard leaves to us.
func appCode(e *Error) jrpc2.Code { return jrpc2.Code(-32000 - e.Exit) }

// rpcError is how an error goes over the wire: the message in the standard's place, the whole Error as data.
func rpcError(err error) *jrpc2.Error {
	var r *jrpc2.Error
	if errors.As(err, &r) {
		if r.Data != nil {
			return r
		}
		return r.WithData(&Error{Code: protocolCode(r.Code), Message: r.Message, Hint: "See the method's parameters at GET /v1/schema.", Exit: ExitUsage})
	}
	e := asError(err)
	return jrpc2.Errorf(appCode(e), "%s", e.Message).WithData(e)
}

func protocolCode(c jrpc2.Code) string {
	switch c {
	case jrpc2.ParseError:
		return "bad_json"
	case jrpc2.InvalidRequest:
		return "bad_request"
	case jrpc2.MethodNotFound:
		return "no_such_method"
	case jrpc2.InvalidParams:
		return "bad_parameters"
	default:
		return "failed"
	}
}

// fromRPC is the client's side of rpcError.
func fromRPC(r *jrpc2.Error) *Error {
	e := &Error{}
	if json.Unmarshal(r.Data, e) == nil && e.Code != "" {
		return e
	}
	return &Error{Code: protocolCode(r.Code), Message: r.Message, Hint: "The node may be of another version: sotto down, then sotto up", Exit: ExitFailed}
}
