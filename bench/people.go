package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"sotto/identity"
	"sotto/messenger"
	"sotto/node"
	"sotto/store"
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
}

func newPerson(ctx context.Context, name string, bootstrap []string) (*person, error) {
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
	p.node, err = node.New(node.Config{NodeKey: p.m.NodeKey(), Bootstrap: bootstrap, Listen: listen, AllowPrivate: true, NoPortMap: true},
		node.Handlers{Offer: p.m.Offer, Envelope: p.m.Envelope, Bundle: p.m.Bundle, Up: p.m.Up, Moved: p.m.Moved, Online: p.m.Moved})
	if err != nil {
		return nil, err
	}
	ctx, p.stop = context.WithCancel(ctx)
	p.done, ctx = errgroup.WithContext(ctx)
	p.done.Go(func() error { return p.store.Run(ctx) })
	p.done.Go(func() error { return p.node.Run(ctx) })
	p.done.Go(func() error { return p.m.Run(ctx, p.node, nil) })
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

// startVolunteer runs a bootstrap node and returns its addresses and how to stop it.
func startVolunteer(ctx context.Context) (addrs []string, stop func(), err error) {
	keys := make([]ed25519.PrivateKey, 2)
	for i := range keys {
		if _, keys[i], err = ed25519.GenerateKey(rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	v, err := node.NewVolunteer(node.VolunteerConfig{ServiceKey: keys[0], DHTKey: keys[1], ServicePort: -1, DHTPort: -1, Listen: listen, AllowPrivate: true})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- v.Run(ctx) }()
	return v.Addrs(), func() { cancel(); <-done }, nil
}

// friends are two people who have met through a volunteer's DHT.
type friends struct {
	alice, bob *person
	volunteer  func()
}

func newFriends(ctx context.Context) (*friends, error) {
	addrs, stop, err := startVolunteer(ctx)
	if err != nil {
		return nil, err
	}
	f := &friends{volunteer: stop}
	if f.alice, err = newPerson(ctx, "alice", addrs); err != nil {
		return nil, err
	}
	if f.bob, err = newPerson(ctx, "bob", addrs); err != nil {
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
