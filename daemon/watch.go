package daemon

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"sotto/control"
	"sotto/internal/clock"
)

const (
	patience  = 10 * time.Second // how long volunteers may be silent before anybody is told: some are far away
	lookEvery = 5 * time.Second
)

// outage notices when none of the volunteers that config.toml names can be reached, for the log and for status.
type outage struct {
	named  int // how many there are
	silent atomic.Bool
}

// watch looks until the context ends.
func (o *outage) watch(ctx context.Context, c clock.Clock, log *slog.Logger, online func() bool) error {
	if o.named == 0 {
		return nil
	}
	heard := c.Now()
	for c.Wait(ctx, lookEvery) == nil {
		switch now := c.Now(); {
		case online():
			heard = now
			if o.silent.Swap(false) {
				log.Info("a volunteer answers again")
			}
		case now.Sub(heard) >= patience && !o.silent.Swap(true):
			log.Warn("no volunteer of network.bootstrap answers", "named", o.named)
		}
	}
	return nil
}

// warnings is what a person should know of it.
func (o *outage) warnings() []control.Warning {
	if !o.silent.Load() {
		return nil
	}
	return []control.Warning{{Text: "no volunteer of network.bootstrap answers: only this network and the addresses in links work",
		Fix: "check this computer's connection, then the addresses in config.toml: sotto config path"}}
}
