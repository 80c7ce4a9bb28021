package store

import (
	"encoding/binary"
)

// table is the first byte of a key and says what kind of row follows (PROTOCOL A.4). A number is never used again
// for something else.
type table byte

const (
	tState         table = 0x01 // — → counters of the whole store, rewritten by each commit
	tSetting       table = 0x02 // name
	tSecret        table = 0x03 // name (vault)
	tSelf          table = 0x04 // — (vault)
	tContact       table = 0x10 // account 32
	tContactSecret table = 0x11 // account 32 (vault)
	tName          table = 0x12 // folded name → kind, id
	tConversation  table = 0x18 // conversation 16
	tTally         table = 0x19 // conversation 16 → count, last row, running hash
	tBlock         table = 0x1a // conversation 16, block u64 → the same for 256 rows
	tMessage       table = 0x20 // conversation 16, seq u64
	tOrder         table = 0x21 // conversation 16, order u64, first half of the message id 8, seq u64 → empty
	tStatus        table = 0x23 // conversation 16, seq u64: where a message of ours stands, once that changed
	tMessageID     table = 0x22 // message id 16 → conversation, seq; kept for ever
	tOutgoing      table = 0x28 // account 32, order u64
	tSession       table = 0x30 // account 32, device 16, session 16 (vault)
	tSessionID     table = 0x31 // session 16 → account, device
	tSessionOf     table = 0x35 // account 32, device 16, session 16 → empty; found by walking, which the row itself, rewritten by each message, is not fit for
	tHeading       table = 0x36 // session 16, chain u32: what the headers of items that wait are made from (vault)
	tSessionTail   table = 0x37 // account 32, device 16, session 16: what changes only with a chain (vault)
	tSkipped       table = 0x32 // session 16, chain u32, n u32 (vault)
	tHandshake     table = 0x33 // hash 32 → expiry
	tAck           table = 0x34 // hash of an item 16 → the acknowledgement it was given
	tInvite        table = 0x38 // invite 16 (vault)
	tInviteName    table = 0x39 // record name 32 → invite id
	tPendingAdd    table = 0x3a // id (vault)
	tTrace         table = 0x40 // message id 16, number u64
	tEvent         table = 0x48 // seq u64
	tCursor        table = 0x49 // name
	tIdempotency   table = 0x50 // key
	tBox           table = 0x58 // box id 32: a box of ours at a mailbox (vault)
	tGrant         table = 0x59 // first half of the seed's hash 16: tokens for our boxes that somebody was given, or will be (vault)
	tLate          table = 0x5b // account 32, acknowledgement 16: a message that was given up while mailboxes keep it
	tGranted       table = 0x5a // account 32: tokens for their boxes that we were given (vault)
)

// vault reports whether rows of the table are sealed under the epoch key, so that old versions can be made unreadable.
func (t table) vault() bool {
	switch t {
	case tSecret, tSelf, tContactSecret, tSession, tSessionTail, tHeading, tSkipped, tInvite, tPendingAdd, tBox, tGrant, tGranted:
		return true
	}
	return false
}

// vaultTables lists every table whose rows name an epoch.
var vaultTables = [...]table{tSecret, tSelf, tContactSecret, tSession, tSessionTail, tHeading, tSkipped, tInvite, tPendingAdd, tBox, tGrant, tGranted}

// key joins a table and its parts, which have fixed lengths but for the last one.
func key(t table, parts ...[]byte) []byte {
	n := 1
	for _, p := range parts {
		n += len(p)
	}
	k := make([]byte, 1, n)
	k[0] = byte(t)
	for _, p := range parts {
		k = append(k, p...)
	}
	return k
}

func u64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
