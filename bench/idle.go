package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// idle watches a node at rest with one contact and one bootstrap, in a network namespace of its own so that every byte on
// its wire is counted. Making namespaces needs root.
func idle(ctx context.Context, o options) (figure, error) {
	if os.Geteuid() != 0 {
		return figure{}, errors.New("needs root, to make network namespaces")
	}
	w, err := newCable(ctx)
	if err != nil {
		return figure{}, err
	}
	defer w.close()
	bootstrap, stop, err := w.bootstrap(ctx)
	if err != nil {
		return figure{}, err
	}
	defer stop()
	other, err := newHome(farAddr, bootstrap, w.far)
	if err != nil {
		return figure{}, err
	}
	defer other.close()
	h, err := newHome(nearAddr, bootstrap, w.near)
	if err != nil {
		return figure{}, err
	}
	defer h.close()
	if err := introduce(ctx, other, h); err != nil {
		return figure{}, err
	}
	pid, err := w.pid(h)
	if err != nil {
		return figure{}, err
	}
	if err := pause(ctx, 30*time.Second); err != nil { // what starting costs is over
		return figure{}, err
	}
	before, err := w.sample(pid)
	if err != nil {
		return figure{}, err
	}
	if err := pause(ctx, o.idle); err != nil {
		return figure{}, err
	}
	after, err := w.sample(pid)
	if err != nil {
		return figure{}, err
	}
	seconds := o.idle.Seconds()
	cpu := 100 * (after.cpu - before.cpu).Seconds() / seconds
	rate := float64(after.bytes-before.bytes) / seconds
	mib := float64(after.anonymous) / (1 << 20)
	return figure{
		got:  fmt.Sprintf("%.1f MiB, %.2f %% of a core, %.0f B/s", mib, cpu, rate),
		beat: mib <= 40 && cpu <= 0.2 && rate <= 150,
		note: fmt.Sprintf("over %v; %d packets in all; resident %.1f MiB", o.idle, after.packets-before.packets, float64(after.resident)/(1<<20)),
	}, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Addresses of the two ends, in namespaces that nothing else can reach.
const (
	nearAddr = "10.213.7.1"
	farAddr  = "10.213.7.2"
)

// cable is two network namespaces joined by a cable.
type cable struct{ near, far string }

func newCable(ctx context.Context) (*cable, error) {
	id := strconv.Itoa(os.Getpid())
	w := &cable{near: "sottonear" + id, far: "sottofar" + id}
	for _, line := range []string{
		"netns add " + w.near, "netns add " + w.far,
		"-n " + w.near + " link add cable type veth peer name cable netns " + w.far,
		"-n " + w.near + " addr add " + nearAddr + "/24 dev cable", "-n " + w.far + " addr add " + farAddr + "/24 dev cable",
		"-n " + w.near + " link set cable up", "-n " + w.far + " link set cable up",
		"-n " + w.near + " link set lo up", "-n " + w.far + " link set lo up",
	} {
		if out, err := exec.CommandContext(ctx, "ip", strings.Fields(line)...).CombinedOutput(); err != nil {
			w.close()
			return nil, fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
	}
	return w, nil
}

func (w *cable) close() {
	for _, ns := range []string{w.near, w.far} {
		_ = exec.Command("ip", "netns", "del", ns).Run()
	}
}

// bootstrap runs a volunteer at the far end.
func (w *cable) bootstrap(ctx context.Context) (addrs []string, stop func(), err error) {
	bin, err := program()
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "sotto-bench-")
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", w.far, filepath.Join(filepath.Dir(bin), "sotto-mailbox"), "serve", "--home", dir, "--allow-private", "--json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}
	r := bufio.NewReader(out)
	line, err := r.ReadString('\n')
	go func() { _, _ = r.WriteTo(discard{}) }()
	for _, word := range strings.FieldsFunc(line, func(c rune) bool { return strings.ContainsRune(`",[]{} `, c) }) {
		if strings.HasPrefix(word, "/ip4/"+farAddr) && strings.Contains(word, "/quic-v1/p2p/") {
			addrs = append(addrs, word)
		}
	}
	if err != nil || len(addrs) == 0 {
		stop()
		return nil, nil, fmt.Errorf("the volunteer told no address: %q, %w", line, err)
	}
	return addrs[:1], stop, nil
}

// pid finds the node's process behind the command that entered the namespace.
func (w *cable) pid(h *home) (int, error) {
	pid := h.up.Process.Pid // ip replaces itself by the command
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || filepath.Base(exe) != "sotto" {
		return 0, fmt.Errorf("process %d is %q, not the node: %w", pid, exe, err)
	}
	return pid, nil
}

// sample is what a process has used so far.
type sample struct {
	anonymous, resident int64 // bytes; anonymous is not mapped from files
	cpu                 time.Duration
	bytes, packets      int64
}

func (w *cable) sample(pid int) (sample, error) {
	var s sample
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return s, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, f := range fields[11:13] { // user and system time, in hundredths of a second
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return s, err
		}
		s.cpu += time.Duration(n) * 10 * time.Millisecond
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return s, err
	}
	for _, line := range strings.Split(string(status), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "RssAnon:":
			s.anonymous = n << 10
		case "VmRSS:":
			s.resident = n << 10
		}
	}
	for _, name := range []string{"rx", "tx"} {
		for _, what := range []string{"bytes", "packets"} {
			out, err := exec.Command("ip", "netns", "exec", w.near, "cat", "/sys/class/net/cable/statistics/"+name+"_"+what).Output()
			if err != nil {
				return s, fmt.Errorf("count %s: %w", what, err)
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
			if err != nil {
				return s, err
			}
			if what == "bytes" {
				s.bytes += n
			} else {
				s.packets += n
			}
		}
	}
	return s, nil
}
