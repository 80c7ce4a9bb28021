package mailbox

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sotto/wire"
)

const aDay = 24 * time.Hour

// days keeps for one day only, so that tests have fewer to pass.
func daysConfig(t testing.TB) (QueueConfig, *hands) {
	cfg, h := testConfig(t)
	cfg.Limits.KeepDays = 1
	return cfg, h
}

func (s *served) expire(t testing.TB) {
	t.Helper()
	if err := s.lookAtClock(); err != nil {
		t.Fatal(err)
	}
	if err := s.expireDay(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestADayGoesAsAWholeWhileSixtyFourWritersSeeNoError(t *testing.T) {
	cfg, h := daysConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{Vouched: true})
	s.grant(t, id, 0, 14_000)
	for i := range 300 {
		s.mustPut(t, id, i)
	}
	h.pass(aDay)
	for i := 300; i < 400; i++ {
		s.mustPut(t, id, i)
	}
	h.pass(aDay)
	var n atomic.Int64
	n.Store(400)
	var stopped atomic.Bool
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for !stopped.Load() {
				i := int(n.Add(1)) - 1
				if i >= 4000 {
					return
				}
				if err := s.put(id, i); err != nil {
					t.Errorf("deposit %d: %v", i, err)
					return
				}
			}
		})
	}
	s.expire(t)
	stopped.Store(true)
	wg.Wait()
	put := int(min(n.Load(), 4000))
	list := s.all(t, id)
	if len(list) != put-300 || list[0].ID != 301 {
		t.Fatalf("%d envelopes from %d on, %d were put", len(list), list[0].ID, put)
	}
	gone := uint16(wire.HeldUntil(someDay.Unix(), 1) / daySeconds)
	for _, row := range []byte{rowEnvelope, rowIndex, rowSpent, rowDay, rowLot} {
		if left, err := keysUnder(s.db.DB, dayPrefix(row, gone), 1); err != nil || len(left) > 0 {
			t.Errorf("%c rows are left: %v", row, err)
		}
	}
	if st, err := s.Standing(id); err != nil || st.UsedCount != uint32(put-300) || st.UsedBytes != uint64((put-300)*small+(14_000-300)*tokenBytes) {
		t.Fatalf("%+v %v", st, err)
	}
	wantErr(t, s.put(id, 0), wire.ErrRefused) // its receipt is past, and the token with it
	s.wantSound(t)
	s.stop()
	if r, err := VerifyQueue(cfg.Dir); err != nil || len(r.Faults) > 0 {
		t.Fatal(r, err)
	}
	open(t, cfg).wantSound(t)
}

func TestADayGoesOnlyWhenTwoClocksSayThatItIsOver(t *testing.T) {
	for name, c := range map[string]struct {
		wall, up time.Duration
		offset   time.Duration
		others   bool
		gone     bool
	}{
		"not over yet":                    {wall: 42 * time.Hour, up: 42 * time.Hour},
		"both clocks here":                {wall: 43 * time.Hour, up: 43 * time.Hour, gone: true},
		"the wall clock alone":            {wall: 43 * time.Hour, up: 20 * time.Hour},
		"the wall clock and others":       {wall: 43 * time.Hour, up: 20 * time.Hour, others: true, gone: true},
		"the wall clock, others deny it":  {wall: 43 * time.Hour, up: 20 * time.Hour, others: true, offset: -2 * time.Hour},
		"the wall clock behind":           {wall: 42 * time.Hour, up: 60 * time.Hour},
		"the wall clock behind, others":   {wall: 42 * time.Hour, up: 60 * time.Hour, others: true, offset: 9 * time.Hour},
		"a wall clock set ahead by a day": {wall: 60 * time.Hour, up: 30 * time.Hour, others: true},
		"a wall clock set back":           {wall: 43 * time.Hour, up: 44 * time.Hour, others: true},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, h := daysConfig(t)
			cfg.Offset = func() (time.Duration, bool) { return c.offset, c.others }
			s := open(t, cfg)
			id := s.register(t, 1, Admit{})
			s.grant(t, id, 0, 1)
			s.mustPut(t, id, 0)
			h.move(c.wall, c.up)
			if name == "the wall clock alone" || name == "the wall clock and others" || name == "the wall clock, others deny it" {
				h.move(-c.wall, -c.up)
				h.pass(c.up) // the rest of the time the machine was off
				s.stop()
				h.move(c.wall-c.up, 0)
				s = open(t, cfg)
			}
			s.expire(t)
			if gone := len(s.all(t, id)) == 0; gone != c.gone {
				t.Fatalf("gone: %v, paused: %q", gone, s.Stats().Paused)
			}
		})
	}
}

