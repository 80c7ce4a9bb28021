// Package clock is the one port through which the program reads time and waits, so that tests choose both.
// Order never comes from it: counters give order, a clock only gives due times, expiry and what people are shown.
package clock

import (
	"context"
	"os"
	"time"
)

// Clock tells the time and waits. In a testing/synctest bubble System itself runs on virtual time.
type Clock interface {
	// Now is wall time as this machine believes it.
	Now() time.Time
	// Wait returns after d, or with the context's error as soon as it ends.
	Wait(ctx context.Context, d time.Duration) error
}

// System is the machine's clock, shifted by a fixed offset.
type System struct{ Offset time.Duration }

// FromEnv is the machine's clock, shifted by SOTTO_TEST_CLOCK_OFFSET where a test of a real process sets it.
func FromEnv() System {
	d, err := time.ParseDuration(os.Getenv("SOTTO_TEST_CLOCK_OFFSET"))
	if err != nil {
		return System{}
	}
	return System{Offset: d}
}

// Now is the machine's time plus the offset.
func (c System) Now() time.Time { return time.Now().Add(c.Offset) }

// Wait sleeps for d unless the context ends first.
func (c System) Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
