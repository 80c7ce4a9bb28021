// Package daemon wires every part of a node and runs it: key file, store, messenger, network, local API.
//
// Begin with Run here. home.go says where files are, config.go what the person may choose, net.go adapts the network to
// the local API, notify.go speaks to systemd.
package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/control"
	"sotto/identity"
	"sotto/internal/clock"
	"sotto/internal/fault"
	"sotto/messenger"
	"sotto/node"
	"sotto/store"
)

// Options are what a run needs besides the config.
type Options struct {
	Home    Home
	Version string
	Offline bool            // open the store and answer, without networking
	Unlock  identity.Unlock // how the key file is opened
	Create  *Create         // how to make the identity if there is none; nil: there must be one
	Program string          // the sotto binary, for the guard child that looks at the store after a crash; "" does without
	Log     *slog.Logger
	Ready   func() // called once the socket answers
	Notify  bool   // tell systemd
	Clock   clock.Clock
	Fault   *fault.Points

	Patience time.Duration // how long a running node may take to answer Examine; 0 is what control.Connect gives it
}

// Create is a first run: what friends see, and how the key file is locked.
type Create struct {
	Name string
	Lock identity.Lock
}

// ErrNoIdentity is returned by Run when the home holds no identity and Options.Create is nil.
var ErrNoIdentity = &control.Error{Code: "no_identity", Message: "there is no identity here yet",
	Hint: "Make one: sotto up --name NAME", Exit: control.ExitUsage}

// Run opens the home, serves its socket and, unless Offline, its network, until the context ends or the node is told to stop.
// It returns a home_in_use error at once when another process has the home.
func Run(ctx context.Context, cfg Config, opt Options) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	if opt.Clock == nil {
		opt.Clock = clock.FromEnv()
	}
	if opt.Fault == nil {
		opt.Fault = fault.FromEnv()
	}
	keys, err := openKeys(opt)
	if err != nil {
		return err
	}
	st, err := openStore(ctx, cfg, opt, keys)
	if err != nil {
		return err
	}
	err = serve(ctx, stop, cfg, opt, keys, st)
	return errors.Join(err, control.FromStore(st.Close()))
}

// openKeys opens the key file, or makes it on a first run.
func openKeys(opt Options) (*identity.KeyFile, error) {
	path := opt.Home.KeyFile()
	if err := opt.Home.makeDirs(); err != nil {
		return nil, err
	}
	keys, err := identity.OpenKeyFile(path, opt.Unlock)
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, lockedError(path, err)
	}
	if entries, err := os.ReadDir(opt.Home.Store()); err == nil && len(entries) > 0 {
		return nil, keyFileMissing(path)
	}
	if opt.Create == nil {
		return nil, ErrNoIdentity
	}
	seed, err := identity.NewSeed(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make an identity: %w", err)
	}
	keys, err = identity.CreateKeyFile(path, seed, opt.Create.Lock)
	return keys, lockedError(path, err)
}

func keyFileMissing(path string) error {
	return control.Errorf(control.ExitFailed, "key_file_missing", "Put it back from a backup; a new identity could not open what is stored here. For a new one choose another home with --home.",
		"the key file %s is missing, but the store it opens is there", path)
}

func openStore(ctx context.Context, cfg Config, opt Options, keys *identity.KeyFile) (*store.Store, error) {
	sc := store.Config{Dir: opt.Home.Store(), Root: keys.Root(), Clock: opt.Clock, Fault: opt.Fault, Log: opt.Log,
		Reserve: int64(cfg.Store.Reserve), Ballast: int64(cfg.Store.Ballast)}
	if opt.Program != "" {
		sc.Probe = guard(opt.Program, keys.Root())
	}
	st, err := store.Open(ctx, sc)
	return st, control.FromStore(err)
}

