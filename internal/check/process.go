package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"sotto/control"
)

// process is one run of one of our programs. Whoever starts it ends it, by this handle.
type process struct {
	cmd      *exec.Cmd
	begun    time.Time
	expected atomic.Bool // it is meant to end now
	done     chan struct{}
}

// launch starts a program; what it says on standard error is appended to a file.
func launch(ctx context.Context, talk string, env []string, name string, args ...string) (*process, error) {
	file, err := os.OpenFile(talk, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", talk, err)
	}
	defer func() { _ = file.Close() }()
	p := &process{cmd: exec.CommandContext(ctx, name, args...), begun: time.Now(), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = file
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", filepath.Base(name), err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	return p, nil
}

func (p *process) alive() time.Duration { return time.Since(p.begun) }

// kill ends it as a crash would; nothing of it runs when kill returns.
func (p *process) kill() {
	p.expected.Store(true)
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop asks it to end, and ends it when it does not.
func (p *process) stop(ctx context.Context, grace time.Duration) error {
	p.expected.Store(true)
	_ = p.cmd.Process.Signal(os.Interrupt)
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	select {
	case <-p.done:
	case <-ctx.Done():
		p.kill()
		return fmt.Errorf("%s did not end within %s of being asked", filepath.Base(p.cmd.Path), grace)
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 && code != control.ExitInterrupted && !p.killed() {
		return fmt.Errorf("%s, asked to end, ended with %s", filepath.Base(p.cmd.Path), p.cmd.ProcessState)
	}
	return nil
}

// ended waits until it has ended; false when the time is over first.
func (p *process) ended(ctx context.Context, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// killed reports, after its end, whether it died of SIGKILL.
func (p *process) killed() bool {
	return strings.Contains(p.cmd.ProcessState.String(), "killed")
}

// usage is what a process has: memory not mapped from files, and open files; zero where the system does not tell.
func (p *process) usage() (anonMiB float64, files int) {
	base := filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid))
	if text, err := os.ReadFile(filepath.Join(base, "status")); err == nil {
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "RssAnon:" {
				kib, _ := strconv.ParseFloat(f[1], 64)
				anonMiB = kib / 1024
			}
		}
	}
	if list, err := os.ReadDir(filepath.Join(base, "fd")); err == nil {
		files = len(list)
	}
	return anonMiB, files
}

// Build builds the real programs into a directory.
func Build(ctx context.Context, dir string) error {
	for _, name := range []string{"sotto", "sotto-mailbox"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, name), "sotto/cmd/"+name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return errors.Join(ctx.Err(), fmt.Errorf("build %s: %w: %s", name, err, out))
		}
	}
	return nil
}
