package store

import (
	"bytes"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

func FuzzPage(f *testing.F) {
	k, err := randomEpoch(7)
	if err != nil {
		f.Fatal(err)
	}
	pageKey := bytes.Repeat([]byte{1}, 32)
	b, err := sealSlot(pageKey, k)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(append(bytes.Clone(b), make([]byte, slotSize)...))
	f.Add(append(bytes.Clone(b), b...))
	f.Add([]byte("short"))
	f.Fuzz(func(t *testing.T, page []byte) {
		r, current, err := readRing(pageKey, page)
		if err != nil {
			return
		}
		if r.now == nil || current < 0 || current > 1 || len(page) != pageSize || r.old != nil && r.old.epoch > r.now.epoch {
			t.Fatalf("%+v %d", r, current)
		}
	})
}

func FuzzSentinel(f *testing.F) {
	f.Add(sentinel{Format: Format, Clean: true, Created: someTime, Tables: 3, Commit: 4}.marshal())
	f.Add([]byte(sentinelMagic + "\x00\x02anything"))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSentinel(b)
		if err == nil && !bytes.Equal(s.marshal(), b) {
			t.Fatalf("%x is read as %+v and written as %x", b, s, s.marshal())
		}
	})
}

func FuzzHead(f *testing.F) {
	f.Add(append(headRecord(4), headRecord(5)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if n := parseHead(b); n != 0 && !bytes.Contains(b, headRecord(n)) {
			t.Fatalf("%x proves commit %d", b, n)
		}
	})
}

func FuzzFloor(f *testing.F) {
	k := bytes.Repeat([]byte{2}, 32)
	good := marshalFloor(map[floorTag]position{{1}: {0, 64}, {2}: {3, 9}}, k)
	f.Add(good, true)
	f.Add(append(good, make([]byte, 320)...), false)
	f.Add(append(good, "a torn record of the last page.."...), false)
	f.Fuzz(func(t *testing.T, b []byte, exact bool) {
		given, err := parseFloor(b, k, exact)
		if err != nil {
			return
		}
		again, err := parseFloor(marshalFloor(given, k), k, true)
		if err != nil || len(again) != len(given) {
			t.Fatalf("%d entries come back as %d, %v", len(given), len(again), err)
		}
		for tag, p := range given {
			if again[tag] != p {
				t.Fatalf("%v comes back as %v", p, again[tag])
			}
		}
	})
}

func FuzzLog(f *testing.F) {
	f.Add(append(make([]byte, logHeader), 0x40, 0, 9, 1, 0, 'k', 'e', 'y'), true)
	f.Fuzz(func(t *testing.T, b []byte, lenient bool) {
		if len(b) < logHeader {
			return
		}
		size := 0
		err := parseLog(b, bytes.Repeat([]byte{3}, 32), lenient, func(e rawEntry) error {
			size += len(e.key) + len(e.value)
			return nil
		})
		if err != nil || size > len(b) {
			t.Fatalf("%d bytes of entries in %d, %v", size, len(b), err)
		}
	})
}

func FuzzOpenRow(f *testing.F) {
	rows, err := newSealer(bytes.Repeat([]byte{4}, 32))
	if err != nil {
		f.Fatal(err)
	}
	k, err := randomEpoch(1)
	if err != nil {
		f.Fatal(err)
	}
	r := &ring{now: k}
	f.Add([]byte{byte(tSetting), 'x'}, rows.seal(r, []byte{byte(tSetting), 'x'}, []byte("plain")))
	f.Add([]byte{byte(tSecret), 'x'}, rows.seal(r, []byte{byte(tSecret), 'x'}, nil))
	f.Fuzz(func(t *testing.T, key, sealed []byte) {
		plain, err := rows.open(r, key, sealed)
		if err == nil && (plain == nil || len(sealed) < minSealed) {
			t.Fatal("a value without seal opened")
		}
	})
}

func FuzzDecodeRow(f *testing.F) {
	for _, row := range []any{Message{Text: "hi", At: someTime}, Conversation{Recv: map[[16]byte]Received{{1}: {N: 1}}}, Outgoing{Item: []byte{1}},
		Contact{Name: "ana", Devices: [][16]byte{{1}}}, Session{}, Invite{Hints: []string{"a"}}, Self{}, counters{1, 2, 3}} {
		b, err := encMode.Marshal(row)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, row := range []any{&Message{}, &Conversation{}, &Outgoing{}, &Contact{}, &Session{}, &Invite{}, &PendingAdd{}, &Self{}, &SecretRow{},
			&Event{}, &Step{}, &tally{}, &place{}, &counters{}, &skippedRow{}, &sessionOwner{}, &nameEntry{}, &idempotency{}, &expiring{}} {
			if decode(b, row) != nil {
				continue
			}
			again, err := encMode.Marshal(row)
			if err != nil {
				t.Fatal(err)
			}
			if err := cbor.Wellformed(again); err != nil {
				t.Fatal(err)
			}
		}
	})
}
