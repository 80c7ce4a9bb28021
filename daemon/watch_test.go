package daemon

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"sotto/internal/clock"
)

func TestVolunteersThatDoNotAnswerAreToldOfUntilOneDoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var said bytes.Buffer
		var online atomic.Bool
		away, done := &outage{named: 2}, make(chan error, 1)
		go func() {
			done <- away.watch(ctx, clock.System{}, slog.New(slog.NewTextHandler(&said, nil)), online.Load, nil)
		}()
		for _, step := range []struct {
			online bool
			after  time.Duration
			warned bool
		}{{false, patience - time.Second, false}, {false, lookEvery, true}, {false, time.Hour, true}, {true, lookEvery, false}, {false, lookEvery, false}} {
			online.Store(step.online)
			time.Sleep(step.after) // virtual
			synctest.Wait()
			if got := len(away.warnings()) > 0; got != step.warned {
				t.Errorf("%+v: warned %v", step, got)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if log := said.String(); strings.Count(log, "WARN") != 1 || strings.Count(log, "answers again") != 1 {
			t.Errorf("the log says %s", log)
		}
	})
}

func TestAHomeWithoutAVolunteerIsNotWarnedOfOne(t *testing.T) {
	away := &outage{}
	if err := away.watch(t.Context(), clock.System{}, slog.New(slog.DiscardHandler), nil, nil); err != nil || len(away.warnings()) > 0 {
		t.Errorf("%v, %v", away.warnings(), err)
	}
}

func TestAnAddressThatCannotWorkIsToldOfAtOnce(t *testing.T) {
	cfg := DefaultConfig()
	for _, ip := range []string{"10.0.0.7", "198.18.0.7", "127.0.0.1"} {
		cfg.Network.Bootstrap = []string{"/ip4/" + ip + "/udp/4002/quic-v1/p2p/12D3KooWEB8XKQ5hY6rsjTbBNKxTBzr7gKyNqGBsQg3bdyvM7bE7"}
		away := &outage{named: 1, doubts: cfg.Doubts()}
		if got := away.warnings(); len(got) != 1 || !strings.Contains(got[0].Text, ip) || !strings.Contains(got[0].Text, "network.allow_private") {
			t.Errorf("%s: %+v", ip, got)
		}
	}
}

func TestANodeThatShowsOnlyRelaysSaysWhenItHasNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var reachable atomic.Bool
		cfg := DefaultConfig()
		cfg.Network.Bootstrap = []string{"/ip4/10.0.0.7/udp/4002/quic-v1/p2p/12D3KooWEB8XKQ5hY6rsjTbBNKxTBzr7gKyNqGBsQg3bdyvM7bE7"}
		away, done := &outage{named: 1, relayOnly: true, doubts: cfg.Doubts()}, make(chan error, 1)
		go func() {
			done <- away.watch(ctx, clock.System{}, slog.New(slog.DiscardHandler), func() bool { return true }, reachable.Load)
		}()
		time.Sleep(patience + lookEvery) // virtual
		synctest.Wait()
		if got := away.warnings(); len(got) != 2 || !strings.Contains(got[0].Text, "nobody can reach") || !strings.Contains(got[1].Fix, "allow_private = true") {
			t.Errorf("%+v", got)
		}
		reachable.Store(true)
		time.Sleep(lookEvery)
		synctest.Wait()
		if got := away.warnings(); len(got) != 0 {
			t.Errorf("%+v", got)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
