package mailbox

import (
	"context"
	"fmt"
	"time"

	"github.com/dgraph-io/badger/v4"

	"sotto/wire"
)

// republishEvery is how often a record is put again (PROTOCOL 17.7).
const republishEvery = 8 * 3600

// Republish keeps records to put for a box's owner and returns how many of them are kept or forgotten as asked: one per name, the higher
// number wins, an empty one forgets the name. Each was checked before.
func (q *Queue) Republish(ctx context.Context, id wire.BoxID, list []wire.Republish) (kept int, err error) {
	if len(list) > wire.MaxRepublish {
		return 0, fmt.Errorf("mailbox: republish: %d records at once: %w", len(list), wire.ErrRefused)
	}
	size := opBytes
	for _, r := range list {
		if len(r.Record) > wire.MaxRecord {
			return 0, fmt.Errorf("mailbox: republish: record of %d bytes: %w", len(r.Record), wire.ErrTooLarge)
		}
		size += len(r.Record) + opBytes
	}
	if size > batchBytes {
		return 0, fmt.Errorf("mailbox: republish: %d bytes at once: %w", size, wire.ErrTooLarge)
	}
	n := 0
	err = q.writeUntil(ctx, &op{bytes: size, rows: len(list)*5 + opRows, grows: true, do: func(b *batch) error {
		box, err := q.box(id)
		if err != nil {
			return err
		}
		n, err = q.republish(b, box, list)
		return err
	}})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (q *Queue) republish(b *batch, box *box, list []wire.Republish) (kept int, err error) {
	olds := make([][]byte, len(list))
	for i, r := range list {
		if olds[i], err = b.get(pairKey(rowRecord, r.Name, box.id)); err != nil {
			return 0, err
		}
	}
	seen := map[[32]byte]bool{}
	for i, r := range list {
		if seen[r.Name] {
			continue // twice in one request: the first
		}
		seen[r.Name] = true
		if q.keepRecord(b, box, r, olds[i]) {
			kept++
		}
	}
	return kept, nil
}

// keepRecord puts one record in the place of what was there.
func (q *Queue) keepRecord(b *batch, box *box, r wire.Republish, old []byte) bool {
	was, err := parseRecord(old)
	had := old != nil && err == nil
	if !had {
		was.Record = nil
	}
	if len(r.Record) == 0 {
		if had {
			q.forgetRecord(b, box, r.Name, was)
		}
		return had
	}
	if q.cfg.Inspect != nil {
		seq, notAfter, err := q.cfg.Inspect(r.Record)
		if err != nil || !notAfter.After(q.now()) {
			return false
		}
		if had {
			if before, _, err := q.cfg.Inspect(was.Record); err == nil && before >= seq {
				return before == seq && string(was.Record) == string(r.Record)
			}
		}
	}
	more := int64(len(r.Record) - len(was.Record))
	p := box.part()
	if !had && box.row.Records >= wire.MaxRepublish || more > 0 && (uint64(box.used()+more) > box.row.Bytes || q.perPart[p].bytes+more > q.limits.part(p)) {
		return false
	}
	if had {
		b.delete(dueKey(was.Due, r.Name, box.id))
	}
	row := recordRow{NotBefore: r.NotBefore, Due: max(r.NotBefore, q.now().Unix()), Record: r.Record}
	b.set(pairKey(rowRecord, r.Name, box.id), row.marshal())
	b.set(pairKey(rowOwns, box.id, r.Name), nil)
	b.set(dueKey(row.Due, r.Name, box.id), nil)
	q.mu.Lock()
	defer q.mu.Unlock()
	if !had {
		box.row.Records++
	}
	box.row.RecordBytes = uint32(int64(box.row.RecordBytes) + more)
	q.perPart[p].bytes += more
	b.boxes[box] = true
	return true
}

func (q *Queue) forgetRecord(b *batch, box *box, name [32]byte, was recordRow) {
	b.delete(pairKey(rowRecord, name, box.id))
	b.delete(pairKey(rowOwns, box.id, name))
	b.delete(dueKey(was.Due, name, box.id))
	q.mu.Lock()
	defer q.mu.Unlock()
	box.row.Records--
	box.row.RecordBytes -= uint32(len(was.Record))
	q.perPart[box.part()].bytes -= int64(len(was.Record))
	b.boxes[box] = true
}

// DueRecords lists records whose time to be put has come, the longest due first; of a name that several boxes have, one.
func (q *Queue) DueRecords(now time.Time, limit int) (list []wire.Republish, err error) {
	q.mu.Lock()
	if err := q.enter(); err != nil {
		q.mu.Unlock()
		return nil, err
	}
	defer q.readers.Done()
	q.mu.Unlock()
	seen := map[[32]byte]bool{}
	err = q.db.View(func(txn *badger.Txn) error {
		opt := badger.DefaultIteratorOptions
		opt.Prefix, opt.PrefetchValues = []byte{rowDue}, false
		it := txn.NewIterator(opt)
		defer it.Close()
		for it.Rewind(); it.Valid() && len(list) < limit; it.Next() {
			k := it.Item().Key()
			if len(k) != 73 || int64(be.Uint64(k[1:])) > now.Unix() {
				break
			}
			name, id := [32]byte(k[9:41]), wire.BoxID(k[41:])
			if seen[name] {
				continue
			}
			v, err := getRow(txn, pairKey(rowRecord, name, id))
			if err != nil {
				return err
			}
			if row, err := parseRecord(v); err == nil {
				seen[name] = true
				list = append(list, wire.Republish{Name: name, NotBefore: row.NotBefore, Record: row.Record})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("mailbox: list records: %w", err)
	}
	return list, nil
}

// RecordPut notes that a name's record was put, or could not be, at a moment: it is due again eight hours later. One whose last date is
// past is forgotten.
func (q *Queue) RecordPut(name [32]byte, at time.Time) error {
	const boxes = 64 // of one name; more stay due
	return q.write(&op{bytes: boxes * (wire.MaxRecord + opBytes), rows: boxes*5 + opRows, do: func(b *batch) error {
		keys, err := keysUnder(q.db.DB, append([]byte{rowRecord}, name[:]...), boxes)
		if err != nil {
			return err
		}
		for _, k := range keys {
			id := wire.BoxID(k[33:])
			v, err := b.get(k)
			if err != nil {
				return err
			}
			row, err := parseRecord(v)
			box := q.boxes[id]
			if err != nil || box == nil || row.Due > at.Unix() {
				continue
			}
			if q.cfg.Inspect != nil {
				if _, notAfter, err := q.cfg.Inspect(row.Record); err != nil || !notAfter.After(at) {
					q.forgetRecord(b, box, name, row)
					continue
				}
			}
			b.delete(dueKey(row.Due, name, id))
			row.Due = at.Unix() + republishEvery
			b.set(k, row.marshal())
			b.set(dueKey(row.Due, name, id), nil)
		}
		return nil
	}})
}
