package operator

import (
	"context"
	"fmt"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"sotto/internal/clock"
)

// notifyEvery is how often systemd's status line is renewed when it set no watchdog.
const notifyEvery = time.Minute

// keepNotified tells systemd that the volunteer is ready, and then that it is alive: the watchdog is fed only while health would say so,
// asked through the socket as everybody asks.
func (a *app) keepNotified(ctx context.Context, c clock.Clock) {
	every := notifyEvery
	if limit, err := daemon.SdWatchdogEnabled(false); err == nil && limit > 0 {
		every = limit / 3
	}
	if sent, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil || !sent {
		return // nobody listens
	}
	for ctx.Err() == nil {
		if s, err := a.askStatus(ctx); err == nil && healthOf(s, false).OK {
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
			text := fmt.Sprintf("STATUS=%d connections, %d records", s.Connections, s.Records)
			if m := s.Mailbox; m != nil {
				text += fmt.Sprintf(", %d boxes, %d messages in %s of %s", m.Boxes, m.Waiting, size(m.Bytes), size(m.Ceiling))
			}
			_, _ = daemon.SdNotify(false, text)
		}
		if c.Wait(ctx, every) != nil {
			break
		}
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
}
