package daemon

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"sotto/control"
)

// statusEvery is how often systemd's status line is renewed when it set no watchdog.
const statusEvery = time.Minute

// keepNotified tells systemd that the node is ready, and then that it is alive: the watchdog is fed only while the
// socket takes connections.
func keepNotified(ctx context.Context, opt Options, addr net.Addr, n control.Net) error {
	every := statusEvery
	if limit, err := daemon.SdWatchdogEnabled(false); err == nil && limit > 0 {
		every = limit / 3
	}
	if sent, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil || !sent {
		return nil // nobody listens
	}
	for ctx.Err() == nil {
		if n != nil {
			s := n.NetStatus()
			_, _ = daemon.SdNotify(false, fmt.Sprintf("STATUS=%d peers, %d contacts connected, reachability %s", s.Peers, s.Contacts, s.Reachability))
		}
		if c, err := (&net.Dialer{Timeout: every}).DialContext(ctx, addr.Network(), addr.String()); err == nil {
			_ = c.Close()
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		}
		if err := opt.Clock.Wait(ctx, every); err != nil {
			break
		}
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	return nil
}
