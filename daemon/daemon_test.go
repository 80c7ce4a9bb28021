package daemon_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"sotto/control"
	"sotto/daemon"
	"sotto/identity"
	"sotto/store"
)

// home makes a home's paths under a temporary directory, with the small reserve that tests use.
func home(t *testing.T) (daemon.Home, daemon.Config) {
	t.Helper()
	h, err := daemon.Locate(daemon.Where{Dir: t.TempDir(), Getenv: env("XDG_RUNTIME_DIR", t.TempDir())})
	if err != nil {
		t.Fatal(err)
	}
	cfg := daemon.DefaultConfig()
	cfg.Store.Reserve, cfg.Store.Ballast = 32<<20, 32<<20
	return h, cfg
}

// run starts a node without a network and returns its client and how to end it.
func run(t *testing.T, h daemon.Home, cfg daemon.Config, opt daemon.Options) (*control.Client, func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	opt.Home, opt.Offline, opt.Log, opt.Version = h, true, slog.New(slog.DiscardHandler), "test"
	opt.Ready = func() { close(ready) }
	go func() { done <- daemon.Run(ctx, cfg, opt) }()
	select {
	case err := <-done:
		cancel()
		t.Fatal(err)
	case <-ready:
	}
	c, err := control.Connect(ctx, h.Socket)
	if err != nil {
		t.Fatal(err)
	}
	ended := false
	end := func() error {
		if ended {
			return nil
		}
		ended = true
		c.Close()
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	return c, end
}

func TestAFirstRunMakesAnIdentityThatLaterRunsFind(t *testing.T) {
	h, cfg := home(t)
	if h.Exists() {
		t.Fatal("an empty home has an identity")
	}
	c, end := run(t, h, cfg, daemon.Options{Create: &daemon.Create{Name: "Alice", Lock: identity.Unencrypted()}})
	first, err := c.Status(t.Context())
	if err != nil || first.Name != "Alice" || first.Network || first.Account == "" || first.Store.State != "ok" {
		t.Fatalf("got %+v, %v", first, err)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if !h.Exists() || !h.Free() {
		t.Fatal("no key file was left, or the home is still taken")
	}
	c, _ = run(t, h, cfg, daemon.Options{})
	again, err := c.Status(t.Context())
	if err != nil || again.Account != first.Account || again.Name != "Alice" {
		t.Errorf("got %+v, %v", again, err)
	}
}

func TestFilesOfAHomeAreClosedToOthers(t *testing.T) {
	h, cfg := home(t)
	_, end := run(t, h, cfg, daemon.Options{Create: &daemon.Create{Name: "Alice", Lock: identity.Unencrypted()}})
	if err := end(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(h.Data, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %04o", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestASecondProcessOnOneHomeIsToldAtOnce(t *testing.T) {
	h, cfg := home(t)
	run(t, h, cfg, daemon.Options{Create: &daemon.Create{Name: "Alice", Lock: identity.Unencrypted()}})
	err := daemon.Run(t.Context(), cfg, daemon.Options{Home: h, Offline: true, Log: slog.New(slog.DiscardHandler)})
	if !daemon.InUse(err) {
		t.Errorf("got %v", err)
	}
	if h.Free() {
		t.Error("a home in use is called free")
	}
}

func TestAHomeWithoutAnIdentitySaysHowToMakeOne(t *testing.T) {
	h, cfg := home(t)
	err := daemon.Run(t.Context(), cfg, daemon.Options{Home: h, Offline: true, Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, daemon.ErrNoIdentity) {
		t.Errorf("got %v", err)
	}
}

func TestAStoreWhoseKeyFileIsMissingGetsNoNewIdentity(t *testing.T) {
	h, cfg := home(t)
	first := &daemon.Create{Name: "Alice", Lock: identity.Unencrypted()}
	_, end := run(t, h, cfg, daemon.Options{Create: first})
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(h.KeyFile(), h.KeyFile()+".away"); err != nil {
		t.Fatal(err)
	}
	err := daemon.Run(t.Context(), cfg, daemon.Options{Home: h, Create: first, Offline: true, Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, &control.Error{Code: "key_file_missing"}) || h.Exists() {
		t.Fatalf("got %v; key file there: %v", err, h.Exists())
	}
	if err := os.Rename(h.KeyFile()+".away", h.KeyFile()); err != nil {
		t.Fatal(err)
	}
	c, _ := run(t, h, cfg, daemon.Options{})
	if st, err := c.Status(t.Context()); err != nil || st.Name != "Alice" {
		t.Errorf("with the key file back: %+v, %v", st, err)
	}
}

func TestAFirstRunCutShortIsFinishedByTheNext(t *testing.T) {
	h, cfg := home(t)
	seed, err := identity.NewSeed(zeros{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(h.Data, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.CreateKeyFile(h.KeyFile(), seed, identity.Unencrypted()); err != nil {
		t.Fatal(err)
	}
	err = daemon.Run(t.Context(), cfg, daemon.Options{Home: h, Offline: true, Log: slog.New(slog.DiscardHandler)})
	if !errors.Is(err, daemon.ErrNoIdentity) {
		t.Errorf("without a name: %v", err)
	}
	c, _ := run(t, h, cfg, daemon.Options{Create: &daemon.Create{Name: "Alice", Lock: identity.Unencrypted()}})
	if st, err := c.Status(t.Context()); err != nil || st.Name != "Alice" {
		t.Errorf("got %+v, %v", st, err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestALockedKeyFileOpensWithItsPassphraseOnly(t *testing.T) {
	h, cfg := home(t)
	_, end := run(t, h, cfg, daemon.Options{Create: &daemon.Create{Name: "Alice", Lock: identity.Passphrase([]byte("right"))}})
	if err := end(); err != nil {
		t.Fatal(err)
	}
	try := func(u identity.Unlock) error {
		return daemon.Run(t.Context(), cfg, daemon.Options{Home: h, Offline: true, Unlock: u, Log: slog.New(slog.DiscardHandler)})
	}
	var e *control.Error
	if err := try(identity.Unlock{}); !errors.As(err, &e) || e.Code != "locked" || e.Exit != control.ExitLocked {
		t.Errorf("nobody to ask: %v", err)
	}
	if err := try(identity.WithPassphrase([]byte("wrong"))); !errors.As(err, &e) || e.Code != "wrong_passphrase" || e.Exit != control.ExitLocked {
		t.Errorf("wrong passphrase: %v", err)
	}
	run(t, h, cfg, daemon.Options{Unlock: identity.WithPassphrase([]byte("right"))})
}

func TestAChatIsReadWhereNothingCanBeWritten(t *testing.T) {
	h, opt := settled(t)
	keys, err := daemon.OpenKeyFile(h, identity.Unlock{})
	if err != nil {
		t.Fatal(err)
	}
	st, err := store.Open(t.Context(), store.Config{Dir: h.Store(), Root: keys.Root(), Reserve: -1, Ballast: -1})
	if err != nil {
		t.Fatal(err)
	}
	bob, conv := [32]byte{1}, [16]byte{2}
	err = st.Update(func(tx *store.Tx) error {
		return errors.Join(
			tx.PutContact(store.Contact{Account: bob, Name: "Bob", State: store.ContactEstablished, Conv: conv}),
			tx.PutConversation(store.Conversation{ID: conv, Account: bob, Unread: 1}),
			tx.PutMessage(&store.Message{ID: [16]byte{3}, Conv: conv, Order: 1, From: bob, N: 1, Text: "hello", State: "delivered"}))
	})
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	cfg := daemon.DefaultConfig()
	cfg.Store.Reserve = 1 << 60 // more than any disk has
	c, _ := run(t, h, cfg, opt)
	list, err := c.Messages(t.Context(), control.ListParams{Conv: "bob", Limit: 10})
	if err != nil || len(list) != 1 || list[0].Text != "hello" {
		t.Fatalf("got %+v, %v", list, err)
	}
	chats, err := c.Inbox(t.Context())
	if err != nil || len(chats) != 1 || chats[0].Unread != 1 {
		t.Errorf("got %+v, %v: what could not be noted is still unread", chats, err)
	}
	if _, err := c.Send(t.Context(), control.SendParams{To: "bob", Text: "hi"}); !errors.Is(err, &control.Error{Code: "disk_full"}) {
		t.Errorf("a message was taken: %v", err)
	}
}
