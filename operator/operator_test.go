package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sotto/node"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/golang/glog.(*fileSink).flushDaemon"))
}

// out is a buffer that a running command and its test may share.
type out struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *out) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *out) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func run(t *testing.T, ctx context.Context, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var o, e out
	code = Main(ctx, args, Env{Stdout: &o, Stderr: &e, Getenv: func(string) string { return "" }})
	return code, o.String(), e.String()
}

// homeDir is short, because the path of a unix socket must be.
func homeDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vol")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "home")
}

// serve runs `serve` until stop is called, which returns its exit code.
func serve(t *testing.T, home string, args ...string) (s node.VolunteerStatus, stdout *out, stop func() int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	var o, e out
	up := make(chan node.VolunteerStatus, 1)
	done := make(chan int, 1)
	args = append([]string{"serve", "--home", home, "--port", "0", "--dht-port", "0", "--listen", "127.0.0.1", "--allow-private"}, args...)
	go func() {
		done <- Main(ctx, args, Env{Stdout: &o, Stderr: &e, Getenv: func(string) string { return "" }, Serving: func(s node.VolunteerStatus) { up <- s }})
	}()
	select {
	case s = <-up:
	case code := <-done:
		t.Fatalf("serve ended with %d: %s", code, e.String())
	case <-time.After(30 * time.Second):
		t.Fatal("never served")
	}
	var once sync.Once
	var code int
	stop = func() int {
		once.Do(func() { cancel(); code = <-done })
		return code
	}
	t.Cleanup(func() { stop() })
	return s, &o, stop
}

func TestServeSaysWhatToHandOutAndStatusAnswersMeanwhile(t *testing.T) {
	home := homeDir(t)
	s, stdout, stop := serve(t, home)
	line := stdout.String()
	if strings.Count(line, "\n") != 1 || !strings.Contains(line, s.Bootstrap[0]) || !strings.Contains(line, "next:") ||
		!strings.Contains(line, "and allow_private = true under [network]") {
		t.Errorf("serve printed %q", line)
	}
	code, got, _ := run(t, context.Background(), "status", "--home", home, "--json")
	var status node.VolunteerStatus
	if err := json.Unmarshal([]byte(got), &status); code != 0 || err != nil || len(status.Bootstrap) != len(s.Bootstrap) {
		t.Errorf("status: %d, %v, %s", code, err, got)
	}
	if code, got, _ = run(t, context.Background(), "status", "--home", home); code != 0 || !strings.Contains(got, s.Bootstrap[0]) {
		t.Errorf("status in words: %d, %s", code, got)
	}
	if code, _, e := run(t, context.Background(), "serve", "--home", home); code != exitRefused || !strings.Contains(e, "already") || !strings.Contains(e, "status --home "+home) {
		t.Errorf("a second serve on one home: %d, %s", code, e)
	}
	if code, got, e := run(t, context.Background(), "config", "check", "--home", home); code != 0 || !strings.Contains(got, "ok") {
		t.Errorf("config check: %d, %s%s", code, got, e)
	}
	if code := stop(); code != 0 {
		t.Errorf("stopped with %d", code)
	}
	if code, _, e := run(t, context.Background(), "status", "--home", home); code != exitNotUp || !strings.Contains(e, "serve --home") {
		t.Errorf("status after the end: %d, %s", code, e)
	}
}

func TestKeysAreMadeOnceAndForOurEyesOnly(t *testing.T) {
	home := homeDir(t)
	first, _, stop := serve(t, home)
	stop()
	second, _, stop := serve(t, home)
	stop()
	if peerID(first.Bootstrap[0]) != peerID(second.Bootstrap[0]) || peerID(first.Service[0]) != peerID(second.Service[0]) {
		t.Error("the volunteer came back as somebody else")
	}
	if peerID(first.Bootstrap[0]) == peerID(first.Service[0]) {
		t.Error("one key for both hosts")
	}
	if runtime.GOOS == "windows" {
		return // modes mean nothing there
	}
	err := filepath.Walk(home, func(path string, info os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		isRecord := strings.HasPrefix(path, filepath.Join(home, "records")+string(filepath.Separator)) // inside a 0700 directory
		if !isRecord && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %04o", path, info.Mode().Perm())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func peerID(addr string) string { return addr[strings.LastIndex(addr, "/")+1:] }

func TestAKeyThatOthersCanReadOrThatIsDamagedIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"readable by others": func(p string) error { return os.Chmod(p, 0o644) },
		"cut":                func(p string) error { return os.Truncate(p, 10) },
		"a directory":        func(p string) error { _ = os.Remove(p); return os.Mkdir(p, 0o700) },
		"a symlink":          func(p string) error { _ = os.Rename(p, p+"x"); return os.Symlink(p+"x", p) },
	} {
		t.Run(name, func(t *testing.T) {
			home := homeDir(t)
			if _, err := openKeys(home, bytes.NewReader(bytes.Repeat([]byte{1, 2, 3}, 100))); err != nil {
				t.Fatal(err)
			}
			if err := spoil(filepath.Join(home, serviceKeyName)); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"serve", "--home", home}, {"config", "check", "--home", home}} {
				if code, _, e := run(t, context.Background(), args...); code != exitFailed || !strings.Contains(e, serviceKeyName) {
					t.Errorf("%s: %d, %s", args[0], code, e)
				}
			}
		})
	}
}

