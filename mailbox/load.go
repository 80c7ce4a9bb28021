package mailbox

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/dgraph-io/badger/v4"

	"sotto/wire"
)

// lostSkip is by how much the numbers of all boxes jump when the engine lost commits: an owner's cursor may be ahead of what it gave back.
const lostSkip = 1 << 20

// load reads all that serving needs, which are the small rows, and counts them against what the commits said. What is missing is told;
// what a crash cut off is put right by ops that wait for Run.
func (q *Queue) load() error {
	state, err := q.loadState()
	if err != nil {
		return err
	}
	q.state = state
	q.tick = tick{base: state.Served, wall: q.now(), up: q.began}
	err = q.db.View(func(txn *badger.Txn) error {
		for _, read := range []func(*badger.Txn) error{q.loadLists, q.loadBoxes, q.loadDays, q.loadLots, q.loadIndex} {
			if err := read(txn); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	repair := q.recount()
	q.settleLots()
	if now := q.now().Unix(); q.state.Paused == 0 && now < q.state.Wall-int64(backAtMost/time.Second) {
		q.log.Error("mailbox: " + pauses[pausedBack])
		q.state.Paused = pausedBack
		repair = append(repair, nil)
	}
	for some := range slices.Chunk(repair, boxesAtOnce) {
		some = slices.DeleteFunc(some, func(b *box) bool { return b == nil })
		o := writeBoxes(some)
		inner := o.do
		o.do = func(b *batch) error { b.wrote = true; return inner(b) }
		if err := q.inbox.put(o, 0); err != nil {
			return err
		}
	}
	return nil
}

func (q *Queue) loadState() (state stateRow, err error) {
	err = q.db.View(func(txn *badger.Txn) error {
		v, err := getRow(txn, []byte{rowState})
		if err != nil || v == nil {
			return err
		}
		state, err = parseState(v)
		return err
	})
	if err != nil {
		return state, stop(q.db.files.path(engineDir), err)
	}
	return state, nil
}

// each calls fn with the rows under a prefix. The slices are good until fn returns.
func each(txn *badger.Txn, prefix []byte, fn func(k, v []byte) error) error {
	opt := badger.DefaultIteratorOptions
	opt.Prefix, opt.PrefetchValues = prefix, false
	it := txn.NewIterator(opt)
	defer it.Close()
	for it.Rewind(); it.Valid(); it.Next() {
		item := it.Item()
		if err := item.Value(func(v []byte) error { return fn(item.Key(), v) }); err != nil {
			return fmt.Errorf("mailbox: read %c rows: %w", prefix[0], err)
		}
	}
	return nil
}

func (q *Queue) loadLists(txn *badger.Txn) error {
	err := each(txn, []byte{rowAllowed}, func(k, _ []byte) error {
		if len(k) == 33 {
			q.allowed[[32]byte(k[1:])] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = each(txn, []byte{rowBlocked}, func(k, _ []byte) error {
		if p, err := netip.ParsePrefix(string(k[1:])); err == nil {
			q.blocked[p] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	return each(txn, []byte{rowClosed}, func(k, _ []byte) error {
		if len(k) == 33 {
			q.closing = append(q.closing, wire.BoxID(k[1:]))
		}
		return nil
	})
}

func (q *Queue) loadBoxes(txn *badger.Txn) error {
	return each(txn, []byte{rowBox}, func(k, v []byte) error {
		row, err := parseBox(v)
		if err != nil || len(k) != 33 {
			q.note("the row of a box: %v", err)
			return nil
		}
		b := &box{id: wire.BoxID(k[1:]), row: row, fetched: uint16(row.Fetched / daySeconds)}
		if n := min(row.Waiting, mostCount); n > 0 {
			b.wait = make([]entry, 0, n)
		}
		q.boxes[b.id] = b
		return nil
	})
}

func (q *Queue) loadDays(txn *badger.Txn) error {
	return each(txn, []byte{rowDay}, func(k, v []byte) error {
		row, err := parseDay(v)
		if err != nil || len(k) != 3 {
			q.note("the row of a day: %v", err)
			return nil
		}
		q.days[be.Uint16(k[1:])] = &day{number: be.Uint16(k[1:]), row: row}
		return nil
	})
}

// knownDay finds a day, or makes one whose row is lost: it counts as begun now.
func (q *Queue) knownDay(number uint16) *day {
	d := q.days[number]
	if d == nil {
		d = &day{number: number, row: dayRow{Wall: q.now().Unix(), Served: q.served()}}
		q.days[number] = d
	}
	return d
}

func (q *Queue) loadLots(txn *badger.Txn) error {
	return each(txn, []byte{rowLot}, func(k, v []byte) error {
		if len(k) != 5 || len(v) != 8 || len(q.lots) >= 0xffff {
			q.note("the row of a lot")
			return nil
		}
		q.addLot(be.Uint16(k[1:]), be.Uint16(k[3:]), int64(be.Uint64(v)))
		return nil
	})
}

func (q *Queue) addLot(number, lotNumber uint16, taken int64) uint16 {
	d := q.knownDay(number)
	d.next = max(d.next, lotNumber+1)
	q.lots = append(q.lots, &lot{day: number, number: lotNumber, taken: taken})
	return uint16(len(q.lots) - 1)
}

// loadIndex counts all that waits.
func (q *Queue) loadIndex(txn *badger.Txn) error {
	byNumber := map[[2]uint16]uint16{}
	for at, l := range q.lots {
		if l != nil {
			byNumber[[2]uint16{l.day, l.number}] = uint16(at)
		}
	}
	orphans, bad, now := 0, 0, uint32(q.now().Unix())
	err := each(txn, []byte{rowIndex}, func(k, v []byte) error {
		number, id, seq, err := parseIndexKey(k)
		row, err2 := parseIndex(v)
		if err != nil || err2 != nil {
			bad++
			return nil
		}
		if number == q.state.Dropping {
			return nil
		}
		b := q.boxes[id]
		if b == nil {
			orphans++
			return nil
		}
		at, ok := byNumber[[2]uint16{number, row.Lot}]
		if !ok {
			if len(q.lots) >= 0xffff {
				bad++
				return nil
			}
			q.note("the row of a lot is lost")
			at = q.addLot(number, row.Lot, 0)
			byNumber[[2]uint16{number, row.Lot}] = at
		}
		e := entry{seq: seq, notBefore: row.NotBefore, hash: be.Uint32(row.Hash[:]), lot: at, class: row.Class}
		size := int64(e.size())
		b.wait = append(b.wait, e)
		if row.Class&classStranger != 0 {
			b.strangers++
		}
		if row.NotBefore > now && (b.due == 0 || row.NotBefore < b.due) {
			b.due = row.NotBefore
		}
		l, d := q.lots[at], q.knownDay(number)
		l.live += size
		l.taken = max(l.taken, l.live)
		d.waiting++
		d.bytes += size
		return nil
	})
	if orphans > 0 {
		q.note("%d envelopes wait for boxes whose rows are gone", orphans)
	}
	if bad > 0 {
		q.note("%d rows of envelopes cannot be read", bad)
	}
	return err
}

// recount compares what was counted with what the newest commits said (I11), believes what was counted, and returns the boxes whose rows
// must be put right.
func (q *Queue) recount() (repair []*box) {
	was := q.state
	q.state.Boxes, q.state.Waiting, q.state.Stored = uint32(len(q.boxes)), 0, 0
	lost, lostBytes := int64(0), int64(0)
	ahead := q.db.proven > was.Commit
	if ahead {
		q.note("the engine lost the newest %d commits: envelopes that were promised may be gone", q.db.proven-was.Commit)
		q.state.Commit = q.db.proven
	}
	for _, b := range q.boxes {
		if !slices.IsSortedFunc(b.wait, func(a, b entry) int { return compare(a.seq, b.seq) }) {
			slices.SortFunc(b.wait, func(a, b entry) int { return compare(a.seq, b.seq) })
		}
		stored := uint64(0)
		for _, e := range b.wait {
			stored += uint64(e.size())
		}
		next := b.row.Next
		if n := len(b.wait); n > 0 {
			next = max(next, b.wait[n-1].seq+1)
		}
		if ahead {
			next += lostSkip
		}
		if uint32(len(b.wait)) != b.row.Waiting || stored != b.row.Stored || next != b.row.Next {
			lost += int64(b.row.Waiting) - int64(len(b.wait))
			lostBytes += int64(b.row.Stored) - int64(stored)
			b.row.Waiting, b.row.Stored, b.row.Next = uint32(len(b.wait)), stored, next
			repair = append(repair, b)
		}
		q.state.Waiting += uint64(len(b.wait))
		q.state.Stored += stored
		q.perPart[b.part()].boxes++
		q.perPart[b.part()].bytes += b.used()
	}
	if lost != 0 && was.Dropping == 0 {
		q.note("%d envelopes of %d bytes that boxes had are not there", lost, lostBytes)
	}
	if was.Boxes != q.state.Boxes {
		q.note("%d boxes are there, the newest commit counted %d", q.state.Boxes, was.Boxes)
	}
	if was.Dropping == 0 && lost == 0 && was.Waiting != q.state.Waiting {
		q.note("%d envelopes are there, the newest commit counted %d", q.state.Waiting, was.Waiting)
	}
	return repair
}

// settleLots finds the lot of each day that goes on, and those that can go.
func (q *Queue) settleLots() {
	for at, l := range q.lots {
		if l == nil {
			continue
		}
		if d := q.days[l.day]; l.number == d.next-1 && l.taken < q.limits.LotBytes && l.day != q.state.Dropping {
			d.open = uint16(at)
		}
	}
	for at, l := range q.lots {
		if l != nil && l.live == 0 && q.days[l.day].open != uint16(at) {
			q.garbage = append(q.garbage, uint16(at))
		}
	}
}
