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

func TestAConfigThatIsNoFileIsRefusedAtOnce(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(pipe, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, link, dir} {
		if _, err := daemon.LoadConfig(path); !errors.Is(err, &control.Error{Code: "bad_config"}) {
			t.Errorf("%s: %v", path, err)
		}
	}
}
