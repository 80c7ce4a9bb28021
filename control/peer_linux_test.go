package control_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAnotherUserIsRefusedEvenWhereTheFileModesWouldLetThemIn(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root can try this as another user; the file modes were checked elsewhere")
		return
	}
	n := start(t)
	for p := filepath.Dir(n.path); p != "/"; p = filepath.Dir(p) {
		if info, err := os.Stat(p); err == nil && info.Mode().Perm()&0o005 != 0o005 {
			if err := os.Chmod(p, info.Mode().Perm()|0o055); err != nil {
				t.Fatal(err)
			}
		}
		if p == os.TempDir() {
			break
		}
	}
	if err := os.Chmod(n.path, 0o666); err != nil {
		t.Fatal(err)
	}
	type result struct {
		conn net.Conn
		err  error
	}
	dialled := make(chan result)
	go func() {
		// The thread changes its user for good; it ends with this goroutine because it is never unlocked.
		runtime.LockOSThread()
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
			dialled <- result{err: e}
			return
		}
		c, err := net.Dial("unix", n.path)
		dialled <- result{c, err}
	}()
	r := <-dialled
	if r.err != nil {
		t.Fatal(r.err)
	}
	defer func() { _ = r.conn.Close() }()
	if _, err := io.WriteString(r.conn, "GET /v1/schema HTTP/1.1\r\nHost: sotto\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(r.conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusForbidden || !strings.Contains(string(answer), "wrong_user") {
		t.Errorf("got %d %s", resp.StatusCode, answer)
	}
}
