package node

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"

	"sotto/internal/clock"
	"sotto/internal/testnet"
	"sotto/wire"
)

// simWorld is people and volunteers on a simulated network, in a bubble where time is virtual.
type simWorld struct {
	t   *testing.T
	sim *testnet.Sim
	end []func()
}

// inSim runs a test in a bubble; everything is closed before the bubble ends.
func inSim(t *testing.T, f func(w *simWorld)) {
	synctest.Test(t, func(t *testing.T) {
		w := &simWorld{t: t, sim: testnet.NewSim(20 * time.Millisecond)}
		defer w.sim.Close()
		defer func() {
			for _, end := range slices.Backward(w.end) {
				end()
			}
		}()
		f(w)
	})
}

func (w *simWorld) run(f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	}
	w.end = append(w.end, stop)
	return stop
}

// simPerson is a person with the addresses of both hosts.
type simPerson struct {
	*person
	frontIP, innerIP string
	stop             func()
}

func (w *simWorld) person(change func(*Config)) *simPerson {
	w.t.Helper()
	p := &simPerson{person: &person{key: newKey(w.t), bundles: map[[32]byte][]byte{}}, frontIP: w.sim.IP(), innerIP: w.sim.IP()}
	cfg := Config{NodeKey: p.key, NoPortMap: true}
	ips := map[Role]string{RoleFront: p.frontIP, RoleInner: p.innerIP}
	cfg.NewHost = func(role Role, opts ...libp2p.Option) (host.Host, error) {
		opts = append(opts, w.sim.Options(ips[role])...)
		if !cfg.RelayOnly {
			opts = append(opts, resetListen(testnet.Listen(ips[role])))
		}
		return libp2p.New(opts...)
	}
	if change != nil {
		change(&cfg)
	}
	n, err := New(cfg, p.handlers())
	if err != nil {
		w.t.Fatal(err)
	}
	p.Node = n
	p.stop = w.run(n.Run)
	return p
}

// resetListen replaces the addresses a host listens on.
func resetListen(addr string) libp2p.Option {
	return func(c *libp2p.Config) error {
		c.ListenAddrs = nil
		return libp2p.ListenAddrStrings(addr)(c)
	}
}

