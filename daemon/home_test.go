package daemon_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sotto/control"
	"sotto/daemon"
)

func env(vars ...string) func(string) string {
	return func(k string) string {
		for i := 0; i+1 < len(vars); i += 2 {
			if vars[i] == k {
				return vars[i+1]
			}
		}
		return ""
	}
}

func TestAHomeDirectoryHoldsEverything(t *testing.T) {
	h, err := daemon.Locate(daemon.Where{Dir: "/a", Getenv: env()})
	if err != nil || h.Config != "/a/config.toml" || h.KeyFile() != "/a/data/identity.key" || h.Socket != "/a/run/sotto.sock" || h.Log() != "/a/state/sotto.log" {
		t.Errorf("got %+v, %v", h, err)
	}
	p, err := daemon.Locate(daemon.Where{Dir: "/a", Profile: "work", Getenv: env()})
	if err != nil || p.Config != "/a/profiles/work/config.toml" || p.Socket == h.Socket || p.Data == h.Data {
		t.Errorf("profile got %+v, %v", p, err)
	}
}

func TestSocketPathsStayShort(t *testing.T) {
	deep := "/" + strings.Repeat("deep/", 40)
	a, err := daemon.Locate(daemon.Where{Dir: deep + "a", Getenv: env("XDG_RUNTIME_DIR", "/run/user/1000")})
	if err != nil || len(a.Socket) > control.MaxPath || !strings.HasPrefix(a.Socket, "/run/user/1000/sotto/") {
		t.Errorf("got %q, %v", a.Socket, err)
	}
	b, _ := daemon.Locate(daemon.Where{Dir: deep + "b", Getenv: env()})
	if len(b.Socket) > control.MaxPath || b.Socket == a.Socket || filepath.Base(b.Socket) == filepath.Base(a.Socket) {
		t.Errorf("two homes share %q", b.Socket)
	}
}

func TestProfilesHaveTheirOwnFiles(t *testing.T) {
	main, err := daemon.Locate(daemon.Where{Getenv: env("XDG_RUNTIME_DIR", "/run/user/7")})
	if err != nil || main.Socket != "/run/user/7/sotto/main.sock" {
		t.Errorf("got %+v, %v", main, err)
	}
	work, err := daemon.Locate(daemon.Where{Profile: "work", Getenv: env("XDG_RUNTIME_DIR", "/run/user/7")})
	if err != nil || work.Data == main.Data || work.Config == main.Config || work.Socket == main.Socket {
		t.Errorf("got %+v, %v", work, err)
	}
	for _, bad := range []string{"../x", "a/b", "-x", "a b", strings.Repeat("x", 33), "x\x00"} {
		if _, err := daemon.Locate(daemon.Where{Profile: bad, Getenv: env()}); !errors.Is(err, &control.Error{Code: "bad_profile"}) {
			t.Errorf("profile %q: %v", bad, err)
		}
	}
}

func TestAPassphraseFileMustBePrivateAndSane(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pass")
	write := func(text string, mode os.FileMode) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("correct horse\r\n", 0o600)
	if got, err := daemon.ReadPassphrase(path); err != nil || string(got) != "correct horse" {
		t.Errorf("got %q, %v", got, err)
	}
	for name, tc := range map[string]struct {
		text string
		mode os.FileMode
		code string
	}{
		"readable by others": {"x", 0o644, "passphrase_file_open"},
		"readable by group":  {"x", 0o640, "passphrase_file_open"},
		"empty":              {"\n", 0o600, "bad_passphrase"},
		"too long":           {strings.Repeat("x", 1<<20), 0o600, "bad_passphrase"},
		"a zero byte":        {"a\x00b", 0o600, "bad_passphrase"},
	} {
		write(tc.text, tc.mode)
		if _, err := daemon.ReadPassphrase(path); !errors.Is(err, &control.Error{Code: tc.code}) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := daemon.ReadPassphrase(path + "x"); !errors.Is(err, &control.Error{Code: "passphrase_file"}) {
		t.Errorf("missing: %v", err)
	}
}
