package messenger

import (
	"errors"
	"fmt"
)

// Error tells a person what happened and what to do next. Code is stable, for programs.
type Error struct {
	Code    string
	Message string
	Remedy  string
	Err     error // what it wraps, may be nil
}

// Error is the message alone.
func (e *Error) Error() string { return e.Message }

// Hint says what to do next.
func (e *Error) Hint() string { return e.Remedy }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors of one code equal for errors.Is.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code
}

// Codes of the errors that callers branch on.
const (
	CodeContactNotFound = "contact_not_found"
	CodeMessageNotFound = "message_not_found"
	CodeInviteNotFound  = "invite_not_found"
	CodeAmbiguous       = "ambiguous"
	CodeNameTaken       = "name_taken"
	CodeBadName         = "bad_name"
	CodeBadText         = "bad_text"
	CodeTooLarge        = "too_large"
	CodeBlocked         = "blocked"
	CodeNotVerified     = "not_verified"
	CodeNotEstablished  = "not_established"
	CodeBadInvite       = "bad_invite"
	CodeOwnInvite       = "own_invite"
	CodeAlreadyContact  = "already_contact"
	CodeInviteUsed      = "invite_used"
	CodeInviteExpired   = "invite_expired"
	CodeTooMany         = "too_many"
	CodeNotCancellable  = "not_cancellable"
	CodeBadMailbox      = "bad_mailbox"
	CodeOffline         = "offline"
	CodeMailboxSilent   = "mailbox_silent"
	CodeMailboxKnown    = "mailbox_known"
	CodeMailboxNotFound = "mailbox_not_found"
)

func refuse(code, remedy, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Remedy: remedy}
}

// isCode reports whether err is an Error of that code.
func isCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
