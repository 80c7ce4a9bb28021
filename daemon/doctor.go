package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"sotto/control"
	"sotto/identity"
	"sotto/store"
)

// States of a finding.
const (
	FindingOK      = "ok"
	FindingWarning = "warning" // works, but should be looked at; or could not be looked at
	FindingWrong   = "wrong"
)

// Finding is what one check of the doctor says: what is, and what to do about it.
type Finding struct {
	Check string `json:"check"`
	State string `json:"state"`
	Text  string `json:"text"`
	Fix   string `json:"fix,omitempty"`
}

// Examine looks at a home and tells what it finds, check by check. It changes nothing but what every start does. With a node
// running it does not wait for the store: the node is asked. The zero value of Options but for Home, Version, Unlock and Clock
// is useful; deep reads every row.
func Examine(ctx context.Context, opt Options, deep bool, tell func(Finding)) error {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	d := &doctor{opt: opt, deep: deep, tell: tell}
	d.say("version", FindingOK, "", "%s, %s %s/%s", opt.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	d.config()
	if !d.home() {
		return ctx.Err()
	}
	keys := d.key()
	node := d.node(ctx)
	d.limits()
	d.disk()
	d.clock()
	switch {
	case node != nil:
		d.askNode(ctx, node)
		node.Close()
	case !d.taken && keys != nil:
		d.store(ctx, keys)
	}
	return ctx.Err()
}

// doctor is one examination.
type doctor struct {
	opt   Options
	deep  bool
	tell  func(Finding)
	cfg   Config
	taken bool // another process has the store
}

func (d *doctor) say(check, state, fix, format string, args ...any) {
	d.tell(Finding{Check: check, State: state, Text: fmt.Sprintf(format, args...), Fix: fix})
}

// wrong tells an error with its own advice.
func (d *doctor) wrong(check string, err error) {
	var e *control.Error
	if !errors.As(err, &e) {
		e = &control.Error{Message: err.Error(), Hint: "See what is in the way, then run it again: sotto doctor"}
	}
	d.say(check, FindingWrong, e.Hint, "%s", e.Message)
}

func (d *doctor) config() {
	path := d.opt.Home.Config
	cfg, err := LoadConfig(path)
	if d.cfg = cfg; err != nil {
		d.cfg = DefaultConfig()
		d.wrong("config", err)
		return
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		d.say("config", FindingOK, "", "there is no %s: the defaults hold", path)
		return
	}
	doubts := cfg.Doubts()
	for _, w := range doubts {
		d.say("config", FindingWarning, w.Fix, "%s", w.Text)
	}
	if len(doubts) == 0 {
		d.say("config", FindingOK, "", "%s", path)
	}
}

// home looks at the directories. Without an identity there is nothing more to look at.
func (d *doctor) home() bool {
	h := d.opt.Home
	if _, err := os.Lstat(h.Data); errors.Is(err, fs.ErrNotExist) {
		d.wrong("home", ErrNoIdentity)
		return false
	}
	good := d.around(filepath.Dir(h.Data))
	for _, dir := range []string{h.Data, h.State, h.Store(), filepath.Dir(h.Socket)} {
		good = d.directory(dir) && good
	}
	if good {
		d.say("home", FindingOK, "", "%s, closed to others", h.Data)
	}
	if h.Exists() {
		return true
	}
	if store.Exists(h.Store()) {
		d.wrong("key", keyFileMissing(h.KeyFile()))
	} else {
		d.wrong("key", ErrNoIdentity)
	}
	return false
}

// around looks at the directory that the home is in: who may write there may put another home in its place.
func (d *doctor) around(dir string) bool {
	info, err := os.Stat(dir)
	if err != nil || runtime.GOOS == "windows" || info.Mode().Perm()&0o022 == 0 || info.Mode()&os.ModeSticky != 0 {
		return true
	}
	d.say("home", FindingWarning, "Let only its owner write there: chmod go-w "+dir, "others may move the home away and put another in its place: %s has mode %04o", dir, info.Mode().Perm())
	return false
}

// directory looks at one of ours; one that is missing is made when it is needed.
func (d *doctor) directory(dir string) bool {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	if err != nil {
		d.wrong("home", fmt.Errorf("look at %s: %w", dir, err))
		return false
	}
	perm := info.Mode().Perm()
	switch {
	case info.Mode()&os.ModeSymlink != 0:
		d.say("home", FindingWrong, "Put the real directory in its place, or name it with --home.", "%s is a symbolic link", dir)
	case !info.IsDir():
		d.say("home", FindingWrong, "Move it away.", "%s is not a directory", dir)
	case foreign(info):
		d.say("home", FindingWrong, "Run sotto as that user, take the directory over, or choose another home with --home.", "%s belongs to another user", dir)
	case runtime.GOOS != "windows" && perm&0o700 != 0o700:
		d.say("home", FindingWrong, "Let its owner use it: chmod u+rwx "+dir, "%s cannot be used by its owner (mode %04o)", dir, perm)
	case runtime.GOOS != "windows" && perm&0o077 != 0:
		d.say("home", FindingWarning, "Close it: chmod 700 "+dir, "others may look into %s (mode %04o)", dir, perm)
	default:
		return true
	}
	return false
}

// key opens the key file; nil when it does not open.
func (d *doctor) key() *identity.KeyFile {
	keys, err := OpenKeyFile(d.opt.Home, d.opt.Unlock)
	switch {
	case errors.Is(err, &control.Error{Code: "locked"}): // nothing is wrong with it, but nobody is here to open it
		d.say("key", FindingWarning, "Give the passphrase with --passphrase-file FILE or SOTTO_PASSPHRASE_FILE, or run it in a terminal.",
			"%s is locked: the store cannot be looked at", d.opt.Home.KeyFile())
		return nil
	case err != nil:
		d.wrong("key", err)
		return nil
	}
	d.say("key", FindingOK, "", "%s opens; locked with: %s", d.opt.Home.KeyFile(), keys.Lock())
	return keys
}

// patient bounds what a running node is asked.
func (d *doctor) patient(ctx context.Context) (context.Context, context.CancelFunc) {
	if d.opt.Patience == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d.opt.Patience)
}

