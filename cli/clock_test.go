package cli

import (
	"context"
	"time"
)

// fixed is a clock that stands still.
type fixed struct{}

func (fixed) Now() time.Time { return time.Date(2026, 11, 22, 10, 4, 5, 0, time.UTC) }

func (fixed) Wait(ctx context.Context, _ time.Duration) error {
	<-ctx.Done()
	return ctx.Err()
}
