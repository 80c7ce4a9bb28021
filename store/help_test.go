package store

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"
)

var testRoot = [32]byte{1, 2, 3}

// testConfig is a store in a directory of the test, without ballast and reserve.
func testConfig(t testing.TB) Config {
	return Config{Dir: t.TempDir() + "/store", Root: testRoot, Reserve: -1, Ballast: -1}
}

// forking is held while a child is started and while a store is opened: a child has copies of this process' descriptors, the
// engine's lock among them, until it runs its own program.
var forking sync.Mutex

// open opens a store and closes it with the test.
func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	forking.Lock()
	s, err := Open(context.Background(), cfg)
	forking.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func update(t testing.TB, s *Store, fn func(tx *Tx) error) {
	t.Helper()
	if err := s.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, s *Store, fn func(tx *Tx) error) {
	t.Helper()
	if err := s.View(fn); err != nil {
		t.Fatal(err)
	}
}

// id16 makes an id from a number.
func id16(n int) (id [16]byte) {
	binary.BigEndian.PutUint64(id[:], uint64(n)*0x9e3779b97f4a7c15)
	binary.BigEndian.PutUint64(id[8:], uint64(n))
	return id
}

func id32(n int) (id [32]byte) {
	binary.BigEndian.PutUint64(id[24:], uint64(n))
	id[0] = byte(n)
	return id
}

var someTime = time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC)

// putMessages appends n messages with text to a conversation, numbered from first.
func putMessages(t testing.TB, s *Store, conv [16]byte, first, n int) {
	t.Helper()
	for n > 0 {
		some := min(n, 1000)
		update(t, s, func(tx *Tx) error {
			for i := range some {
				if err := tx.PutMessage(testMessage(conv, first+i)); err != nil {
					return err
				}
			}
			return nil
		})
		first, n = first+some, n-some
	}
}

func testMessage(conv [16]byte, n int) *Message {
	return &Message{ID: id16(n), Conv: conv, Order: uint64(n) << 16, From: id32(7), N: uint64(n), At: someTime, SentAt: someTime,
		Text: "a text of an ordinary length, as people write them", State: "queued", Raw: make([]byte, 180)}
}

// placeOf is the order key of the first conversation's n-th test message.
func placeOf(n int) []byte {
	m := testMessage(id16(1), n)
	m.Seq = uint64(n)
	return orderKey(*m)
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}
