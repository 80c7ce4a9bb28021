package check

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"sotto/control"
)

// world is everybody on this machine's loopback: a volunteer, and people who know each other.
type world struct {
	dir       string
	bin       string // directory of the programs
	bootstrap string
	volunteer *process
	homes     []*home
	rec       *Recorder
	// start runs a node for as long as the campaign lasts, whatever becomes of the part of it that wants it started.
	start func(h *home, env ...string) (*process, error)
}

func newWorld(ctx context.Context, dir, bin string, people int, rec *Recorder) (*world, error) {
	w := &world{dir: dir, bin: bin, rec: rec}
	w.start = func(h *home, env ...string) (*process, error) { return h.start(ctx, env...) }
	if err := w.serve(ctx); err != nil {
		return w, err
	}
	for i := range people {
		if _, err := w.settle(fmt.Sprintf("p%d", i+1)); err != nil {
			return w, err
		}
	}
	return w, nil
}

// settle makes a home. Nothing runs there yet.
func (w *world) settle(name string) (*home, error) {
	h, err := newHome(w.dir, filepath.Join(w.bin, "sotto"), name, w.bootstrap, w.rec)
	if err == nil {
		w.homes = append(w.homes, h)
	}
	return h, err
}

const volunteerConfig = `port = 0
dht_port = 0
listen = ["127.0.0.1"]
allow_private = true
mdns = false
`

// serve runs the volunteer and learns its address; it is never killed: people must find each other when ports change.
func (w *world) serve(ctx context.Context) error {
	dir := filepath.Join(w.dir, "volunteer")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the volunteer's home: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(volunteerConfig), 0o600); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(w.bin, "sotto-mailbox"), "--home", dir, "--json", "serve")
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the volunteer: %w", err)
	}
	w.volunteer = &process{cmd: cmd, begun: time.Now(), done: make(chan struct{})}
	line, readErr := bufio.NewReader(out).ReadBytes('\n') // Wait would close the pipe
	go func() { _ = cmd.Wait(); close(w.volunteer.done) }()
	var said struct{ Bootstrap []string }
	if err := errors.Join(readErr, json.Unmarshal(line, &said)); err != nil || len(said.Bootstrap) == 0 {
		return fmt.Errorf("the volunteer did not come up: %w: %s", err, line)
	}
	w.bootstrap = said.Bootstrap[0]
	return nil
}

// meet makes contacts of all, each pair by an invite.
func (w *world) meet(ctx context.Context) error {
	for i, a := range w.homes {
		for _, b := range w.homes[:i] {
			if err := introduce(ctx, a, b); err != nil {
				return fmt.Errorf("%s and %s do not meet: %w", a.name, b.name, err)
			}
		}
	}
	return nil
}

func introduce(ctx context.Context, a, b *home) error {
	ctx, cancel := context.WithTimeout(ctx, meetWithin)
	defer cancel()
	var invite control.Invite
	err := a.do(ctx, func(ctx context.Context, c *control.Client) (err error) {
		invite, err = c.Invite(ctx, control.InviteParams{})
		return err
	})
	if err != nil {
		return err
	}
	err = b.do(ctx, func(ctx context.Context, c *control.Client) error {
		_, err := c.Add(ctx, control.AddParams{Link: invite.Link, Name: a.name})
		return err
	})
	if err != nil {
		return err
	}
	for _, pair := range [][2]*home{{a, b}, {b, a}} {
		if err := pair[0].knows(ctx, pair[1].name); err != nil {
			return err
		}
	}
	return nil
}

// meetWithin is how long two people may take to become contacts.
const meetWithin = time.Minute

// knows waits until a contact is established.
func (h *home) knows(ctx context.Context, name string) error {
	for {
		var now control.Contact
		err := h.do(ctx, func(ctx context.Context, c *control.Client) (err error) {
			now, err = c.Contact(ctx, name)
			return err
		})
		if err == nil && now.State == "established" {
			return nil
		}
		if err != nil && !errors.Is(err, &control.Error{Code: "contact_not_found"}) {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%s has %s as %q: %w", h.name, name, now.State, err)
		}
	}
}

// close ends everything that runs.
func (w *world) close() {
	for _, h := range w.homes {
		h.end()
	}
	if w.volunteer != nil {
		w.volunteer.kill()
	}
}
