// Package identity makes, signs, checks and stores what says who someone is: the seed and its 24 words, account, device
// and node keys, the contact card, the invite link and its bundle, the key file and the safety number.
//
// Begin with Seed (a person), Device (a machine) and Card (what others need to write to it); Invite and Bundle carry a
// card to someone new. Everything that crosses the network is parsed by a Parse function that checks lengths, points,
// signatures and trailing bytes; times are checked apart, by CheckTime, because a clock may be wrong where a signature
// is not. PROTOCOL 3, 4, 5, 14 and Appendix A.
package identity

import (
	"errors"
	"time"
)

// Suite is the only cipher suite of this version: PQXDH over X25519 and ML-KEM-768, X-Wing envelopes (PROTOCOL 3).
const Suite = 1

// ExtTokenGrant is the extension of a bundle that gives its guest tokens for the boxes in its card (PROTOCOL 5.3).
const ExtTokenGrant = 1

// Limits of the objects in this package (PROTOCOL 15).
const (
	MaxDevices    = 8                   // in a device list
	MaxBoxes      = 3                   // in a card
	MaxBoxAddr    = 256                 // bytes
	MaxName       = 64                  // bytes of UTF-8 in a claimed name
	MaxReach      = 1024                // bytes of a signed reach
	MaxBundle     = 8061                // bytes; fills an 8 KiB record (PROTOCOL 6)
	MaxHints      = 4                   // in an invite link
	MaxHint       = 255                 // bytes
	MaxCardLife   = 30 * 24 * time.Hour // not_after − issued
	MaxInviteLife = 30 * 24 * time.Hour
	ClockSkew     = 24 * time.Hour // how wrong a clock may be before dates are refused
)

// Errors that callers branch on. The messages around them say which object it was and what to do.
var (
	// ErrInvalid: the bytes are not what they claim to be: damaged, forged, or against the format.
	ErrInvalid = errors.New("invalid")
	// ErrNewer: made by a newer version of the program, or for a newer suite.
	ErrNewer = errors.New("made by a newer version of sotto; update to use it")
	// ErrOtherAccount: correctly signed, but by another account than the one asked for.
	ErrOtherAccount = errors.New("belongs to another account")
	// ErrEquivocation: two different device lists with one number, or a list that does not follow the one it should.
	ErrEquivocation = errors.New("two different device lists claim the same place; compare safety numbers before going on")
	// ErrExpired: the date has passed, or this computer's clock is ahead.
	ErrExpired = errors.New("expired")
	// ErrNotYet: dated in the future, so this computer's clock is behind or the other one's is ahead.
	ErrNotYet = errors.New("not valid yet")
)
