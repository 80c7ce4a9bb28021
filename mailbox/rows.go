package mailbox

import (
	"encoding/binary"
	"errors"
	"fmt"

	"sotto/wire"
)

// What lies in the engine. Numbers are big-endian; day is the number of the day (Unix days) at whose beginning the promise ends, so that
// a prefix names all that ends together.
//
//	e day u16, lot u16, box 32, seq u64     an envelope. Only DropPrefix removes it: a deleted row would keep its bytes on disk for weeks,
//	                                        and hide the prefix from DropPrefix
//	i day u16, box 32, seq u64              that it waits (indexRow); an envelope without this row is gone
//	x day u16, box 32, hash 16              a token spent that day
//	d day u16                               when the day's first envelope came (dayRow)
//	l day u16, lot u16                      how many bytes the lot has ever taken
//	b box 32                                a box (boxRow)
//	g box 32                                a box that was closed, whose tokens and records are still to be removed
//	p box 32, hash 16                       a token: unspent, or what it was spent on (tokenRow)
//	v hash 32                               a voucher, until when it is good
//	a hash 32                               a key that may have a box in mode allowlist
//	k prefix                                an address prefix that may not deposit
//	r name 32, box 32                       a record to republish (recordRow)
//	n box 32, name 32                       that the box has it
//	t due u64, name 32, box 32              when it is put next
//	s                                       the state of the whole (stateRow)
const (
	rowEnvelope = 'e'
	rowIndex    = 'i'
	rowSpent    = 'x'
	rowDay      = 'd'
	rowLot      = 'l'
	rowBox      = 'b'
	rowClosed   = 'g'
	rowToken    = 'p'
	rowVoucher  = 'v'
	rowAllowed  = 'a'
	rowBlocked  = 'k'
	rowRecord   = 'r'
	rowOwns     = 'n'
	rowDue      = 't'
	rowState    = 's'
)

var be = binary.BigEndian

func dayPrefix(row byte, day uint16) []byte { return be.AppendUint16([]byte{row}, day) }

func lotPrefix(row byte, day, lot uint16) []byte { return be.AppendUint16(dayPrefix(row, day), lot) }

func envelopeKey(day, lot uint16, box wire.BoxID, seq uint64) []byte {
	return be.AppendUint64(append(append(make([]byte, 0, 45), lotPrefix(rowEnvelope, day, lot)...), box[:]...), seq)
}

func indexKey(day uint16, box wire.BoxID, seq uint64) []byte {
	return be.AppendUint64(append(append(make([]byte, 0, 43), dayPrefix(rowIndex, day)...), box[:]...), seq)
}

func spentKey(day uint16, box wire.BoxID, hash [16]byte) []byte {
	return append(append(append(make([]byte, 0, 51), dayPrefix(rowSpent, day)...), box[:]...), hash[:]...)
}

func boxKey(row byte, box wire.BoxID) []byte { return append([]byte{row}, box[:]...) }

func tokenKey(box wire.BoxID, hash [16]byte) []byte {
	return append(append(append(make([]byte, 0, 49), rowToken), box[:]...), hash[:]...)
}

// pairKey is for rows under a name and a box, in either order.
func pairKey(row byte, a, b [32]byte) []byte {
	return append(append(append(make([]byte, 0, 65), row), a[:]...), b[:]...)
}

func dueKey(due int64, name, box [32]byte) []byte {
	return append(append(be.AppendUint64([]byte{rowDue}, uint64(due)), name[:]...), box[:]...)
}

var errRow = errors.New("row has a wrong length or version")

// sizes of envelopes by class; a class fits two bits.
var classSizes = [...]int{8192, 32_768, wire.MaxEnvelope}

const (
	classSize     = 3 // mask of the size's class
	classStranger = 4
)

func classOf(size int) (uint8, bool) {
	for c, s := range classSizes {
		if s == size {
			return uint8(c), true
		}
	}
	return 0, false
}

// indexRow is what a start reads of each envelope that waits: class u8, lot u16, not_before u32, arrived u32 (hours), spent 16, hash 32.
type indexRow struct {
	Class     uint8
	Lot       uint16
	NotBefore uint32 // Unix seconds, 0 none
	Arrived   uint32 // Unix hours
	Spent     [16]byte
	Hash      [32]byte // SHA-256 of the envelope
}

const indexSize = 1 + 2 + 4 + 4 + 16 + 32

