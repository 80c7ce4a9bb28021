package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"sotto/control"
	"sotto/identity"
	"sotto/internal/clock"
	"sotto/messenger"
	"sotto/store"
	"sotto/wire"
)

// home is one person: a directory and, most of the time, a node that runs on it. Only the killer starts and ends the node;
// everybody else waits for it with use.
type home struct {
	name string
	dir  string
	bin  string
	rec  *Recorder

	greeter sync.WaitGroup

	mu      sync.Mutex
	proc    *process
	client  *control.Client
	changed chan struct{} // closed when client changes
	opened  []time.Duration
	born    bool // it was up at least once
	tails   map[string][]control.Message
}

const homeConfig = `[network]
listen = ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"]
bootstrap = [%q]
allow_private = true
mdns = false
port_map = false
[store]
reserve = "32MiB"
ballast = "32MiB"
`

func newHome(dir, bin, name, bootstrap string, rec *Recorder) (*home, error) {
	h := &home{name: name, dir: filepath.Join(dir, name), bin: bin, rec: rec, changed: make(chan struct{})}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a home: %w", err)
	}
	config := fmt.Sprintf(homeConfig, bootstrap)
	return h, os.WriteFile(filepath.Join(h.dir, "config.toml"), []byte(config), 0o600)
}

func (h *home) socket() string   { return filepath.Join(h.dir, "run", "sotto.sock") }
func (h *home) talk() string     { return filepath.Join(h.dir, "stderr") }
func (h *home) storeDir() string { return filepath.Join(h.dir, "data", "store") }

// start runs the node and returns at once; use waits until it answers. Until it was up once, it is a first run.
func (h *home) start(ctx context.Context, env ...string) (*process, error) {
	args := []string{"--home", h.dir, "--no-input", "up"}
	h.mu.Lock()
	first := !h.born
	h.mu.Unlock()
	if first {
		args = append(args, "--name", h.name, "--unencrypted") // again after a first run that was cut off, as a person would
	}
	p, err := launch(ctx, h.talk(), env, h.bin, args...)
	if err != nil {
		return nil, err
	}
	p.expected.Store(len(env) > 0)
	h.mu.Lock()
	h.proc = p
	h.mu.Unlock()
	h.greeter.Go(func() { h.greet(ctx, p) })
	return p, nil
}

// greet waits for the node's socket, looks at the state of its store, lets everybody use it, and watches over its end.
func (h *home) greet(ctx context.Context, p *process) {
	var wait clock.System
	for {
		c, err := control.Connect(ctx, h.socket())
		if err == nil {
			h.welcome(ctx, p, c)
			break
		}
		select {
		case <-p.done:
		default:
			_ = wait.Wait(ctx, 2*time.Millisecond)
			continue
		}
		break
	}
	<-p.done
	h.setClient(nil)
	if !p.expected.Load() && ctx.Err() == nil {
		h.rec.Violate("ended", h.name, "", "the node ended by itself after %s with %s: %s", p.alive().Round(time.Millisecond), p.cmd.ProcessState, h.lastWords())
	}
}

func (h *home) welcome(ctx context.Context, p *process, c *control.Client) {
	took := p.alive()
	st, err := c.Status(ctx)
	if err != nil {
		c.Close()
		return // killed just now
	}
	if st.Store.State != "ok" {
		h.rec.Violate("damage", h.name, "", "after a kill the store is %s: %v", st.Store.State, st.Warnings)
	}
	h.mu.Lock()
	h.opened, h.born = append(h.opened, took), true
	h.mu.Unlock()
	h.setClient(c)
}

func (h *home) setClient(c *control.Client) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.client != nil {
		h.client.Close()
	}
	h.client = c
	close(h.changed)
	h.changed = make(chan struct{})
}

