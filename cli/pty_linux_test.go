package cli_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// converse runs a command in a terminal of its own and plays a person: converse SCRIPT COMMAND...
//
// The script's lines: see PATTERN waits until it is on the screen, after what was seen before; type TEXT types a line; keys
// "\x03" types just that, as a Go string; run COMMAND runs a command elsewhere meanwhile; exit CODE waits for the end. What
// was on the screen becomes stdout.
func converse(ts *testscript.TestScript, _ bool, args []string) {
	master, err := openPTY(ts, args[1:])
	ts.Check(err)
	defer func() {
		_, _ = fmt.Fprint(ts.Stdout(), master.screen())
		master.close()
	}()
	for _, l := range strings.Split(strings.TrimSpace(ts.ReadFile(args[0])), "\n") {
		word, rest, _ := strings.Cut(l, " ")
		switch word {
		case "see":
			if !master.see(regexp.MustCompile(rest)) {
				ts.Fatalf("never on the screen: %s\n%s", rest, master.screen())
			}
		case "type":
			master.write(ts, os.Expand(rest, ts.Getenv)+"\r")
		case "keys":
			keys, err := strconv.Unquote(rest)
			ts.Check(err)
			master.write(ts, keys)
		case "run":
			words := strings.Fields(os.Expand(rest, ts.Getenv))
			ts.Check(ts.Exec(words[0], words[1:]...))
		case "exit":
			want, err := strconv.Atoi(rest)
			ts.Check(err)
			if got := master.end(); got != want {
				ts.Fatalf("exit code %d, want %d\n%s", got, want, master.screen())
			}
		default:
			ts.Fatalf("no such line in a conversation: %s", l)
		}
	}
}

// pty is the outer side of a terminal and the process in it.
type pty struct {
	file *os.File
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	read chan struct{} // closed when all it wrote was read

	mu   sync.Mutex // guards what follows
	out  []byte
	seen int
	news chan struct{}
}

func openPTY(ts *testscript.TestScript, args []string) (*pty, error) {
	file, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetPointerInt(int(file.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(int(file.Fd()), unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlSetWinsize(int(file.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80}); err != nil {
		return nil, err
	}
	tty, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = tty.Close() }()
	program, err := exec.LookPath(args[0])
	if err != nil {
		return nil, err
	}
	for i := range args {
		args[i] = os.Expand(args[i], ts.Getenv)
	}
	p := &pty{file: file, cmd: exec.Command(program, args[1:]...), done: make(chan struct{}), read: make(chan struct{}), news: make(chan struct{}, 1)}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = tty, tty, tty
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	p.cmd.Dir = ts.Getenv("WORK")
	for _, name := range []string{"HOME", "PATH", "TZ", "XDG_RUNTIME_DIR", "TERM", "SOTTO_PASSPHRASE_FILE", "DBUS_SESSION_BUS_ADDRESS"} {
		p.cmd.Env = append(p.cmd.Env, name+"="+ts.Getenv(name))
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { defer close(p.done); _ = p.cmd.Wait() }()
	go func() {
		defer close(p.read)
		buf := make([]byte, 4096)
		for {
			n, err := file.Read(buf)
			p.mu.Lock()
			p.out = append(p.out, buf[:n]...)
			p.mu.Unlock()
			select {
			case p.news <- struct{}{}:
			default:
			}
			if err != nil { // EIO when the last of them has closed the terminal
				return
			}
		}
	}()
	return p, nil
}

const personWaits = 30 * time.Second

// see waits until the screen has a match after what was seen before.
func (p *pty) see(re *regexp.Regexp) bool {
	ctx, cancel := context.WithTimeout(context.Background(), personWaits)
	defer cancel()
	for {
		p.mu.Lock()
		at := re.FindIndex(p.out[p.seen:])
		if at != nil {
			p.seen += at[1]
		}
		p.mu.Unlock()
		if at != nil {
			return true
		}
		select {
		case <-p.news:
		case <-ctx.Done():
			return false
		case <-p.read:
			p.mu.Lock()
			at := re.Match(p.out[p.seen:])
			p.mu.Unlock()
			return at
		}
	}
}

func (p *pty) screen() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.out)
}

func (p *pty) write(ts *testscript.TestScript, keys string) {
	_, err := p.file.WriteString(keys)
	ts.Check(err)
}

// end waits for the process, -1 when it goes on.
func (p *pty) end() int {
	ctx, cancel := context.WithTimeout(context.Background(), personWaits)
	defer cancel()
	select {
	case <-p.done:
		<-p.read
		return p.cmd.ProcessState.ExitCode()
	case <-ctx.Done():
		return -1
	}
}

func (p *pty) close() {
	_ = p.cmd.Process.Kill()
	<-p.done
	_ = p.file.Close()
	<-p.read
}

// TestTerminals drives the real program as a person does who looks at what it says before typing on.
func TestTerminals(t *testing.T) {
	runScripts(t, "testdata/terminal", map[string]func(*testscript.TestScript, bool, []string){"converse": converse})
}
