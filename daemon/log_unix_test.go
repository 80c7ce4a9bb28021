//go:build unix

package daemon_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"sotto/control"
	"sotto/daemon"
)

func TestLogAndOutputDoNotFollowLinksOrWaitForPipes(t *testing.T) {
	for name, plant := range map[string]func(path, other string) error{
		"link": func(path, other string) error { return os.Symlink(other, path) },
		"pipe": func(path, _ string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			h, cfg := home(t)
			if err := os.MkdirAll(h.State, 0o700); err != nil {
				t.Fatal(err)
			}
			other := filepath.Join(t.TempDir(), "precious")
			if err := os.WriteFile(other, []byte("keep me"), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, path := range []string{h.Log(), h.Output()} {
				if err := plant(path, other); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := daemon.OpenLog(h, cfg.Log.Level, nil); !errors.Is(err, &control.Error{Code: "unsafe_file"}) {
				t.Errorf("log: %v", err)
			}
			if _, err := daemon.OpenOutput(h); !errors.Is(err, &control.Error{Code: "unsafe_file"}) {
				t.Errorf("output: %v", err)
			}
			if got, err := os.ReadFile(other); err != nil || string(got) != "keep me" {
				t.Errorf("the other file holds %q, %v", got, err)
			}
		})
	}
}
