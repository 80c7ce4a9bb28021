package mailbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"sotto/internal/clock"
	"sotto/wire"
)

// hands is a clock whose wall time and uptime the test sets; it waits for nobody.
type hands struct {
	mu   sync.Mutex
	wall time.Time
	up   time.Duration
}

var someDay = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

func newHands() *hands { return &hands{wall: someDay} }

func (h *hands) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wall
}

func (h *hands) Uptime() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.up
}

// Wait lasts as long as the context: tests call the upkeep themselves.
func (h *hands) Wait(ctx context.Context, _ time.Duration) error {
	<-ctx.Done()
	return ctx.Err()
}

// pass lets time go by as clocks in order do.
func (h *hands) pass(d time.Duration) { h.move(d, d) }

func (h *hands) move(wall, up time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wall, h.up = h.wall.Add(wall), h.up+up
}

var _ clock.Clock = (*hands)(nil)

// testConfig is a queue in a directory of the test that takes no reserve.
func testConfig(t testing.TB) (QueueConfig, *hands) {
	h := newHands()
	return QueueConfig{Dir: fastDir(t) + "/queue", Clock: h, Uptime: h.Uptime, Limits: Limits{Reserve: -1}}, h
}

// fastDir is a directory in memory where there is one: what a killed process wrote is there either way.
func fastDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "mailbox")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// served is a queue that runs until it is stopped or the test ends.
type served struct {
	*Queue
	stop func()
}

func open(t testing.TB, cfg QueueConfig) *served {
	t.Helper()
	q, err := OpenQueue(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, q)
}

func serve(t testing.TB, q *Queue) *served {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	s := &served{Queue: q}
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil && q.Stats().Failed == nil {
			t.Error(err)
		}
		if err := q.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(s.stop)
	return s
}

func boxID(n int) (id wire.BoxID) {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("box"), uint64(n)))
	return sum
}

func token(n int) (t [16]byte) {
	sum := sha256.Sum256(binary.BigEndian.AppendUint64([]byte("token"), uint64(n)))
	copy(t[:], sum[:])
	return t
}

// envelope makes different bytes for each number.
func envelope(n, size int) []byte {
	b := bytes.Repeat([]byte{byte(n)}, size)
	copy(b, binary.BigEndian.AppendUint64(nil, uint64(n)))
	return b
}

const small = 8192

func (s *served) register(t testing.TB, n int, how Admit) wire.BoxID {
	t.Helper()
	if _, err := s.Register(boxID(n), how); err != nil {
		t.Fatal(err)
	}
	return boxID(n)
}

// grant adds tokens from..to-1 to a box.
func (s *served) grant(t testing.TB, id wire.BoxID, from, to int) {
	t.Helper()
	for from < to {
		var add [][16]byte
		for ; from < to && len(add) < wire.MaxPoolBatch; from++ {
			add = append(add, wire.PoolHash(token(from)))
		}
		if _, err := s.Pool(id, add, nil); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *served) put(id wire.BoxID, n int) error { return s.putFrom(id, n, small, netip.Prefix{}) }

func (s *served) putFrom(id wire.BoxID, n, size int, from netip.Prefix) error {
	_, _, err := s.Deposit(context.Background(), wire.Deposit{Box: id, Token: token(n), Envelope: envelope(n, size)}, from)
	return err
}

func (s *served) mustPut(t testing.TB, id wire.BoxID, n int) {
	t.Helper()
	if err := s.put(id, n); err != nil {
		t.Fatalf("deposit %d: %v", n, err)
	}
}

// all fetches everything of a box.
func (s *served) all(t testing.TB, id wire.BoxID) (list []wire.Mail) {
	t.Helper()
	after := uint64(0)
	for {
		page, err := s.Fetch(id, after, 0)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, page.Mail...)
		if !page.More {
			return list
		}
		after = list[len(list)-1].ID
	}
}

func (s *served) ack(t testing.TB, id wire.BoxID, ids ...uint64) int {
	t.Helper()
	n, err := s.Ack(context.Background(), id, ids)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("got %v, want %v", err, want)
	}
}

// wantSound checks the accounts and that no damage was found.
func (s *served) wantSound(t testing.TB) {
	t.Helper()
	if st := s.Stats(); st.Unaccounted != 0 || st.Damaged != 0 || st.Bytes > st.Ceiling {
		t.Fatalf("%+v", st)
	}
}

func sha(b []byte) [32]byte { return sha256.Sum256(b) }
