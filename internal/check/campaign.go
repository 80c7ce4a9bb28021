package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/control"
)

// Options choose a campaign.
type Options struct {
	Kills  int
	Seed   uint64
	Nodes  int
	Points []string // die at each of these instead of at random moments
	Bin    string   // directory of the programs, made by Build
	Dir    string   // where the homes are; it must be short, because of the sockets' paths
	Out    io.Writer
}

// Result is a campaign's outcome.
type Result struct {
	Bad    []Violation
	Record *Record
	Figures
}

// Figures are what is told of a run besides its verdict.
type Figures struct {
	Kills, InStart, AtOnce int
	Took                   time.Duration
	Accepted, Retried      int
	Events, Repeated       int
	Found, Late            int
	Reopened               []time.Duration
	AnonMiB                [2]float64 // in the first calm and at most
	Files                  [2]int
}

// campaign is one run: a world, its people, its readers and its killer.
type campaign struct {
	Options
	*world
	rec     *Recorder
	readers []*reader
	probers map[string]*prober
	writing sync.WaitGroup
	enough  chan struct{}
	anon    [2]float64
	files   [2]int
}

// Run runs a campaign in which everything is judged at the end, and returns an error when it could not be run at all. All
// processes have ended when it returns.
func Run(ctx context.Context, o Options) (*Result, error) {
	rec := NewRecorder()
	w, err := newWorld(ctx, o.Dir, o.Bin, o.Nodes, rec)
	defer w.close()
	if err != nil {
		return nil, err
	}
	c := &campaign{Options: o, world: w, rec: rec, probers: map[string]*prober{}, enough: make(chan struct{})}
	ran := c.run(ctx)
	w.close()
	if ran != nil && !rec.failed() {
		return nil, ran
	}
	return &Result{Bad: Judge(rec.Record()), Record: rec.Record(), Figures: c.figures()}, ctx.Err()
}

// run is the campaign from the first start to the last dump.
func (c *campaign) run(ctx context.Context) error {
	n := &nemesis{w: c.world, rand: c.random(0), tell: c.progress}
	if err := n.birth(ctx); err != nil {
		return err
	}
	if err := c.up(ctx, c.homes...); err != nil {
		return err
	}
	if err := c.meet(ctx); err != nil {
		return err
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	g, reading := errgroup.WithContext(reading)
	if err := c.readAll(ctx, reading, g); err != nil {
		return err
	}
	c.writeAll(ctx)
	killed := c.attack(ctx, n)
	close(c.enough)
	calmed := c.quiesce(ctx)
	stop()
	if err := errors.Join(killed, calmed, g.Wait()); err != nil && ctx.Err() != nil {
		return err
	}
	return c.dumpAll(ctx)
}

func (c *campaign) random(n uint64) *rand.Rand { return rand.New(rand.NewPCG(c.Seed, n)) }

// readAll begins to read all feeds and to look for what is delivered.
func (c *campaign) readAll(ctx, reading context.Context, g *errgroup.Group) error {
	for _, h := range c.homes {
		c.probers[h.name] = newProber(c.rec, h)
	}
	tell := func(sender *home, receiver, id string) {
		if p := c.probers[receiver]; p != nil {
			p.add(sender.name, id)
		}
	}
	for i, h := range c.homes {
		r := &reader{rec: c.rec, home: h, rand: c.random(uint64(1000 + i)), tell: tell}
		if err := r.begin(ctx); err != nil {
			return fmt.Errorf("begin to read %s's feed: %w", h.name, err)
		}
		c.readers = append(c.readers, r)
		g.Go(func() error { return r.run(reading) })
		g.Go(func() error { return c.probers[h.name].run(reading) })
	}
	return nil
}

// writeAll has everybody write to everybody.
func (c *campaign) writeAll(ctx context.Context) {
	for i, from := range c.homes {
		for k, to := range c.homes {
			for n := range writers {
				if i == k {
					continue
				}
				w := &writer{rec: c.rec, from: from, to: to, name: fmt.Sprintf("%s>%s.%d", from.name, to.name, n), pause: 80 * time.Millisecond,
					rand: c.random(uint64(2000 + 100*i + 10*k + n))}
				c.writing.Go(func() { _ = w.run(ctx, c.enough) }) // it notes itself what was wrong
			}
		}
	}
}

// attack kills until it is enough, or something was found wrong.
func (c *campaign) attack(ctx context.Context, n *nemesis) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-c.rec.Bad():
			cancel()
		case <-done:
		}
	}()
	if c.Points != nil {
		return (&crasher{w: c.world, nemesis: n, reached: map[string]int{}}).run(ctx, c.Points)
	}
	return n.run(ctx, c.Kills)
}

