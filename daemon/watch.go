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

// outage notices when none of the volunteers that config.toml names can be reached, and when a node that shows no address of
// its own has no relay's either, for the log and for status.
type outage struct {
	named     int         // how many volunteers there are
	relayOnly bool        // own addresses are kept back
	heard     atomic.Bool // one of them answered once
	silent    atomic.Bool
	hidden    atomic.Bool
	doubts    []control.Warning // what config.toml says that will hardly do what was meant
}

// watch looks until the context ends.
func (o *outage) watch(ctx context.Context, c clock.Clock, log *slog.Logger, online, reachable func() bool) error {
	if o.named == 0 && !o.relayOnly {
		return nil
	}
	heard, reached := c.Now(), c.Now()
	for c.Wait(ctx, lookEvery) == nil {
		now := c.Now()
		switch {
		case o.named == 0:
		case online():
			heard = now
			o.heard.Store(true)
			if o.silent.Swap(false) {
				log.Info("a volunteer answers again")
			}
		case now.Sub(heard) >= patience && !o.silent.Swap(true):
			log.Warn("no volunteer of network.bootstrap answers", "named", o.named)
		}
		switch {
		case !o.relayOnly:
		case reachable():
			reached = now
			if o.hidden.Swap(false) {
				log.Info("a relay was found")
			}
		case now.Sub(reached) >= patience && !o.hidden.Swap(true):
			log.Warn("network.relay_only is on and there is no relay")
		}
	}
	return nil
}

// warnings is what a person should know of it.
func (o *outage) warnings() []control.Warning {
	var out []control.Warning
	if o.silent.Load() {
		out = append(out, control.Warning{Text: "no volunteer of network.bootstrap answers: only this network and the addresses in links work",
			Fix: "check this computer's connection, then the addresses in config.toml: sotto config path"})
	}
	if o.hidden.Load() {
		out = append(out, control.Warning{Text: "network.relay_only is on and no relay was found: nobody can reach this node",
			Fix: "name a volunteer with a public address in network.bootstrap or network.relays of config.toml, or turn relay_only off: sotto config path"})
	}
	if len(out) > 0 || !o.heard.Load() { // as long as nothing shows that they are wrong
		out = append(out, o.doubts...)
	}
	return out
}
