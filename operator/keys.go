package operator

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// keys are the volunteer's two: people hold its addresses by them, so losing them means to be found no more.
type keys struct{ service, dht ed25519.PrivateKey }

const (
	serviceKeyName = "service.key"
	dhtKeyName     = "dht.key"
)

// openKeys reads both keys, or makes them at the first start.
func openKeys(home string, rand io.Reader) (keys, error) {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return keys{}, err
	}
	for _, name := range []string{serviceKeyName, dhtKeyName} {
		if err := createKey(filepath.Join(home, name), rand); err != nil {
			return keys{}, err
		}
	}
	return readKeys(home)
}

func readKeys(home string) (k keys, err error) {
	if k.service, err = readKey(filepath.Join(home, serviceKeyName)); err != nil {
		return keys{}, err
	}
	k.dht, err = readKey(filepath.Join(home, dhtKeyName))
	return k, err
}

// readKey reads a file of 64 hex digits: the key's seed.
func readKey(path string) (ed25519.PrivateKey, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("key %s is not a regular file", path)
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key %s can be read by others (mode %04o): run chmod 600 on it", path, info.Mode().Perm())
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("key %s is damaged: want 64 hex digits; restore it from a backup", path)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// createKey makes a key where there is none: written whole under another name first, synced, and never over another.
func createKey(path string, rand io.Reader) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := io.ReadFull(rand, seed); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".key-*") // 0600
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	_, err = io.Copy(f, bytes.NewReader([]byte(hex.EncodeToString(seed)+"\n")))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return os.Rename(f.Name(), path) // a file system without hard links
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a new name durable. Windows has no such call and needs none.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
