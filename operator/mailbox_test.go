package operator

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"

	"sotto/mailbox"
)

func front(t *testing.T) (host.Host, ed25519.PrivateKey) {
	t.Helper()
	h, err := libp2p.New(libp2p.NoListenAddrs, libp2p.DisableMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return h, key
}

func TestServeKeepsAMailboxThatComesBackWithItsBoxes(t *testing.T) {
	home := homeDir(t)
	s, _, stop := serve(t, home, "--network", "test", "--mailbox-mode", "open")
	h, key := front(t)
	c := mailbox.NewClient(h, "test", mailbox.ClientConfig{})
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	terms, err := c.Terms(ctx, s.Service[0])
	if err != nil || terms.RegisterBits != 20 || terms.MaxBytes != 64<<20 || terms.Flags != 3 || terms.KeepDays != 30 {
		t.Fatalf("terms: %+v, %v", terms, err)
	}
	box, err := c.Open(ctx, s.Service[0], key)
	if err != nil {
		t.Fatal(err)
	}
	hour := uint32(time.Now().Unix() / 3600)
	nonce, err := mailbox.RegisterStamp(ctx, terms.Service, [32]byte(key.Public().(ed25519.PublicKey)), hour, terms.RegisterBits)
	if err != nil {
		t.Fatal(err)
	}
	how := mailbox.Work(hour, nonce)
	if _, err := box.Register(ctx, how); err != nil {
		t.Fatal(err)
	}
	code, got, _ := run(t, context.Background(), "status", "--home", home, "--json")
	var now status
	if err := json.Unmarshal([]byte(got), &now); code != 0 || err != nil || now.Mailbox == nil || now.Mailbox.Boxes != 1 || now.Mailbox.Unaccounted != 0 || len(now.Mailbox.Wrong) != 0 {
		t.Errorf("status: %d, %v, %s", code, err, got)
	}
	if code, got, _ = run(t, context.Background(), "status", "--home", home); code != 0 || !strings.Contains(got, "serving 1 box") {
		t.Errorf("status in words: %d, %s", code, got)
	}
	if code := stop(); code != 0 {
		t.Errorf("stopped with %d", code)
	}
	s, _, _ = serve(t, home, "--network", "test")
	if box, err = c.Open(ctx, s.Service[0], key); err != nil {
		t.Fatal(err)
	}
	if standing, err := box.Standing(ctx); err != nil || standing.Count != 32 {
		t.Errorf("after a restart: %+v, %v", standing, err)
	}
}

func TestAVolunteerWithoutAMailboxHasNoFilesOfOne(t *testing.T) {
	home := homeDir(t)
	s, _, _ := serve(t, home, "--mailbox=false")
	h, _ := front(t)
	c := mailbox.NewClient(h, "", mailbox.ClientConfig{})
	t.Cleanup(func() { _ = c.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := c.Terms(ctx, s.Service[0]); err == nil {
		t.Error("a mailbox answers")
	}
	if _, err := os.Stat(filepath.Join(home, "mailbox")); err == nil {
		t.Error("it has files")
	}
}

func TestConfigOfAMailboxThatCannotBeMeantIsNamed(t *testing.T) {
	for want, line := range map[string]string{
		"mailbox.quota":         "quota = 1",
		"mailbox.keep_days":     "keep_days = 31",
		"mailbox.mode":          `mode = "everybody"`,
		"mailbox.note":          `note = "` + strings.Repeat("x", 257) + `"`,
		"mailbox.box_count":     "box_count = -1",
		"mailbox.register_bits": "register_bits = 33",
		"mailbox.stranger_bits": "stranger_bits = 21",
		"unknown key":           "kept = 1",
	} {
		home := homeDir(t)
		if err := os.MkdirAll(home, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, configName), []byte("[mailbox]\n"+line+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, _, e := run(t, context.Background(), "config", "check", "--home", home); code != exitUsage || !strings.Contains(e, want) {
			t.Errorf("%s: %d, %s", line, code, e)
		}
	}
}

func TestAKilledVolunteerLooksAtItsMailboxInAChildFirst(t *testing.T) {
	program := filepath.Join(t.TempDir(), "sotto-mailbox")
	if out, err := exec.Command("go", "build", "-o", program, "sotto/cmd/sotto-mailbox").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	home := homeDir(t)
	args := []string{"serve", "--home", home, "--port", "0", "--dht-port", "0", "--listen", "127.0.0.1", "--allow-private"}
	for range 2 {
		cmd := exec.Command(program, args...)
		said, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		var e out
		cmd.Stderr = &e
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if n, err := said.Read(make([]byte, 1)); n != 1 {
			t.Fatalf("never served: %v, %s", err, e.String())
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	if code, _, e := run(t, context.Background(), probeCommand, filepath.Join(home, "mailbox")); code == 0 || !strings.Contains(e, "own") {
		t.Errorf("by hand the child says %d, %s", code, e)
	}
}