// node connects to a node that runs.
func (d *doctor) node(ctx context.Context) *control.Client {
	ctx, cancel := d.patient(ctx)
	defer cancel()
	c, err := control.Connect(ctx, d.opt.Home.Socket)
	switch {
	case err == nil && c.NodeVersion() != d.opt.Version:
		d.say("node", FindingWarning, "Renew it: sotto down, then sotto up", "it runs as process %d, in version %s; this is %s", c.NodePID(), c.NodeVersion(), d.opt.Version)
	case err == nil:
		d.say("node", FindingOK, "", "it runs as process %d", c.NodePID())
	case !errors.Is(err, control.ErrNoNode):
		d.taken = true
		d.wrong("node", err)
	case !d.opt.Home.Free():
		d.taken = true
		d.say("node", FindingWrong, "End that process, or look again in a moment: sotto doctor", "another process has %s and does not answer at %s", d.opt.Home.Store(), d.opt.Home.Socket)
	default:
		d.say("node", FindingOK, "", "none is running")
	}
	if err != nil {
		return nil
	}
	return c
}

// fewFiles is less than connections, tables and streams need on a busy day.
const fewFiles = 512

func (d *doctor) limits() {
	if n := openFiles(); n > 0 && n < fewFiles {
		d.say("limits", FindingWarning, fmt.Sprintf("Allow at least %d: ulimit -n %d", fewFiles, fewFiles), "a process may have only %d files open", n)
	}
}

func (d *doctor) disk() {
	free, err := store.Free(d.opt.Home.Data)
	if err != nil {
		d.wrong("disk", fmt.Errorf("ask how much of the disk is free: %w", err))
		return
	}
	reserve, ballast := int64(d.cfg.Store.Reserve), int64(d.cfg.Store.Ballast)
	tell := func(state, fix, what string) {
		d.say("disk", state, fix, "%d MiB free%s", free>>20, what)
	}
	switch {
	case free < store.StartNeeds(reserve):
		tell(FindingWrong, "Free some space; what is there can be read meanwhile.", fmt.Sprintf(", and %d MiB are needed to start", store.StartNeeds(reserve)>>20))
	case free < reserve:
		tell(FindingWrong, "Free some space; what is there can be read meanwhile.", fmt.Sprintf(", and below the reserve of %d MiB nothing new is taken", reserve>>20))
	case free < reserve+ballast:
		tell(FindingWarning, "Free some space.", fmt.Sprintf("; below %d MiB nothing new is taken", reserve>>20))
	default:
		tell(FindingOK, "", "")
	}
}