func (r indexRow) marshal() []byte {
	b := append(make([]byte, 0, indexSize), r.Class)
	b = be.AppendUint32(be.AppendUint32(be.AppendUint16(b, r.Lot), r.NotBefore), r.Arrived)
	return append(append(b, r.Spent[:]...), r.Hash[:]...)
}

func parseIndex(b []byte) (r indexRow, err error) {
	if len(b) != indexSize || b[0]&^(classSize|classStranger) != 0 || int(b[0]&classSize) >= len(classSizes) {
		return r, fmt.Errorf("index %w", errRow)
	}
	r.Class, r.Lot, r.NotBefore, r.Arrived = b[0], be.Uint16(b[1:]), be.Uint32(b[3:]), be.Uint32(b[7:])
	copy(r.Spent[:], b[11:])
	copy(r.Hash[:], b[27:])
	return r, nil
}

// parseIndexKey takes the key of an index row apart.
func parseIndexKey(k []byte) (day uint16, box wire.BoxID, seq uint64, err error) {
	if len(k) != 43 {
		return 0, box, 0, fmt.Errorf("index key: %w", errRow)
	}
	return be.Uint16(k[1:]), wire.BoxID(k[3:35]), be.Uint64(k[35:]), nil
}

// tokenRow is a token: one zero byte while it may be spent; else 1, hash 32, arrived u32 (hours), day u16 of what it was spent on, which
// is enough to give the same receipt again after the envelope is gone.
type tokenRow struct {
	Spent   bool
	Hash    [32]byte
	Arrived uint32
	Day     uint16
}

func (r tokenRow) marshal() []byte {
	if !r.Spent {
		return []byte{0}
	}
	b := append(append(make([]byte, 0, 39), 1), r.Hash[:]...)
	return be.AppendUint16(be.AppendUint32(b, r.Arrived), r.Day)
}

func parseToken(b []byte) (r tokenRow, err error) {
	switch {
	case len(b) == 1 && b[0] == 0:
		return r, nil
	case len(b) == 39 && b[0] == 1:
		return tokenRow{Spent: true, Hash: [32]byte(b[1:33]), Arrived: be.Uint32(b[33:]), Day: be.Uint16(b[37:])}, nil
	}
	return r, fmt.Errorf("token %w", errRow)
}

// dayRow says when the day's first envelope came: Unix seconds, and seconds this database had been served until then.
type dayRow struct{ Wall, Served int64 }

func (r dayRow) marshal() []byte {
	return be.AppendUint64(be.AppendUint64(nil, uint64(r.Wall)), uint64(r.Served))
}

func parseDay(b []byte) (r dayRow, err error) {
	if len(b) != 16 {
		return r, fmt.Errorf("day %w", errRow)
	}
	return dayRow{Wall: int64(be.Uint64(b)), Served: int64(be.Uint64(b[8:]))}, nil
}

// boxRow is a box.
type boxRow struct {
	Flags         uint8
	Bytes         uint64 // how much it may hold
	Count         uint32
	Created       int64 // Unix seconds
	CreatedServed int64 // seconds that the database had been served
	Fetched       int64 // the same of the last fetch, to the day; 0 never
	FetchedServed int64
	Grown         uint16 // day on which the quota was doubled last
	Next          uint64 // number of the next envelope
	Waiting       uint32 // envelopes
	Stored        uint64 // their bytes
	Unspent       uint32 // tokens
	Spent         uint32 // tokens whose receipts are remembered
	Records       uint16
	RecordBytes   uint32
	Old, New      wire.BoxID // predecessor and successor, zeros none
}

const (
	flagVouched = 1 << iota
	flagStrangers
	flagBlocked
)

const boxSize = 1 + 1 + 8 + 4 + 4*8 + 2 + 8 + 4 + 8 + 4 + 4 + 2 + 4 + 64

func (r boxRow) marshal() []byte {
	b := append(make([]byte, 0, boxSize), 1, r.Flags)
	b = be.AppendUint32(be.AppendUint64(b, r.Bytes), r.Count)
	for _, v := range []int64{r.Created, r.CreatedServed, r.Fetched, r.FetchedServed} {
		b = be.AppendUint64(b, uint64(v))
	}
	b = be.AppendUint64(be.AppendUint16(b, r.Grown), r.Next)
	b = be.AppendUint64(be.AppendUint32(b, r.Waiting), r.Stored)
	b = be.AppendUint32(be.AppendUint32(b, r.Unspent), r.Spent)
	b = be.AppendUint32(be.AppendUint16(b, r.Records), r.RecordBytes)
	return append(append(b, r.Old[:]...), r.New[:]...)
}

