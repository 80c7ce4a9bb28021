package store

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
)

func TestADirectoryThatIsNotOursIsRefused(t *testing.T) {
	real := t.TempDir()
	for name, make := range map[string]func(t *testing.T) string{
		"symbolic link": func(t *testing.T) string {
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(real, link); err != nil {
				t.Fatal(err)
			}
			return link
		},
		"not a directory": func(t *testing.T) string {
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return file
		},
		"read-only": func(t *testing.T) string {
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o500); err != nil {
				t.Fatal(err)
			}
			return dir
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			cfg.Dir = make(t)
			if _, err := Open(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), name) {
				t.Fatalf("got %v", err)
			}
			entries, _ := os.ReadDir(real)
			if len(entries) > 0 {
				t.Fatal("something was written")
			}
		})
	}
}

func TestAnotherUsersDirectoryIsRefused(t *testing.T) {
	cfg := testConfig(t)
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(cfg.Dir, 12345, 12345); err != nil {
		cfg.Dir = "/" // not root: this one belongs to somebody else for sure
	}
	if _, err := Open(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "belongs to another user") {
		t.Fatalf("got %v", err)
	}
}

func TestNobodyElseCanReadTheFiles(t *testing.T) {
	cfg := testConfig(t)
	cfg.Reserve, cfg.Ballast = 1<<20, 1<<20
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s := open(t, cfg)
		update(t, s, func(tx *Tx) error { return tx.PutSetting("x", nil) })
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	files := 0
	err := filepath.WalkDir(cfg.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		files++
		return err
	})
	if err != nil || files < 12 {
		t.Fatalf("%d files, %v", files, err)
	}
}

func TestANewerFormatIsRefusedUntouched(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	edit(t, filepath.Join(cfg.Dir, sentinelName), func(b []byte) []byte { // a newer one may be longer and have another checksum
		b[9] = Format + 1
		return append(b, "whatever a newer version adds"...)
	})
	if err := os.Remove(filepath.Join(cfg.Dir, lockName)); err != nil {
		t.Fatal(err)
	}
	before := everything(t, cfg.Dir)
	_, err := Open(context.Background(), cfg)
	wantErr(t, err, ErrNewerFormat)
	if after := everything(t, cfg.Dir); after != before {
		t.Fatalf("something was changed:\n%s\n%s", before, after)
	}
}

// everything lists a directory with sizes and times.
func everything(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			out.WriteString(path + " " + info.ModTime().String() + "\n")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestAnotherRootKeyOpensNothing(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	update(t, s, func(tx *Tx) error { return tx.PutSetting("x", nil) })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	other := cfg
	other.Root[0]++
	if _, err := Open(context.Background(), other); err == nil || !strings.Contains(err.Error(), "does not belong to this key file") {
		t.Fatalf("got %v", err)
	}
	open(t, cfg)
}

func TestALogWithoutContentIsOpenedAgain(t *testing.T) {
	for _, name := range []string{"00009.mem", "000099.vlog"} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			putMessages(t, s, id16(1), 1, 50)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(cfg.Dir, engineDir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			if len(s.Damage()) > 0 {
				t.Fatal(s.Damage())
			}
			view(t, s, func(tx *Tx) error {
				list, err := tx.Messages(id16(1), MessagesQuery{})
				if len(list) != 50 {
					t.Errorf("%d messages", len(list))
				}
				return err
			})
		})
	}
}