// guard looks at the database in a child process first, because the engine may crash on damaged files
// (PROTOCOL A.1). The root key goes through a pipe: arguments and environment can be read by others. The pipe stays open until
// the child has ended, so that it notices when we do; until it has, it keeps the store locked.
func guard(program string, root [32]byte) func(context.Context, string, *os.File) error {
	return func(ctx context.Context, dir string, lock *os.File) error {
		cmd := exec.CommandContext(ctx, program, "probe-store", dir)
		inherit(cmd, lock)
		in, err := cmd.StdinPipe()
		if err != nil {
			return fmt.Errorf("start the guard: %w", err)
		}
		var said tail
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("start the guard: %w", err)
		}
		_, err = in.Write(root[:])
		if waited := cmd.Wait(); waited != nil {
			return fmt.Errorf("guard: %w: %s", waited, said.text)
		}
		return err
	}
}

// tail keeps the last bytes of what a child said.
type tail struct{ text []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	t.text = t.text[max(0, len(t.text)-512):]
	return len(b), nil
}

// openMessenger opens the core, making this device on a first run.
func openMessenger(cfg Config, opt Options, keys *identity.KeyFile, st *store.Store) (*messenger.Messenger, error) {
	account := keys.Seed().Account()
	mc := messenger.Config{Clock: opt.Clock, Log: opt.Log, Fault: opt.Fault, Limits: messenger.Limits{Boxes: cfg.Network.Mailboxes}}
	if cfg.Network.Mailboxes == 0 {
		mc.Limits.Boxes = -1 // 0 would be the default
	}
	m, err := messenger.New(st, account, mc)
	if !errors.Is(err, messenger.ErrNoIdentity) {
		return m, control.FromStore(err)
	}
	if opt.Create == nil { // a first run that was cut off between the two
		return nil, ErrNoIdentity
	}
	if err := messenger.Init(st, account, opt.Create.Name, mc); err != nil {
		return nil, control.FromStore(err)
	}
	m, err = messenger.New(st, account, mc)
	return m, control.FromStore(err)
}

// serve runs all parts until the first of them ends.
func serve(ctx context.Context, stop func(), cfg Config, opt Options, keys *identity.KeyFile, st *store.Store) error {
	m, err := openMessenger(cfg, opt, keys, st)
	if err != nil {
		return err
	}
	core := control.Messenger{Messenger: m, Store: st}
	api := control.Config{Version: opt.Version, Profile: opt.Home.Profile, Data: opt.Home.Data, Stop: stop, Clock: opt.Clock, Log: opt.Log}
	away := &outage{named: len(cfg.Network.Bootstrap), relayOnly: cfg.Network.RelayOnly, doubts: cfg.Doubts()}
	var n *node.Node
	if !opt.Offline {
		if n, err = openNode(cfg, opt, m); err != nil {
			return err
		}
		api.Net = network{n, m, away}
		core.Hints = func() []string { return hints(n, cfg) }
	}
	l, err := control.Listen(ctx, opt.Home.Socket)
	if err != nil {
		return errors.Join(err, closeNode(n))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return st.Run(ctx) })
	if n != nil {
		g.Go(func() error { return n.Run(ctx) })
		boxes := NewMailboxes(n, cfg.Network.Name, opt.Clock)
		g.Go(func() error { return errors.Join(m.Run(ctx, n, boxes), boxes.Close()) })
		g.Go(func() error {
			return away.watch(ctx, opt.Clock, opt.Log, func() bool { return n.Status().Online }, func() bool {
				st := n.Status()
				return len(st.Inner)+len(st.Front) > 0
			})
		})
	}
	g.Go(func() error {
		defer stop() // the door is shut: nobody could reach or stop the rest
		return control.NewServer(core, api).Serve(ctx, l)
	})
	if opt.Notify {
		g.Go(func() error { return keepNotified(ctx, opt, l.Addr(), api.Net) })
	}
	if opt.Ready != nil {
		opt.Ready()
	}
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// openNode starts both hosts on the ports they had, and keeps the ports they got.
func openNode(cfg Config, opt Options, m *messenger.Messenger) (*node.Node, error) {
	inner, front, err := m.Ports()
	if err != nil {
		return nil, control.FromStore(err)
	}
	c := cfg.Network
	if c.InnerPort != 0 {
		inner = c.InnerPort
	}
	if c.FrontPort != 0 {
		front = c.FrontPort
	}
	n, err := node.New(node.Config{
		NodeKey: m.NodeKey(), Network: c.Name, InnerPort: inner, FrontPort: front, Listen: c.Listen, Bootstrap: c.Bootstrap, Relays: c.Relays,
		AllowPrivate: c.AllowPrivate, MDNS: c.MDNS, RelayOnly: c.RelayOnly, NoPortMap: !c.PortMap, Clock: opt.Clock, Log: opt.Log,
	}, node.Handlers{Offer: m.Offer, Envelope: m.Envelope, Bundle: m.Bundle, Up: m.Up, Moved: m.Moved, Online: m.Online})
	if err != nil {
		return nil, fmt.Errorf("start the network: %w", err)
	}
	st := n.Status()
	if err := m.SetPorts(st.InnerPort, st.FrontPort); err != nil {
		return nil, errors.Join(control.FromStore(err), n.Close())
	}
	return n, nil
}

