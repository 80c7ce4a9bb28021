package daemon_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sotto/control"
	"sotto/daemon"
	"sotto/identity"
	"sotto/internal/clock"
)

// settled is a home that was used and is at rest.
func settled(t *testing.T) (daemon.Home, daemon.Options) {
	t.Helper()
	h, cfg := home(t)
	if err := os.Chmod(filepath.Dir(h.Data), 0o700); err != nil { // whatever the umask is
		t.Fatal(err)
	}
	_, end := run(t, h, cfg, daemon.Options{Create: &daemon.Create{Name: "Alice", Lock: identity.Unencrypted()}})
	if err := end(); err != nil {
		t.Fatal(err)
	}
	return h, daemon.Options{Home: h, Version: "test", Clock: clock.System{}}
}

// examine returns what is not in order, as check: text.
func examine(t *testing.T, opt daemon.Options) (out []string) {
	t.Helper()
	err := daemon.Examine(t.Context(), opt, true, func(f daemon.Finding) {
		if f.State == daemon.FindingOK {
			return
		}
		if f.Fix == "" && !strings.HasPrefix(f.Text, "and ") {
			t.Errorf("%s: %s: nothing says what to do", f.Check, f.Text)
		}
		out = append(out, f.State+" "+f.Check+": "+f.Text)
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTheDoctorNamesWhatIsWrong(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, h daemon.Home) error
		want   string
	}{
		{"nothing", func(*testing.T, daemon.Home) error { return nil }, ""},
		{"a state directory that others read", func(_ *testing.T, h daemon.Home) error { return os.Chmod(h.State, 0o750) }, "warning home: others may look into"},
		{"a home that others may move", func(_ *testing.T, h daemon.Home) error { return os.Chmod(filepath.Dir(h.Data), 0o777) }, "warning home: others may move the home away"},
		{"a store that is a link", func(t *testing.T, h daemon.Home) error {
			real := filepath.Join(t.TempDir(), "store")
			return errors.Join(os.Rename(h.Store(), real), os.Symlink(real, h.Store()))
		}, "wrong home: "},
		{"a data directory that is a file", func(_ *testing.T, h daemon.Home) error {
			return errors.Join(os.RemoveAll(h.Data), os.WriteFile(h.Data, nil, 0o600))
		}, "wrong home: "},
		{"a store that is gone", func(_ *testing.T, h daemon.Home) error { return os.RemoveAll(h.Store()) }, "warning store: there is none yet"},
		{"a damaged key file", func(_ *testing.T, h daemon.Home) error { return os.WriteFile(h.KeyFile(), []byte("x"), 0o600) }, "wrong key: "},
		{"a damaged sentinel", func(_ *testing.T, h daemon.Home) error {
			return os.WriteFile(filepath.Join(h.Store(), "sentinel"), []byte("x"), 0o600)
		}, "wrong store: store: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			h, opt := settled(t)
			if err := c.change(t, h); err != nil {
				t.Fatal(err)
			}
			got := strings.Join(examine(t, opt), "\n")
			if c.want == "" && got != "" || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestTheDoctorDoesNotWaitForANodeThatRuns(t *testing.T) {
	h, cfg := home(t)
	if err := os.Chmod(filepath.Dir(h.Data), 0o700); err != nil {
		t.Fatal(err)
	}
	_, _ = run(t, h, cfg, daemon.Options{Create: &daemon.Create{Name: "Alice", Lock: identity.Unencrypted()}})
	got := examine(t, daemon.Options{Home: h, Version: "another", Clock: clock.System{}})
	if len(got) != 2 || !strings.Contains(got[0], "warning node: it runs as process") || !strings.Contains(got[1], "warning deep: not done") {
		t.Errorf("got %q", got)
	}
	_, err := daemon.Salvage(t.Context(), daemon.Options{Home: h, Clock: clock.System{}}, filepath.Join(t.TempDir(), "new"))
	if !daemon.InUse(err) {
		t.Errorf("a salvage beside a running node: %v", err)
	}
}

func TestASalvageNeverWritesIntoTheDamagedHome(t *testing.T) {
	h, opt := settled(t)
	dir := filepath.Dir(h.Data)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(h.Data, link); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{
		"its data":          h.Data,
		"under its data":    filepath.Join(h.Data, "a", "b"),
		"under its state":   filepath.Join(h.State, "new"),
		"by a way around":   filepath.Join(dir, "x", "..", "data", "new"),
		"behind a link":     filepath.Join(link, "new"),
		"what is not empty": dir,
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := daemon.Salvage(t.Context(), opt, to); !errors.Is(err, &control.Error{Code: "bad_directory"}) && !errors.Is(err, &control.Error{Code: "directory_not_empty"}) {
				t.Errorf("got %v", err)
			}
		})
	}
	if got := examine(t, opt); len(got) > 0 {
		t.Errorf("the old home: %q", got)
	}
}

func TestASalvageThatWasCutOffIsNoHome(t *testing.T) {
	_, opt := settled(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := filepath.Join(t.TempDir(), "new")
	if _, err := daemon.Salvage(ctx, opt, dir); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	cut, err := daemon.Locate(daemon.Where{Dir: dir, Getenv: env("", "")})
	if err != nil {
		t.Fatal(err)
	}
	if cut.Exists() {
		t.Error("a key file is there")
	}
	got, err := daemon.Salvage(t.Context(), opt, dir+"2")
	if err != nil || !got.Device || len(got.Lost)+len(got.Damage) > 0 {
		t.Fatalf("%+v, %v", got, err)
	}
	opt.Home, err = daemon.Locate(daemon.Where{Dir: dir + "2", Getenv: env("", "")})
	if err != nil {
		t.Fatal(err)
	}
	if got := examine(t, opt); len(got) > 0 {
		t.Errorf("the new home: %q", got)
	}
}
