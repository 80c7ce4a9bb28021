// Package engine is what this program knows about opening Badger safely: which files an open may meet after a kill, how to count the
// tables that a MANIFEST names, and where the engine's own messages go. What each database stores, and with which options, is its own affair.
package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/ristretto/v2/z"
)

// Open opens Badger. A kill between creating a log file and sizing it makes the first open fail and the second succeed.
func Open(opt badger.Options) (*badger.DB, error) {
	retry := !opt.InMemory && hasEmptyLog(opt.Dir)
	db, err := badger.Open(opt)
	if err != nil && retry && (errors.Is(err, z.NewFile) || strings.Contains(err.Error(), z.NewFile.Error())) {
		db, err = badger.Open(opt)
	}
	return db, err
}

// hasEmptyLog reports whether a log of the engine has no content at all.
func hasEmptyLog(dir string) bool {
	for _, suffix := range []string{".mem", ".vlog"} {
		names, err := Files(dir, suffix)
		if err != nil {
			return false
		}
		for _, name := range names {
			if info, err := os.Stat(name); err == nil && info.Size() == 0 {
				return true
			}
		}
	}
	return false
}

// Files lists the engine's files of a kind, oldest first.
func Files(dir, suffix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	return names, nil
}

// Tables reads which tables the MANIFEST of a directory names.
func Tables(dir string) (map[uint64]badger.TableManifest, error) {
	fp, err := os.Open(filepath.Join(dir, badger.ManifestFilename))
	if err != nil {
		return nil, err
	}
	manifest, _, err := badger.ReplayManifestFile(fp, 0, badger.DefaultOptions(""))
	if cerr := fp.Close(); err == nil {
		err = cerr
	}
	return manifest.Tables, err
}

// Log passes the engine's messages on; its chatter is for debugging.
type Log struct{ To *slog.Logger }

// Errorf passes a failure on as a warning: what it means is for the database to say.
func (l Log) Errorf(f string, v ...any) { l.To.Warn("engine: " + line(f, v)) }

// Warningf passes a warning on for debugging.
func (l Log) Warningf(f string, v ...any) { l.To.Debug("engine: " + line(f, v)) }

// Infof drops the message.
func (Log) Infof(string, ...any) {}

// Debugf drops the message.
func (Log) Debugf(string, ...any) {}

func line(f string, v []any) string { return strings.TrimSpace(fmt.Sprintf(f, v...)) }
