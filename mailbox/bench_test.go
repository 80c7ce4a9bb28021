package mailbox

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"slices"
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

var _ = runtime.GC
