package store

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
)

// The send floor (PROTOCOL A.6): floor.log, outside the database, says for each session up to which counter of which sending
// chain numbers are given out. A database that a crash or a restored copy took back is behind it, and never uses a message
// key twice. Header: magic 8 || 24 zero. Record: tag 16 || chain u32 || next u32 || HMAC-SHA256 8; the newest of a tag counts.
// Zeros end the log.
const (
	floorMagic  = "sottoflr"
	floorRecord = 32
	floorGrow   = 64 << 10
	floorBlock  = 64      // counters given out with one sync
	floorMost   = 512     // and at most in a busy batch
	tornTail    = 4 << 10 // a crash can tear no more than the last page
)

// position is the first counter of a chain that is not given out yet.
type position struct{ chain, next uint32 }

func (p position) less(q position) bool {
	return p.chain < q.chain || p.chain == q.chain && p.next < q.next
}

// resetPosition is what a session stands at that must be reset before it sends again: no chain is newer.
var resetPosition = position{math.MaxUint32, math.MaxUint32}

type floorTag [16]byte

// reservation is one counter that a function is about to use.
type reservation struct {
	tag floorTag
	at  position // of the counter itself
}

// floorLog is the open log. Its maps belong to the committing leader; start never changes.
type floorLog struct {
	disk  stepDisk
	path  string
	key   []byte
	f     *os.File
	used  int64                 // where the next record goes
	size  int64                 // of the file
	start map[floorTag]position // as found at the start of the program
	given map[floorTag]position // as the log stands now
	next  map[floorTag]position // behind the last counter used in this run
	lost  bool                  // the log was damaged: every session must be reset
}

func newFloor(d stepDisk, path string, key []byte) *floorLog {
	l := &floorLog{disk: d, path: path, key: key}
	l.begin(map[floorTag]position{})
	return l
}

// begin makes what was found at the start the state to go on from.
func (l *floorLog) begin(given map[floorTag]position) {
	l.given, l.start, l.next = given, maps.Clone(given), map[floorTag]position{}
}

func (l *floorLog) tag(session [16]byte) floorTag {
	m := hmac.New(sha256.New, l.key)
	m.Write([]byte("tag"))
	m.Write(session[:])
	return floorTag(m.Sum(nil)[:16])
}

func appendFloor(b, key []byte, tag floorTag, p position) []byte {
	from := len(b)
	b = append(b, tag[:]...)
	b = binary.BigEndian.AppendUint32(b, p.chain)
	b = binary.BigEndian.AppendUint32(b, p.next)
	m := hmac.New(sha256.New, key)
	m.Write(b[from:])
	return append(b, m.Sum(nil)[:8]...)
}

var errFloor = errors.New("the send floor log is damaged")

// parseFloor reads a log. exact says that the last shutdown was in order: then every record must be whole. Otherwise records
// of the last page may be torn; they belong to a batch that was never answered.
func parseFloor(b, key []byte, exact bool) (map[floorTag]position, error) {
	if len(b) < floorRecord || string(b[:8]) != floorMagic {
		return nil, errFloor
	}
	given := map[floorTag]position{}
	torn, last := -1, 0 // offsets of the first torn record and of the end of the last good one
	for off := floorRecord; off+floorRecord <= len(b); off += floorRecord {
		rec := b[off : off+floorRecord]
		if len(bytes.TrimLeft(rec, "\x00")) == 0 {
			continue
		}
		m := hmac.New(sha256.New, key)
		m.Write(rec[:24])
		if !hmac.Equal(m.Sum(nil)[:8], rec[24:]) {
			if torn < 0 {
				torn = off
			}
			continue
		}
		last = off + floorRecord
		tag := floorTag(rec[:16])
		p := position{binary.BigEndian.Uint32(rec[16:]), binary.BigEndian.Uint32(rec[20:])}
		if given[tag].less(p) {
			given[tag] = p
		}
	}
	if torn >= 0 && (exact || last-torn > tornTail) {
		return nil, errFloor
	}
	return given, nil
}

// marshalFloor writes the log anew, one record a session, sorted so that equal floors are equal bytes.
func marshalFloor(given map[floorTag]position, key []byte) []byte {
	tags := make([]floorTag, 0, len(given))
	for tag := range given {
		tags = append(tags, tag)
	}
	slices.SortFunc(tags, func(a, b floorTag) int { return bytes.Compare(a[:], b[:]) })
	b := make([]byte, floorRecord, floorRecord*(len(tags)+1))
	copy(b, floorMagic)
	for _, tag := range tags {
		b = appendFloor(b, key, tag, given[tag])
	}
	return b
}

