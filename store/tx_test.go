package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// TestATransactionIsAMap drives overlay, commit, iterators and failing functions against a plain map.
func TestATransactionIsAMap(t *testing.T) {
	cfg := testConfig(t)
	cfg.InMemory = true
	names := rapid.SampledFrom([]string{"a", "a\x00", "aa", "ab", "b", "ba", "c", "\xff", "\xff\xff"})
	rapid.Check(t, func(rt *rapid.T) {
		s := open(t, cfg)
		model := map[string]string{}
		for range rapid.IntRange(1, 6).Draw(rt, "batches") {
			var pending []*Pending
			for range rapid.IntRange(1, 5).Draw(rt, "functions") {
				pending = append(pending, s.Submit(randomFunction(rt, names, model)))
			}
			for _, p := range pending {
				if err := p.Wait(); err != nil && !errors.Is(err, errWanted) {
					rt.Fatal(err)
				}
			}
			if err := s.View(func(tx *Tx) error { return sameAsMap(tx, model) }); err != nil {
				rt.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			rt.Fatal(err)
		}
	})
}

var errWanted = errors.New("this function fails")

// randomFunction draws a list of writes and checks after each what the transaction shows.
func randomFunction(rt *rapid.T, names *rapid.Generator[string], model map[string]string) func(*Tx) error {
	type op struct {
		name, value string
		del         bool
	}
	var ops []op
	for range rapid.IntRange(1, 6).Draw(rt, "ops") {
		ops = append(ops, op{names.Draw(rt, "name"), rapid.String().Draw(rt, "value"), rapid.Bool().Draw(rt, "delete")})
	}
	fails := rapid.IntRange(0, 3).Draw(rt, "fails") == 0
	return func(tx *Tx) error {
		mine := maps.Clone(model)
		for _, o := range ops {
			if o.del {
				delete(mine, o.name)
				if err := tx.DeleteSetting(o.name); err != nil {
					return err
				}
			} else {
				mine[o.name] = o.value
				if err := tx.PutSetting(o.name, []byte(o.value)); err != nil {
					return err
				}
			}
			if err := sameAsMap(tx, mine); err != nil {
				return err
			}
		}
		if fails {
			return errWanted
		}
		clear(model)
		maps.Copy(model, mine)
		return nil
	}
}

// sameAsMap compares what a transaction shows, by name, in both directions and from each key on.
func sameAsMap(tx *Tx, model map[string]string) error {
	for name, want := range model {
		if got, err := tx.Setting(name); err != nil || string(got) != want {
			return fmt.Errorf("setting %q is %q, %w, want %q", name, got, err, want)
		}
	}
	sorted := slices.Sorted(maps.Keys(model))
	for _, reverse := range []bool{false, true} {
		want := slices.Clone(sorted)
		if reverse {
			slices.Reverse(want)
		}
		for start := -1; start < len(want); start++ {
			sc, expect := scan{prefix: key(tSetting), reverse: reverse}, want
			if start >= 0 {
				sc.from, expect = key(tSetting, []byte(want[start])), want[start:]
			}
			var got []string
			err := tx.iterate(sc, func(k, plain []byte) (bool, error) {
				if string(plain) != model[string(k[1:])] {
					return false, fmt.Errorf("iterator shows %q under %q", plain, k)
				}
				got = append(got, string(k[1:]))
				return true, nil
			})
			if err != nil {
				return err
			}
			if !slices.Equal(got, expect) {
				return fmt.Errorf("iterator (reverse %v) shows %q, want %q", reverse, got, expect)
			}
		}
	}
	return nil
}

func TestFunctionsOfOneBatchSeeEachOther(t *testing.T) {
	s := open(t, testConfig(t))
	first := s.Submit(func(tx *Tx) error { return tx.PutContact(Contact{Account: id32(1), Name: "Ana"}) })
	second := s.Submit(func(tx *Tx) error {
		if _, err := tx.ContactByName("ana"); err != nil {
			return err
		}
		if err := tx.PutContact(Contact{Account: id32(2), Name: "ANA"}); !errors.Is(err, ErrNameTaken) {
			return fmt.Errorf("the name was not taken: %v", err)
		}
		list, err := tx.Contacts()
		if len(list) != 1 {
			return fmt.Errorf("%d contacts: %w", len(list), err)
		}
		return tx.PutContact(Contact{Account: id32(2), Name: "Bob"})
	})
	for _, p := range []*Pending{first, second} {
		if err := p.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Stats().Commits; n != 1 {
		t.Fatalf("%d commits for one batch", n)
	}
}

func TestAFailingFunctionLosesOnlyItsOwnWrites(t *testing.T) {
	s := open(t, testConfig(t))
	ran := false
	put := func(name string, fail error) *Pending {
		return s.Submit(func(tx *Tx) error {
			tx.AfterCommit(func() { ran = ran || fail != nil })
			if _, err := tx.AppendEvent(name, nil); err != nil {
				return err
			}
			if err := tx.PutSetting(name, []byte(name)); err != nil {
				return err
			}
			return fail
		})
	}
	one, two, three := put("one", nil), put("two", errWanted), put("three", nil)
	wantErr(t, one.Wait(), nil)
	wantErr(t, two.Wait(), errWanted)
	wantErr(t, three.Wait(), nil)
	if ran {
		t.Fatal("the failing function's hook ran")
	}
	view(t, s, func(tx *Tx) error {
		all, err := tx.Settings()
		if len(all) != 2 || all["two"] != nil {
			t.Fatalf("settings are %q", all)
		}
		events, err2 := tx.EventsAfter(0, 0)
		if len(events) != 2 || events[0].Seq != 1 || events[1].Seq != 2 || events[1].Kind != "three" {
			t.Fatalf("events are %+v", events)
		}
		return errors.Join(err, err2)
	})
}

func TestHooksRunAfterTheCommitAndBeforeTheAnswer(t *testing.T) {
	s := open(t, testConfig(t))
	durable := false
	update(t, s, func(tx *Tx) error {
		tx.AfterCommit(func() {
			durable = s.View(func(tx *Tx) error { _, err := tx.Setting("x"); return err }) == nil
		})
		return tx.PutSetting("x", []byte("y"))
	})
	if !durable {
		t.Fatal("the hook ran before the commit, or not at all")
	}
}

func TestManyWritersShareCommitsAndLoseNothing(t *testing.T) {
	s := open(t, testConfig(t))
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := range 50 {
				err := s.Update(func(tx *Tx) error {
					n, err := tx.Setting("sum")
					if err != nil && !errors.Is(err, ErrNotFound) {
						return err
					}
					if _, err := tx.AppendEvent("e", nil); err != nil {
						return err
					}
					return errors.Join(tx.PutSetting("sum", append(n, 'x')), tx.PutSetting(fmt.Sprint(w, i), nil))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	view(t, s, func(tx *Tx) error {
		all, err := tx.Settings()
		if len(all) != 801 || !bytes.Equal(all["sum"], bytes.Repeat([]byte("x"), 800)) {
			t.Fatalf("%d settings, sum %d", len(all), len(all["sum"]))
		}
		events, err2 := tx.EventsAfter(0, 1000)
		if len(events) != 800 || events[799].Seq != 800 {
			t.Fatalf("%d events", len(events))
		}
		return errors.Join(err, err2)
	})
	if st := s.Stats(); st.Commits >= st.Updates || st.Updates != 800 {
		t.Fatalf("%d commits for %d updates", st.Commits, st.Updates)
	}
}

func TestABatchTooLargeForOneTransactionIsSplit(t *testing.T) {
	s := open(t, testConfig(t))
	var pending []*Pending
	for i := range 40 {
		pending = append(pending, s.Submit(func(tx *Tx) error {
			if i > 0 {
				if _, err := tx.Setting(fmt.Sprint(i - 1)); err != nil { // the one before, committed or not
					return err
				}
			}
			if _, err := tx.AppendEvent("e", nil); err != nil {
				return err
			}
			return tx.PutSetting(fmt.Sprint(i), make([]byte, 100_000))
		}))
	}
	for i, p := range pending {
		if err := p.Wait(); err != nil {
			t.Fatal(i, err)
		}
	}
	if st := s.Stats(); st.Commits < 4 || st.Updates != 40 || st.Events != 40 {
		t.Fatalf("%+v", st)
	}
}

func TestOneTransactionTooLargeIsRefused(t *testing.T) {
	s := open(t, testConfig(t))
	wantErr(t, s.Update(func(tx *Tx) error { return tx.PutSetting("x", make([]byte, 1<<20)) }), ErrTooLarge)
	wantErr(t, s.Update(func(tx *Tx) error { return tx.PutSetting(string(make([]byte, 2000)), nil) }), ErrTooLarge)
	wantErr(t, s.Update(func(tx *Tx) error {
		return errors.Join(tx.PutSetting("x", make([]byte, 1<<19)), tx.PutSetting("y", make([]byte, 1<<19)))
	}), ErrTooLarge)
	wantErr(t, s.Update(func(tx *Tx) error {
		for i := range batchRows + 1 {
			if err := tx.PutSetting(fmt.Sprint(i), nil); err != nil {
				return err
			}
		}
		return nil
	}), ErrTooLarge)
	update(t, s, func(tx *Tx) error { return tx.PutSetting("x", make([]byte, maxRow)) })
	update(t, s, func(tx *Tx) error {
		for i := range batchRows - 10 {
			if err := tx.PutSetting(fmt.Sprint(i), nil); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestAViewIsASnapshotAndTakesNoWrites(t *testing.T) {
	s := open(t, testConfig(t))
	update(t, s, func(tx *Tx) error { return tx.PutSetting("x", []byte("1")) })
	view(t, s, func(tx *Tx) error {
		update(t, s, func(tx *Tx) error { return tx.PutSetting("x", []byte("2")) })
		if got, _ := tx.Setting("x"); string(got) != "1" {
			t.Fatalf("the view sees %q", got)
		}
		if tx.PutSetting("x", nil) == nil || tx.DeleteSetting("x") == nil || tx.Reserve(id16(1), 0, 0) == nil {
			t.Fatal("a view took a write")
		}
		return nil
	})
}

func TestAClosedStoreTakesNothing(t *testing.T) {
	s := open(t, testConfig(t))
	queued := s.Submit(func(tx *Tx) error { return tx.PutSetting("queued", nil) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, queued.Wait(), nil)
	wantErr(t, s.Update(func(*Tx) error { return nil }), errClosed)
	wantErr(t, s.View(func(*Tx) error { return nil }), errClosed)
	wantErr(t, s.Close(), nil)
}

func TestWhatIsWrittenIsThereAfterARestart(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	update(t, s, func(tx *Tx) error {
		_, err := tx.AppendEvent("e", map[string]int{"n": 1})
		return errors.Join(err, tx.PutSetting("x", []byte("y")), tx.PutSecret(SecretRow{Name: "s", Value: []byte("v")}))
	})
	for range 3 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, cfg)
		view(t, s, func(tx *Tx) error {
			x, err := tx.Setting("x")
			row, err2 := tx.GetSecret("s")
			if string(x) != "y" || string(row.Value) != "v" || s.LastSeq() != 1 {
				t.Fatalf("x is %q, s is %q, last event %d", x, row.Value, s.LastSeq())
			}
			return errors.Join(err, err2)
		})
	}
}