func TestThreeCopiesOfManifestAndKeyRegistryAreKept(t *testing.T) {
	cfg := testConfig(t)
	for i := range 6 {
		s := open(t, cfg)
		putMessages(t, s, id16(1), i*100+1, 100)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"MANIFEST.1", "MANIFEST.2", "MANIFEST.3", "KEYREGISTRY.1"} {
		if info, err := os.Stat(filepath.Join(cfg.Dir, keepDir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := os.Stat(filepath.Join(cfg.Dir, keepDir, "MANIFEST.4")); err == nil {
		t.Error("a fourth copy is kept")
	}
}

func TestTheGuardChildIsAskedOnlyAfterAnUncleanStop(t *testing.T) {
	dead := killedStore(t)
	asked := 0
	cfg := dead
	cfg.Probe = func(ctx context.Context, dir string, _ *os.File) error {
		asked++
		return Probe(ctx, dir, cfg.Root)
	}
	s := open(t, cfg)
	if asked != 1 || len(s.Damage()) > 0 {
		t.Fatalf("asked %d times, damage %v", asked, s.Damage())
	}
	view(t, s, func(tx *Tx) error {
		list, err := tx.Messages(id16(1), MessagesQuery{})
		if len(list) != flushed+logged {
			t.Errorf("%d messages after the probe", len(list))
		}
		return err
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, cfg).Close(); err != nil || asked != 1 {
		t.Fatalf("asked %d times after a clean stop, %v", asked, err)
	}
}

func TestACrashOfTheGuardChildIsDamage(t *testing.T) {
	cfg := killedStore(t)
	cfg.Probe = func(context.Context, string, *os.File) error { return errors.New("signal: segmentation fault") }
	before := engineNames(t, cfg.Dir)
	_, err := Open(context.Background(), cfg)
	wantErr(t, err, ErrDamaged)
	if engineNames(t, cfg.Dir) != before {
		t.Fatal("the engine opened all the same")
	}
}

func TestAStopWhileTheGuardChildLooksIsNoDamage(t *testing.T) {
	cfg := killedStore(t)
	ctx, stop := context.WithCancel(context.Background())
	cfg.Probe = func(context.Context, string, *os.File) error {
		stop()
		return errors.New("signal: killed")
	}
	_, err := Open(ctx, cfg)
	wantErr(t, err, context.Canceled)
	cfg.Probe = nil
	if d := open(t, cfg).Damage(); len(d) > 0 {
		t.Fatal(d)
	}
}

func TestAStoreInMemoryKeepsNothing(t *testing.T) {
	s := open(t, Config{InMemory: true, Root: testRoot})
	update(t, s, func(tx *Tx) error { return workStep(tx, 1) })
	if err := s.NewEpoch(); err != nil {
		t.Fatal(err)
	}
	view(t, s, func(tx *Tx) error { _, err := tx.Session(id16(2)); return err })
	if st := s.Stats(); st.Free != -1 || st.Epoch != 2 || st.Ballast {
		t.Fatalf("%+v", st)
	}
}

func TestEveryTableHasANameAndItsOwnNumber(t *testing.T) {
	b, err := os.ReadFile("keys.go")
	if err != nil {
		t.Fatal(err)
	}
	numbers := map[string]bool{}
	found := regexp.MustCompile(`(?m)^\t(t[A-Z]\w+)\s+table = (0x\w\w)`).FindAllStringSubmatch(string(b), -1)
	for _, m := range found {
		if numbers[m[2]] {
			t.Errorf("%s has a number that another table has", m[1])
		}
		numbers[m[2]] = true
	}
	if len(found) != len(tableNames) || len(found) < 25 {
		t.Errorf("%d tables, %d names", len(found), len(tableNames))
	}
}

func TestTheLockIsGoneWithTheStore(t *testing.T) {
	cfg := testConfig(t)
	for range 3 {
		s := open(t, cfg)
		_, err := Open(context.Background(), cfg)
		wantErr(t, err, ErrLocked)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	before := runtime.NumGoroutine()
	for range 3 {
		if err := open(t, cfg).Close(); err != nil {
			t.Fatal(err)
		}
	}
	if after := runtime.NumGoroutine(); after > before+20 {
		t.Fatalf("%d goroutines, %d before", after, before)
	}
}

func TestClosingEndsWhenTheDirectoryIsGone(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, dir string){
		"deleted": func(t *testing.T, dir string) {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		},
		"moved away": func(t *testing.T, dir string) {
			if err := os.Rename(dir, dir+".old"); err != nil {
				t.Fatal(err)
			}
		},
		"another in its place": func(t *testing.T, dir string) {
			if err := os.Rename(dir, dir+".old"); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(dir, engineDir), 0o700); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := testConfig(t)
			s := open(t, cfg)
			putMessages(t, s, id16(1), 1, 10)
			lose(t, cfg.Dir)
			if err := s.Close(); err == nil || !strings.Contains(err.Error(), cfg.Dir+" was deleted or moved") {
				t.Errorf("closing said %v", err)
			}
		})
	}
}

func TestClosingEndsWhenTheDirectoryGoesMeanwhile(t *testing.T) {
	cfg := testConfig(t)
	s := open(t, cfg)
	putMessages(t, s, id16(1), 1, 10)
	never := make(chan struct{})
	err := s.bounded(func() error { // as the engine, which tries again for ever
		if err := os.RemoveAll(cfg.Dir); err != nil {
			return err
		}
		<-never
		return nil
	})
	close(never)
	if err == nil || !strings.Contains(err.Error(), "deleted or moved") {
		t.Errorf("closing said %v", err)
	}
}