// use returns the way to the node, when it is up.
func (h *home) use(ctx context.Context) (*control.Client, error) {
	for {
		h.mu.Lock()
		c, changed := h.client, h.changed
		h.mu.Unlock()
		if c != nil {
			return c, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// do calls fn with the node until it is answered: a node that was killed meanwhile is asked again when it is back.
func (h *home) do(ctx context.Context, fn func(ctx context.Context, c *control.Client) error) error {
	for {
		c, err := h.use(ctx)
		if err != nil {
			return err
		}
		limited, cancel := context.WithTimeout(ctx, callLimit)
		err = fn(limited, c)
		silent := limited.Err() != nil && ctx.Err() == nil
		cancel()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case silent:
			h.rec.Violate("liveness", h.name, "", "no answer within %s: %v", callLimit, err)
			return err
		case !gone(err):
			return err
		}
		if err := (clock.System{}).Wait(ctx, 2*time.Millisecond); err != nil {
			return err
		}
	}
}

const callLimit = 20 * time.Second

// gone are the errors after which nobody knows what became of a request.
func gone(err error) bool {
	return slices.ContainsFunc([]string{"node_gone", "node_not_running", "node_stopping", "node_unreachable", "node_silent"}, func(code string) bool {
		return errors.Is(err, &control.Error{Code: code})
	})
}

// running is the newest process, and whether it still runs.
func (h *home) running() (*process, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.proc == nil {
		return nil, false
	}
	select {
	case <-h.proc.done:
		return h.proc, false
	default:
		return h.proc, true
	}
}

// kill ends the node as a crash would, and notes it. It reports whether there was something to kill.
func (h *home) kill(phase string) bool {
	p, ok := h.running()
	if !ok {
		return false
	}
	h.rec.kill(Kill{Node: h.name, Phase: phase, Alive: p.alive()})
	p.kill()
	h.greeter.Wait()
	return true
}

// stop asks the node to end; one that does not end in time is a broken promise.
func (h *home) stop(ctx context.Context) {
	p, ok := h.running()
	if !ok {
		return
	}
	if err := p.stop(ctx, 10*time.Second); err != nil && ctx.Err() == nil {
		h.rec.Violate("ended", h.name, "", "%v: %s", err, h.lastWords())
	}
	h.greeter.Wait()
}

// end makes sure that nothing runs any more.
func (h *home) end() {
	if p, ok := h.running(); ok {
		p.kill()
	}
	h.greeter.Wait()
}

// lastWords is the end of what the node said.
func (h *home) lastWords() string {
	text, err := os.ReadFile(h.talk())
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(text[max(0, len(text)-400):]))
}

// starts are the times from each start of a process until its socket answered.
func (h *home) starts() []time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.opened)
}

// read opens the store of a node that does not run, as the program itself would, for as long as fn takes.
func (h *home) read(ctx context.Context, fn func(s *store.Store, m *messenger.Messenger) error) error {
	keys, err := identity.OpenKeyFile(filepath.Join(h.dir, "data", "identity.key"), identity.Unlock{})
	if err != nil {
		return fmt.Errorf("open %s's key file: %w", h.name, err)
	}
	s, err := store.Open(ctx, store.Config{Dir: h.storeDir(), Root: keys.Root(), Reserve: 32 << 20, Ballast: 32 << 20})
	if err != nil {
		return fmt.Errorf("open %s's store: %w", h.name, err)
	}
	m, err := messenger.New(s, keys.Seed().Account(), messenger.Config{})
	if err != nil {
		return errors.Join(fmt.Errorf("open %s's messenger: %w", h.name, err), s.Close())
	}
	return errors.Join(fn(s, m), s.Close())
}

// dump reads everything that a stopped node's store shows, and checks it to its last row.
func (h *home) dump(ctx context.Context) (Dump, error) {
	d := Dump{Node: h.name, Talks: map[string][]Row{}}
	err := h.read(ctx, func(s *store.Store, m *messenger.Messenger) error {
		report, err := s.Deep(ctx)
		if err != nil {
			return err
		}
		for _, damage := range report.Damage {
			d.Damage = append(d.Damage, damage.String())
		}
		contacts, err := m.Contacts(ctx)
		if err != nil {
			return err
		}
		for _, c := range contacts {
			if d.Talks[c.Name], err = talk(s, c.Conv); err != nil {
				return err
			}
		}
		_, d.Last, err = m.EventRange(ctx)
		return err
	})
	return d, err
}

// talk reads a whole conversation. At the end nothing may be held back any more.
func talk(s *store.Store, conv wire.ConvID) (rows []Row, err error) {
	err = s.View(func(tx *store.Tx) error {
		list, err := tx.Messages(conv, store.MessagesQuery{})
		for _, msg := range list {
			text := wire.TextOf(msg.Raw)
			row := Row{ID: wire.MsgID(msg.ID).String(), Sum: Sum(text), Text: head(text), Mine: msg.Out, State: msg.State, Why: msg.Why, Missing: msg.Gap}
			if msg.Held {
				row.Why = "held back because others are missing"
			}
			rows = append(rows, row)
		}
		return err
	})
	return rows, err
}

// life tells what a stopped node knows of a message.
func (h *home) life(ctx context.Context, id string) (string, error) {
	var out strings.Builder
	err := h.read(ctx, func(_ *store.Store, m *messenger.Messenger) error {
		t, err := m.Trace(ctx, id)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "  %s: %s %s, text %q\n", h.name, t.Message.State, t.Message.Why, head(t.Message.Text))
		for _, s := range t.Steps {
			fmt.Fprintf(&out, "    %s %s %s\n", s.At.Format("15:04:05.000"), s.What, s.Detail)
		}
		return nil
	})
	return out.String(), err
}