func (w *simWorld) volunteer(change func(*VolunteerConfig)) *Volunteer {
	w.t.Helper()
	ips := map[Role]string{RoleService: w.sim.IP(), RoleDHT: w.sim.IP()}
	cfg := VolunteerConfig{ServiceKey: newKey(w.t), DHTKey: newKey(w.t), MaxUsers: 50}
	cfg.NewHost = func(role Role, opts ...libp2p.Option) (host.Host, error) {
		return libp2p.New(append(append(opts, w.sim.Options(ips[role])...), resetListen(testnet.Listen(ips[role])))...)
	}
	if change != nil {
		change(&cfg)
	}
	v, err := NewVolunteer(cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.run(v.Run)
	return v
}

func (w *simWorld) pass(d time.Duration) { _ = clock.System{}.Wait(context.Background(), d) }

func (w *simWorld) send(from, to *simPerson, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return from.Send(ctx, to.Reach(), numbered(1), func(int, wire.Answer) {})
}

func TestAnIdleContactConnectionClosesAfterFiveMinutesAndAMessageReopensIt(t *testing.T) {
	inSim(t, func(w *simWorld) {
		a, b := w.person(nil), w.person(nil)
		friends(a.person, b.person)
		if err := w.send(a, b, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		w.pass(4 * time.Minute)
		if a.Status().Contacts != 1 {
			t.Fatal("closed too early")
		}
		w.pass(2 * time.Minute)
		if a.Status().Contacts != 0 || b.Status().Contacts != 0 {
			t.Fatalf("still connected: %d, %d", a.Status().Contacts, b.Status().Contacts)
		}
		if err := w.send(a, b, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAPathThatDiesInAConversationIsNoticedWithinTenSeconds(t *testing.T) {
	inSim(t, func(w *simWorld) {
		a, b := w.person(nil), w.person(nil)
		friends(a.person, b.person)
		if err := w.send(a, b, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		w.pass(7 * time.Second)
		w.sim.Cut(b.innerIP)
		w.pass(10 * time.Second)
		if a.Status().Contacts != 0 {
			t.Fatal("the dead path still counts as a connection")
		}
		began := time.Now()
		wantErr(t, w.send(a, b, 30*time.Second), wire.ErrUnreachable)
		if took := time.Since(began); took > 12*time.Second {
			t.Fatalf("the failure took %v", took)
		}
		w.sim.Heal(b.innerIP)
		if err := w.send(a, b, 10*time.Second); err != nil {
			t.Fatalf("after the path came back: %v", err)
		}
	})
}

func TestADeliveryOnADeadPathFailsInSecondsAndSucceedsAnewOnceItIsBack(t *testing.T) {
	inSim(t, func(w *simWorld) {
		a, b := w.person(nil), w.person(nil)
		friends(a.person, b.person)
		if err := w.send(a, b, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		w.sim.Cut(b.innerIP)
		began := time.Now()
		wantErr(t, w.send(a, b, 30*time.Second), wire.ErrUnreachable)
		if took := time.Since(began); took > 6*time.Second {
			t.Fatalf("the failure took %v", took)
		}
		w.sim.Heal(b.innerIP)
		if err := w.send(a, b, 10*time.Second); err != nil {
			t.Fatal(err)
		}
	})
}

func TestAtMostEightContactsAreConnectedAndTheLeastUsedMakesRoom(t *testing.T) {
	inSim(t, func(w *simWorld) {
		a := w.person(nil)
		var all []*simPerson
		var keys [][32]byte
		for range 12 {
			p := w.person(nil)
			p.Admit([][32]byte{innerKey(a.key)})
			all, keys = append(all, p), append(keys, innerKey(p.key))
		}
		a.Admit(keys)
		for _, p := range all {
			if err := w.send(a, p, 10*time.Second); err != nil {
				t.Fatal(err)
			}
			w.pass(time.Second)
			if n := a.Status().Contacts; n > 8 {
				t.Fatalf("%d contact connections", n)
			}
		}
		for i, p := range all {
			if up := connected(a.inner.Network(), p.inner.ID()); up != (i >= 4) {
				t.Errorf("contact %d connected: %v", i, up)
			}
		}
		for _, p := range all { // the other way round: they come to a
			if err := w.send(p, a, 10*time.Second); err != nil {
				t.Fatal(err)
			}
			w.pass(time.Second)
			if n := a.Status().Contacts; n > 8 {
				t.Fatalf("%d contact connections, inbound", n)
			}
		}
	})
}

func TestAnIdleNodeIsQuiet(t *testing.T) {
	inSim(t, func(w *simWorld) {
		v := w.volunteer(nil)
		boot := func(c *Config) { c.Bootstrap = v.Addrs() }
		a, b := w.person(boot), w.person(boot)
		friends(a.person, b.person)
		if err := w.send(a, b, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		w.pass(10 * time.Minute)
		if !a.Status().Online {
			t.Fatal("not online")
		}
		before := w.sim.Sent(a.frontIP) + w.sim.Sent(a.innerIP)
		w.pass(time.Hour)
		rate := float64(w.sim.Sent(a.frontIP)+w.sim.Sent(a.innerIP)-before) / time.Hour.Seconds()
		t.Logf("sent %.1f B/s (relays and bootstrap included)", rate)
		if rate > 75 { // as much comes in: 150 B/s both ways
			t.Fatalf("an idle node sent %.1f B/s", rate)
		}
	})
}

func TestOneBootstrapAddressTeachesRelaysAndTheTime(t *testing.T) {
	inSim(t, func(w *simWorld) {
		ahead := clock.System{Offset: 30 * 24 * time.Hour}
		first := w.volunteer(func(c *VolunteerConfig) { c.Clock = ahead })
		peers := func(c *VolunteerConfig) { c.Clock, c.Peers = ahead, first.Addrs() }
		second, third := w.volunteer(peers), w.volunteer(peers)
		w.pass(time.Minute)
		first.cfg.Peers = append(second.Addrs(), third.Addrs()...)
		if err := first.known.configure(first.cfg.Peers, nil); err != nil {
			t.Fatal(err)
		}
		w.pass(2 * time.Hour) // first asks the others at its next round
		p := w.person(func(c *Config) { c.Bootstrap = first.Addrs() })
		w.pass(time.Minute)
		if got := len(p.known.relays()); got != 3 {
			t.Errorf("%d relays known, want 3", got)
		}
		offset, known := p.ClockOffset()
		if !known || (offset-ahead.Offset).Abs() > time.Second {
			t.Errorf("clock offset %v, %v; want %v", offset, known, ahead.Offset)
		}
	})
}

func TestTwoVolunteersAreTooFewToCorrectAClock(t *testing.T) {
	d := newDirectory(30, false)
	d.heard("a", time.Hour)
	d.heard("b", time.Hour)
	if _, known := d.offset(); known {
		t.Fatal("two votes counted")
	}
	d.heard("b", -time.Hour)
	d.heard("c", 2*time.Hour)
	if o, known := d.offset(); !known || o != time.Hour {
		t.Fatalf("median of -1h, 1h, 2h: %v, %v", o, known)
	}
}

func TestARelayOnlyNodeShowsNoAddressAndIsReachedThroughTheRelay(t *testing.T) {
	inSim(t, func(w *simWorld) {
		v := w.volunteer(nil)
		a := w.person(func(c *Config) { c.Bootstrap = v.Addrs() })
		b := w.person(func(c *Config) { c.Bootstrap = v.Addrs(); c.RelayOnly = true })
		friends(a.person, b.person)
		w.pass(time.Minute)
		r := b.Reach()
		if len(r.Inner) == 0 || len(r.Front) == 0 || b.Status().Reachability != "relay" {
			t.Fatalf("no relay address: %v", b.Status())
		}
		for _, addr := range append(multiaddrs(r.Inner), multiaddrs(r.Front)...) {
			if !isCircuit(addr) {
				t.Fatalf("own address shown: %v", addr)
			}
		}
		if err := w.send(a, b, 20*time.Second); err != nil {
			t.Fatalf("to the relay-only node: %v", err)
		}
		name := [32]byte{1}
		b.bundles[name] = []byte("live")
		if ans, err := a.Knock(context.Background(), r, name, []byte("e")); err != nil || ans.Code != wire.CodeOK {
			t.Fatalf("knock through the relay: %+v, %v", ans, err)
		}
		for _, p := range a.Peers() {
			if p.Role == RoleContact && p.Direct {
				t.Errorf("direct connection to a relay-only node: %+v", p)
			}
		}
	})
}

func TestANodeComesBackOnlineAfterItsVolunteerWasAway(t *testing.T) {
	inSim(t, func(w *simWorld) {
		v := w.volunteer(nil)
		a := w.person(func(c *Config) { c.Bootstrap = v.Addrs() })
		w.pass(10 * time.Second)
		ip := "1.1.1.3" // the volunteer's DHT host is the second host made
		w.sim.Cut(ip)
		w.pass(5 * time.Minute)
		if s := a.Status(); s.DHTServers != 0 || s.Online || a.onlines.Load() != 1 {
			t.Fatalf("cut off: %+v, Online was called %d times", s, a.onlines.Load())
		}
		w.sim.Heal(ip)
		w.pass(6 * time.Minute)
		if s := a.Status(); !s.Online || s.DHTServers != 1 || a.onlines.Load() != 2 {
			t.Fatalf("not back: %+v, Online was called %d times", s, a.onlines.Load())
		}
	})
}
