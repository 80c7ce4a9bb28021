package mailbox

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sotto/wire"
)

// onFirst calls do before it takes the first bytes.
type onFirst struct {
	io.Writer
	do func()
}

func (w *onFirst) Write(b []byte) (int, error) {
	if w.do != nil {
		w.do()
		w.do = nil
	}
	return w.Writer.Write(b)
}

func TestABackupHoldsOneMomentWhateverIsDroppedAndDepositedMeanwhile(t *testing.T) {
	cfg, h := daysConfig(t)
	cfg.Limits.LotBytes = 4 * small
	s := open(t, cfg)
	id := s.register(t, 1, Admit{Vouched: true})
	s.grant(t, id, 0, 200)
	for i := range 100 {
		s.mustPut(t, id, i)
	}
	was := s.all(t, id)
	var stream bytes.Buffer
	rows, err := s.Backup(t.Context(), &onFirst{&stream, func() {
		for i := range 50 {
			s.mustPut(t, id, 100+i)
		}
		for _, m := range was[:60] {
			s.ack(t, id, m.ID)
		}
		if err := s.freeLotsOf(t.Context()); err != nil {
			t.Error(err)
		}
		h.pass(40 * 24 * time.Hour)
		s.expire(t)
		if left := s.all(t, id); len(left) != 0 {
			t.Errorf("%d are left after their day", len(left))
		}
	}})
	if err != nil || rows < 200 {
		t.Fatal(rows, err)
	}
	dir := filepath.Join(fastDir(t), "restored")
	if err := RestoreQueue(t.Context(), dir, bytes.NewReader(stream.Bytes())); err != nil {
		t.Fatal(err)
	}
	if report, err := VerifyQueue(dir); err != nil || len(report.Faults) > 0 || report.Envelopes != 100 || report.Boxes != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	if err := RestoreQueue(t.Context(), dir, bytes.NewReader(stream.Bytes())); err == nil {
		t.Error("restored over a mailbox")
	}
	cfg.Dir = dir
	cfg.Clock = newHands()
	again := open(t, cfg)
	now := again.all(t, id)
	if len(now) != len(was) {
		t.Fatalf("%d envelopes, %d were there", len(now), len(was))
	}
	for i := range was {
		if now[i].ID != was[i].ID || !bytes.Equal(now[i].Envelope, was[i].Envelope) {
			t.Fatalf("envelope %d is another", i)
		}
	}
	again.mustPut(t, id, 150)
	if list := again.all(t, id); list[len(list)-1].ID <= was[len(was)-1].ID+50 {
		t.Error("a number that was given out after the backup is given out again")
	}
	if stats := again.Stats(); stats.Damaged != 0 || stats.Unaccounted != 0 {
		t.Errorf("%v", stats.Damage)
	}
	again.wantSound(t)
}

func TestABackupThatIsCutOrChangedIsRefused(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 3)
	var stream bytes.Buffer
	if _, err := s.Backup(t.Context(), &stream); err != nil {
		t.Fatal(err)
	}
	nothing := func(_, _ []byte) error { return nil }
	whole := stream.Bytes()
	if err := readRows(bytes.NewReader(whole), nothing); err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		if err := readRows(bytes.NewReader(whole[:n]), nothing); !errors.Is(err, ErrCutBackup) && !errors.Is(err, ErrNoBackup) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		changed := bytes.Clone(whole)
		changed[n] ^= 1
		if err := readRows(bytes.NewReader(changed), nothing); err == nil {
			t.Fatalf("byte %d changed: taken", n)
		}
	}
	dir := filepath.Join(fastDir(t), "cut")
	if err := RestoreQueue(t.Context(), dir, bytes.NewReader(whole[:len(whole)-1])); !errors.Is(err, ErrCutBackup) {
		t.Error(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, err := s.Backup(ended, io.Discard); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	s.stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Backup(t.Context(), io.Discard); err == nil {
		t.Error("backed up a closed queue")
	}
}

func FuzzReadRows(f *testing.F) {
	var b bytes.Buffer
	w := newRowWriter(&b)
	if err := errors.Join(w.row([]byte("key"), []byte("value")), w.end()); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add(b.Bytes()[:20])
	f.Fuzz(func(t *testing.T, b []byte) {
		var out bytes.Buffer
		w := newRowWriter(&out)
		if readRows(bytes.NewReader(b), w.row) == nil {
			if err := w.end(); err != nil || !bytes.HasPrefix(b, out.Bytes()) {
				t.Fatalf("%v: reads as something else", err)
			}
		}
	})
}

func TestTheCeilingAndTheVouchersAreTheOperatorsToChange(t *testing.T) {
	cfg, h := testConfig(t)
	s := open(t, cfg)
	if err := s.SetCeiling(100 << 20); err != nil || s.Limits().Ceiling != 100<<20 || s.Stats().Open.Limit != 30<<20 {
		t.Errorf("%v, %+v", err, s.Limits())
	}
	if err := s.SetCeiling(0); err == nil {
		t.Error("a ceiling of nothing is taken")
	}
	for code, until := range map[string]time.Time{"a": {}, "b": h.Now().Add(time.Hour), "c": h.Now().Add(3 * time.Hour)} {
		if err := s.AddVoucher([]byte(code), until); err != nil {
			t.Fatal(err)
		}
	}
	h.pass(2 * time.Hour)
	if good, over, err := s.Vouchers(); good != 2 || over != 1 || err != nil {
		t.Error(good, over, err)
	}
	if err := s.ForgetVouchers(); err != nil {
		t.Fatal(err)
	}
	if good, over, err := s.Vouchers(); good != 2 || over != 0 || err != nil {
		t.Error(good, over, err)
	}
	wantErr(t, s.SpendVoucher([]byte("b")), wire.ErrRefused)
	if HasQueue(filepath.Dir(cfg.Dir)) || !HasQueue(cfg.Dir) {
		t.Error("a queue is not told from what is none")
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(cfg.Dir), sentinelName)); err == nil {
		t.Error("looking made one")
	}
}
