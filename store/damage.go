package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Damage is something the disk gave back otherwise than it was written.
type Damage struct {
	Where string // a file, or the kind of row
	What  string
}

// String is one line for a person.
func (d Damage) String() string { return d.Where + ": " + d.What }

// whatToDo ends every message about damage.
const whatToDo = "the store is damaged and takes no writes, so that nothing more is lost: salvage what can be read, sotto doctor --salvage DIRECTORY"

// maxDamage is how many findings are kept.
const maxDamage = 100

var tableNames = map[table]string{
	tState: "counters", tSetting: "setting", tSecret: "secret", tSelf: "own identity", tContact: "contact",
	tContactSecret: "contact's secret", tName: "name", tConversation: "conversation", tTally: "message count",
	tBlock: "message count", tMessage: "message", tOrder: "message order", tStatus: "message state", tMessageID: "message id",
	tOutgoing: "outbox entry", tSession: "session", tSessionID: "session index",
	tSessionOf: "session index", tSessionTail: "session", tHeading: "chain heading", tSkipped: "skipped key", tHandshake: "handshake", tAck: "acknowledgement",
	tInvite: "invite", tInviteName: "invite index",
	tPendingAdd: "pending add", tBox: "box", tGrant: "grant", tGranted: "granted tokens", tLate: "late acknowledgement", tTrace: "trace", tEvent: "event", tCursor: "cursor", tIdempotency: "idempotency key",
}

func rowName(k []byte) string {
	if len(k) > 0 {
		if name, ok := tableNames[table(k[0])]; ok {
			return name
		}
	}
	return "unknown row"
}

// damaged notes a damaged row, makes the store read-only and returns the error for whoever read it.
func (s *Store) damaged(k []byte, cause error) error {
	if errors.Is(cause, ErrDamaged) {
		return cause
	}
	d := Damage{Where: rowName(k), What: cause.Error()}
	s.note(d)
	return fmt.Errorf("store: %s: %w", d, ErrDamaged)
}

// danglingIndex is damaged when an index names a row that is not there, else the error itself.
func (s *Store) danglingIndex(k []byte, err error) error {
	if errors.Is(err, ErrNotFound) {
		return s.damaged(k, errors.New("row is missing"))
	}
	return err
}

func (s *Store) note(d Damage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.damage) == 0 {
		s.log.Error("store: damaged: "+whatToDo, "where", d.Where, "what", d.What)
	}
	if len(s.damage) < maxDamage && !slices.Contains(s.damage, d) {
		s.damage = append(s.damage, d)
	}
}

// Damage returns what was found so far; anything makes the store read-only.
func (s *Store) Damage() []Damage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.damage)
}

// tally is the count over the messages of a conversation, or over 256 of them: how many rows, the newest row's number, and
// the exclusive or of every row's hash. It changes in the transaction that changes a row, so that a row the engine lost,
// brought back or mixed up shows.
type tally struct {
	Count uint64   `cbor:"1,keyasint"`
	Last  uint64   `cbor:"2,keyasint"`
	Sum   [32]byte `cbor:"3,keyasint"`
}

const blockRows = 256

func blockKey(conv [16]byte, block uint64) []byte { return key(tBlock, conv[:], u64(block)) }

func (tx *Tx) tally(k []byte) (tally, error) {
	t, err := get[tally](tx, k)
	_, err = found(err)
	return t, err
}

// rowHash is keyed, so that it tells nothing to a reader of the engine's files.
func (s *Store) rowHash(k, plain []byte) [32]byte {
	b := make([]byte, 0, len(s.keys.check)+len(k)+len(plain))
	b = append(b, s.keys.check...)
	b = append(b, k...)
	return sha256.Sum256(append(b, plain...))
}

// count1 counts one row's change in its conversation and block; nil is no row. Rows of messages are counted, those that say
// where a message stands only go into the sum.
func (tx *Tx) count1(t table, conv [16]byte, seq uint64, before, after []byte) error {
	row, one := key(t, conv[:], u64(seq)), uint64(0)
	if t == tMessage {
		one = 1
	}
	for _, k := range [][]byte{key(tTally, conv[:]), blockKey(conv, seq/blockRows)} {
		sum, err := tx.tally(k)
		if err != nil {
			return err
		}
		if before != nil {
			sum.Count -= one
			sum.mix(tx.s.rowHash(row, before))
		}
		if after != nil {
			sum.Count += one
			sum.mix(tx.s.rowHash(row, after))
		}
		sum.Last = max(sum.Last, seq)
		if err := put(tx, k, sum); err != nil {
			return err
		}
	}
	return nil
}

func (t *tally) mix(h [32]byte) {
	for i := range h {
		t.Sum[i] ^= h[i]
	}
}

// checkBlock recounts one block of a conversation's rows.
func (tx *Tx) checkBlock(conv [16]byte, block uint64) (rows int, err error) {
	want, err := tx.tally(blockKey(conv, block))
	if err != nil {
		return 0, err
	}
	have := tally{Last: want.Last}
	for _, t := range []table{tMessage, tStatus} {
		from, to := key(t, conv[:], u64(block*blockRows)), key(t, conv[:], u64((block+1)*blockRows))
		err = tx.iterate(scan{prefix: key(t, conv[:]), from: from}, func(k, plain []byte) (bool, error) {
			if string(k) >= string(to) {
				return false, nil
			}
			if t == tMessage {
				have.Count++
			}
			have.mix(tx.s.rowHash(k, plain))
			return true, nil
		})
		if err != nil {
			return 0, err
		}
	}
	if have != want {
		return int(have.Count), tx.s.damaged(messageKey(conv, block*blockRows), fmt.Errorf("%d rows of a conversation are not the %d that were written", have.Count, want.Count))
	}
	return int(have.Count), nil
}

// talk is a conversation as the start check sees it.
type talk struct {
	id     [16]byte
	total  tally
	newest uint64 // Order of the newest row
}

// checkNewest recounts the newest rows of the store, at least limit of them when there are so many.
func (tx *Tx) checkNewest(limit int) error {
	talks, err := tx.talks()
	if err != nil {
		return err
	}
	slices.SortFunc(talks, func(a, b talk) int {
		switch {
		case a.newest > b.newest:
			return -1
		case a.newest < b.newest:
			return 1
		}
		return 0
	})
	rows := 0
	for _, c := range talks {
		for block := int64(c.total.Last / blockRows); block >= 0 && rows < limit; block-- {
			n, err := tx.checkBlock(c.id, uint64(block))
			if err != nil {
				return err
			}
			rows += n
		}
	}
	return nil
}

// talks lists every counted conversation and checks that its newest block agrees with the total.
func (tx *Tx) talks() ([]talk, error) {
	var talks []talk
	err := tx.iterate(scan{prefix: key(tTally)}, func(k, plain []byte) (bool, error) {
		c := talk{id: [16]byte(k[1:])}
		if err := decode(plain, &c.total); err != nil {
			return false, tx.s.damaged(k, err)
		}
		last, err := tx.tally(blockKey(c.id, c.total.Last/blockRows))
		if err != nil {
			return false, err
		}
		if last.Last != c.total.Last {
			return false, tx.s.damaged(k, fmt.Errorf("the newest of %d rows is missing", c.total.Count))
		}
		err = tx.iterate(scan{prefix: key(tOrder, c.id[:]), reverse: true, keysOnly: true}, func(k, _ []byte) (bool, error) {
			c.newest = binary.BigEndian.Uint64(k[17:])
			return false, nil
		})
		talks = append(talks, c)
		return true, err
	})
	return talks, err
}
