//go:build unix

package store

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestLinksAndPipesAmongTheFilesAreRefusedAndNothingIsWrittenThroughThem(t *testing.T) {
	replace := map[string]func(path, victim string) error{
		"link":     func(path, victim string) error { return os.Symlink(victim, path) },
		"dangling": func(path, victim string) error { return os.Symlink(victim+".new", path) },
		"pipe":     func(path, _ string) error { return syscall.Mkfifo(path, 0o600) },
	}
	for _, name := range []string{ballastFile, headName, floorName, sentinelName, pageName, lockName, "db/MANIFEST", "db/KEYREGISTRY", "db/DISCARD"} {
		for kind, put := range replace {
			t.Run(kind+" for "+name, func(t *testing.T) {
				cfg := Config{Dir: filepath.Join(t.TempDir(), "store"), Root: [32]byte{1}, Reserve: 1 << 20, Ballast: 1 << 20}
				s, err := Open(context.Background(), cfg)
				if err != nil {
					t.Fatal(err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				victim, path := filepath.Join(t.TempDir(), "victim"), filepath.Join(cfg.Dir, name)
				if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.RemoveAll(path); err != nil {
					t.Fatal(err)
				}
				if err := put(path, victim); err != nil {
					t.Fatal(err)
				}
				if s, err := Open(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), "not a plain file") {
					if s != nil {
						_ = s.Close()
					}
					t.Errorf("got %v", err)
				}
				if b, err := os.ReadFile(victim); err != nil || string(b) != "mine" {
					t.Errorf("the link's target has %d bytes now, %v", len(b), err)
				}
				if _, err := os.Lstat(victim + ".new"); err == nil {
					t.Error("a file was made through the link")
				}
			})
		}
	}
}
