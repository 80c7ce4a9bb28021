package mailbox

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/dgraph-io/badger/v4"

	"sotto/wire"
)

// Report is what VerifyQueue found.
type Report struct {
	Boxes, Envelopes, Tokens, Records int
	Bytes                             int64 // of envelopes that wait
	Unreachable                       int   // boxes that were closed and whose tokens are still to be removed
	Faults                            []string
}

// VerifyQueue reads everything that lies in a directory, which no queue has open, and compares it: checksums of the engine's tables, the
// hash of every envelope, every count in the row of a box. It repairs nothing but what the engine repairs when it opens.
func VerifyQueue(dir string) (report Report, err error) {
	db, err := openDatabase(QueueConfig{Dir: dir}.withDefaults())
	if err != nil {
		return report, err
	}
	var state stateRow
	clean := !db.unclean
	defer func() { err = errors.Join(err, db.close(state.Commit, clean && len(report.Faults) == 0)) }()
	if err := verifyTables(db.DB); err != nil {
		report.fault("tables: %v", err)
	}
	err = db.View(func(txn *badger.Txn) error {
		v, err := getRow(txn, []byte{rowState})
		if err == nil && v != nil {
			state, err = parseState(v)
		}
		if err != nil {
			return err
		}
		if db.proven > state.Commit {
			report.fault("the newest %d commits are lost", db.proven-state.Commit)
		}
		return report.read(txn, state)
	})
	return report, err
}

// verifyTables reads every table. The engine's own check takes a block that it could not read for one it could, and dies of it.
func verifyTables(db *badger.DB) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("a block of a table cannot be read")
		}
	}()
	return db.VerifyChecksum()
}

func (r *Report) fault(format string, args ...any) {
	if len(r.Faults) < 1000 {
		r.Faults = append(r.Faults, fmt.Sprintf(format, args...))
	}
}

// counted is what was found of a box.
type counted struct {
	waiting, unspent, spent, records uint32
	stored                           uint64
	recordBytes                      uint32
}

func (r *Report) read(txn *badger.Txn, state stateRow) error {
	boxes := map[wire.BoxID]boxRow{}
	found := map[wire.BoxID]*counted{}
	closed := map[wire.BoxID]bool{}
	of := func(id wire.BoxID, what string) *counted {
		if _, ok := boxes[id]; !ok && !closed[id] {
			r.fault("%s of a box that is not there", what)
		}
		if found[id] == nil {
			found[id] = &counted{}
		}
		return found[id]
	}
	return errors.Join(
		each(txn, []byte{rowBox}, func(k, v []byte) error {
			row, err := parseBox(v)
			if err != nil || len(k) != 33 {
				r.fault("the row of a box: %v", err)
				return nil
			}
			boxes[wire.BoxID(k[1:])] = row
			r.Boxes++
			return nil
		}),
		each(txn, []byte{rowClosed}, func(k, _ []byte) error {
			closed[wire.BoxID(k[1:])] = true
			r.Unreachable++
			return nil
		}),
		each(txn, []byte{rowIndex}, func(k, v []byte) error { return r.readEnvelope(txn, k, v, state, of) }),
		each(txn, []byte{rowToken}, func(k, v []byte) error {
			row, err := parseToken(v)
			if err != nil || len(k) != 49 {
				r.fault("the row of a token: %v", err)
				return nil
			}
			r.Tokens++
			if c := of(wire.BoxID(k[1:33]), "a token"); row.Spent {
				c.spent++
			} else {
				c.unspent++
			}
			return nil
		}),
		each(txn, []byte{rowRecord}, func(k, v []byte) error {
			row, err := parseRecord(v)
			if err != nil || len(k) != 65 {
				r.fault("the row of a record: %v", err)
				return nil
			}
			r.Records++
			c := of(wire.BoxID(k[33:]), "a record")
			c.records++
			c.recordBytes += uint32(len(row.Record))
			return nil
		}),
		r.compare(boxes, found, state),
	)
}

func (r *Report) readEnvelope(txn *badger.Txn, k, v []byte, state stateRow, of func(wire.BoxID, string) *counted) error {
	number, id, seq, err := parseIndexKey(k)
	row, err2 := parseIndex(v)
	if err := errors.Join(err, err2); err != nil {
		r.fault("the row of an envelope: %v", err)
		return nil
	}
	if number == state.Dropping {
		return nil
	}
	size := classSizes[row.Class&classSize]
	envelope, err := getRow(txn, envelopeKey(number, row.Lot, id, seq))
	if err != nil {
		return err
	}
	switch {
	case envelope == nil:
		r.fault("envelope %d, held until %s: it is gone", seq, dateOf(number))
	case len(envelope) != size || sha256.Sum256(envelope) != row.Hash:
		r.fault("envelope %d, held until %s: its bytes changed", seq, dateOf(number))
	}
	c := of(id, "an envelope")
	c.waiting++
	c.stored += uint64(size)
	r.Envelopes++
	r.Bytes += int64(size)
	return nil
}

// compare is evaluated after the rows were read: its arguments are filled by then.
func (r *Report) compare(boxes map[wire.BoxID]boxRow, found map[wire.BoxID]*counted, state stateRow) error {
	for id, row := range boxes {
		c := found[id]
		if c == nil {
			c = &counted{}
		}
		said := counted{row.Waiting, row.Unspent, row.Spent, uint32(row.Records), row.Stored, row.RecordBytes}
		if said != *c && state.Dropping == 0 {
			r.fault("a box says %+v, found %+v", said, *c)
		}
	}
	if len(boxes) != int(state.Boxes) {
		r.fault("%d boxes, the newest commit counted %d", len(boxes), state.Boxes)
	}
	if r.Envelopes != int(state.Waiting) && state.Dropping == 0 {
		r.fault("%d envelopes, the newest commit counted %d", r.Envelopes, state.Waiting)
	}
	return nil
}
