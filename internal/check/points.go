package check

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"sotto/control"
	"sotto/store"
)

// CrashPoints lists every named crash point of the program: the store's own list, which its tests hold complete, and each
// name that any other package passes. A name that is not written out is an error: it could not be tried.
func CrashPoints(root string) ([]string, error) {
	points := store.CrashPoints()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "store" || name == "internal") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		found, err := passed(path, src)
		points = append(points, found...)
		return err
	})
	slices.Sort(points)
	return slices.Compact(points), err
}

// passed finds the names given to (*fault.Points).Pass in one file.
func passed(path string, src []byte) (points []string, err error) {
	file, err := parser.ParseFile(token.NewFileSet(), path, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) != 1 {
			return true
		}
		if fn, ok := call.Fun.(*ast.SelectorExpr); !ok || fn.Sel.Name != "Pass" {
			return true
		}
		lit, ok := call.Args[0].(*ast.BasicLit)
		if !ok || lit.Kind != token.STRING {
			err = fmt.Errorf("%s: write the crash point's name out, so that it can be tried", path)
			return true
		}
		if name, bad := strconv.Unquote(lit.Value); bad == nil {
			points = append(points, name)
		}
		return true
	})
	return points, err
}

// crasher lets nodes die at every named crash point.
type crasher struct {
	w       *world
	nemesis *nemesis
	reached map[string]int
}

// Environment by which a node is told where to die.
const (
	envPoint = "SOTTO_TEST_CRASH_AT"
	envPass  = "SOTTO_TEST_CRASH_PASS"
)

// run tries each point in a first start, in the first pass after a clean stop, and in a later pass after a crash.
func (c *crasher) run(ctx context.Context, points []string) error {
	for i, point := range points {
		if err := c.newborn(ctx, point, i); err != nil {
			return err
		}
		h := c.w.homes[i%len(c.w.homes)]
		h.stop(ctx)
		if err := c.die(ctx, h, point, 1); err != nil {
			return err
		}
		if err := pause(ctx, c.nemesis.between(50*time.Millisecond, 300*time.Millisecond)); err != nil {
			return err
		}
		other := c.w.homes[(i+1)%len(c.w.homes)]
		c.nemesis.count(other.kill(phaseTraffic))
		if err := c.die(ctx, other, point, 2+c.nemesis.rand.IntN(20)); err != nil {
			return err
		}
		if c.reached[point] == 0 {
			c.w.rec.Violate("points", "", "", "no node ever came to the point %q: drive it there, or remove it", point)
		}
		select {
		case <-c.w.rec.Bad():
			return nil
		default:
		}
	}
	return nil
}

// patience is how long traffic has to bring a node to its point before it is asked to end, which passes points of its own.
const patience = 1500 * time.Millisecond

// die starts a node that is to die at a point, lets traffic or its own end bring it there, and starts it again.
func (c *crasher) die(ctx context.Context, h *home, point string, pass int) error {
	p, err := c.w.start(h, envPoint+"="+point, envPass+"="+strconv.Itoa(pass))
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, upWithin)
	c.w.upOrEnded(limited, h, p)
	cancel()
	if !p.ended(ctx, patience) {
		if err := p.stop(ctx, 10*time.Second); err != nil {
			c.w.rec.Violate("ended", h.name, "", "%v", err)
		}
	}
	h.greeter.Wait()
	switch {
	case p.killed():
		c.reached[point]++
		c.w.rec.kill(Kill{Node: h.name, Phase: point + " #" + strconv.Itoa(pass), Alive: p.alive()})
		c.nemesis.count(true)
	case p.cmd.ProcessState.ExitCode() > 0 && p.cmd.ProcessState.ExitCode() != control.ExitInterrupted:
		c.w.rec.Violate("ended", h.name, "", "on its way to %q it ended with %s: %s", point, p.cmd.ProcessState, h.lastWords())
	}
	if _, err := c.w.start(h); err != nil {
		return err
	}
	return c.w.up(ctx, h)
}

// upOrEnded waits until a node answers or has ended.
func (w *world) upOrEnded(ctx context.Context, h *home, p *process) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	_, _ = h.use(ctx)
}

// newborn tries a point in a home's first start: afterwards the same command must make the home good.
func (c *crasher) newborn(ctx context.Context, point string, n int) error {
	h, err := newHome(c.w.dir, filepath.Join(c.w.bin, "sotto"), "n"+strconv.Itoa(n), c.w.bootstrap, c.w.rec)
	if err != nil {
		return err
	}
	defer h.end()
	if err := c.die(ctx, h, point, 1); err != nil {
		return err
	}
	h.stop(ctx)
	d, err := h.dump(ctx)
	if err != nil {
		c.w.rec.Violate("damage", h.name, "", "after a crash in its first start at %q: %v", point, err)
		return nil
	}
	if len(d.Damage) > 0 {
		c.w.rec.Violate("damage", h.name, "", "after a crash in its first start at %q: %s", point, d.Damage[0])
		return nil
	}
	return os.RemoveAll(h.dir)
}
