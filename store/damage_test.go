package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dgraph-io/badger/v4"
)

const (
	flushed = 900 // messages in tables
	logged  = 300 // messages only in the write-ahead log
)

// killedStore is a directory as a killed process leaves it: tables from orderly runs, a log with acknowledged writes.
func killedStore(t testing.TB) Config {
	t.Helper()
	cfg := testConfig(t)
	cfg.Dir = fastDir(t) + "/live"
	for part := range 3 {
		s := open(t, cfg)
		putMessages(t, s, id16(1), part*flushed/3+1, flushed/3)
		update(t, s, func(tx *Tx) error {
			return errors.Join(tx.PutContact(Contact{Account: id32(1), Name: "ana"}), tx.PutContactSecret(id32(1), []byte("s")),
				tx.PutSession(Session{ID: id16(2), Account: id32(1), State: []byte("old")}), tx.Reserve(id16(2), 0, uint32(part)))
		})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, cfg)
	for i := range logged {
		update(t, s, func(tx *Tx) error {
			_, err := tx.AppendEvent("e", nil)
			return errors.Join(err, tx.PutMessage(testMessage(id16(1), flushed+1+i)), tx.Reserve(id16(2), 1, uint32(i)),
				tx.PutSession(Session{ID: id16(2), Account: id32(1), State: []byte("new")}))
		})
	}
	dead := cfg
	dead.Dir = filepath.Dir(cfg.Dir) + "/dead"
	for copied := false; !copied; { // again when the engine changed its tables meanwhile
		if err := os.RemoveAll(dead.Dir); err != nil {
			t.Fatal(err)
		}
		before := engineNames(t, cfg.Dir)
		copyDir(t, cfg.Dir, dead.Dir)
		copied = before == engineNames(t, cfg.Dir)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dead
}

// copyDir copies a directory, leaving the holes of sparse files as they are.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		target := to + strings.TrimPrefix(path, from)
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the caller looks whether the engine was at work
		}
		if err != nil {
			return err
		}
		f, err := os.Create(target)
		if err != nil {
			return err
		}
		used := len(bytes.TrimRight(b, "\x00"))
		_, err = f.Write(b[:used])
		return errors.Join(err, f.Truncate(int64(len(b))), f.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// edit changes a file's content.
func edit(t testing.TB, path string, change func(b []byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, change(b), 0o600); err != nil {
		t.Fatal(err)
	}
}

func flipAt(share float64) func(b []byte) []byte {
	return func(b []byte) []byte {
		used := len(bytes.TrimRight(b, "\x00"))
		b[int(float64(used)*share)] ^= 0x10
		return b
	}
}

func cutAt(share float64) func(b []byte) []byte {
	return func(b []byte) []byte { return b[:int(float64(len(bytes.TrimRight(b, "\x00")))*share)] }
}

func empty([]byte) []byte   { return nil }
func garbage([]byte) []byte { return bytes.Repeat([]byte("garbage "), 100) }

func TestDamageIsNeverSilentAndTheRestIsSalvaged(t *testing.T) {
	source := killedStore(t)
	for _, c := range []struct {
		name   string
		file   func(dir string) string
		change func([]byte) []byte // nil deletes
		stops  bool                // nothing can be opened: only salvage reads on
		least  int                 // messages salvage must bring back
	}{
		{"log flipped at the start", mem, flipAt(0.01), false, flushed + logged - 2},
		{"log flipped in the middle", mem, flipAt(0.5), false, flushed + logged - 2},
		{"log flipped at the end", mem, flipAt(0.999), false, flushed + logged - 2},
		{"log cut in the middle", mem, cutAt(0.5), false, flushed + logged*2/5},
		{"log without content", mem, empty, false, flushed},
		{"log deleted", mem, nil, false, flushed},
		{"log turned to garbage", mem, garbage, false, flushed},
		{"oldest table flipped", oldest, flipAt(0.3), false, logged + flushed/3},
		{"newest table flipped", newest, flipAt(0.6), false, logged + flushed/3},
		{"table's footer flipped", newest, flipAt(0.9999), false, logged},
		{"table cut", newest, cutAt(0.5), false, logged},
		{"table cut to nothing", newest, empty, false, logged},
		{"table cut to ten bytes", newest, func(b []byte) []byte { return b[:10] }, false, logged},
		{"table deleted", newest, nil, false, logged},
		{"table turned to garbage", oldest, garbage, false, logged},
		{"manifest flipped", in("db/MANIFEST"), flipAt(0.5), true, flushed + logged},
		{"manifest cut", in("db/MANIFEST"), cutAt(0.5), false, logged},
		{"manifest without content", in("db/MANIFEST"), empty, true, flushed + logged},
		{"manifest turned to garbage", in("db/MANIFEST"), garbage, true, flushed + logged},
		{"manifest deleted", in("db/MANIFEST"), nil, true, flushed + logged},
		{"key registry flipped", in("db/KEYREGISTRY"), flipAt(0.2), true, flushed + logged},
		{"key registry cut", in("db/KEYREGISTRY"), cutAt(0.2), true, flushed + logged},
		{"key registry cut behind its head", in("db/KEYREGISTRY"), func(b []byte) []byte { return b[:28] }, false, flushed + logged},
		{"key registry turned to garbage behind its head", in("db/KEYREGISTRY"), func(b []byte) []byte {
			return append(b[:registryHead:registryHead], bytes.Repeat([]byte{0xf0}, 100)...)
		}, true, flushed + logged},
		{"key registry deleted", in("db/KEYREGISTRY"), nil, true, flushed + logged},
		{"sentinel flipped", in("sentinel"), flipAt(0.5), true, flushed + logged},
		{"sentinel deleted", in("sentinel"), nil, true, flushed + logged},
		{"key page deleted", in("vault.keys"), nil, true, flushed + logged},
		{"key page cut", in("vault.keys"), cutAt(0.5), true, flushed + logged},
		{"key page without content", in("vault.keys"), empty, true, flushed + logged},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cfg := source
			cfg.Dir = fastDir(t) + "/copy"
			copyDir(t, source.Dir, cfg.Dir)
			if c.change == nil {
				if err := os.Remove(c.file(cfg.Dir)); err != nil {
					t.Fatal(err)
				}
			} else {
				edit(t, c.file(cfg.Dir), c.change)
			}
			checkNoticed(t, cfg, c.stops)
			checkSalvage(t, cfg, c.least)
		})
	}
}