func parseBox(b []byte) (r boxRow, err error) {
	if len(b) != boxSize || b[0] != 1 {
		return r, fmt.Errorf("box %w", errRow)
	}
	at := fields{b[1:]}
	r.Flags, r.Bytes, r.Count = at.u8(), at.u64(), at.u32()
	r.Created, r.CreatedServed, r.Fetched, r.FetchedServed = at.i64(), at.i64(), at.i64(), at.i64()
	r.Grown, r.Next, r.Waiting, r.Stored = at.u16(), at.u64(), at.u32(), at.u64()
	r.Unspent, r.Spent, r.Records, r.RecordBytes = at.u32(), at.u32(), at.u16(), at.u32()
	copy(r.Old[:], at.b)
	copy(r.New[:], at.b[32:])
	return r, nil
}

// fields reads numbers off a row whose length was judged before.
type fields struct{ b []byte }

func (f *fields) take(n int) []byte {
	b := f.b[:n]
	f.b = f.b[n:]
	return b
}

func (f *fields) u8() uint8   { return f.take(1)[0] }
func (f *fields) u16() uint16 { return be.Uint16(f.take(2)) }
func (f *fields) u32() uint32 { return be.Uint32(f.take(4)) }
func (f *fields) u64() uint64 { return be.Uint64(f.take(8)) }
func (f *fields) i64() int64  { return int64(f.u64()) }

// stateRow is the state of the whole, written with each commit.
type stateRow struct {
	Commit     uint64
	Boxes      uint32
	Waiting    uint64 // envelopes
	Stored     uint64 // their bytes
	Served     int64  // seconds that this database was served, by the monotonic clock
	Wall       int64  // Unix seconds when Served was taken: the time mark
	Dropping   uint16 // a day whose rows are being dropped; 0 none
	Dropped    uint16 // the newest day that was
	DroppedAt  int64  // Served then
	Paused     uint8  // why nothing is deleted by time
	DrainUntil int64  // Unix seconds, 0 not draining
	Refusing   bool   // the operator's switch: no deposits
	Damaged    uint16 // damage was found: a day by which all that was promised until then has ended; 0 none
}

const stateSize = 1 + 8 + 4 + 8 + 8 + 8 + 8 + 2 + 2 + 8 + 1 + 8 + 1 + 2

func (r stateRow) marshal() []byte {
	b := be.AppendUint64(append(make([]byte, 0, stateSize), 1), r.Commit)
	b = be.AppendUint64(be.AppendUint64(be.AppendUint32(b, r.Boxes), r.Waiting), r.Stored)
	b = be.AppendUint64(be.AppendUint64(b, uint64(r.Served)), uint64(r.Wall))
	b = be.AppendUint64(be.AppendUint16(be.AppendUint16(b, r.Dropping), r.Dropped), uint64(r.DroppedAt))
	b = be.AppendUint64(append(b, r.Paused), uint64(r.DrainUntil))
	refusing := byte(0)
	if r.Refusing {
		refusing = 1
	}
	return be.AppendUint16(append(b, refusing), r.Damaged)
}

func parseState(b []byte) (r stateRow, err error) {
	if len(b) != stateSize || b[0] != 1 {
		return r, fmt.Errorf("state %w", errRow)
	}
	at := fields{b[1:]}
	r.Commit, r.Boxes, r.Waiting, r.Stored = at.u64(), at.u32(), at.u64(), at.u64()
	r.Served, r.Wall, r.Dropping, r.Dropped, r.DroppedAt = at.i64(), at.i64(), at.u16(), at.u16(), at.i64()
	r.Paused, r.DrainUntil, r.Refusing, r.Damaged = at.u8(), at.i64(), at.u8() == 1, at.u16()
	return r, nil
}

// recordRow is a record to republish.
type recordRow struct {
	NotBefore int64 // Unix seconds
	Due       int64
	Record    []byte
}

func (r recordRow) marshal() []byte {
	return append(be.AppendUint64(be.AppendUint64(nil, uint64(r.NotBefore)), uint64(r.Due)), r.Record...)
}

func parseRecord(b []byte) (r recordRow, err error) {
	if len(b) < 16 || len(b) > 16+wire.MaxRecord {
		return r, fmt.Errorf("record %w", errRow)
	}
	return recordRow{NotBefore: int64(be.Uint64(b)), Due: int64(be.Uint64(b[8:])), Record: b[16:]}, nil
}
