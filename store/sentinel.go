package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Format is the format number of the database this version writes. A higher one is refused untouched.
const Format = 1

// sentinel is the file that must agree with the directory before the engine may touch it (PROTOCOL A.1): magic 8 ||
// format u16 || flags u8 || created u64 (Unix ms) || tables u32 || commit u64 || floor 8 || first 8 bytes of SHA-256.
type sentinel struct {
	Format  uint16
	Fresh   bool // the engine never opened: an empty directory is as it should be
	Clean   bool // the last shutdown was in order; Tables, Commit and Floor are exact
	Created time.Time
	Tables  uint32
	Commit  uint64
	Floor   [8]byte // hash of floor.log
}

const (
	sentinelMagic = "sottodb\n"
	sentinelSize  = 8 + 2 + 1 + 8 + 4 + 8 + 8 + 8

	flagFresh = 1
	flagClean = 2
)

var errSentinel = errors.New("the sentinel file is damaged")

func (s sentinel) marshal() []byte {
	b := make([]byte, 0, sentinelSize)
	b = append(b, sentinelMagic...)
	b = binary.BigEndian.AppendUint16(b, s.Format)
	var flags byte
	if s.Fresh {
		flags |= flagFresh
	}
	if s.Clean {
		flags |= flagClean
	}
	b = append(b, flags)
	b = binary.BigEndian.AppendUint64(b, uint64(s.Created.UnixMilli()))
	b = binary.BigEndian.AppendUint32(b, s.Tables)
	b = binary.BigEndian.AppendUint64(b, s.Commit)
	b = append(b, s.Floor[:]...)
	sum := sha256.Sum256(b)
	return append(b, sum[:8]...)
}

// parseSentinel reads a sentinel. Of a newer format nothing but magic and number is looked at.
func parseSentinel(b []byte) (sentinel, error) {
	if len(b) < 10 || string(b[:8]) != sentinelMagic {
		return sentinel{}, errSentinel
	}
	s := sentinel{Format: binary.BigEndian.Uint16(b[8:])}
	if s.Format > Format {
		return s, fmt.Errorf("store: format %d, this version knows %d: %w", s.Format, Format, ErrNewerFormat)
	}
	sum := sha256.Sum256(b[:len(b)-8])
	if len(b) != sentinelSize || string(sum[:8]) != string(b[len(b)-8:]) || s.Format == 0 || b[10]&^(flagFresh|flagClean) != 0 {
		return sentinel{}, errSentinel
	}
	s.Fresh, s.Clean = b[10]&flagFresh != 0, b[10]&flagClean != 0
	s.Created = time.UnixMilli(int64(binary.BigEndian.Uint64(b[11:]))).UTC()
	s.Tables = binary.BigEndian.Uint32(b[19:])
	s.Commit = binary.BigEndian.Uint64(b[23:])
	copy(s.Floor[:], b[31:])
	return s, nil
}

// commit.head repeats the number of the newest durable commit outside the database, in two slots written in turn: an engine that
// silently lost commits is behind it (PROTOCOL A.5). Slot: commit u64 || first 8 bytes of SHA-256("head" || commit).
const headSlot = 16

func headRecord(commit uint64) []byte {
	b := u64(commit)
	sum := sha256.Sum256(append([]byte("head"), b...))
	return append(b, sum[:8]...)
}

// parseHead returns the highest commit number a head file proves, 0 for none.
func parseHead(b []byte) uint64 {
	var commit uint64
	for ; len(b) >= headSlot; b = b[headSlot:] {
		n := binary.BigEndian.Uint64(b)
		if string(headRecord(n)) == string(b[:headSlot]) {
			commit = max(commit, n)
		}
	}
	return commit
}