func in(name string) func(string) string {
	return func(dir string) string { return filepath.Join(dir, name) }
}
func mem(dir string) string    { return engineFile(dir, ".mem", true) }
func newest(dir string) string { return engineFile(dir, ".sst", true) }
func oldest(dir string) string { return engineFile(dir, ".sst", false) }

func engineFile(dir, suffix string, newest bool) string {
	names, err := engineFiles(dir, suffix)
	if err != nil || len(names) == 0 {
		return "missing" + suffix
	}
	if newest {
		return names[len(names)-1]
	}
	return names[0]
}

// checkNoticed opens a damaged store: an error, or reading only, and in both cases what to do.
func checkNoticed(t *testing.T, cfg Config, stops bool) {
	t.Helper()
	before := engineNames(t, cfg.Dir)
	s, err := Open(context.Background(), cfg)
	if err != nil {
		wantErr(t, err, ErrDamaged)
		if !strings.Contains(err.Error(), "salvage") {
			t.Errorf("the error does not say what to do: %v", err)
		}
		if !stops {
			t.Errorf("nothing can be read: %v", err)
		}
	} else {
		if stops || len(s.Damage()) == 0 {
			t.Errorf("opened with damage %v", s.Damage())
		}
		wantErr(t, s.Update(func(tx *Tx) error { return tx.PutSetting("x", nil) }), ErrDamaged)
		view(t, s, func(tx *Tx) error { _, err := tx.Messages(id16(1), MessagesQuery{}); return err })
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		s, err = Open(context.Background(), cfg)
		if err != nil || len(s.Damage()) == 0 {
			t.Errorf("the second open forgot the damage: %v", err)
		}
		if err == nil {
			_ = s.Close()
		}
	}
	if _, err := os.Lstat(cfg.path(readableDir)); err == nil {
		t.Error("the readable copy was left behind")
	}
	if after := engineNames(t, cfg.Dir); after != before {
		t.Errorf("a damaged store was changed:\n%s\n%s", before, after)
	}
}

func engineNames(t testing.TB, dir string) (out string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, engineDir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		out += fmt.Sprint(e.Name(), " ", info.Size(), " ")
	}
	return out
}

