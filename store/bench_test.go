package store

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// sendOne writes what accepting one message writes: ratchet, row, outbox entry, event, counter reservation.
func sendOne(s *Store, session Session, n int) error {
	return s.Update(func(tx *Tx) error {
		if err := tx.PutSession(session); err != nil {
			return err
		}
		counter := uint32(tx.state.Next) // rises with each update, as a session's own counter does
		if err := tx.Reserve(session.ID, 0, counter); err != nil {
			return err
		}
		if err := tx.PutMessage(testMessage(id16(1), n)); err != nil {
			return err
		}
		if err := tx.PutOutgoing(&Outgoing{Account: id32(7), MsgID: id16(n), Item: make([]byte, 2700), Created: someTime}); err != nil {
			return err
		}
		_, err := tx.AppendEvent("message", []byte("a few bytes of news"))
		return err
	})
}

func benchSession() Session {
	return Session{ID: id16(9), Account: id32(7), State: make([]byte, 3000), Created: someTime, LastUsed: someTime}
}

// BenchmarkUpdate64 is the sustained rate with 64 goroutines that each wait for their write. The limit beside it is the same
// bytes in synced commits of 64 entries.
func BenchmarkUpdate64(b *testing.B) {
	s := open(b, testConfig(b))
	session := benchSession()
	var n atomic.Int64
	b.ResetTimer()
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for {
				i := n.Add(1)
				if i > int64(b.N) {
					return
				}
				if err := sendOne(s, session, int(i)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	rate := float64(b.N) / b.Elapsed().Seconds()
	limit := engineRate(b, b.N)
	b.ReportMetric(rate, "updates/s")
	b.ReportMetric(rate/limit, "of-engine")
	b.ReportMetric(float64(s.Stats().LargestBatch), "largest-batch")
}

// engineRate commits the bytes of b.N updates to a bare engine, 64 to a synced transaction.
func engineRate(b *testing.B, n int) float64 {
	db := bareEngine(b)
	began := time.Now()
	for i := 0; i < n; i += 64 {
		txn := db.NewTransaction(true)
		for j := range 64 {
			for part, size := range []int{550, 2850, 120} {
				if err := txn.Set(fmt.Appendf(nil, "%d/%d", part, i+j), make([]byte, size)); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := txn.Commit(); err != nil {
			b.Fatal(err)
		}
	}
	return float64(n) / time.Since(began).Seconds()
}

func bareEngine(b *testing.B) *badger.DB {
	cfg := testConfig(b).withDefaults()
	db, err := openEngine(engineOptions(cfg, make([]byte, 32)))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	return db
}

// BenchmarkUpdate1 is one update at a time, beside one synced commit of a bare engine with the same bytes, in turns.
func BenchmarkUpdate1(b *testing.B) {
	s, db := open(b, testConfig(b)), bareEngine(b)
	session := benchSession()
	var ours, bare []time.Duration
	b.ResetTimer()
	for i := range b.N {
		began := time.Now()
		if err := sendOne(s, session, i+1); err != nil {
			b.Fatal(err)
		}
		ours = append(ours, time.Since(began))
		began = time.Now()
		txn := db.NewTransaction(true)
		for part, size := range []int{3050, 550, 2850, 120} {
			if err := txn.Set(fmt.Appendf(nil, "%d/%d", part, i), make([]byte, size)); err != nil {
				b.Fatal(err)
			}
		}
		if err := txn.Commit(); err != nil {
			b.Fatal(err)
		}
		bare = append(bare, time.Since(began))
	}
	a, c := median(ours), median(bare)
	b.ReportMetric(float64(a.Microseconds()), "p50-us")
	b.ReportMetric(float64(c.Microseconds()), "engine-p50-us")
	b.ReportMetric(float64(a)/float64(c), "ratio")
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkOpen50000 opens a store that holds 50 000 messages, with all checks of a start, beside the bare engine's open.
func BenchmarkOpen50000(b *testing.B) {
	cfg := testConfig(b)
	s := open(b, cfg)
	for conv := range 50 {
		putMessages(b, s, id16(conv+1), conv*1000+1, 1000)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	var ours, bare []time.Duration
	b.ResetTimer()
	for range b.N {
		began := time.Now()
		s, err := Open(context.Background(), cfg)
		if err != nil {
			b.Fatal(err)
		}
		ours = append(ours, time.Since(began))
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		began = time.Now()
		db, err := openEngine(engineOptions(cfg.withDefaults(), s.keys.db))
		if err != nil {
			b.Fatal(err)
		}
		bare = append(bare, time.Since(began))
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(median(ours).Milliseconds()), "p50-ms")
	b.ReportMetric(float64(median(bare).Milliseconds()), "engine-p50-ms")
}