// Bounds of the end: how long until every outbox is empty, and how long when something is wrong already.
const (
	quietWithin = 2 * time.Minute
	quietIfBad  = 20 * time.Second
)

// quiesce lets everybody finish: all answered, all delivered, all read, all looked for.
func (c *campaign) quiesce(ctx context.Context) error {
	limit := quietWithin
	if c.rec.failed() {
		limit = quietIfBad
	}
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, h := range c.homes { // the killer may have been stopped between a kill and the start
		if _, ok := h.running(); !ok {
			h.greeter.Wait()
			if _, err := c.start(h); err != nil {
				return err
			}
		}
	}
	written := make(chan struct{})
	go func() { c.writing.Wait(); close(written) }()
	var err error
	for {
		var open string
		if open, err = c.open(limited, written); err == nil && open == "" {
			break
		}
		if pause(limited, 100*time.Millisecond) != nil {
			err = fmt.Errorf("not at rest %s after the last kill: %s %w", limit, open, limited.Err())
			break
		}
	}
	if err != nil && ctx.Err() == nil {
		c.rec.Violate("E2", "", "", "%v", err)
	}
	c.measure()
	return errors.Join(err, c.tails(ctx))
}

// open names something that is not finished yet.
func (c *campaign) open(ctx context.Context, written <-chan struct{}) (string, error) {
	select {
	case <-written:
	default:
		return "writers wait for answers;", nil
	}
	for i, h := range c.homes {
		var st control.Status
		err := h.do(ctx, func(ctx context.Context, cl *control.Client) (err error) {
			st, err = cl.Status(ctx)
			return err
		})
		switch {
		case err != nil:
			return "", err
		case st.Queued > 0:
			return fmt.Sprintf("%s has %d in its outbox;", h.name, st.Queued), nil
		case c.readers[i].seen.Load() < st.Seq:
			return fmt.Sprintf("%s's feed was read to %d of %d;", h.name, c.readers[i].seen.Load(), st.Seq), nil
		case !c.probers[h.name].idle():
			return fmt.Sprintf("not everything that was called delivered was found at %s;", h.name), nil
		}
	}
	return "", nil
}

// tails keeps what the API shows as the end of each conversation, to be compared with the store's.
func (c *campaign) tails(ctx context.Context) error {
	for _, h := range c.homes {
		if _, ok := h.running(); !ok {
			continue
		}
		for _, peer := range c.homes {
			if peer == h {
				continue
			}
			err := h.do(ctx, func(ctx context.Context, cl *control.Client) error {
				list, err := cl.Messages(ctx, control.ListParams{Conv: peer.name, Limit: 1000, Peek: true})
				if err == nil {
					h.keepTail(peer.name, list)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// dumpAll ends all nodes in good order and reads their stores.
func (c *campaign) dumpAll(ctx context.Context) error {
	for _, h := range c.homes {
		h.stop(ctx)
	}
	for _, h := range c.homes {
		d, err := h.dump(ctx)
		if err != nil {
			c.rec.Violate("damage", h.name, "", "its store does not open for the dump: %v", err)
			continue
		}
		h.compareTails(d)
		c.rec.rec.Dumps = append(c.rec.rec.Dumps, d)
	}
	return nil
}

// progress prints a line for every 50 kills.
func (c *campaign) progress(done int) {
	if done%50 != 0 {
		return
	}
	c.measure()
	f := c.figures()
	_, _ = fmt.Fprintf(c.Out, "%5d kills %7.1f s  %d in start, %d accepted, %d events, reopened median %s worst %s, at most %.0f MiB and %d files\n",
		done, c.rec.Now().Seconds(), f.InStart, f.Accepted, f.Events, f.reopen(0.5), f.reopen(1), f.AnonMiB[1], f.Files[1])
}

// measure looks at the memory and files of those who run.
func (c *campaign) measure() {
	for _, h := range c.homes {
		p, ok := h.running()
		if !ok {
			continue
		}
		anon, files := p.usage()
		if c.anon[0] == 0 {
			c.anon[0], c.files[0] = anon, files
		}
		c.anon[1], c.files[1] = max(c.anon[1], anon), max(c.files[1], files)
	}
}

func (c *campaign) figures() Figures {
	c.rec.mu.Lock()
	defer c.rec.mu.Unlock()
	f := Figures{Took: c.rec.Now(), AnonMiB: c.anon, Files: c.files}
	f.count(&c.rec.rec)
	for _, p := range c.probers {
		p.mu.Lock()
		f.Late += p.late
		p.mu.Unlock()
	}
	for _, h := range c.homes {
		f.Reopened = append(f.Reopened, h.starts()...)
	}
	return f
}

// Clean removes a campaign's homes.
func (o Options) Clean() error { return os.RemoveAll(o.Dir) }