func TestAConfigurationThatCannotBeMeantIsNamed(t *testing.T) {
	for text, want := range map[string]string{
		"port = 70000":                       "port = 70000",
		"port = -1":                          "port = -1",
		"port = 5\ndht_port = 5":             "both 5",
		"max_users = 0":                      "max_users = 0",
		"max_users = -5":                     "max_users = -5",
		"max_records = 99999999":             "max_records",
		"prot = 4001":                        `unknown key "prot"`,
		"port = \"x\"":                       "port",
		"port = 99999999999999999":           "port",
		"listen = [\"nowhere\"]":             "nowhere",
		"announce = [\"a b\"]":               "a b",
		"announce = [\"1.2.3.4:4001\"]":      "without a port",
		"announce = [\"0.0.0.0\"]":           "0.0.0.0",
		"port = 0\nannounce = [\"1.2.3.4\"]": "fixed ports",
		"peers = [\"example.org\"]":          "example.org",
		"network = \"a/b\"":                  "a/b",
		"= nonsense":                         configName,
	} {
		home := homeDir(t)
		if err := os.MkdirAll(home, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(home, configName), []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{{"config", "check", "--home", home}, {"serve", "--home", home}} {
			if code, _, e := run(t, context.Background(), args...); code != exitUsage || !strings.Contains(e, want) {
				t.Errorf("%q: %s: %d, %s", text, args[0], code, e)
			}
		}
	}
}

func TestFlagsWinOverTheFile(t *testing.T) {
	home := homeDir(t)
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	text := "port = 1\nannounce = [\"198.51.100.7\", \"relay.example.org\", \"2001:db8::7\"]\n"
	if err := os.WriteFile(filepath.Join(home, configName), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _, _ := serve(t, home, "--port", freePort(t), "--dht-port", freePort(t))
	want := []string{"/ip4/198.51.100.7/udp/", "/dns/relay.example.org/tcp/", "/ip6/2001:db8::7/tcp/"}
	for _, w := range want {
		if !strings.Contains(strings.Join(s.Bootstrap, " "), w) {
			t.Errorf("%s is not announced: %v", w, s.Bootstrap)
		}
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func TestATakenPortIsNamed(t *testing.T) {
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	home := homeDir(t)
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, configName), []byte("port = "+port+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, e := run(t, context.Background(), "config", "check", "--home", home); code != exitFailed || !strings.Contains(e, port) {
		t.Errorf("config check: %d, %s", code, e)
	}
}

func TestAnAnnouncedAddressThatNobodyCanUseNamesTheMissingKey(t *testing.T) {
	home := homeDir(t)
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, configName), []byte("announce = [\"10.0.0.7\"]\nport = "+freePort(t)+"\ndht_port = "+freePort(t)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, e := run(t, context.Background(), "config", "check", "--home", home); code != 0 || !strings.Contains(e, "announce 10.0.0.7") || !strings.Contains(e, "allow_private = true") {
		t.Errorf("config check: %d, %s", code, e)
	}
}

func TestASecondVolunteerOnUsedPortsFailsAndNamesThem(t *testing.T) {
	port, other := freePort(t), freePort(t)
	_, _, _ = serve(t, homeDir(t), "--port", freePort(t), "--dht-port", port)
	args := []string{"serve", "--home", homeDir(t), "--port", other, "--dht-port", port, "--allow-private"}
	for _, where := range [][]string{nil, {"--listen", "127.0.0.1"}} {
		code, o, e := run(t, context.Background(), append(args, where...)...)
		if code != exitFailed || o != "" || !strings.Contains(e, "TCP port "+port) {
			t.Errorf("%v: %d, %s%s", where, code, o, e)
		}
	}
	u, err := net.ListenPacket("udp", "127.0.0.1:"+other)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	code, _, e := run(t, context.Background(), "serve", "--home", homeDir(t), "--port", other, "--dht-port", "0", "--listen", "127.0.0.1", "--allow-private")
	if code != exitFailed || !strings.Contains(e, "UDP port "+other) {
		t.Errorf("a UDP port that is taken: %d, %s", code, e)
	}
}

func TestAnAnnouncedAddressThatIsNotPublicIsSaidToBeNone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var o, e out
	code := Main(ctx, []string{"serve", "--home", homeDir(t), "--port", freePort(t), "--dht-port", freePort(t), "--listen", "127.0.0.1", "--announce", "192.0.2.2"},
		Env{Stdout: &o, Stderr: &e, Getenv: func(string) string { return "" }, Serving: func(node.VolunteerStatus) { cancel() }})
	if code != exitDone || !strings.Contains(e.String(), "announce 192.0.2.2: this is not a public address") || strings.Contains(e.String(), "Name one with") {
		t.Errorf("%d: %s", code, e.String())
	}
}

func TestErrorsAreObjectsWhenJSONIsAsked(t *testing.T) {
	_, _, e := run(t, context.Background(), "status", "--home", homeDir(t), "--json")
	var got struct {
		Error struct {
			Code, Message, Hint string
			Exit                int
		}
	}
	if err := json.Unmarshal([]byte(e), &got); err != nil || got.Error.Code != "not_running" || got.Error.Exit != exitNotUp || got.Error.Hint == "" {
		t.Fatalf("%v: %s", err, e)
	}
	if code, _, _ := run(t, context.Background(), "nonsense"); code != exitUsage {
		t.Errorf("unknown command: %d", code)
	}
	if code, o, _ := run(t, context.Background(), "version"); code != 0 || !strings.HasPrefix(o, "sotto-mailbox ") {
		t.Errorf("version: %d, %s", code, o)
	}
}

func TestTheBinaryHoldsNoCodeThatOpensMessages(t *testing.T) {
	list, err := exec.Command("go", "list", "-deps", "sotto/cmd/sotto-mailbox").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, forbidden := range []string{"sotto/session", "sotto/messenger", "sotto/store", "sotto/control", "sotto/daemon"} {
		for _, line := range strings.Fields(string(list)) {
			if line == forbidden {
				t.Errorf("sotto-mailbox depends on %s", forbidden)
			}
		}
	}
}