func checkSalvage(t *testing.T, cfg Config, least int) {
	t.Helper()
	to := cfg
	to.Dir = filepath.Dir(cfg.Dir) + "/salvaged"
	report, err := Salvage(context.Background(), cfg.Dir, to)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, to)
	if deep, err := s.Deep(context.Background()); err != nil || len(deep.Damage) > 0 {
		t.Fatalf("the salvaged store is damaged: %v %v", deep.Damage, err)
	}
	view(t, s, func(tx *Tx) error {
		list, err := tx.Messages(id16(1), MessagesQuery{})
		if len(list) < least {
			t.Errorf("%d messages salvaged, want %d; %+v", len(list), least, report)
		}
		for _, m := range list {
			if n := int(binary.BigEndian.Uint64(m.ID[8:])); m.Text != testMessage(id16(1), n).Text {
				t.Errorf("message %d came back as %q", n, m.Text)
			}
		}
		if lost := flushed + logged - len(list); report.Holes > lost || report.Kept["message"] != len(list) || len(report.Damage) == 0 && lost > 2 {
			t.Errorf("%d messages of %d are there, the report says %+v", len(list), flushed+logged, report)
		}
		_, err2 := tx.EventsAfter(0, 0)
		return errors.Join(err, err2)
	})
	var session Session
	missing := s.View(func(tx *Tx) (err error) { session, err = tx.Session(id16(2)); return err })
	if missing == nil {
		wantErr(t, s.Update(func(tx *Tx) error { return tx.Reserve(session.ID, 1, 5000) }), ErrRolledBack)
	}
	update(t, s, func(tx *Tx) error {
		m := testMessage(id16(1), 100_000)
		return errors.Join(tx.PutMessage(m), tx.Reserve(id16(77), 0, 0))
	})
}

