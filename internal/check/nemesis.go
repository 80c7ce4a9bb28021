package check

import (
	"context"
	"math/rand/v2"
	"time"
)

// Phases of a kill.
const (
	phaseTraffic = "traffic"
	phaseStart   = "start"
	phaseBirth   = "first start"
	phaseAll     = "all at once"
)

// insideStart is how young a process is that is killed inside its start.
const insideStart = 300 * time.Millisecond

// upWithin is how long a node may take from its start until it answers before that alone is a failure.
const upWithin = 30 * time.Second

// nemesis kills, at moments that its seed chooses, and starts again at once.
type nemesis struct {
	w    *world
	rand *rand.Rand
	done int
	tell func(done int) // after each kill
}

func (n *nemesis) between(least, most time.Duration) time.Duration {
	return least + time.Duration(n.rand.Int64N(int64(most-least)))
}

// birth starts every node for the first time, and kills most of them in that, some several times.
func (n *nemesis) birth(ctx context.Context) error {
	for _, h := range n.w.homes {
		if _, err := n.w.start(h); err != nil {
			return err
		}
		for range n.rand.IntN(4) {
			if err := n.again(ctx, h, phaseBirth, n.between(0, insideStart)); err != nil {
				return err
			}
		}
	}
	return nil
}

// run kills until there were so many.
func (n *nemesis) run(ctx context.Context, kills int) error {
	calm := 0
	for n.done < kills {
		if err := n.strike(ctx); err != nil {
			return err
		}
		if n.done-calm < 10 {
			continue
		}
		calm = n.done
		if err := n.up(ctx, n.w.homes...); err != nil { // let something through now and then
			return err
		}
		if err := pause(ctx, n.between(400*time.Millisecond, 1200*time.Millisecond)); err != nil {
			return err
		}
	}
	return nil
}

// strike is one kill in traffic, of one or of all, and often some more while the victim starts.
func (n *nemesis) strike(ctx context.Context) error {
	victim := n.w.homes[n.rand.IntN(len(n.w.homes))]
	if n.rand.IntN(10) == 0 {
		if err := n.all(ctx); err != nil {
			return err
		}
	} else {
		if err := n.up(ctx, victim); err != nil {
			return err
		}
		if err := n.again(ctx, victim, phaseTraffic, n.between(50*time.Millisecond, 500*time.Millisecond)); err != nil {
			return err
		}
	}
	more := []int{0, 0, 0, 1, 1, 1, 2, 2, 3, 5}[n.rand.IntN(10)]
	for range more {
		if err := n.again(ctx, victim, phaseStart, n.between(0, insideStart)); err != nil {
			return err
		}
	}
	return nil
}

// all kills everybody at one moment.
func (n *nemesis) all(ctx context.Context) error {
	if err := n.up(ctx, n.w.homes...); err != nil {
		return err
	}
	if err := pause(ctx, n.between(50*time.Millisecond, 500*time.Millisecond)); err != nil {
		return err
	}
	for _, h := range n.w.homes {
		n.count(h.kill(phaseAll))
	}
	for _, h := range n.w.homes {
		if _, err := n.w.start(h); err != nil {
			return err
		}
	}
	return nil
}

// again kills a node after a while and starts it.
func (n *nemesis) again(ctx context.Context, h *home, phase string, after time.Duration) error {
	if err := pause(ctx, after); err != nil {
		return err
	}
	n.count(h.kill(phase))
	_, err := n.w.start(h)
	return err
}

func (n *nemesis) count(killed bool) {
	if killed {
		n.done++
		n.tell(n.done)
	}
}

// up waits until nodes answer.
func (n *nemesis) up(ctx context.Context, homes ...*home) error { return n.w.up(ctx, homes...) }

func (w *world) up(ctx context.Context, homes ...*home) error {
	for _, h := range homes {
		limited, cancel := context.WithTimeout(ctx, upWithin)
		_, err := h.use(limited)
		cancel()
		if err != nil && ctx.Err() == nil {
			w.rec.Violate("liveness", h.name, "", "did not come up within %s: %s", upWithin, h.lastWords())
		}
		if err != nil {
			return err
		}
	}
	return nil
}
