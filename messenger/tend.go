package messenger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"sotto/store"
	"sotto/wire"
)

// Each box of ours has a tender, beside the collector that takes its mail: it registers the box, shows the mailbox our tokens, hands over what is to
// be republished, and gives the box up when nobody can know it any more.

// tend registers a box, brings its tokens and records up to date whenever they changed, and gives it up when its time is over.
func (m *Messenger) tend(ctx context.Context, boxes Mailboxes, id [32]byte) error {
	pause := boxRetryMin
	changed := m.boxes.watch()
	defer m.boxes.unwatch(changed)
	for ctx.Err() == nil {
		err := m.tendOnce(ctx, boxes, id)
		if errors.Is(err, store.ErrNotFound) {
			return nil // dropped
		}
		if storeFailed(err) {
			return err
		}
		next := tendEvery
		if err != nil && ctx.Err() == nil {
			m.log.Info("mailbox not tended", "err", err)
			if err := m.noteBox(id, err); err != nil {
				return err
			}
			next, pause = jitter(pause), min(2*pause, boxRetryMax)
		} else {
			pause = boxRetryMin
		}
		if err := m.waitOr(ctx, next, changed); err != nil {
			return nil
		}
	}
	return nil
}

// changes tells loops that our boxes, or the tokens for them, changed.
type changes struct {
	mu    sync.Mutex // guards loops
	loops []chan struct{}
}

func (c *changes) watch() chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	kick := make(chan struct{}, 1)
	c.loops = append(c.loops, kick)
	return kick
}

func (c *changes) unwatch(kick chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.loops = slices.DeleteFunc(c.loops, func(k chan struct{}) bool { return k == kick })
}

func (c *changes) poke() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, kick := range c.loops {
		poke(kick)
	}
}

// storeFailed tells failures of our own disk from those of a mailbox.
func storeFailed(err error) bool {
	return errors.Is(err, store.ErrDamaged) || errors.Is(err, store.ErrReadOnly)
}

func (m *Messenger) tendOnce(ctx context.Context, boxes Mailboxes, id [32]byte) error {
	row, err := m.box(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	s, err := boxes.Open(ctx, row.Raw, boxKey(row))
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if row.State == BoxLeaving && m.clock.Now().Sub(row.Failing) > time.Duration(row.Days+15)*24*time.Hour && !m.doubtful(m.clock.Now()) {
		if err := s.Remove(ctx); err != nil && !errors.Is(err, wire.ErrNotFound) {
			return err
		}
		return m.update(ctx, func(tx *store.Tx) error { return tx.DeleteBox(id) })
	}
	standing, err := m.register(ctx, boxes, s, row)
	if err != nil {
		return err
	}
	if err := m.noteStanding(id, standing); err != nil {
		return err
	}
	if err := m.fillPool(ctx, s, id); err != nil {
		return err
	}
	return m.republish(ctx, s)
}

func (m *Messenger) box(id [32]byte) (row store.Box, err error) {
	err = m.store.View(func(tx *store.Tx) error {
		row, err = tx.Box(id)
		return err
	})
	return row, err
}

// register asks for the box's standing, and makes the box if the mailbox does not know it, or not any more.
func (m *Messenger) register(ctx context.Context, boxes Mailboxes, s BoxStream, row store.Box) (wire.Standing, error) {
	if row.State != BoxNew {
		standing, err := s.Standing(ctx)
		if !errors.Is(err, wire.ErrNotFound) {
			return standing, err
		}
		m.log.Warn("a mailbox has lost our box; it is made anew")
		if err := m.emptyPool(row.ID); err != nil {
			return wire.Standing{}, err
		}
	}
	terms, err := boxes.Terms(ctx, row.Raw)
	if err != nil {
		return wire.Standing{}, err
	}
	if terms.Service != row.Service {
		return wire.Standing{}, fmt.Errorf("another mailbox answers there: %w", wire.ErrRefused)
	}
	a := wire.Admission{Voucher: row.Voucher, Hour: uint32(m.now().Unix() / 3600)}
	if terms.Mode == wire.ModeOpen && len(row.Voucher) == 0 {
		if terms.RegisterBits > maxRegisterBits {
			return wire.Standing{}, fmt.Errorf("it asks for %d bits of work: %w", terms.RegisterBits, wire.ErrRefused)
		}
		for bk := boxPublic(row); !wire.RegisterFits(row.Service, bk, a.Hour, a.Nonce, terms.RegisterBits); a.Nonce++ {
			if a.Nonce%4096 == 0 && ctx.Err() != nil {
				return wire.Standing{}, ctx.Err()
			}
		}
	}
	return s.Register(ctx, a)
}

// noteStanding keeps what a mailbox said of our box.
func (m *Messenger) noteStanding(id [32]byte, standing wire.Standing) error {
	return m.store.Update(func(tx *store.Tx) error {
		row, err := tx.Box(id)
		if err != nil {
			return err
		}
		before := row
		if row.State == BoxNew {
			row.State = BoxOpen
		}
		if row.State == BoxOpen {
			row.Failing, row.Why = time.Time{}, ""
		}
		row.Quota, row.Used, row.Days = standing.Bytes, standing.UsedBytes, int(standing.KeepDays)
		if now := m.clock.Now(); now.Sub(row.Seen).Abs() > seenStep {
			row.Seen = now
		}
		if sameBox(before, row) {
			return nil
		}
		return tx.PutBox(row)
	})
}

func sameBox(a, b store.Box) bool {
	return a.State == b.State && a.Seen.Equal(b.Seen) && a.Failing.Equal(b.Failing) && a.Why == b.Why && a.Quota == b.Quota && a.Used == b.Used && a.Days == b.Days
}

// noteBox keeps why a mailbox does not serve us, and since when.
func (m *Messenger) noteBox(id [32]byte, why error) error {
	err := m.store.Update(func(tx *store.Tx) error {
		row, err := tx.Box(id)
		if err != nil || row.State == BoxLeaving || row.Why == reason(why) {
			return err
		}
		row.Why = reason(why)
		if row.Failing.IsZero() {
			row.Failing = m.clock.Now()
		}
		return tx.PutBox(row)
	})
	if errors.Is(err, store.ErrNotFound) || passing(err) {
		return nil
	}
	return err
}

// republish hands our open invites' records to the mailbox, which keeps them in the DHT while we are away.
func (m *Messenger) republish(ctx context.Context, s BoxStream) error {
	var list []wire.Republish
	err := m.store.View(func(tx *store.Tx) error {
		rows, err := tx.Invites()
		for _, row := range rows {
			if len(row.Record) > 0 && m.now().Before(row.Expires) && len(list) < m.limits.MaxInvites {
				list = append(list, wire.Republish{Name: row.Name, Record: row.Record})
			}
		}
		return err
	})
	for len(list) > 0 && err == nil {
		n := min(len(list), recordsAtOnce)
		err = s.Republish(ctx, list[:n])
		list = list[n:]
	}
	return err
}

// recordsAtOnce is how many records of 8 KiB fit one request.
const recordsAtOnce = 12