func TestAnyFlippedBitOfATableIsFound(t *testing.T) {
	cfg := killedStore(t)
	k, err := deriveKeys(cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	rows, err := newSealer(k.row)
	if err != nil {
		t.Fatal(err)
	}
	files, err := openEngineFiles(cfg.Dir, k.db)
	if err != nil {
		t.Fatal(err)
	}
	defer files.close()
	random := rand.New(rand.NewPCG(1, 2))
	for _, table := range files.live {
		path := filepath.Join(cfg.Dir, engineDir, fmt.Sprintf("%06d.sst", table.id))
		if _, err := files.checkTable(table, &k, rows); err != nil {
			t.Fatal(err)
		}
		for range 60 {
			var at int
			edit(t, path, func(b []byte) []byte {
				at = random.IntN(len(b))
				b[at] ^= 1 << random.IntN(8)
				return b
			})
			files.read = 0
			if _, err := files.checkTable(table, &k, rows); err == nil {
				t.Errorf("a flip at %d passed", at)
			}
			edit(t, path, func(b []byte) []byte { b[at] ^= 0xff; return b })
			edit(t, path, func(b []byte) []byte { return restore(t, b, at, files, table, &k, rows) })
		}
	}
}

// restore finds the value of a byte that makes a table whole again.
func restore(t *testing.T, b []byte, at int, files *engineFileSet, table tableFile, k *keys, rows *sealer) []byte {
	t.Helper()
	path := filepath.Join(files.dir, fmt.Sprintf("%06d.sst", table.id))
	for bit := range 8 {
		try := bytes.Clone(b)
		try[at] ^= 0xff ^ 1<<bit
		if err := os.WriteFile(path, try, 0o600); err != nil {
			t.Fatal(err)
		}
		files.read = 0
		if _, err := files.checkTable(table, k, rows); err == nil {
			return try
		}
	}
	t.Fatal("the table cannot be restored")
	return nil
}

func TestAnyFlippedBitOfTheLogIsHarmlessOrFound(t *testing.T) {
	source := killedStore(t)
	random := rand.New(rand.NewPCG(3, 4))
	for range 12 {
		cfg := source
		cfg.Dir = fastDir(t) + "/copy"
		copyDir(t, source.Dir, cfg.Dir)
		edit(t, mem(cfg.Dir), func(b []byte) []byte {
			b[random.IntN(len(bytes.TrimRight(b, "\x00")))] ^= 1 << random.IntN(8)
			return b
		})
		s := open(t, cfg)
		if len(s.Damage()) > 0 {
			continue
		}
		view(t, s, func(tx *Tx) error {
			if list, err := tx.Messages(id16(1), MessagesQuery{}); len(list) != flushed+logged {
				t.Errorf("%d messages and no damage: %v", len(list), err)
			}
			return nil
		})
	}
}

func TestADatabaseTakenBackIsNoticed(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	write := func(s *Store, n uint32) {
		update(t, s, func(tx *Tx) error {
			return errors.Join(tx.PutSession(Session{ID: id16(1), Account: id32(1), State: u32(n)}), tx.Reserve(id16(1), 2, n))
		})
	}
	write(s, 10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	old := t.TempDir()
	copyDir(t, cfg.Dir, old)
	s = open(t, cfg)
	if chain, next, ok := s.Floor(id16(1)); chain != 2 || next != 11 || !ok {
		t.Fatalf("after an orderly stop the floor is %d %d", chain, next)
	}
	write(s, 200)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	t.Run("only the engine's files are older", func(t *testing.T) {
		now := cfg
		now.Dir = t.TempDir() + "/store"
		copyDir(t, cfg.Dir, now.Dir)
		if err := os.RemoveAll(filepath.Join(now.Dir, engineDir)); err != nil {
			t.Fatal(err)
		}
		copyDir(t, filepath.Join(old, engineDir), filepath.Join(now.Dir, engineDir))
		if s := open(t, now); len(s.Damage()) == 0 {
			t.Fatal("nothing was noticed")
		}
	})
	t.Run("everything but the send floor is older", func(t *testing.T) {
		now := cfg
		now.Dir = t.TempDir() + "/store"
		copyDir(t, old, now.Dir)
		edit(t, filepath.Join(now.Dir, floorName), func([]byte) []byte {
			b, err := os.ReadFile(filepath.Join(cfg.Dir, floorName))
			if err != nil {
				t.Fatal(err)
			}
			return b
		})
		s := open(t, now)
		if chain, _, ok := s.Floor(id16(1)); !ok || chain <= 2 {
			t.Fatalf("the floor is chain %d: the session would go on", chain)
		}
		wantErr(t, s.Update(func(tx *Tx) error { return tx.Reserve(id16(1), 2, 11) }), ErrRolledBack)
		wantErr(t, s.Update(func(tx *Tx) error { return tx.Reserve(id16(1), 3, 0) }), ErrRolledBack)
		update(t, s, func(tx *Tx) error { return tx.Reserve(id16(2), 0, 0) }) // another session is not hindered
	})
}

func TestALostFloorLogResetsEverySession(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, path string){
		"deleted": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
		"flipped": func(t *testing.T, path string) { edit(t, path, flipAt(0.7)) },
		"emptied": func(t *testing.T, path string) { edit(t, path, empty) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			for i := range 3 {
				update(t, s, func(tx *Tx) error {
					return errors.Join(tx.PutSession(Session{ID: id16(i), Account: id32(1)}), tx.Reserve(id16(i), 0, 5))
				})
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			change(t, filepath.Join(cfg.Dir, floorName))
			s = open(t, cfg)
			for i := range 3 {
				wantErr(t, s.Update(func(tx *Tx) error { return tx.Reserve(id16(i), 0, 6) }), ErrRolledBack)
			}
			update(t, s, func(tx *Tx) error { return tx.Reserve(id16(9), 0, 6) })
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			wantErr(t, s.Update(func(tx *Tx) error { return tx.Reserve(id16(0), 0, 7) }), ErrRolledBack)
			update(t, s, func(tx *Tx) error { return tx.Reserve(id16(9), 0, 7) })
		})
	}
}

// rawUpdate changes rows behind the store's back, as an engine that lies would.
func rawUpdate(t *testing.T, s *Store, fn func(txn *badger.Txn) error) {
	t.Helper()
	if err := s.db.Update(fn); err != nil {
		t.Fatal(err)
	}
}

func TestARowThatChangedIsDamageWhenItIsRead(t *testing.T) {
	message := func(tx *Tx) error { _, err := tx.Message(id16(2)); return err }
	list := func(tx *Tx) error { _, err := tx.Messages(id16(1), MessagesQuery{}); return err }
	for _, c := range []struct {
		name   string
		change func(t *testing.T, s *Store)
		read   func(tx *Tx) error
	}{
		{"emptied", setRow(messageKey(id16(1), 2), nil), message},
		{"one bit of it", func(t *testing.T, s *Store) {
			changeRow(t, s, messageKey(id16(1), 2), func(b []byte) []byte { b[60] ^= 1; return b })
		}, list},
		{"put under another key", func(t *testing.T, s *Store) {
			changeRow(t, s, messageKey(id16(1), 1), func(b []byte) []byte { setRow(messageKey(id16(1), 2), b)(t, s); return b })
		}, message},
		{"gone", dropRow(messageKey(id16(1), 2)), list},
		{"its index emptied", setRow(placeOf(2), nil), list},
		{"its id gone from under a second copy", setRow(key(tMessageID, id16b(2)), []byte("junk")), message},
		{"a secret of an epoch that is gone", func(t *testing.T, s *Store) {
			changeRow(t, s, key(tSecret, []byte("s")), func(b []byte) []byte { b[8] ^= 0x40; return b })
		}, func(tx *Tx) error { _, err := tx.GetSecret("s"); return err }},
		{"the tail of a session gone", dropRow(key(tSessionTail, sessionName(1))), func(tx *Tx) error { _, err := tx.Session(id16(1)); return err }},
		{"the tail of a session of another age", func(t *testing.T, s *Store) {
			update(t, s, func(tx *Tx) error { return tx.putRaw(key(tSessionTail, sessionName(1)), []byte("longer")) })
		}, func(tx *Tx) error { _, err := tx.Session(id16(1)); return err }},
		{"an event gone", dropRow(key(tEvent, u64(2))), func(tx *Tx) error { _, err := tx.EventsAfter(0, 0); return err }},
		{"the newest event gone", dropRow(key(tEvent, u64(3))), func(tx *Tx) error { _, err := tx.EventsAfter(0, 0); return err }},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			putMessages(t, s, id16(1), 1, 3)
			update(t, s, func(tx *Tx) error {
				for range 3 {
					if _, err := tx.AppendEvent("e", nil); err != nil {
						return err
					}
				}
				return errors.Join(tx.PutSecret(SecretRow{Name: "s", Value: []byte("v")}), tx.PutSession(testSession(1)))
			})
			c.change(t, s)
			wantErr(t, s.View(c.read), ErrDamaged)
			if len(s.Damage()) == 0 {
				t.Fatal("the damage is not noted")
			}
			wantErr(t, s.Update(func(tx *Tx) error { return tx.PutSetting("x", nil) }), ErrDamaged)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			again := open(t, cfg) // not marked clean: the start looks again
			if deep, err := again.Deep(context.Background()); err != nil || len(deep.Damage) == 0 {
				t.Fatalf("a deep check finds nothing: %v", err)
			}
		})
	}
}

