// Package fault names the moments at which a crash would hurt most, so that a test can stop the process at exactly
// one of them. In ordinary use a point costs one nil check.
package fault

import (
	"os"
	"strconv"
	"sync"
)

// Points counts how often each named point was passed and ends the process at the chosen one. A nil *Points does nothing.
type Points struct {
	mu     sync.Mutex
	passed map[string]int
	at     string // the point to die at
	left   int    // how many more passes before dying there
}

// New arms the points: the process kills itself on the n-th pass (from 1) of the named point. An empty name only counts.
func New(at string, n int) *Points { return &Points{passed: map[string]int{}, at: at, left: n} }

// FromEnv arms from SOTTO_TEST_CRASH_AT, for the first pass or the one in SOTTO_TEST_CRASH_PASS, or returns nil when it is
// not set.
func FromEnv() *Points {
	at := os.Getenv("SOTTO_TEST_CRASH_AT")
	if at == "" {
		return nil
	}
	pass, err := strconv.Atoi(os.Getenv("SOTTO_TEST_CRASH_PASS"))
	if err != nil || pass < 1 {
		pass = 1
	}
	return New(at, pass)
}

// Pass marks that the program reached the named point; names read "package: moment".
func (p *Points) Pass(name string) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.passed[name]++
	if name != p.at {
		return
	}
	if p.left--; p.left == 0 {
		if self, err := os.FindProcess(os.Getpid()); err == nil {
			_ = self.Kill()
		}
		select {} // the signal may be on its way: nothing after the point may run
	}
}

// Passed returns how often each point was passed.
func (p *Points) Passed() map[string]int {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[string]int, len(p.passed))
	for k, v := range p.passed {
		out[k] = v
	}
	return out
}
