package store

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sotto/internal/clock"
)

// stepClock lets a test decide when waits end.
type stepClock struct {
	now   time.Time
	waits chan chan struct{}
}

func (c *stepClock) Now() time.Time { return c.now }

func (c *stepClock) Wait(ctx context.Context, _ time.Duration) error {
	end := make(chan struct{})
	select {
	case c.waits <- end:
		<-end
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

var _ clock.Clock = (*stepClock)(nil)

func secretOf(t *testing.T, s *Store) string {
	t.Helper()
	var row SecretRow
	view(t, s, func(tx *Tx) (err error) { row, err = tx.GetSecret("s"); return err })
	return string(row.Value)
}

func TestAnEpochMakesWhatWasDeletedUnreadable(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	update(t, s, func(tx *Tx) error { return tx.PutSecret(SecretRow{Name: "s", Value: []byte("doomed")}) })
	k := key(tSecret, []byte("s"))
	var sealed []byte
	err := s.View(func(tx *Tx) error {
		item, err := tx.read.Get(k)
		if err == nil {
			sealed, err = item.ValueCopy(nil)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := s.rows.open(s.ring, k, sealed); err != nil || !bytes.Contains(plain, []byte("doomed")) {
		t.Fatal("the row cannot be read before", err)
	}
	update(t, s, func(tx *Tx) error { return tx.DeleteSecret("s") })
	if err := s.Close(); err != nil { // closing changes the epoch
		t.Fatal(err)
	}
	// Whoever has every file of the home and every key that is left still cannot open the old bytes.
	page, err := os.ReadFile(filepath.Join(cfg.Dir, pageName))
	if err != nil {
		t.Fatal(err)
	}
	keys, err := deriveKeys(cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	left, _, err := readRing(keys.page, page)
	if err != nil || left.old != nil {
		t.Fatal("more than one key is left", err)
	}
	if _, err := s.rows.open(left, k, sealed); !errors.Is(err, errEpoch) {
		t.Fatalf("the old bytes open: %v", err)
	}
	forged := bytes.Clone(sealed)
	copy(forged[1:9], u64(left.now.epoch))
	if _, err := s.rows.open(left, k, forged); err == nil {
		t.Fatal("the old bytes open under the new key")
	}
}

func TestAnEpochKeepsEverySecretReadable(t *testing.T) {
	s := open(t, testConfig(t))
	update(t, s, func(tx *Tx) error {
		var err error
		for n := range uint32(5000) { // more than one pass moves
			err = errors.Join(err, tx.PutSkipped(id16(1), 0, n, id32(int(n)), someTime))
		}
		return errors.Join(err, tx.PutSecret(SecretRow{Name: "s", Value: []byte("v")}), tx.PutSelf(Self{Name: "me"}),
			tx.PutContactSecret(id32(1), []byte("d")), tx.PutInvite(Invite{ID: id16(1)}), tx.PutPendingAdd(PendingAdd{ID: id16(1)}),
			tx.PutSession(Session{ID: id16(1), Account: id32(1)}))
	})
	inside := make(chan struct{})
	held := make(chan error)
	go func() {
		held <- s.View(func(tx *Tx) error { // a view that began before sees its snapshot with the old key
			inside <- struct{}{}
			<-inside
			_, err := tx.GetSecret("s")
			return err
		})
	}()
	<-inside
	for range 3 {
		if err := s.NewEpoch(); err != nil {
			t.Fatal(err)
		}
	}
	inside <- struct{}{}
	if err := <-held; err != nil {
		t.Fatal("a view lost its key: ", err)
	}
	if epoch := s.Stats().Epoch; epoch != 4 {
		t.Fatalf("epoch %d", epoch)
	}
	view(t, s, func(tx *Tx) error {
		for n := range uint32(5000) {
			if k, ok, err := tx.FindSkipped(id16(1), 0, n); !ok || err != nil || k != id32(int(n)) {
				t.Fatal(n, ok, err)
			}
		}
		_, err := tx.GetSelf()
		_, err2 := tx.ContactSecret(id32(1))
		_, err3 := tx.Invite(id16(1))
		_, err4 := tx.PendingAdd(id16(1))
		_, err5 := tx.Session(id16(1))
		return errors.Join(err, err2, err3, err4, err5, tx.checkVault())
	})
}

func TestRunChangesTheEpochOnlyWhenTheVaultChanged(t *testing.T) {
	cfg := testConfig(t)
	c := &stepClock{now: someTime, waits: make(chan chan struct{})}
	cfg.Clock = c
	s := open(t, cfg)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	tenMinutes := func() {
		for range ticksEpoch {
			close(<-c.waits)
		}
		next := <-c.waits // the tick's work is over when it waits again
		go func() { c.waits <- next }()
	}
	tenMinutes()
	if epoch := s.Stats().Epoch; epoch != 1 {
		t.Fatalf("nothing changed, epoch %d", epoch)
	}
	update(t, s, func(tx *Tx) error { return tx.PutSetting("x", nil) })
	tenMinutes()
	if epoch := s.Stats().Epoch; epoch != 1 {
		t.Fatalf("no secret changed, epoch %d", epoch)
	}
	update(t, s, func(tx *Tx) error { return tx.PutSecret(SecretRow{Name: "s", Value: []byte("v")}) })
	tenMinutes()
	if epoch := s.Stats().Epoch; epoch != 2 {
		t.Fatalf("a secret changed, epoch %d", epoch)
	}
	stop()
	go func() {
		for end := range c.waits {
			close(end)
		}
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestTheSweepRemovesWhatIsPastItsTime(t *testing.T) {
	cfg := testConfig(t)
	c := &stepClock{now: someTime}
	cfg.Clock = c
	s := open(t, cfg)
	write := func(name string) {
		update(t, s, func(tx *Tx) error {
			for range 800 {
				if _, err := tx.AppendEvent(name, nil); err != nil {
					return err
				}
			}
			return errors.Join(tx.PutIdempotency(name, id16(1)), tx.MarkHandshake([]byte(name), c.now.Add(time.Hour)),
				tx.AddTrace(id16(1), c.now, name, ""))
		})
	}
	write("first")
	c.now = someTime.Add(40 * 24 * time.Hour)
	write("second")
	if err := s.Sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	view(t, s, func(tx *Tx) error {
		first, err := tx.FirstSeq()
		_, errOld := tx.Idempotency("first")
		_, errNew := tx.Idempotency("second")
		old, err2 := tx.SeenHandshake([]byte("first"))
		fresh, err3 := tx.SeenHandshake([]byte("second"))
		steps, err4 := tx.Trace(id16(1))
		if first != 601 || !errors.Is(errOld, ErrNotFound) || errNew != nil || old || !fresh || len(steps) != 1 {
			t.Errorf("first event %d, keys %v %v, marks %v %v, %d steps", first, errOld, errNew, old, fresh, len(steps))
		}
		list, err5 := tx.EventsAfter(0, 0)
		if len(list) != 1000 || list[0].Seq != 601 {
			t.Errorf("%d events left", len(list))
		}
		return errors.Join(err, err2, err3, err4, err5)
	})
}

func TestATornSlotCostsNoSecret(t *testing.T) {
	torn := func(slot int) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[slot*slotSize+100:], "torn torn torn"); return b }
	}
	for _, c := range []struct {
		name   string
		change func(b []byte, newer []byte) []byte
		stops  bool
	}{
		{"the free slot torn while a new key was written", func(b, _ []byte) []byte { return torn(1)(append(b[:slotSize:slotSize], b[:slotSize]...)) }, false},
		{"the free slot half written", func(b, newer []byte) []byte {
			return append(b[:slotSize:slotSize], append(newer[:60:60], make([]byte, slotSize-60)...)...)
		}, false},
		{"both keys written, nothing else done", func(b, newer []byte) []byte { return append(b[:slotSize:slotSize], newer...) }, false},
		{"the slot in use torn", func(b, _ []byte) []byte { return torn(0)(b) }, true},
		{"both torn", func(b, _ []byte) []byte { return torn(1)(torn(0)(append(b[:slotSize:slotSize], b[:slotSize]...))) }, true},
		{"both erased", func(b, _ []byte) []byte { return make([]byte, pageSize) }, true},
		{"a page of another home", func(b, _ []byte) []byte {
			k, _ := randomEpoch(1)
			other, _ := sealSlot(make([]byte, 32), k)
			return append(other, make([]byte, slotSize)...)
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			update(t, s, func(tx *Tx) error { return tx.PutSecret(SecretRow{Name: "s", Value: []byte("v")}) })
			k, err := randomEpoch(3)
			if err != nil {
				t.Fatal(err)
			}
			newer, err := sealSlot(s.keys.page, k)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			page := filepath.Join(cfg.Dir, pageName)
			edit(t, page, func(b []byte) []byte { // the first slot is the one in use
				if parseSlot(b[:slotSize]).state != slotGood {
					b = append(b[slotSize:pageSize:pageSize], b[:slotSize]...)
				}
				return b
			})
			edit(t, page, func(b []byte) []byte { return c.change(b, newer) })
			if c.stops {
				_, err := Open(context.Background(), cfg)
				wantErr(t, err, ErrDamaged)
				return
			}
			s = open(t, cfg)
			if secretOf(t, s) != "v" || len(s.Damage()) > 0 {
				t.Fatal(s.Damage())
			}
			b, err := os.ReadFile(page)
			if err != nil {
				t.Fatal(err)
			}
			slots, err := parsePage(b)
			if err != nil || slots[0].state+slots[1].state != slotGood {
				t.Fatalf("the page is not as a finished epoch leaves it: %v %v", slots, err)
			}
			if err := s.NewEpoch(); err != nil || secretOf(t, s) != "v" {
				t.Fatal(err)
			}
		})
	}
}

func TestAnEpochWhoseKeyIsGoneIsFoundAtTheStart(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	update(t, s, func(tx *Tx) error { return tx.PutSecret(SecretRow{Name: "s", Value: []byte("v")}) })
	changeRow(t, s, key(tSecret, []byte("s")), func(b []byte) []byte { b[8] = 77; return b })
	s.vaultChanged.Store(false)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s := open(t, cfg); len(s.Damage()) == 0 {
		t.Fatal("nothing was noticed")
	}
}
