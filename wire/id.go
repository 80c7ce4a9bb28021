package wire

import (
	"encoding/hex"
	"fmt"
	"strings"
)

// MsgID names a message for ever and everywhere; 16 random bytes drawn by the messenger that accepted it.
type MsgID [16]byte

// String is "m" and 32 hex digits; people type any unique prefix of it.
func (id MsgID) String() string { return "m" + hex.EncodeToString(id[:]) }

// Short is what people are shown: "m" and 8 hex digits.
func (id MsgID) Short() string { return id.String()[:9] }

// ParseMsgID reads a whole id; prefixes are the store's matter.
func ParseMsgID(s string) (MsgID, error) {
	var id MsgID
	b, err := hex.DecodeString(strings.TrimPrefix(strings.ToLower(s), "m"))
	if err != nil || len(b) != len(id) {
		return id, fmt.Errorf("message id %q: want m and 32 hex digits", s)
	}
	copy(id[:], b)
	return id, nil
}

// ConvID names a conversation: for two people a hash over both accounts, for a group the group's id.
type ConvID [16]byte

// String is 32 hex digits.
func (id ConvID) String() string { return hex.EncodeToString(id[:]) }
