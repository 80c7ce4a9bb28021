package messenger_test

import (
	"context"
	"crypto/rand"
	"flag"
	"io"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"sotto/identity"
	"sotto/internal/clock"
	"sotto/internal/testnet"
	"sotto/messenger"
	"sotto/store"
)

var more = flag.Uint64("more", 1, "run so many times as many seeds")

// seeds is how many seeds a random test runs.
func seeds(n uint64) uint64 { return n * *more }

// person is one end of a test: a real store, a real messenger, a place on the simulated network.
type person struct {
	t       *testing.T
	name    string
	net     *testnet.Net
	dir     string // empty: the store is in memory and ends with stop
	clock   clock.Clock
	limits  messenger.Limits
	reserve int64 // bytes of the disk that the store leaves free; 0 is little
	noSync  bool
	boxes   messenger.Mailboxes // nil: knows no mailboxes
	account *identity.Account
	root    [32]byte

	store *store.Store
	m     *messenger.Messenger
	port  *testnet.Port
	stop  context.CancelFunc
	done  chan error
}

type option func(*person)

// onDisk keeps the store in a directory, so that the person can be stopped and started again.
func onDisk(p *person) { p.dir = p.t.TempDir() }

// onQuickDisk is onDisk without waiting for the disk, for tests that restart a lot and cut no power.
func onQuickDisk(p *person) { p.dir, p.noSync = p.t.TempDir(), true }

func withMailboxes(n *testnet.Mailboxes) option {
	return func(p *person) { p.boxes = n }
}

func withClock(c clock.Clock) option       { return func(p *person) { p.clock = c } }
func withLimits(l messenger.Limits) option { return func(p *person) { p.limits = l } }
func (p *person) config() messenger.Config {
	return messenger.Config{Clock: p.clock, Limits: p.limits, Log: slog.New(slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("who", p.name)}
}

// newPerson makes an identity and starts it.
func newPerson(t *testing.T, net *testnet.Net, name string, options ...option) *person {
	t.Helper()
	p := &person{t: t, name: name, net: net, clock: clock.System{}}
	for _, o := range options {
		o(p)
	}
	seed, err := identity.NewSeed(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.account = seed.Account()
	if _, err := io.ReadFull(rand.Reader, p.root[:]); err != nil {
		t.Fatal(err)
	}
	p.open()
	if err := messenger.Init(p.store, p.account, name, p.config()); err != nil {
		t.Fatal(err)
	}
	p.start()
	t.Cleanup(p.halt)
	return p
}

func (p *person) open() {
	p.t.Helper()
	cfg := store.Config{Dir: p.dir, Root: p.root, InMemory: p.dir == "", Clock: p.clock, Reserve: max(p.reserve, 1<<20), Ballast: 1 << 20, NoSync: p.noSync}
	st, err := store.Open(context.Background(), cfg)
	if err != nil {
		p.t.Fatal(err)
	}
	p.store = st
}

// start opens the messenger and puts it on the network.
func (p *person) start() {
	p.t.Helper()
	if p.store == nil {
		p.open()
	}
	m, err := messenger.New(p.store, p.account, p.config())
	if err != nil {
		p.t.Fatal(err)
	}
	p.m = m
	p.port = p.net.Join(p.name, m.NodeKey(), m)
	ctx, cancel := context.WithCancel(context.Background())
	p.stop, p.done = cancel, make(chan error, 1)
	go func() { p.done <- m.Run(ctx, p.port, p.boxes) }()
	synctest.Wait() // until it is at work
}

// halt takes the person off the network and closes the store.
func (p *person) halt() {
	p.t.Helper()
	if p.m == nil {
		return
	}
	p.checkStore()
	p.port.Leave()
	p.stop()
	if err := <-p.done; err != nil {
		p.t.Errorf("%s: Run: %v", p.name, err)
	}
	if err := p.store.Close(); err != nil {
		p.t.Errorf("%s: close: %v", p.name, err)
	}
	p.m, p.store = nil, nil
}

// restart stops and starts the person.
func (p *person) restart() {
	p.t.Helper()
	p.halt()
	p.start()
}

func (p *person) invite(req messenger.InviteRequest) messenger.Invite {
	p.t.Helper()
	inv, err := p.m.Invite(context.Background(), req)
	if err != nil {
		p.t.Fatalf("%s: invite: %v", p.name, err)
	}
	return inv
}

func (p *person) add(link string) messenger.AddResult {
	p.t.Helper()
	res, err := p.m.Add(context.Background(), messenger.AddRequest{Link: link})
	if err != nil {
		p.t.Fatalf("%s: add: %v", p.name, err)
	}
	return res
}

func (p *person) send(to, text string) messenger.Message {
	p.t.Helper()
	msg, err := p.m.Send(context.Background(), messenger.SendRequest{To: to, Text: text})
	if err != nil {
		p.t.Fatalf("%s: send: %v", p.name, err)
	}
	return msg
}

func (p *person) message(id string) messenger.Message {
	p.t.Helper()
	msg, err := p.m.Message(context.Background(), id)
	if err != nil {
		p.t.Fatalf("%s: message: %v", p.name, err)
	}
	return msg
}

// texts is what the person sees of the other's words, in the order shown.
func (p *person) texts(with string) []string {
	p.t.Helper()
	list, err := p.m.Messages(context.Background(), with, messenger.MessagesQuery{Limit: 100_000, Peek: true})
	if err != nil {
		p.t.Fatalf("%s: messages: %v", p.name, err)
	}
	var out []string
	for _, msg := range list {
		if !msg.From.Me {
			out = append(out, msg.Text)
		}
	}
	return out
}

func (p *person) contact(name string) messenger.Contact {
	p.t.Helper()
	c, err := p.m.Contact(context.Background(), name)
	if err != nil {
		p.t.Fatalf("%s: contact %s: %v", p.name, name, err)
	}
	return c
}

func (p *person) status() messenger.Status {
	p.t.Helper()
	s, err := p.m.Status(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	return s
}

// settle lets d of virtual time pass and everything come to rest.
func settle(d time.Duration) {
	time.Sleep(d) // virtual: inside a synctest bubble
	synctest.Wait()
}

// meet makes contacts of two people.
func meet(t *testing.T, a, b *person) {
	t.Helper()
	b.add(a.invite(messenger.InviteRequest{}).Link)
	settle(time.Minute)
	if s := a.contact(b.name).State; s != messenger.ContactEstablished {
		t.Fatalf("%s sees %s as %s", a.name, b.name, s)
	}
	if s := b.contact(a.name).State; s != messenger.ContactEstablished {
		t.Fatalf("%s sees %s as %s", b.name, a.name, s)
	}
}

func wantTexts(t *testing.T, p *person, from string, want []string) {
	t.Helper()
	if got := p.texts(from); !slices.Equal(got, want) {
		t.Errorf("%s shows %d messages of %s, want %d:\ngot  %q\nwant %q", p.name, len(got), from, len(want), head(got), head(want))
	}
}

func head(list []string) []string { return list[:min(len(list), 20)] }
