package mailbox

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sotto/internal/clock"
	"sotto/internal/engine"
	"sotto/wire"
)

// benchConfig is a queue on the disk that the tests run on, by the machine's clock.
func benchConfig(b testing.TB) QueueConfig {
	return QueueConfig{Dir: b.TempDir() + "/queue", Clock: clock.System{}, Limits: Limits{Reserve: -1, Ceiling: 100 << 30, MaxCount: mostCount, MaxBytes: 1 << 40}}
}

// BenchmarkDeposit64 is the sustained rate of 8 KiB deposits by 64 callers. Beside it is a bare engine with the same options that commits
// the same envelopes, 64 to a synced transaction, by one caller; the two take turns, for the disk changes its mind.
func BenchmarkDeposit64(b *testing.B) {
	cfg := benchConfig(b)
	s := open(b, cfg)
	bare := cfg
	bare.Dir = b.TempDir()
	if err := os.MkdirAll(bare.Dir+"/"+engineDir, 0o700); err != nil {
		b.Fatal(err)
	}
	db, err := engine.Open(engineOptions(bare.withDefaults()))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	const turn = 4096
	boxes := max(1, (b.N+turn)/8000+1)
	for i := range boxes {
		id := s.register(b, i, Admit{Vouched: true})
		s.grant(b, id, i*8000, (i+1)*8000)
	}
	var ours, limit time.Duration
	value := envelope(1, small)
	b.ResetTimer()
	for from := 0; from < b.N; from += turn {
		to := min(from+turn, b.N)
		began := time.Now()
		var n atomic.Int64
		n.Store(int64(from))
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				mine := slices.Clone(value)
				for {
					i := int(n.Add(1)) - 1
					if i >= to {
						return
					}
					binary.BigEndian.PutUint64(mine, uint64(i))
					_, _, err := s.Deposit(context.Background(), wire.Deposit{Box: boxID(i / 8000), Token: token(i), Envelope: mine}, netip.Prefix{})
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		ours += time.Since(began)
		began = time.Now()
		for i := from; i < to; i += 64 {
			txn := db.NewTransaction(true)
			for j := i; j < min(i+64, to); j++ {
				if err := txn.Set(envelopeKey(1, 0, boxID(j/8000), uint64(j)), slices.Clone(value)); err != nil {
					b.Fatal(err)
				}
			}
			if err := txn.Commit(); err != nil {
				b.Fatal(err)
			}
		}
		limit += time.Since(began)
	}
	b.StopTimer()
	st := s.Stats()
	b.ReportMetric(float64(b.N)/ours.Seconds(), "deposits/s")
	b.ReportMetric(float64(b.N)/limit.Seconds(), "engine/s")
	b.ReportMetric(limit.Seconds()/ours.Seconds(), "of-engine")
	b.ReportMetric(float64(st.Accepted)/float64(st.Commits), "a-commit")
	b.ReportMetric(float64(st.CommitP99.Microseconds()), "commit-p99-us")
}

// BenchmarkDeposit1 is one caller's deposits, each with a commit of its own.
func BenchmarkDeposit1(b *testing.B) {
	s := open(b, benchConfig(b))
	for i := range b.N/8000 + 1 {
		id := s.register(b, i, Admit{Vouched: true})
		s.grant(b, id, i*8000, (i+1)*8000)
	}
	b.ResetTimer()
	for i := range b.N {
		if err := s.put(boxID(i/8000), i); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFetch is a full page of the smallest envelopes.
func BenchmarkFetch(b *testing.B) {
	s := open(b, benchConfig(b))
	id := s.register(b, 0, Admit{Vouched: true})
	s.grant(b, id, 0, 2000)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			for j := range 100 {
				if err := s.put(id, 100*i+j); err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	b.ResetTimer()
	for i := range b.N {
		page, err := s.Fetch(id, uint64(i%1900), 0)
		if err != nil || len(page.Mail) < 50 {
			b.Fatal(len(page.Mail), err)
		}
	}
	b.SetBytes(wire.MaxPageBytes)
}

// BenchmarkOpenMillion opens a queue with a million envelopes in ten thousand boxes after a kill, in a process of its own, under
// the GOMEMLIMIT of the environment, and says how much memory not mapped from files that process took, once it serves and once it also
// took deposits and handed out mail.
func BenchmarkOpenMillion(b *testing.B) {
	dir := b.TempDir() + "/queue"
	writeMillion(b, dir)
	b.ResetTimer()
	for range b.N {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "MAILBOX_TEST_CHILD=million", "MAILBOX_TEST_DIR="+dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			b.Fatal(err)
		}
		var seconds, served, busy, rate, p50 float64
		if _, err := fmt.Sscan(string(out), &seconds, &served, &busy, &rate, &p50); err != nil {
			b.Fatal(string(out), err)
		}
		b.ReportMetric(seconds, "s-to-serve")
		b.ReportMetric(served, "MiB-served")
		b.ReportMetric(busy, "MiB-busy")
		b.ReportMetric(rate, "deposits/s")
		b.ReportMetric(p50, "commit-p50-ms")
	}
}

// writeMillion makes the small rows of a million envelopes, and tokens; the envelopes themselves no start reads.
func writeMillion(b *testing.B, dir string) {
	const boxes, each = 10_000, 100
	q, err := OpenQueue(QueueConfig{Dir: dir, Limits: Limits{Reserve: -1}})
	if err != nil {
		b.Fatal(err)
	}
	day := uint16(wire.HeldUntil(time.Now().Unix(), 30) / daySeconds)
	w := q.db.NewWriteBatch()
	set := func(k, v []byte) {
		if err := w.Set(k, v); err != nil {
			b.Fatal(err)
		}
	}
	for n := range boxes {
		id := boxID(n)
		for i := range each {
			row := indexRow{Lot: uint16(n * each / 8192), Hash: sha(id[:])}
			set(indexKey(day, id, uint64(i+1)), row.marshal())
		}
		for i := range 64 {
			set(tokenKey(id, wire.PoolHash(token(64*n+i))), tokenRow{}.marshal())
		}
		row := boxRow{Flags: flagVouched, Bytes: 64 << 20, Count: 4096, Next: each + 1, Waiting: each, Stored: each * small, Unspent: 64, Created: time.Now().Unix()}
		set(boxKey(rowBox, id), row.marshal())
	}
	for l := range boxes*each/8192 + 1 {
		set(lotPrefix(rowLot, day, uint16(l)), be.AppendUint64(nil, 64<<20))
	}
	set(dayPrefix(rowDay, day), dayRow{Wall: time.Now().Unix()}.marshal())
	set([]byte{rowState}, stateRow{Commit: 1, Boxes: boxes, Waiting: boxes * each, Stored: boxes * each * small, Wall: time.Now().Unix()}.marshal())
	if err := errors.Join(w.Flush(), q.db.close(1, false)); err != nil {
		b.Fatal(err)
	}
}

// million is the process that BenchmarkOpenMillion measures.
func million(dir string, out io.Writer) error {
	began := time.Now()
	q, err := OpenQueue(QueueConfig{Dir: dir, Limits: Limits{Reserve: -1, Ceiling: 100 << 30}})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	if _, _, err := q.Deposit(ctx, wire.Deposit{Box: boxID(0), Token: token(0), Envelope: envelope(0, small)}, netip.Prefix{}); err != nil {
		return err
	}
	fmt.Fprintln(out, time.Since(began).Seconds(), anonymous())
	began = time.Now()
	var wg sync.WaitGroup
	most := make(chan float64, 64)
	for w := range 64 {
		wg.Go(func() {
			for i := range 200 {
				n := 64*(1+w*100+i/50) + i%50
				d := wire.Deposit{Box: boxID(n / 64), Token: token(n), Envelope: envelope(n, small)}
				if _, _, err := q.Deposit(ctx, d, netip.Prefix{}); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
				if _, err := q.Fetch(boxID(n/64), uint64(100+i%50), 0); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			}
			most <- anonymous()
		})
	}
	wg.Wait()
	close(most)
	peak := 0.0
	for m := range most {
		peak = max(peak, m)
	}
	st := q.Stats()
	fmt.Fprintln(out, peak, 12_800/time.Since(began).Seconds(), st.CommitP50.Seconds()*1000)
	if st.Damaged > 0 || st.Unaccounted != 0 || st.Waiting != 1_012_801 {
		return fmt.Errorf("%+v", st)
	}
	cancel()
	return errors.Join(<-done, q.Close())
}

// anonymous is how many MiB of this process are not mapped from files.
func anonymous() float64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "RssAnon: %f kB", &kib); err == nil {
			return kib / 1024
		}
	}
	return -1
}
