package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/daemon"
	"sotto/identity"
	"sotto/internal/clock"
	"sotto/messenger"
	"sotto/node"
	"sotto/store"
	"sotto/wire"
)

// listen keeps every host on loopback.
var listen = []string{"/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"}

// person is a whole node inside this process: store on disk, messenger, both hosts.
type person struct {
	name  string
	dir   string
	store *store.Store
	m     *messenger.Messenger
	node  *node.Node
	stop  context.CancelFunc
	done  *errgroup.Group
	deaf  atomic.Bool // reaches nobody's host: only mailboxes
}

// cuttable is a person's node, which can be cut off from everybody but volunteers.
type cuttable struct {
	*node.Node
	p *person
}

// Send offers items unless the person is cut off.
func (n cuttable) Send(ctx context.Context, to wire.Reach, items [][]byte, settled func(int, wire.Answer)) error {
	if n.p.deaf.Load() {
		return wire.ErrUnreachable
	}
	return n.Node.Send(ctx, to, items, settled)
}

// Knock hands an envelope over unless the person is cut off.
func (n cuttable) Knock(ctx context.Context, at wire.Reach, invite [32]byte, envelope []byte) (wire.KnockAnswer, error) {
	if n.p.deaf.Load() {
		return wire.KnockAnswer{}, wire.ErrUnreachable
	}
	return n.Node.Knock(ctx, at, invite, envelope)
}

func newPerson(ctx context.Context, name string, bootstrap, mailboxes []string) (*person, error) {
	dir, err := os.MkdirTemp("", "sotto-bench-")
	if err != nil {
		return nil, err
	}
	p := &person{name: name, dir: dir}
	seed, err := identity.NewSeed(rand.Reader)
	if err != nil {
		return nil, err
	}
	var root [32]byte
	if _, err := io.ReadFull(rand.Reader, root[:]); err != nil {
		return nil, err
	}
	if p.store, err = store.Open(ctx, store.Config{Dir: dir, Root: root, Reserve: 32 << 20, Ballast: 32 << 20}); err != nil {
		return nil, err
	}
	if err := messenger.Init(p.store, seed.Account(), name, messenger.Config{}); err != nil {
		return nil, err
	}
	if p.m, err = messenger.New(p.store, seed.Account(), messenger.Config{}); err != nil {
		return nil, err
	}
	p.node, err = node.New(node.Config{NodeKey: p.m.NodeKey(), Bootstrap: bootstrap, Relays: mailboxes, Listen: listen, AllowPrivate: true, NoPortMap: true},
		node.Handlers{Offer: p.m.Offer, Envelope: p.m.Envelope, Bundle: p.m.Bundle, Up: p.m.Up, Moved: p.m.Moved, Online: p.m.Moved})
	if err != nil {
		return nil, err
	}
	ctx, p.stop = context.WithCancel(ctx)
	p.done, ctx = errgroup.WithContext(ctx)
	p.done.Go(func() error { return p.store.Run(ctx) })
	p.done.Go(func() error { return p.node.Run(ctx) })
	var boxes messenger.Mailboxes
	if len(mailboxes) > 0 {
		port := daemon.NewMailboxes(p.node, "", clock.System{})
		boxes = port
		p.done.Go(func() error { <-ctx.Done(); return port.Close() })
	}
	p.done.Go(func() error { return p.m.Run(ctx, cuttable{p.node, p}, boxes) })
	return p, nil
}

func (p *person) close() {
	p.stop()
	_ = p.done.Wait()
	_ = p.store.Close()
	_ = os.RemoveAll(p.dir)
}

// last is the number of the newest event.
func (p *person) last(ctx context.Context) (uint64, error) {
	_, last, err := p.m.EventRange(ctx)
	return last, err
}

// until follows the person's events after a number until one fits; it returns that one's number.
func (p *person) until(ctx context.Context, after uint64, fits func(messenger.Event) bool) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		list, err := p.m.Events(ctx, after, 1000)
		if err != nil {
			return after, fmt.Errorf("%s waits: %w", p.name, err)
		}
		for _, e := range list {
			after = e.Seq
			if fits(e) {
				return after, nil
			}
		}
	}
}

// startVolunteer runs a bootstrap node, with a mailbox if it is given a directory, and returns its addresses and how to stop it.
func startVolunteer(ctx context.Context, dir string) (bootstrap, mailboxes []string, stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- daemon.RunVolunteer(ctx, dir, clock.System{}, slog.New(slog.DiscardHandler), func(b, m []string) {
			bootstrap, mailboxes = b, m
			close(ready)
		})
	}()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		return nil, nil, nil, err
	}
	if dir == "" {
		mailboxes = nil
	}
	return bootstrap, mailboxes, func() { cancel(); <-done }, nil
}

// friends are two people who have met through a volunteer's DHT.
type friends struct {
	alice, bob *person
	volunteer  func()
}

func newFriends(ctx context.Context, mail string) (*friends, error) {
	addrs, mailboxes, stop, err := startVolunteer(ctx, mail)
	if err != nil {
		return nil, err
	}
	f := &friends{volunteer: stop}
	if f.alice, err = newPerson(ctx, "alice", addrs, mailboxes); err != nil {
		return nil, err
	}
	if f.bob, err = newPerson(ctx, "bob", addrs, mailboxes); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *friends) close() {
	f.alice.close()
	f.bob.close()
	f.volunteer()
}

// meet has bob follow an invite of alice's, and returns how long it took until her store held his first words.
func (f *friends) meet(ctx context.Context) (time.Duration, error) {
	inv, err := f.alice.m.Invite(ctx, messenger.InviteRequest{})
	if err != nil {
		return 0, err
	}
	if !inv.Published {
		return 0, errors.New("the invite was not published")
	}
	after, err := f.alice.last(ctx)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if _, err := f.bob.m.Add(ctx, messenger.AddRequest{Link: inv.Link}); err != nil {
		return 0, err
	}
	if _, err := f.bob.m.Send(ctx, messenger.SendRequest{To: "alice", Text: "first words"}); err != nil {
		return 0, err
	}
	_, err = f.alice.until(ctx, after, func(e messenger.Event) bool { return e.Kind == messenger.EventMessage })
	took := time.Since(begun)
	if err != nil {
		return 0, err
	}
	_, err = f.bob.until(ctx, 0, func(e messenger.Event) bool {
		return e.Contact != nil && e.Contact.State == messenger.ContactEstablished
	})
	return took, err
}
