package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"sotto/messenger"
	"sotto/store"
)

// latency is one text to a contact who is online, from the call to send it until its delivered receipt is on disk: both
// ends synced. S commits at both ends; sotto commits a third time, when the receipt is back.
func latency(ctx context.Context, _ options) (figure, error) {
	const rounds = 400
	y, err := newYardstick(ctx)
	if err != nil {
		return figure{}, err
	}
	defer y.close()
	f, err := newFriends(ctx, "")
	if err != nil {
		return figure{}, err
	}
	defer f.close()
	if _, err := f.meet(ctx); err != nil {
		return figure{}, err
	}
	var limit, accepted, whole []time.Duration
	after, err := f.bob.last(ctx)
	if err != nil {
		return figure{}, err
	}
	for i := range rounds { // taken in turns, so that both see the same machine
		s, err := y.one(uint64(i))
		if err != nil {
			return figure{}, err
		}
		limit = append(limit, s)
		begun := time.Now()
		msg, err := f.bob.m.Send(ctx, messenger.SendRequest{To: "alice", Text: strings.Repeat("x", size)})
		if err != nil {
			return figure{}, err
		}
		taken := time.Now()
		after, err = f.bob.until(ctx, after, func(e messenger.Event) bool {
			return e.Kind == messenger.EventReceipt && e.Message != nil && e.Message.ID == msg.ID && e.Message.State == messenger.StateDelivered
		})
		if err != nil {
			return figure{}, err
		}
		accepted, whole = append(accepted, time.Since(taken)), append(whole, time.Since(begun))
	}
	r := ratio(median(accepted), median(limit))
	return figure{
		got:  fmt.Sprintf("p50 %.2f × S: %v, S %v", r, median(accepted).Round(time.Microsecond), median(limit).Round(time.Microsecond)),
		beat: r <= 1.5,
		note: fmt.Sprintf("accepted → delivered; with the accepting commit p50 %v = %.2f × S; p99 %v, S's p99 %v", median(whole).Round(time.Microsecond),
			ratio(median(whole), median(limit)), quantile(accepted, 0.99).Round(time.Microsecond), quantile(limit, 0.99).Round(time.Microsecond)),
	}, nil
}

// window is how many messages are under way at once in the sustained row.
const window = 1024

// sustained is one-way texts, every one synced at both ends and its receipt stored, against S with as many under way.
func sustained(ctx context.Context, o options) (figure, error) {
	y, err := newYardstick(ctx)
	if err != nil {
		return figure{}, err
	}
	defer y.close()
	limit, err := y.many(1, o.count, window)
	if err != nil {
		return figure{}, err
	}
	f, err := newFriends(ctx, "")
	if err != nil {
		return figure{}, err
	}
	defer f.close()
	if _, err := f.meet(ctx); err != nil {
		return figure{}, err
	}
	from, to := f.bob.store.Stats(), f.alice.store.Stats()
	took, err := f.pour(ctx, o.count)
	if err != nil {
		return figure{}, err
	}
	per := func(p *person, before store.Stats) float64 {
		return float64(o.count) / float64(p.store.Stats().Commits-before.Commits)
	}
	rate, best := float64(o.count)/took.Seconds(), float64(o.count)/limit.Seconds()
	return figure{
		got:  fmt.Sprintf("%.2f × S: %.0f msg/s, S %.0f msg/s", rate/best, rate, best),
		beat: rate >= 0.2*best,
		note: fmt.Sprintf("%d texts of %d bytes, %d under way; a commit holds %.0f of them at the sender, %.0f at the receiver",
			o.count, size, window, per(f.bob, from), per(f.alice, to)),
	}, nil
}

// pour sends count texts from bob to alice with window under way, and waits until the last is delivered.
func (f *friends) pour(ctx context.Context, count int) (time.Duration, error) {
	after, err := f.bob.last(ctx)
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	slots := make(chan struct{}, window)
	failed := make(chan error, 1)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range count {
			slots <- struct{}{}
			wg.Go(func() {
				if _, err := f.bob.m.Send(ctx, messenger.SendRequest{To: "alice", Text: fmt.Sprintf("%0*d", size, i)}); err != nil {
					select {
					case failed <- err:
					default:
					}
				}
			})
		}
	})
	for left := count; left > 0; {
		after, err = f.bob.until(ctx, after, func(e messenger.Event) bool {
			if e.Kind != messenger.EventReceipt || e.Message == nil || e.Message.State != messenger.StateDelivered {
				return false
			}
			<-slots
			left--
			return left == 0
		})
		if err != nil {
			return 0, err
		}
	}
	wg.Wait()
	select {
	case err := <-failed:
		return 0, err
	default:
		return time.Since(begun), nil
	}
}

// firstContact is from following a link until the inviter's store holds the first words, found through the DHT.
func firstContact(ctx context.Context, _ options) (figure, error) {
	y, err := newYardstick(ctx)
	if err != nil {
		return figure{}, err
	}
	defer y.close()
	var took []time.Duration
	for range 5 {
		f, err := newFriends(ctx, "")
		if err != nil {
			return figure{}, err
		}
		d, err := f.meet(ctx)
		f.close()
		if err != nil {
			return figure{}, err
		}
		took = append(took, d)
	}
	m := median(took)
	return figure{
		got:  fmt.Sprintf("median %v = %.0f × one connect (%v)", m.Round(time.Millisecond), ratio(m, y.connect), y.connect.Round(100*time.Microsecond)),
		beat: m <= time.Second,
	}, nil
}