func setRow(k, value []byte) func(*testing.T, *Store) {
	return func(t *testing.T, s *Store) {
		rawUpdate(t, s, func(txn *badger.Txn) error { return txn.Set(k, value) })
	}
}

func dropRow(k []byte) func(*testing.T, *Store) {
	return func(t *testing.T, s *Store) { rawUpdate(t, s, func(txn *badger.Txn) error { return txn.Delete(k) }) }
}

func changeRow(t *testing.T, s *Store, k []byte, change func([]byte) []byte) {
	t.Helper()
	var b []byte
	err := s.db.View(func(txn *badger.Txn) error {
		item, err := txn.Get(k)
		if err != nil {
			return err
		}
		b, err = item.ValueCopy(nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	setRow(k, change(b))(t, s)
}

func TestAStartRecountsTheNewestMessages(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, s *Store)
		found  bool
	}{
		{"a row of the newest thousand lost with its index", func(t *testing.T, s *Store) {
			dropRow(messageKey(id16(1), 1900))(t, s)
			dropRow(placeOf(1900))(t, s)
		}, true},
		{"a row brought back", func(t *testing.T, s *Store) {
			setRow(messageKey(id16(1), 1901), s.rows.seal(s.ring, messageKey(id16(1), 1901), []byte{0xa0}))(t, s)
		}, true},
		{"the count lost", dropRow(blockKey(id16(1), 2000/blockRows)), true},
		{"an old row lost: for the deep check", dropRow(messageKey(id16(1), 20)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.Dir = fastDir(t) + "/store"
			s := open(t, cfg)
			putMessages(t, s, id16(1), 1, 2000)
			putMessages(t, s, id16(2), 5001, 10)
			c.change(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			if got := len(s.Damage()) > 0; got != c.found {
				t.Errorf("found at the start: %v, want %v: %v", got, c.found, s.Damage())
			}
			if deep, err := s.Deep(context.Background()); err != nil || len(deep.Damage) == 0 {
				t.Errorf("the deep check found nothing: %v", err)
			}
		})
	}
}

func TestADeepCheckOfAHealthyStoreFindsNothing(t *testing.T) {
	s := open(t, testConfig(t))
	putMessages(t, s, id16(1), 1, 700)
	update(t, s, func(tx *Tx) error { return tx.DeleteMessage(id16(300)) })
	update(t, s, func(tx *Tx) error { return workStep(tx, 9999) })
	report, err := s.Deep(context.Background())
	if err != nil || len(report.Damage) > 0 || report.Messages != 700 {
		t.Fatal(report, err)
	}
}

func TestATableThatAKillLeftBehindAfterItsCompactionIsNoDamage(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	putMessages(t, s, id16(1), 1, 100)
	update(t, s, func(tx *Tx) error {
		return tx.PutOutgoing(&Outgoing{Account: id32(1), MsgID: id16(1), Item: []byte{1}})
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	left := map[string][]byte{}
	names, err := engineFiles(cfg.Dir, ".sst")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		if left[name], err = os.ReadFile(name); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, cfg)
	update(t, s, func(tx *Tx) error {
		out, err := tx.Outgoings(id32(1), 1)
		return errors.Join(err, tx.DeleteOutgoing(id32(1), out[0].Order), tx.DeleteMessage(testMessage(id16(1), 1).ID))
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range 4 { // so many tables are compacted
		s = open(t, cfg)
		putMessages(t, s, id16(1), 101+i, 1)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, cfg)
	if err := errors.Join(s.db.Flatten(1), s.Close()); err != nil {
		t.Fatal(err)
	}
	for name, data := range left {
		if _, err := os.Stat(name); err == nil {
			t.Fatalf("%s was not compacted", name)
		}
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, cfg)
	if d := s.Damage(); len(d) > 0 {
		t.Fatal(d)
	}
	view(t, s, func(tx *Tx) error {
		n, err := tx.CountAllOutgoing()
		if _, gone := tx.Message(testMessage(id16(1), 1).ID); !errors.Is(gone, ErrNotFound) || n > 0 {
			t.Errorf("what was deleted is back: %d outgoing, %v", n, gone)
		}
		return err
	})
}

// The engine's own reader makes room for whatever length it finds: four damaged bytes cost it gigabytes.
func TestAKeyRegistryOfGarbageIsRefusedWithoutMakingRoomForIt(t *testing.T) {
	for name, change := range map[string]func(b []byte) []byte{
		"a length of four gigabytes": func(b []byte) []byte {
			binary.BigEndian.PutUint32(b[registryHead:], 1<<32-1)
			return b
		},
		"a data key cut short":    func(b []byte) []byte { return b[:len(b)-1] },
		"a length without a key":  func(b []byte) []byte { return append(b, 0, 0, 0) },
		"a changed data key":      func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"garbage without an end":  func([]byte) []byte { return bytes.Repeat([]byte("garbage "), mostRegistry/8+1) },
		"garbage of its own size": func(b []byte) []byte { return bytes.Repeat([]byte{0xa5}, len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			if err := open(t, cfg).Close(); err != nil {
				t.Fatal(err)
			}
			registry := filepath.Join(cfg.Dir, engineDir, badger.KeyRegistryFileName)
			edit(t, registry, change)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := Open(context.Background(), cfg)
			runtime.ReadMemStats(&after)
			wantErr(t, err, ErrDamaged)
			if !strings.Contains(err.Error(), registry) {
				t.Errorf("the error does not name the file: %v", err)
			}
			if used := after.TotalAlloc - before.TotalAlloc; used > 32<<20 {
				t.Errorf("it took %d MiB to say so", used>>20)
			}
		})
	}
}

func id32b(n int) []byte { id := id32(n); return id[:] }

func TestASalvageTellsWhatWasLostAndWhose(t *testing.T) {
	cfg := testConfig(t)
	cfg.Dir = fastDir(t) + "/store"
	s := open(t, cfg)
	update(t, s, func(tx *Tx) error {
		return errors.Join(
			tx.PutSelf(Self{}),
			tx.PutContact(Contact{Account: id32(1), Name: "Ana", Conv: id16(1)}),
			tx.PutContact(Contact{Account: id32(2), Name: "Ben", Conv: id16(2)}),
			tx.PutContact(Contact{Account: id32(3), Name: "Cem", Conv: id16(3)}),
			tx.PutSession(Session{ID: id16(8), Account: id32(1)}),
			tx.PutSession(Session{ID: id16(9), Account: id32(2)}))
	})
	for conv := range 3 {
		putMessages(t, s, id16(conv+1), 1000*conv+1, 300)
	}
	update(t, s, func(tx *Tx) error { return tx.DeleteMessage(id16(7)) })
	for _, lose := range [][]byte{
		messageKey(id16(1), 8), messageKey(id16(1), 290), messageKey(id16(2), 1), key(tTally, id16b(2)), // Ben's count goes with it
		messageKey(id16(3), 5), key(tContact, id32b(3)), key(tSession, id32b(2), make([]byte, 16), id16b(9)),
	} {
		dropRow(lose)(t, s)
	}
	setRow(messageKey(id16(1), 9), []byte("junk"))(t, s) // of this one an older version is there
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	to := cfg
	to.Dir = fastDir(t) + "/salvaged"
	report, err := Salvage(context.Background(), cfg.Dir, to)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]Loss{
		"message Ana":  {Kind: "message", Of: "Ana", Kept: 299 - 2, Lost: 2},
		"message Ben":  {Kind: "message", Of: "Ben", Kept: 299, Lost: 1},
		"contact cem":  {Kind: "contact", Of: "cem", Kept: 2, Lost: 1},
		"session ":     {Kind: "session", Kept: 1, Lost: 1},
		"message lost": {Kind: "message", Kept: 299, Lost: 1},
	}
	for _, got := range report.Lost {
		name := got.Kind + " " + got.Of
		if strings.Contains(got.Of, "lost contact") {
			name, got.Of = "message lost", ""
		}
		if want[name] != got {
			t.Errorf("%s: got %+v, want %+v", name, got, want[name])
		}
		delete(want, name)
	}
	if len(want) > 0 || report.Holes != 4 || report.Older != 1 || report.Kept["contact"] != 2 || report.Kept["message"] != 299-2+299+299 {
		t.Errorf("not told: %+v; %+v", want, report)
	}
	s = open(t, to)
	if deep, err := s.Deep(context.Background()); err != nil || len(deep.Damage) > 0 {
		t.Fatal(deep, err)
	}
	update(t, s, func(tx *Tx) error { return tx.PutContact(Contact{Account: id32(5), Name: "Cem"}) })
}

func TestASalvageEndsTheWaitingOfAMessageThatNothingWouldSend(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	update(t, s, func(tx *Tx) error {
		err := tx.PutContact(Contact{Account: id32(1), Name: "Ana", Conv: id16(1)})
		for n, state := range []string{"queued", "queued", "delivered", "read"} {
			m := testMessage(id16(1), n+1)
			m.Out, m.State = true, state
			err = errors.Join(err, tx.PutMessage(m))
			if state == "queued" {
				err = errors.Join(err, tx.PutOutgoing(&Outgoing{Account: id32(1), MsgID: m.ID}))
			}
		}
		return err
	})
	dropRow(outgoingKey(id32(1), 2))(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	to := cfg
	to.Dir = t.TempDir() + "/salvaged"
	report, err := Salvage(context.Background(), cfg.Dir, to)
	if err != nil || !slices.Contains(report.Lost, Loss{Kind: "outbox entry", Of: "Ana", Lost: 1}) {
		t.Fatalf("%+v, %v", report, err)
	}
	s = open(t, to)
	if deep, err := s.Deep(context.Background()); err != nil || len(deep.Damage) > 0 {
		t.Fatal(deep, err)
	}
	view(t, s, func(tx *Tx) error {
		list, err := tx.Messages(id16(1), MessagesQuery{})
		var states []string
		for _, m := range list {
			states = append(states, m.State)
			if (m.State == "failed") != (m.Why != "") {
				t.Errorf("%s: %q", m.State, m.Why)
			}
		}
		if strings.Join(states, " ") != "queued failed delivered read" {
			t.Errorf("states %q", states)
		}
		return err
	})
}

func TestASalvageGivesNoNumberTwiceWhenTheNewestCountersAreLost(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	var old []byte
	event := func(tx *Tx) error { _, err := tx.AppendEvent("e", nil); return err }
	update(t, s, event)
	changeRow(t, s, key(tState), func(b []byte) []byte { old = bytes.Clone(b); return b })
	for range 4 {
		update(t, s, event)
	}
	update(t, s, func(tx *Tx) error { return tx.PutOutgoing(&Outgoing{Account: id32(1), MsgID: id16(1)}) })
	setRow(key(tState), old)(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	to := cfg
	to.Dir = t.TempDir() + "/salvaged"
	if _, err := Salvage(context.Background(), cfg.Dir, to); err != nil {
		t.Fatal(err)
	}
	s = open(t, to)
	update(t, s, func(tx *Tx) error {
		next := Outgoing{Account: id32(2), MsgID: id16(2)}
		err := tx.PutOutgoing(&next)
		list, err2 := tx.EventsAfter(0, 0)
		if last, _ := tx.LastSeq(); next.Order != 2 || len(list) != 6 || last != 6 { // the salvage's own event is the last
			t.Errorf("outbox entry %d, %d events up to %d", next.Order, len(list), last)
		}
		return errors.Join(err, err2)
	})
}

// testSession is a session with a tail.
func testSession(n int) Session {
	return Session{ID: id16(n), Account: id32(n), State: []byte("state of a tail"), Head: 11}
}

func sessionName(n int) []byte { row := testSession(n); return row.name() }

func TestASalvageLeavesNothingThatStopsTheMessenger(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	update(t, s, func(tx *Tx) (err error) {
		for n := 1; n <= 4; n++ {
			err = errors.Join(err, tx.PutContact(Contact{Account: id32(n), Name: fmt.Sprint("c", n), Conv: id16(n)}),
				tx.PutContactSecret(id32(n), []byte("s")), tx.PutPendingAdd(PendingAdd{ID: id16(n), Account: id32(n)}),
				tx.PutSession(testSession(n)), tx.PutSkipped(id16(n), 1, 1, id32(9), time.Now()))
			m := testMessage(id16(n), n)
			m.Out, m.State = true, "queued"
			err = errors.Join(err, tx.PutMessage(m), tx.PutOutgoing(&Outgoing{Account: id32(n), MsgID: m.ID, Talk: m.Conv, Row: m.Seq}))
		}
		return err
	})
	dropRow(key(tContact, id32b(1)))(t, s)
	dropRow(messageKey(id16(2), 1))(t, s)
	dropRow(key(tSession, sessionName(3)))(t, s)
	update(t, s, func(tx *Tx) error { return tx.putRaw(key(tSessionTail, sessionName(4)), []byte("of another age")) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	to := cfg
	to.Dir = t.TempDir() + "/salvaged"
	if _, err := Salvage(context.Background(), cfg.Dir, to); err != nil {
		t.Fatal(err)
	}
	s = open(t, to)
	if deep, err := s.Deep(context.Background()); err != nil || len(deep.Damage) > 0 {
		t.Fatal(deep, err)
	}
	got := map[string]int{}
	view(t, s, func(tx *Tx) error {
		sessions, err := tx.AllSessions()
		for _, row := range sessions {
			if _, err := tx.Contact(row.Account); err != nil || string(row.State) != "state of a tail" {
				t.Errorf("session %x: %q, %v", row.ID[:4], row.State, err)
			}
		}
		adds, err2 := tx.PendingAdds()
		accounts, err3 := tx.OutgoingAccounts()
		for _, acct := range accounts {
			waiting, err := tx.Outgoings(acct, 0)
			for _, out := range waiting {
				got["waiting"]++
				if _, err := tx.Message(out.MsgID); out.Control != errors.Is(err, ErrNotFound) {
					t.Errorf("entry for a message (%v) is control: %t", err, out.Control)
				}
			}
			err3 = errors.Join(err3, err)
		}
		skipped, err4 := tx.count(key(tSkipped))
		secrets, err5 := tx.count(key(tContactSecret))
		got["sessions"], got["adds"], got["skipped"], got["secrets"] = len(sessions), len(adds), skipped, secrets
		return errors.Join(err, err2, err3, err4, err5)
	})
	if want := map[string]int{"sessions": 1, "adds": 3, "waiting": 3, "skipped": 1, "secrets": 3}; !maps.Equal(got, want) {
		t.Errorf("left are %v, want %v", got, want)
	}
}