func floorHash(b []byte) [8]byte {
	sum := sha256.Sum256(b)
	return [8]byte(sum[:8])
}

// rewrite replaces the log by one record a session and opens it for appending.
func (l *floorLog) rewrite() error {
	b := marshalFloor(l.given, l.key)
	l.used = int64(len(b))
	l.size = (l.used/floorGrow + 1) * floorGrow
	if l.path == "" { // in memory
		return nil
	}
	if l.f != nil {
		_ = l.f.Close() // everything in it is in b
		l.f = nil
	}
	if err := l.disk.replace(stepFloor, l.path, append(b, make([]byte, l.size-l.used)...)); err != nil {
		return err
	}
	f, err := os.OpenFile(l.path, os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("store: open floor log: %w", err)
	}
	l.f = f
	return nil
}

// check refuses a counter that this or an earlier run may have used.
func (l *floorLog) check(r reservation) error {
	for _, p := range []position{l.start[r.tag], l.next[r.tag]} {
		if r.at.less(p) {
			return fmt.Errorf("store: counter %d of chain %d, the floor is counter %d of chain %d: %w",
				r.at.next, r.at.chain, p.next, p.chain, ErrRolledBack)
		}
	}
	return nil
}

// cover makes the log cover a batch's counters, with one sync, or with none when the blocks reach far enough.
func (l *floorLog) cover(list []reservation) error {
	highest, count := map[floorTag]position{}, map[floorTag]int{}
	for _, r := range list {
		count[r.tag]++
		if p := (position{r.at.chain, r.at.next + 1}); highest[r.tag].less(p) {
			highest[r.tag] = p
		}
	}
	var records []byte
	for tag, p := range highest {
		if p.chain == l.given[tag].chain && !l.given[tag].less(p) {
			continue
		}
		block := uint32(min(max(floorBlock, 8*count[tag]), floorMost))
		p.next += min(block-1, math.MaxUint32-p.next)
		l.given[tag] = p
		records = appendFloor(records, l.key, tag, p)
	}
	if len(records) == 0 || l.path == "" {
		return nil
	}
	if l.used+int64(len(records)) > l.size {
		return l.rewrite() // given has the new blocks already
	}
	if err := l.disk.writeAt(stepReserve, l.f, records, l.used, true); err != nil {
		return err
	}
	l.used += int64(len(records))
	return nil
}

// done notes that a durable batch used its counters.
func (l *floorLog) done(list []reservation) {
	for _, r := range list {
		if p := (position{r.at.chain, r.at.next + 1}); l.next[r.tag].less(p) {
			l.next[r.tag] = p
		}
	}
}

// settle gives the unused rest of each block back, so that an orderly restart leaves no jump, and returns the log's hash.
func (l *floorLog) settle() ([8]byte, error) {
	for tag, p := range l.next {
		l.given[tag] = p
	}
	if err := l.rewrite(); err != nil {
		return [8]byte{}, err
	}
	return floorHash(marshalFloor(l.given, l.key)), l.close()
}

func (l *floorLog) close() error {
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// Reserve says that the function's batch uses counter n of a session's sending chain. The batch is answered only when the
// send floor log covers it, and a counter that may have been used before is ErrRolledBack: reset the session.
func (tx *Tx) Reserve(session [16]byte, chain, n uint32) error {
	if tx.own == nil {
		return errors.New("store: write inside a view")
	}
	l := tx.s.floor
	if n == math.MaxUint32 {
		return fmt.Errorf("store: counter %d: %w", n, ErrTooLarge)
	}
	r := reservation{tag: l.tag(session), at: position{chain, n}}
	if err := l.check(r); err != nil {
		return err
	}
	tx.floor = append(tx.floor, r)
	return nil
}

// Floor returns what the log had given out for a session when the store was opened: the first counter that may be used, and
// its chain. A chain newer than the session's own means that the database was taken back: reset the session.
func (s *Store) Floor(session [16]byte) (chain, next uint32, ok bool) {
	p, ok := s.floor.start[s.floor.tag(session)]
	return p.chain, p.next, ok
}