func closeNode(n *node.Node) error {
	if n == nil {
		return nil
	}
	return n.Close()
}

// hints are what a link carries so that it works with nothing else configured: our own door, and where to ask.
func hints(n *node.Node, cfg Config) []string {
	var out []string
	if own := n.Hint(); own != "" {
		out = append(out, own)
	}
	for _, addr := range slices.Concat(cfg.Network.Bootstrap, n.Status().Known) {
		if len(out) < 3 && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// lockedError says what to do when a key file does not open.
func lockedError(path string, err error) error {
	for _, known := range []struct {
		is         error
		code, hint string
		exit       int
	}{
		{identity.ErrWrongPassphrase, "wrong_passphrase", "Try again; without the passphrase this identity cannot be used: this version does not restore from the 24 words yet.", control.ExitLocked},
		{identity.ErrLocked, "locked", "Give the passphrase with --passphrase-file FILE or SOTTO_PASSPHRASE_FILE, or run it in a terminal.", control.ExitLocked},
		{identity.ErrKeyring, "keyring", "Unlock the system keyring, or choose a passphrase instead.", control.ExitLocked},
		{identity.ErrKeyFileMode, "key_file_open", "Make it yours alone: chmod 600 " + path, control.ExitLocked},
		{identity.ErrKeyFileDamaged, "key_file_damaged", "Put a copy of the file back; this version does not restore from the 24 words yet.", control.ExitFailed},
	} {
		if errors.Is(err, known.is) {
			return control.Errorf(known.exit, known.code, known.hint, "%v", err)
		}
	}
	return err
}

// OpenKeyFile opens a home's key file for commands that need the secrets themselves.
func OpenKeyFile(h Home, unlock identity.Unlock) (*identity.KeyFile, error) {
	keys, err := identity.OpenKeyFile(h.KeyFile(), unlock)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoIdentity
	}
	return keys, lockedError(h.KeyFile(), err)
}

// InUse reports whether Run failed because another process has the home.
func InUse(err error) bool {
	return errors.Is(err, &control.Error{Code: "home_in_use"}) || errors.Is(err, control.ErrServed)
}

// Probe is the guard child's part: it opens the database under dir with the root key read from standard input. It ends at
// once when its parent does: the next start waits for the files.
func Probe(ctx context.Context, dir string, in io.Reader) error {
	var root [32]byte
	if _, err := io.ReadFull(in, root[:]); err != nil {
		return errors.New("probe-store is sotto's own: it reads a key from its parent")
	}
	go func() {
		_, _ = io.Copy(io.Discard, in)
		os.Exit(control.ExitFailed) // the engine cannot be interrupted, and a crash now is one it must survive anyway
	}()
	return store.Probe(ctx, dir, root)
}
