package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sotto/control"
	"sotto/identity"
	"sotto/store"
)

// Salvaged is what a salvage brought into a new home, and what it knows to be lost.
type Salvaged struct {
	V      int            `json:"v"`
	From   string         `json:"from"` // the damaged store
	Home   string         `json:"home"` // the new home
	Config bool           `json:"config" jsonschema:"config.toml was copied too"`
	Kept   map[string]int `json:"kept"` // rows by kind
	Lost   []SalvageLoss  `json:"lost"`
	Older  int            `json:"older"`  // rows of which only an older version could be read
	Damage []string       `json:"damage"` // what could not be read wholly
	Device bool           `json:"device"` // the keys of this device are among what is kept
	Data   string         `json:"data"`   // data directory of the damaged home
}

// SalvageLoss is how much of a kind is known to be missing, of a contact where that can be told.
type SalvageLoss struct {
	Kind string `json:"kind"`
	Of   string `json:"of,omitempty"`
	Kept int    `json:"kept"`
	Lost int    `json:"lost"`
}

// Salvage makes a new home under dir of what can be read in a damaged one, whose files stay as they are. The key file goes
// there last: what a salvage that was cut off leaves behind cannot be taken for a home.
func Salvage(ctx context.Context, opt Options, dir string) (Salvaged, error) {
	from := opt.Home
	cfg, err := LoadConfig(from.Config)
	if err != nil {
		cfg = DefaultConfig() // it may be damaged as well
	}
	if c, err := control.Connect(ctx, from.Socket); err == nil {
		c.Close()
		return Salvaged{}, control.Errorf(control.ExitNoNode, "home_in_use", "Stop it first: sotto down", "a node runs on %s: a store in use cannot be salvaged", from.Data)
	}
	if !from.Free() {
		return Salvaged{}, control.FromStore(fmt.Errorf("salvage %s: %w", from.Store(), store.ErrLocked))
	}
	if !store.Exists(from.Store()) {
		return Salvaged{}, control.Errorf(control.ExitFailed, "no_store", "Name the damaged home with --home.", "there is no store in %s", from.Store())
	}
	to, err := newHome(from, dir)
	if err != nil {
		return Salvaged{}, err
	}
	keys, err := OpenKeyFile(from, opt.Unlock)
	if errors.Is(err, ErrNoIdentity) {
		return Salvaged{}, keyFileMissing(from.KeyFile())
	}
	if err != nil {
		return Salvaged{}, err
	}
	if err := to.makeDirs(); err != nil {
		return Salvaged{}, err
	}
	out := Salvaged{V: 1, From: from.Store(), Home: filepath.Dir(to.Config), Data: from.Data, Lost: []SalvageLoss{}, Damage: []string{}}
	if err := out.fill(ctx, cfg, opt, keys, to); err != nil {
		return out, unfinished(out.Home, err)
	}
	if out.Config, err = copyConfig(from.Config, to.Config); err == nil {
		err = copyFile(from.KeyFile(), to.KeyFile())
	}
	if err != nil {
		return out, unfinished(out.Home, err)
	}
	return out, nil
}

// unfinished says what an error left behind.
func unfinished(dir string, err error) error {
	hint := "What was written so far is in " + dir + ": take it away before you try again."
	code, exit := "not_salvaged", control.ExitFailed
	var e *control.Error
	switch {
	case errors.Is(err, &control.Error{Code: "disk_full"}):
		hint = "Choose a directory on another disk, or free some space. " + hint
		code, exit = "disk_full", control.ExitRefused
	case errors.Is(err, context.Canceled):
		return err
	case errors.As(err, &e):
		code, exit = e.Code, e.Exit
	}
	return control.Errorf(exit, code, hint, "salvage into %s: %v", dir, err)
}

// newHome is the home that a directory will be: one that is not there yet, or empty, and apart from the damaged home.
func newHome(from Home, dir string) (Home, error) {
	to, err := Locate(Where{Dir: dir, Getenv: func(string) string { return "" }})
	if err != nil {
		return Home{}, err
	}
	dir = filepath.Dir(to.Config)
	for _, old := range []string{from.Data, from.State} {
		if within(dir, old) {
			return Home{}, control.Errorf(control.ExitUsage, "bad_directory", "Choose a directory outside of the damaged home.", "%s is in %s", dir, old)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return Home{}, control.Errorf(control.ExitUsage, "bad_directory", "Choose a new directory.", "use %s as a new home: %v", dir, err)
	}
	if len(entries) > 0 {
		return Home{}, control.Errorf(control.ExitUsage, "directory_not_empty", "Choose a new directory.", "%s is not empty", dir)
	}
	return to, nil
}

// within reports whether a path is a directory or under it, also when links lead there.
func within(path, dir string) bool {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	rest := ""
	for p := path; ; p, rest = filepath.Dir(p), filepath.Join(filepath.Base(p), rest) {
		if real, err := filepath.EvalSymlinks(p); err == nil { // the part that exists
			path = filepath.Join(real, rest)
			break
		}
		if p == filepath.Dir(p) {
			break
		}
	}
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// fill salvages the store and reads all of the new one.
func (out *Salvaged) fill(ctx context.Context, cfg Config, opt Options, keys *identity.KeyFile, to Home) error {
	sc := store.Config{Dir: to.Store(), Root: keys.Root(), Clock: opt.Clock, Log: opt.Log, Reserve: int64(cfg.Store.Reserve), Ballast: -1}
	report, err := store.Salvage(ctx, opt.Home.Store(), sc)
	if err != nil {
		return control.FromStore(err)
	}
	out.Kept, out.Older = report.Kept, report.Older
	for _, l := range report.Lost {
		out.Lost = append(out.Lost, SalvageLoss{Kind: l.Kind, Of: l.Of, Kept: l.Kept, Lost: l.Lost})
	}
	for _, d := range report.Damage {
		out.Damage = append(out.Damage, d.String())
	}
	st, err := store.Open(ctx, sc)
	if err != nil {
		return control.FromStore(err)
	}
	deep, err := st.Deep(ctx)
	if len(deep.Damage) > 0 && err == nil {
		err = fmt.Errorf("the new store is damaged as well, look at that disk: %s", deep.Damage[0])
	}
	out.Device = st.View(func(tx *store.Tx) error { _, err := tx.GetSelf(); return err }) == nil
	return control.FromStore(errors.Join(err, st.Close()))
}

// copyConfig takes config.toml along if it can be used.
func copyConfig(from, to string) (bool, error) {
	if _, err := os.Stat(from); err != nil {
		return false, nil
	}
	if _, err := LoadConfig(from); err != nil {
		return false, nil
	}
	return true, copyFile(from, to)
}

// copyFile makes a new file of our own with the content of another.
func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	_, err = f.Write(b)
	if serr := f.Sync(); err == nil {
		err = serr
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return nil
}
