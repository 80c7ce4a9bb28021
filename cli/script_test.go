package cli_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"sotto/cli"
	"sotto/control"
	"sotto/daemon"
	"sotto/internal/clock"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"sotto": func() { os.Exit(cli.Main(context.Background(), cli.FromOS("test"))) },
	})
}

// TestScripts drives the real program, each script with a volunteer of its own on the loopback. Scripts wait for
// conditions, never for time.
func TestScripts(t *testing.T) { runScripts(t, "testdata/script", nil) }

// runScripts runs the scripts of a directory, which may use more commands than the usual ones.
func runScripts(t *testing.T, dir string, more map[string]func(*testscript.TestScript, bool, []string)) {
	commands := map[string]func(*testscript.TestScript, bool, []string){
		"exits": exits, "up": up, "ready": ready, "var": variable, "request": request, "bytes": makeBytes, "stale": stale, "flip": flip, "eventually": eventually,
	}
	maps.Copy(commands, more)
	testscript.Run(t, testscript.Params{
		Dir:                 dir,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			bootstrap, err := volunteer(e)
			if err != nil {
				return err
			}
			e.Setenv("BOOTSTRAP", bootstrap)
			e.Setenv("HOME", e.WorkDir)
			e.Setenv("XDG_RUNTIME_DIR", "")
			e.Setenv("TZ", "UTC")
			for _, person := range []string{"alice", "bob", "carol"} {
				if err := settle(filepath.Join(e.WorkDir, person), bootstrap); err != nil {
					return err
				}
			}
			e.Defer(func() { stopAll(e.WorkDir) })
			return nil
		},
		Cmds: commands,
	})
}

// volunteer runs for as long as the script.
func volunteer(e *testscript.Env) (bootstrap string, err error) {
	ctx, stop := context.WithCancel(context.Background())
	addrs, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- daemon.RunVolunteer(ctx, filepath.Join(e.WorkDir, ".mailbox"), clock.System{}, slog.New(slog.DiscardHandler), func(bootstrap, _ []string) { addrs <- bootstrap[0] })
	}()
	select {
	case bootstrap = <-addrs:
	case err := <-ended:
		stop()
		return "", err
	}
	e.Defer(func() {
		stop()
		if err := <-ended; err != nil {
			e.T().Log(err)
		}
	})
	return bootstrap, nil
}

// settle writes a home's config: loopback only, small reserve.
func settle(dir, bootstrap string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	cfg := daemon.DefaultConfig()
	cfg.Network = daemon.NetworkConfig{Bootstrap: []string{bootstrap}, Listen: []string{"/ip4/127.0.0.1/udp/0/quic-v1"}, AllowPrivate: true}
	cfg.Store = daemon.StoreConfig{Reserve: 32 << 20, Ballast: 32 << 20}
	return os.WriteFile(filepath.Join(dir, "config.toml"), []byte(cfg.String()), 0o600)
}

// stopAll ends what a script left running, before its files go away.
func stopAll(work string) {
	homes, _ := filepath.Glob(filepath.Join(work, "*", "run"))
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, dir := range homes {
		home, err := daemon.Locate(daemon.Where{Dir: filepath.Dir(dir), Getenv: os.Getenv})
		if err != nil {
			continue
		}
		if c, err := control.Connect(ctx, home.Socket); err == nil {
			_ = c.Stop(ctx)
			c.Close()
		}
		for !home.Free() && (clock.System{}).Wait(ctx, 10*time.Millisecond) == nil {
		}
	}
}

// exits runs a command and checks its exit code: exits CODE COMMAND...
func exits(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var status *exec.ExitError
	if errors.As(err, &status) {
		got = status.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// up makes a person's identity and starts their node in the background: up alice [flags]
func up(ts *testscript.TestScript, _ bool, args []string) {
	name := strings.ToUpper(args[0][:1]) + args[0][1:]
	flags := append([]string{"--home", args[0], "up", "--detach", "--name", name, "--no-input"}, args[1:]...)
	if len(args) == 1 {
		flags = append(flags, "--unencrypted")
	}
	ts.Check(ts.Exec("sotto", flags...))
}

// ready waits until a node started with & answers: ready alice
func ready(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	socket := ts.MkAbs(filepath.Join(args[0], "run", "sotto.sock"))
	for {
		c, err := control.Connect(ctx, socket)
		if err == nil {
			c.Close()
			return
		}
		if waited := (clock.System{}).Wait(ctx, 10*time.Millisecond); waited != nil {
			ts.Fatalf("%s does not answer: %v", args[0], err)
		}
	}
}

// eventually repeats a command until what it prints fits: eventually PATTERN COMMAND...
func eventually(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for re := regexp.MustCompile(args[0]); ; {
		ts.Check(ts.Exec(args[1], args[2:]...))
		if re.MatchString(ts.ReadFile("stdout")) {
			return
		}
		if (clock.System{}).Wait(ctx, 200*time.Millisecond) != nil {
			ts.Fatalf("it never printed %s", args[0])
		}
	}
}

// variable keeps what a command prints: var NAME COMMAND...
func variable(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(ts.Exec(args[1], args[2:]...))
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("stdout")))
}

// request makes one HTTP request at a person's socket and prints status and body: request alice METHOD PATH BODY [Header: value]...
func request(ts *testscript.TestScript, _ bool, args []string) {
	socket := ts.MkAbs(filepath.Join(args[0], "run", "sotto.sock"))
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	req, err := http.NewRequest(args[1], "http://sotto"+args[2], strings.NewReader(args[3]))
	ts.Check(err)
	req.Header.Set("Content-Type", "application/json")
	for _, h := range args[4:] {
		k, v, _ := strings.Cut(h, ": ")
		req.Header.Set(k, v)
	}
	resp, err := tr.RoundTrip(req)
	ts.Check(err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	_, err = fmt.Fprintf(ts.Stdout(), "%d %s\n", resp.StatusCode, body)
	ts.Check(err)
}

// makeBytes writes COUNT times a Go-quoted string into a file: bytes FILE COUNT STRING
func makeBytes(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	unit, err := strconv.Unquote(`"` + args[2] + `"`)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Repeat(unit, n)), 0o600))
}

// stale leaves a socket behind that nobody answers: stale alice
func stale(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(filepath.Join(args[0], "run", "sotto.sock"))
	ts.Check(os.MkdirAll(filepath.Dir(path), 0o700))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	ts.Check(err)
	l.SetUnlinkOnClose(false)
	ts.Check(l.Close())
}

// flip changes bytes in the middle of a person's largest table: flip alice
func flip(ts *testscript.TestScript, _ bool, args []string) {
	tables, err := filepath.Glob(ts.MkAbs(filepath.Join(args[0], "data", "store", "db", "*.sst")))
	ts.Check(err)
	var largest string
	var most int64
	for _, name := range tables {
		info, err := os.Stat(name)
		ts.Check(err)
		if info.Size() > most {
			largest, most = name, info.Size()
		}
	}
	b, err := os.ReadFile(largest)
	ts.Check(err)
	for i := range 4 {
		b[len(b)/2+i] ^= 0xff
	}
	ts.Check(os.WriteFile(largest, b, 0o600))
}