func TestAJumpOfTheClockStopsDeletionUntilSomebodyLooked(t *testing.T) {
	for name, jump := range map[string]time.Duration{"back": -2 * time.Minute, "ahead": 25 * time.Hour} {
		for _, restart := range []bool{false, true} {
			if restart && name == "ahead" {
				continue // a machine that was off looks the same
			}
			t.Run(fmt.Sprint(name, restart), func(t *testing.T) {
				cfg, h := daysConfig(t)
				s := open(t, cfg)
				id := s.register(t, 1, Admit{})
				s.grant(t, id, 0, 1)
				s.mustPut(t, id, 0)
				if restart {
					s.stop()
					h.move(jump, 0)
					s = open(t, cfg)
				} else {
					h.move(jump, 0)
				}
				s.expire(t)
				h.pass(3 * aDay)
				s.expire(t)
				if len(s.all(t, id)) != 1 || s.Stats().Paused == "" {
					t.Fatalf("%+v", s.Stats())
				}
				s.stop()
				s = open(t, cfg)
				if s.expire(t); len(s.all(t, id)) != 1 {
					t.Fatal("a restart forgot it")
				}
				if err := s.Resume(); err != nil {
					t.Fatal(err)
				}
				if s.expire(t); len(s.all(t, id)) != 0 || s.Stats().Paused != "" {
					t.Fatalf("%+v", s.Stats())
				}
			})
		}
	}
}

func TestOneDayGoesInAnHour(t *testing.T) {
	cfg, h := daysConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 4)
	for i := range 4 {
		s.mustPut(t, id, i)
		h.pass(aDay)
	}
	h.pass(aDay)
	for left := 3; left >= 0; left-- {
		s.expire(t)
		s.expire(t)
		if got := len(s.all(t, id)); got != left {
			t.Fatalf("%d are left, want %d", got, left)
		}
		h.pass(time.Hour)
	}
	s.wantSound(t)
}

func TestAClockAMonthBackTakesNothingIntoADayThatWent(t *testing.T) {
	cfg, h := daysConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 2)
	s.mustPut(t, id, 0)
	h.pass(3 * aDay)
	s.expire(t)
	h.move(-30*aDay, 0)
	wantErr(t, s.put(id, 1), wire.ErrLater)
	h.move(30*aDay, 0)
	s.mustPut(t, id, 1)
}

func TestEmptyBoxesGoAfterTheirTimeAndNeverWithMail(t *testing.T) {
	cfg, h := testConfig(t)
	s := open(t, cfg)
	never, once, full := s.register(t, 1, Admit{}), s.register(t, 2, Admit{}), s.register(t, 3, Admit{})
	s.grant(t, full, 0, 1)
	s.grant(t, never, 10, 5000)
	h.pass(10 * aDay)
	s.all(t, once)
	there := func(id wire.BoxID) bool {
		_, err := s.Standing(id)
		return err == nil
	}
	step := func(d time.Duration) {
		t.Helper()
		h.pass(d)
		if err := s.lookAtClock(); err != nil {
			t.Fatal(err)
		}
		if err := s.expireBoxes(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	s.mustPut(t, full, 0)
	step(3 * aDay)
	if !there(never) || !there(once) || !there(full) {
		t.Fatal("too early")
	}
	step(aDay)
	if there(never) || !there(once) || !there(full) {
		t.Fatal("14 days")
	}
	step(100 * aDay)
	s.stop()
	s = open(t, cfg)
	if step(aDay); !there(once) || !there(full) {
		t.Fatal("too early")
	}
	if step(16 * aDay); there(once) || !there(full) {
		t.Fatal("120 days")
	}
	s.expire(t)
	if step(0); there(full) {
		t.Fatal("its mail is gone")
	}
	if st := s.Stats(); st.Bytes != 0 || st.Boxes != 0 {
		t.Fatalf("%+v", st)
	}
	s.wantSound(t)
}

func TestTheDiskOfEnvelopesThatAreGoneIsGivenBackLongBeforeTheirDay(t *testing.T) {
	cfg, _ := testConfig(t)
	cfg.Limits.LotBytes = 1 << 20
	s := open(t, cfg)
	id := s.register(t, 1, Admit{Vouched: true})
	s.grant(t, id, 0, 2000)
	for i := range 2000 {
		s.mustPut(t, id, i)
	}
	list := s.all(t, id)
	kept := map[uint64]bool{}
	for i, m := range list {
		if i%100 == 7 && i < 1900 { // one or two in each lot
			kept[m.ID] = true
			continue
		}
		s.ack(t, id, m.ID)
	}
	if g := s.Stats().Garbage; g < 15<<20 {
		t.Fatal("garbage: ", g)
	}
	var stopped atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() { // somebody reads while envelopes move
		for !stopped.Load() {
			page, err := s.Fetch(id, 0, 0)
			if err != nil || len(page.Mail) != len(kept) {
				t.Errorf("%d envelopes, want %d: %v", len(page.Mail), len(kept), err)
				return
			}
		}
	})
	for range 40 {
		if err := s.freeLotsOf(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	stopped.Store(true)
	wg.Wait()
	st := s.Stats()
	if st.Garbage > 3<<20 || st.Tables > 6<<20 {
		t.Fatalf("%d garbage, %d in tables", st.Garbage, st.Tables)
	}
	check := func() {
		t.Helper()
		list := s.all(t, id)
		for _, m := range list {
			if !kept[m.ID] || string(m.Envelope) != string(envelope(int(m.ID)-1, small)) {
				t.Fatal("a wrong one: ", m.ID)
			}
		}
		if len(list) != len(kept) {
			t.Fatalf("%d of %d", len(list), len(kept))
		}
		s.wantSound(t)
	}
	check()
	s.stop()
	if r, err := VerifyQueue(cfg.Dir); err != nil || len(r.Faults) > 0 {
		t.Fatal(r, err)
	}
	s = open(t, cfg)
	check()
}
