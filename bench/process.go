package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// program builds sotto as it would be shipped, once, and returns its path.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sotto-bench-bin-")
	if err != nil {
		return "", err
	}
	for _, name := range []string{"sotto", "sotto-mailbox"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, name), "sotto/cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", name, err, out)
		}
	}
	return filepath.Join(dir, "sotto"), nil
})

// home is one person's directory, for the real binary.
type home struct {
	dir   string
	netns string // run inside this network namespace
	up    *exec.Cmd
}

// newHome writes a config that stays on the given address.
func newHome(addr string, bootstrap []string, netns string) (*home, error) {
	dir, err := os.MkdirTemp("", "sotto-bench-")
	if err != nil {
		return nil, err
	}
	quoted := make([]string, len(bootstrap))
	for i, b := range bootstrap {
		quoted[i] = fmt.Sprintf("%q", b)
	}
	config := fmt.Sprintf(`[network]
listen = ["/ip4/%[1]s/udp/0/quic-v1", "/ip4/%[1]s/tcp/0"]
bootstrap = [%[2]s]
allow_private = true
mdns = false
port_map = false
[store]
reserve = "32MiB"
ballast = "32MiB"
`, addr, strings.Join(quoted, ", "))
	return &home{dir: dir, netns: netns}, os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600)
}

func (h *home) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	bin, err := program()
	if err != nil {
		return nil, err
	}
	args = append([]string{bin, "--home", h.dir, "--no-input"}, args...)
	if h.netns != "" {
		args = append([]string{"ip", "netns", "exec", h.netns}, args...)
	}
	return exec.CommandContext(ctx, args[0], args[1:]...), nil
}

// run runs one command to its end.
func (h *home) run(ctx context.Context, args ...string) (string, error) {
	cmd, err := h.command(ctx, args...)
	if err != nil {
		return "", err
	}
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

// start runs `up` and returns how long it took until the node said that it listens.
func (h *home) start(ctx context.Context, args ...string) (time.Duration, error) {
	cmd, err := h.command(ctx, append([]string{"up"}, args...)...)
	if err != nil {
		return 0, err
	}
	talk, err := cmd.StderrPipe()
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	h.up = cmd
	lines := bufio.NewReader(talk)
	for said := ""; ; {
		line, err := lines.ReadString('\n')
		said += line
		if strings.Contains(line, " runs as ") {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("sotto up did not come up: %w: %s", errors.Join(err, cmd.Wait()), said)
		}
	}
	took := time.Since(begun)
	go func() { _, _ = lines.WriteTo(discard{}) }()
	return took, nil
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func (h *home) stop() {
	if h.up != nil {
		_ = h.up.Process.Signal(os.Interrupt)
		_ = h.up.Wait()
		h.up = nil
	}
}

func (h *home) close() {
	h.stop()
	_ = os.RemoveAll(h.dir)
}

// introduce starts two homes and makes contacts of them.
func introduce(ctx context.Context, a, b *home) error {
	if _, err := a.start(ctx, "--name", "alice", "--unencrypted"); err != nil {
		return err
	}
	if _, err := b.start(ctx, "--name", "bob", "--unencrypted"); err != nil {
		return err
	}
	out, err := a.run(ctx, "invite", "--json")
	if err != nil {
		return err
	}
	var inv struct{ Link string }
	if err := json.Unmarshal([]byte(out), &inv); err != nil {
		return fmt.Errorf("read the invite: %w", err)
	}
	if _, err := b.run(ctx, "add", inv.Link); err != nil {
		return err
	}
	_, err = b.run(ctx, "send", "alice", "hello", "--wait", "delivered")
	return err
}

// sendProcess is `sotto send` with a node running, as a whole process, until the message is in the durable queue.
func sendProcess(ctx context.Context, _ options) (figure, error) {
	a, err := newHome("127.0.0.1", nil, "")
	if err != nil {
		return figure{}, err
	}
	defer a.close()
	b, err := newHome("127.0.0.1", nil, "")
	if err != nil {
		return figure{}, err
	}
	defer b.close()
	if err := introduce(ctx, a, b); err != nil {
		return figure{}, err
	}
	var took, least []time.Duration
	for i := range 40 {
		begun := time.Now()
		if _, err := b.run(ctx, "version"); err != nil {
			return figure{}, err
		}
		least = append(least, time.Since(begun))
		begun = time.Now()
		if _, err := b.run(ctx, "send", "alice", fmt.Sprintf("message %d", i)); err != nil {
			return figure{}, err
		}
		took = append(took, time.Since(begun))
	}
	m := median(took)
	return figure{
		got:  fmt.Sprintf("median %v (p95 %v)", m.Round(100*time.Microsecond), quantile(took, 0.95).Round(100*time.Microsecond)),
		beat: m <= 50*time.Millisecond,
		note: fmt.Sprintf("the limit is a process that does nothing: sotto version, median %v", median(least).Round(100*time.Microsecond)),
	}, nil
}

// binarySize is the stripped static binary.
func binarySize(context.Context, options) (figure, error) {
	bin, err := program()
	if err != nil {
		return figure{}, err
	}
	size := func(path string) (float64, error) {
		info, err := os.Stat(path)
		if err != nil {
			return 0, err
		}
		return float64(info.Size()) / 1e6, nil
	}
	mb, err := size(bin)
	if err != nil {
		return figure{}, err
	}
	other, err := size(filepath.Join(filepath.Dir(bin), "sotto-mailbox"))
	return figure{got: fmt.Sprintf("sotto %.1f MB, sotto-mailbox %.1f MB", mb, other), beat: mb <= 45}, err
}
