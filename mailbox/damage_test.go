package mailbox

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/dgraph-io/badger/v4"

	"sotto/internal/engine"
	"sotto/wire"
)

const (
	flushed = 300 // envelopes in tables
	logged  = 100 // and in the engine's log
)

// killedQueue is a directory as a kill leaves it: tables, and a log with the newest envelopes. Nothing was acknowledged.
func killedQueue(t *testing.T) QueueConfig {
	t.Helper()
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{Vouched: true})
	s.grant(t, id, 0, flushed+logged)
	for i := range flushed {
		s.mustPut(t, id, i)
	}
	s.stop()
	s = open(t, cfg)
	for i := range logged {
		s.mustPut(t, id, flushed+i)
	}
	image := cfg
	image.Dir = fastDir(t) + "/image"
	copyDir(t, cfg.Dir, image.Dir)
	return image
}

func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// contents are the files of a directory by name.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		all[path] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	delete(all, filepath.Join(dir, lockName))
	return all
}

func newestFile(t *testing.T, cfg QueueConfig, suffix string) string {
	t.Helper()
	names, err := engine.Files(filepath.Join(cfg.Dir, engineDir), suffix)
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	return names[len(names)-1]
}

func edit(t *testing.T, path string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, change(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func flipAt(part float64) func([]byte) []byte {
	return func(b []byte) []byte {
		b[int(part*float64(len(b)))] ^= 0x40
		return b
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func TestFilesThatDoNotAgreeAreNotLetNearTheEngine(t *testing.T) {
	source := killedQueue(t)
	manifest := filepath.Join(engineDir, badger.ManifestFilename)
	for name, c := range map[string]struct {
		damage func(t *testing.T, cfg QueueConfig)
		want   error
	}{
		"no MANIFEST":      {func(t *testing.T, cfg QueueConfig) { remove(t, filepath.Join(cfg.Dir, manifest)) }, ErrDamaged},
		"MANIFEST flipped": {func(t *testing.T, cfg QueueConfig) { edit(t, filepath.Join(cfg.Dir, manifest), flipAt(0.4)) }, ErrDamaged},
		"MANIFEST garbage": {func(t *testing.T, cfg QueueConfig) {
			edit(t, filepath.Join(cfg.Dir, manifest), func([]byte) []byte { return []byte("garbage") })
		}, ErrDamaged},
		"no table":         {func(t *testing.T, cfg QueueConfig) { remove(t, newestFile(t, cfg, ".sst")) }, ErrDamaged},
		"no sentinel":      {func(t *testing.T, cfg QueueConfig) { remove(t, filepath.Join(cfg.Dir, sentinelName)) }, ErrDamaged},
		"sentinel flipped": {func(t *testing.T, cfg QueueConfig) { edit(t, filepath.Join(cfg.Dir, sentinelName), flipAt(0.6)) }, ErrDamaged},
		"sentinel cut": {func(t *testing.T, cfg QueueConfig) {
			edit(t, filepath.Join(cfg.Dir, sentinelName), func(b []byte) []byte { return b[:12] })
		}, ErrDamaged},
		"a newer format": {func(t *testing.T, cfg QueueConfig) {
			edit(t, filepath.Join(cfg.Dir, sentinelName), func(b []byte) []byte { b[9]++; return b })
		}, ErrNewerFormat},
		"a link among them": {func(t *testing.T, cfg QueueConfig) { link(t, filepath.Join(cfg.Dir, "elsewhere")) }, nil},
		"a guard that dies": {func(t *testing.T, cfg QueueConfig) {}, ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := source
			cfg.Dir = fastDir(t) + "/queue"
			copyDir(t, source.Dir, cfg.Dir)
			c.damage(t, cfg)
			if name == "a guard that dies" {
				cfg.Probe = func(string, *os.File) error { return errors.New("died") }
			}
			before := map[string]string{}
			if name != "a link among them" {
				before = contents(t, cfg.Dir)
			}
			_, err := OpenQueue(cfg)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatal(err)
			}
			if name == "a link among them" {
				return
			}
			if after := contents(t, cfg.Dir); len(after) != len(before) {
				t.Fatalf("%d files, before the start %d", len(after), len(before))
			} else {
				for path, b := range before {
					if after[path] != b {
						t.Errorf("%s was changed", path)
					}
				}
			}
		})
	}
}

func link(t *testing.T, path string) {
	t.Helper()
	if err := os.Symlink("/nowhere", path); err != nil {
		t.Fatal(err)
	}
}

func TestAKillWhileALogIsMadeIsNoDamage(t *testing.T) {
	cfg := killedQueue(t)
	if err := os.WriteFile(filepath.Join(cfg.Dir, engineDir, "00099.mem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := open(t, cfg)
	s.wantSound(t)
	if n := len(s.all(t, boxID(1))); n != flushed+logged {
		t.Fatal(n)
	}
}

func TestLostCommitsAreToldAndNumbersGoOnBehindThem(t *testing.T) {
	source := killedQueue(t)
	for name, damage := range map[string]func(t *testing.T, log string){
		"log deleted": func(t *testing.T, log string) { remove(t, log) },
		"log cut":     func(t *testing.T, log string) { edit(t, log, func(b []byte) []byte { return b[:600_000] }) },
		"log flipped": func(t *testing.T, log string) { edit(t, log, func(b []byte) []byte { b[400_000] ^= 1; return b }) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := source
			cfg.Dir = fastDir(t) + "/queue"
			copyDir(t, source.Dir, cfg.Dir)
			damage(t, newestFile(t, cfg, ".mem"))
			s := open(t, cfg)
			list := s.all(t, boxID(1))
			if st := s.Stats(); st.Damaged == 0 || len(list) >= flushed+logged || len(list) < flushed || st.Unaccounted != 0 {
				t.Fatalf("%d envelopes, %+v", len(list), st)
			}
			for _, m := range list {
				if !bytes.Equal(m.Envelope, envelope(int(m.ID)-1, small)) {
					t.Fatal("wrong bytes")
				}
			}
			lost := flushed + logged - 1
			_, there, err := s.Envelope(boxID(1), sha(envelope(lost, small)))
			if there || !errors.Is(err, wire.ErrLater) {
				t.Fatal("would sign that it is absent: ", there, err)
			}
			s.grant(t, boxID(1), lost, lost+1)
			s.mustPut(t, boxID(1), lost) // the sender tries again
			list = s.all(t, boxID(1))
			if last := list[len(list)-1]; last.ID <= flushed+logged {
				t.Fatalf("number %d was given before", last.ID)
			}
			s.stop()
			s = open(t, cfg)
			if st := s.Stats(); st.Damaged != 0 || st.DamagedUntil.IsZero() {
				t.Fatalf("told again: %q, until %v", st.Damage, st.DamagedUntil)
			}
			if _, there, err := s.Envelope(boxID(1), [32]byte{}); there || !errors.Is(err, wire.ErrLater) {
				t.Fatal("a restart forgot that something is lost: ", err)
			}
		})
	}
}

func TestDamagedTablesGiveNoWrongMail(t *testing.T) {
	source := killedQueue(t)
	for _, at := range []float64{0.1, 0.3, 0.5, 0.7, 0.9, 0.97} {
		cfg := source
		cfg.Dir = fastDir(t) + "/queue"
		copyDir(t, source.Dir, cfg.Dir)
		edit(t, newestFile(t, cfg, ".sst"), flipAt(at))
		q, err := OpenQueue(cfg)
		if err != nil {
			continue // refused: as good
		}
		s := serve(t, q)
		page, err := s.Fetch(boxID(1), 0, 0)
		seen := 0
		for err == nil && len(page.Mail) > 0 {
			for _, m := range page.Mail {
				seen++
				if !bytes.Equal(m.Envelope, envelope(int(m.ID)-1, small)) {
					t.Fatal("wrong bytes were handed out")
				}
			}
			page, err = s.Fetch(boxID(1), page.Mail[len(page.Mail)-1].ID, 0)
		}
		if st := s.Stats(); seen < flushed+logged && st.Damaged == 0 {
			t.Errorf("at %v: %d of %d envelopes, %v, and no word of damage", at, seen, flushed+logged, err)
		}
		s.stop()
		if r, err := VerifyQueue(cfg.Dir); err == nil && len(r.Faults) == 0 && seen < flushed+logged {
			t.Errorf("at %v: the check found nothing", at)
		}
	}
}

// change writes into the engine behind the queue's back.
func change(t *testing.T, cfg QueueConfig, fn func(txn *badger.Txn) error) {
	t.Helper()
	db, err := engine.Open(engineOptions(cfg.withDefaults()))
	if err == nil {
		err = errors.Join(db.Update(fn), db.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestRowsThatAreLostOrChangedAreFoundAndTheRestIsServed(t *testing.T) {
	source := killedQueue(t)
	day := uint16(wire.HeldUntil(someDay.Unix(), 30) / daySeconds)
	box, seq := boxID(1), uint64(7)
	for name, c := range map[string]struct {
		change func(txn *badger.Txn) error
		served int
		late   bool // found when it is fetched
	}{
		"envelope changed": {func(txn *badger.Txn) error { return txn.Set(envelopeKey(day, 0, box, seq), envelope(99, small)) }, flushed + logged - 1, true},
		"envelope cut":     {func(txn *badger.Txn) error { return txn.Set(envelopeKey(day, 0, box, seq), nil) }, flushed + logged - 1, true},
		"envelope lost":    {func(txn *badger.Txn) error { return txn.Delete(envelopeKey(day, 0, box, seq)) }, flushed + logged - 1, true},
		"index row lost":   {func(txn *badger.Txn) error { return txn.Delete(indexKey(day, box, seq)) }, flushed + logged - 1, false},
		"index row cut":    {func(txn *badger.Txn) error { return txn.Set(indexKey(day, box, seq), []byte{1}) }, flushed + logged - 1, false},
		"box row lost":     {func(txn *badger.Txn) error { return txn.Delete(boxKey(rowBox, box)) }, 0, false},
		"box row cut":      {func(txn *badger.Txn) error { return txn.Set(boxKey(rowBox, box), []byte{1}) }, 0, false},
		"lot row lost":     {func(txn *badger.Txn) error { return txn.Delete(lotPrefix(rowLot, day, 0)) }, flushed + logged, false},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := source
			cfg.Dir = fastDir(t) + "/queue"
			copyDir(t, source.Dir, cfg.Dir)
			change(t, cfg, c.change)
			s := open(t, cfg)
			if found := s.Stats().Damaged > 0; found == c.late {
				t.Fatalf("%+v", s.Stats())
			}
			if c.served == 0 {
				_, err := s.Fetch(box, 0, 0)
				wantErr(t, err, wire.ErrNotFound)
			} else if list := s.all(t, box); len(list) != c.served {
				t.Fatalf("%d served", len(list))
			}
			st := s.Stats()
			if st.Damaged == 0 || st.Unaccounted != 0 {
				t.Fatalf("%+v", st)
			}
			_, there, err := s.Envelope(boxID(2), [32]byte{1})
			if there || !errors.Is(err, wire.ErrLater) {
				t.Fatal("would sign an absence: ", err)
			}
			s.stop()
			r, err := VerifyQueue(cfg.Dir)
			if err != nil || len(r.Faults) == 0 != (name == "index row lost" || name == "lot row lost") { // these were put right
				t.Fatal(r, err)
			}
		})
	}
}

func TestAStateThatCannotBeReadIsRefused(t *testing.T) {
	cfg := killedQueue(t)
	change(t, cfg, func(txn *badger.Txn) error { return txn.Set([]byte{rowState}, []byte{9}) })
	_, err := OpenQueue(cfg)
	wantErr(t, err, ErrDamaged)
}

func TestAFailedWriteEndsAllService(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 3)
	s.mustPut(t, id, 0)
	s.state.Commit-- // whoever reads it meanwhile is the loop, which waits
	if err := s.db.DB.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.SetStrangers(id, true); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	if _, err := s.Fetch(id, 0, 0); !errors.Is(err, errStopped) {
		t.Fatal(err)
	}
	if err := s.put(id, 1); !errors.Is(err, errStopped) || errors.Is(err, wire.ErrRefused) {
		t.Fatal(err)
	}
	if s.Stats().Failed == nil {
		t.Fatal("status does not tell")
	}
}