// leastYear is when there was no such program yet.
const leastYear = 2025

// clock compares the time with what was written earlier. A clock that is ahead shows only to others, whom a running node asks.
func (d *doctor) clock() {
	now := d.opt.Clock.Now()
	newest, file := time.Time{}, ""
	for _, path := range []string{d.opt.Home.KeyFile(), d.opt.Home.Log(), filepath.Join(d.opt.Home.Store(), "sentinel"), filepath.Join(d.opt.Home.Store(), "commit.head")} {
		if info, err := os.Stat(path); err == nil && info.ModTime().After(newest) {
			newest, file = info.ModTime(), path
		}
	}
	const fix = "Set the clock, and enable time sync."
	switch {
	case now.UTC().Year() < leastYear:
		d.say("clock", FindingWrong, fix, "this computer believes it is %s", now.UTC().Format(time.DateOnly))
	case newest.Sub(now) > time.Hour:
		d.say("clock", FindingWrong, fix, "this computer believes it is %s, and %s was written at %s", now.UTC().Format(time.RFC3339), file, newest.UTC().Format(time.RFC3339))
	default:
		d.say("clock", FindingOK, "", "%s", now.UTC().Format(time.RFC3339))
	}
}

const salvageFix = "Save what can be read into a new home: sotto doctor --salvage NEW-DIRECTORY"

// askNode lets the node that has the store tell about it.
func (d *doctor) askNode(ctx context.Context, c *control.Client) {
	ctx, cancel := d.patient(ctx)
	defer cancel()
	st, err := c.Status(ctx)
	if err != nil {
		d.wrong("store", err)
		return
	}
	if st.Store.State == "ok" {
		d.say("store", FindingOK, "", "the node has found nothing wrong with it")
	}
	for i, w := range st.Warnings {
		check := "node"
		if i == 0 && st.Store.State != "ok" { // the store's comes first
			check = "store"
		}
		d.say(check, FindingWrong, w.Fix, "%s", w.Text)
	}
	if d.deep {
		d.say("deep", FindingWarning, "Stop the node first: sotto down", "not done: the running node has the store")
	}
}

// store opens the store as every start does.
func (d *doctor) store(ctx context.Context, keys *identity.KeyFile) {
	if !store.Exists(d.opt.Home.Store()) {
		d.say("store", FindingWarning, "Start sotto once: sotto up", "there is none yet")
		return
	}
	st, err := openStore(ctx, d.cfg, d.opt, keys)
	if err != nil {
		d.wrong("store", err)
		return
	}
	d.look(ctx, st)
	if err := st.Close(); err != nil {
		d.wrong("store", control.FromStore(err))
	}
}

// fewDamages are told one by one.
const fewDamages = 10

func (d *doctor) look(ctx context.Context, st *store.Store) {
	noted := len(st.Damage())
	d.damaged(st.Damage())
	if err := st.View(func(tx *store.Tx) error { _, err := tx.GetSelf(); return err }); errors.Is(err, store.ErrNotFound) && noted == 0 {
		d.say("store", FindingWrong, "Make this device anew: sotto up --name NAME", "it has no device of yours: a first run was cut off, or it was salvaged without it")
		return
	}
	if noted > 0 {
		return
	}
	if st.Stats().Full {
		d.say("store", FindingOK, "", "can be read, and takes no writes while the disk is full; its files and the newest messages are as they were written")
	} else {
		d.say("store", FindingOK, "", "opens; its files and the newest messages are as they were written")
	}
	if !d.deep {
		return
	}
	report, err := st.Deep(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
	case err != nil:
		d.wrong("deep", control.FromStore(err))
	case len(report.Damage) > 0:
		d.damaged(report.Damage)
	default:
		d.say("deep", FindingOK, "", "%d rows read, %d of them messages; every count and every index agrees", report.Rows, report.Messages)
	}
}

func (d *doctor) damaged(list []store.Damage) {
	for i, found := range list {
		if i == fewDamages {
			d.say("store", FindingWrong, salvageFix, "and %d more", len(list)-i)
			return
		}
		d.say("store", FindingWrong, salvageFix, "%s", found)
	}
}
