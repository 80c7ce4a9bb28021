package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// MaxPath is the longest socket path that every system takes: 108 bytes with the ending zero on Linux, 104 elsewhere.
const MaxPath = 103

// ErrServed is returned by Listen when a living process answers at the socket.
var ErrServed = errors.New("another process answers at the socket")

// Listen opens the socket at path with mode 0600 in a directory that only this user can enter, and takes the place of
// a socket that nobody answers. Only the process that holds the home's lock may call it.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if len(path) > MaxPath {
		return nil, Errorf(ExitUsage, "socket_path_too_long", "Choose a shorter one with --socket.", "socket path %s has %d bytes, at most %d work", path, len(path), MaxPath)
	}
	if err := privateDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if err := clearStale(ctx, path); err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on socket %s: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("protect socket %s: %w", path, err)
	}
	return l, nil
}

// privateDir makes the directory, or checks that it is ours alone and no link to somewhere else.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the socket's directory: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("check the socket's directory: %w", err)
	}
	hint := "Make it yours alone (chmod 700 " + dir + "), or choose another with --socket."
	switch {
	case info.Mode()&os.ModeSymlink != 0 || !info.IsDir():
		return Errorf(ExitFailed, "unsafe_directory", hint, "the socket's directory %s is not a plain directory", dir)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0:
		return Errorf(ExitFailed, "unsafe_directory", hint, "others may enter the socket's directory %s (mode %04o)", dir, info.Mode().Perm())
	case !ownedByUs(info):
		return Errorf(ExitFailed, "unsafe_directory", hint, "the socket's directory %s belongs to another user", dir)
	}
	return nil
}

// clearStale removes a socket whose process is gone, and nothing else.
func clearStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("check socket %s: %w", path, err)
	}
	if info.Mode()&os.ModeSocket == 0 {
		return Errorf(ExitFailed, "not_a_socket", "Move the file away, or choose another path with --socket.", "%s exists and is not a socket", path)
	}
	conn, err := dial(ctx, path)
	if err == nil {
		_ = conn.Close()
		return fmt.Errorf("listen on socket %s: %w", path, ErrServed)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("check socket %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the stale socket: %w", err)
	}
	return nil
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	d := net.Dialer{Timeout: 2 * time.Second}
	return d.DialContext(ctx, "unix", path)
}

// peerKey finds, for the life of a connection, what was learnt about its other end.
type peerKey struct{}

type peerCheck struct{ err error }

func withPeer(ctx context.Context, c net.Conn) context.Context {
	if slot, ok := c.(*slotConn); ok {
		c = slot.Conn
	}
	if unixConn, ok := c.(*net.UnixConn); ok {
		return context.WithValue(ctx, peerKey{}, peerCheck{checkPeer(unixConn)})
	}
	return ctx
}

// peerOf returns nil for this user's own process only; a connection that nobody checked is refused.
func peerOf(ctx context.Context) error {
	if check, ok := ctx.Value(peerKey{}).(peerCheck); ok {
		return check.err
	}
	return errors.New("the other end is unknown")
}

// limited lets in so many connections at a time; more wait in the kernel, and take none of the descriptors that the store
// and the network need.
type limited struct {
	net.Listener
	slots chan struct{}
	end   func()
	ended <-chan struct{}
}

func limit(l net.Listener, most int) net.Listener {
	ended := make(chan struct{})
	return &limited{Listener: l, slots: make(chan struct{}, most), end: sync.OnceFunc(func() { close(ended) }), ended: ended}
}

// Accept waits for a slot, then for a connection.
func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.ended:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &slotConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

// Close ends a waiting Accept too.
func (l *limited) Close() error {
	l.end()
	return l.Listener.Close()
}

// slotConn gives its slot back when it is closed.
type slotConn struct {
	net.Conn
	free func()
}

func (c *slotConn) Close() error {
	defer c.free()
	return c.Conn.Close()
}
