package mailbox

import (
	"runtime"
	"testing"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"

	"sotto/wire"
)

// held is what the process has in use after what is garbage was collected.
func held() uint64 {
	for range 3 { // stacks shrink by half at a time
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// The bound is of both ends together, since both are in this process; the mailbox's own part is the smaller one.
func TestAnOwnerWhoWaitsCostsLittleMoreThanItsConnection(t *testing.T) {
	if testing.Short() {
		t.Skip("short runs have the race detector, which costs memory of its own")
	}
	const owners = 100
	w := start(t, nil)
	var hosts []*attacker
	for range owners {
		key := newKey(t)
		hosts = append(hosts, &attacker{Host: newHost(t, key), key: key, w: w})
	}
	bare := held()
	for _, a := range hosts {
		if err := a.Connect(within(t), *host.InfoFromHost(w.host)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are connected", func() bool { return len(w.host.Network().Peers()) == owners })
	connected := held()
	var streams []network.Stream
	for _, a := range hosts {
		key := newKey(t)
		s := a.open()
		if got := ask1(t, s, auth(key, w.srv.key, ownerKey(a.key))); got.Code != wire.CodeOK {
			t.Fatal(got.Code)
		}
		how := w.work(key)
		if got := ask1(t, s, &how); got.Code != wire.CodeOK {
			t.Fatal(got.Code)
		}
		if _, err := s.Write(wire.AppendMailboxRequest(nil, &wire.Wait{Seconds: 900})); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
	}
	eventually(t, "all wait", func() bool { return w.srv.Status().Waiting == owners })
	waiting := held()
	t.Logf("a connection %d bytes, one that waits %d", (connected-bare)/owners, (waiting-bare)/owners)
	if float64(waiting-bare) > 1.3*float64(connected-bare) {
		t.Errorf("%d bytes for %d connections, %d with an owner waiting on each", connected-bare, owners, waiting-bare)
	}
	for _, s := range streams {
		_ = s.Reset()
	}
}
