package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"sotto/internal/clock"
	"sotto/messenger"
)

// byMailbox is one text to a contact who cannot be reached directly but waits at a mailbox, from the call to send it until it is in the recipient's
// store; against the same between two who reach each other.
func byMailbox(ctx context.Context, _ options) (figure, error) {
	const rounds = 200
	dir, err := os.MkdirTemp("", "sotto-bench-")
	if err != nil {
		return figure{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	f, err := newFriends(ctx, dir)
	if err != nil {
		return figure{}, err
	}
	defer f.close()
	for _, p := range []*person{f.alice, f.bob} {
		if err := p.boxed(ctx); err != nil {
			return figure{}, err
		}
	}
	if _, err := f.meet(ctx); err != nil {
		return figure{}, err
	}
	direct, err := f.oneByOne(ctx, rounds)
	if err != nil {
		return figure{}, err
	}
	f.alice.deaf.Store(true)
	f.bob.deaf.Store(true)
	if _, err := f.oneByOne(ctx, 5); err != nil { // until bob knows that alice is away
		return figure{}, err
	}
	mailed, err := f.oneByOne(ctx, rounds)
	if err != nil {
		return figure{}, err
	}
	r := ratio(median(mailed), median(direct))
	return figure{
		got:  fmt.Sprintf("p50 %.1f × the direct path: %v, direct %v", r, median(mailed).Round(time.Microsecond), median(direct).Round(time.Microsecond)),
		beat: r <= 5,
		note: fmt.Sprintf("sent → in the recipient's store; p99 %v, direct %v", quantile(mailed, 0.99).Round(time.Microsecond), quantile(direct, 0.99).Round(time.Microsecond)),
	}, nil
}

// boxed waits until a mailbox keeps mail for the person.
func (p *person) boxed(ctx context.Context) error {
	for range 200 {
		list, err := p.m.Mailboxes(ctx)
		if err != nil {
			return err
		}
		if len(list) > 0 && list[0].Ready {
			return nil
		}
		if err := (clock.System{}).Wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("no mailbox takes " + p.name)
}

// oneByOne sends texts from bob to alice, each when the one before is there.
func (f *friends) oneByOne(ctx context.Context, rounds int) (took []time.Duration, err error) {
	after, err := f.alice.last(ctx)
	if err != nil {
		return nil, err
	}
	for range rounds {
		begun := time.Now()
		msg, err := f.bob.m.Send(ctx, messenger.SendRequest{To: "alice", Text: strings.Repeat("x", size)})
		if err != nil {
			return nil, err
		}
		after, err = f.alice.until(ctx, after, func(e messenger.Event) bool {
			return e.Kind == messenger.EventMessage && e.Message != nil && e.Message.ID == msg.ID
		})
		if err != nil {
			return nil, err
		}
		took = append(took, time.Since(begun))
	}
	return took, nil
}
