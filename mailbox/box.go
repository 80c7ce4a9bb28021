package mailbox

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"sotto/internal/canon"
	"sotto/wire"
)

// Box is the owner's side of a box at one mailbox. Its methods may be called at the same time; all share one stream, which is opened anew
// when it ended.
type Box struct {
	c   *Client
	key ed25519.PrivateKey
	id  wire.BoxID
	k   *kept

	waits chan struct{} // held by Wait: two would end each other
}

// Open proves to a mailbox that the box of this key is ours. The box need not be registered yet.
func (c *Client) Open(ctx context.Context, addr string, key ed25519.PrivateKey) (*Box, error) {
	at, err := c.placeOf(addr)
	if err != nil {
		return nil, err
	}
	b := &Box{c: c, key: key, id: wire.NewBoxID(at.service, ownerKey(key)), waits: make(chan struct{}, 1)}
	b.k = &kept{c: c, at: at, turn: make(chan struct{}, 1), begin: b.authenticate}
	c.mu.Lock()
	closed := c.closed
	if !closed {
		c.boxes[b] = true
	}
	c.mu.Unlock()
	if closed {
		return nil, errEnded
	}
	c.h.ConnManager().Protect(at.ID, b.tag())
	if _, _, err := b.k.pipe(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open box at %s: %w", short(at.ID), err), b.Close())
	}
	return b, nil
}

func (b *Box) tag() string { return fmt.Sprintf("mailbox %x", b.id[:4]) }

// authenticate begins each of the box's streams: a signature over both ends of this connection (PROTOCOL 17.3).
func (b *Box) authenticate(ctx context.Context, p *pipe) error {
	front, ok := keyOf(p.s.Conn().LocalPeer())
	if !ok {
		return errors.New("this host has no Ed25519 key")
	}
	q := &wire.Auth{Key: ownerKey(b.key)}
	copy(q.Signature[:], canon.Sign(b.key, wire.SigOwner, wire.OwnerFields(b.k.at.service, front)))
	a, err := p.ask(ctx, q)
	if err == nil {
		err = answerError(a)
	}
	if err != nil {
		return fmt.Errorf("auth: %w", err)
	}
	if id, err := wire.ParseBoxID(a.Result); err != nil || id != b.id {
		return fmt.Errorf("auth: mailbox names another box: %w", wire.ErrUntrusted)
	}
	return nil
}

// Close ends the box's stream. The box itself stays.
func (b *Box) Close() error {
	b.k.end(fmt.Errorf("box is closed: %w", wire.ErrUnreachable))
	b.c.mu.Lock()
	delete(b.c.boxes, b)
	b.c.mu.Unlock()
	b.c.h.ConnManager().Unprotect(b.k.at.ID, b.tag())
	return nil
}

// ID is what others deposit to.
func (b *Box) ID() wire.BoxID { return b.id }

// Service is the mailbox's key.
func (b *Box) Service() [32]byte { return b.k.at.service }

// Register makes the box, or tells how the one that is there stands.
func (b *Box) Register(ctx context.Context, how wire.Admission) (wire.Standing, error) {
	return believe(ctx, b.k, &how, wire.ParseStanding)
}

// Succeed is the admission of a box that takes the place of the one with the old key.
func (b *Box) Succeed(old ed25519.PrivateKey) wire.Admission {
	how := wire.Admission{OldKey: ownerKey(old)}
	copy(how.OldSignature[:], canon.Sign(old, wire.SigSuccessor, wire.SuccessorFields(b.k.at.service, ownerKey(b.key))))
	return how
}

// Standing tells what the box may hold and holds.
func (b *Box) Standing(ctx context.Context) (wire.Standing, error) {
	return believe(ctx, b.k, &wire.StandingRequest{}, wire.ParseStanding)
}

// Pool adds and drops hashes of tokens, at most wire.MaxPoolBatch of each, and tells how many are unspent then.
func (b *Box) Pool(ctx context.Context, add, drop [][16]byte) (uint32, error) {
	if max(len(add), len(drop)) > wire.MaxPoolBatch {
		return 0, fmt.Errorf("pool: %d and %d tokens at once: %w", len(add), len(drop), wire.ErrTooLarge)
	}
	return believe(ctx, b.k, &wire.PoolChange{Add: add, Drop: drop}, wire.ParseUnspent)
}

// Fetch takes a page of the mail above after: at most max envelopes, 0 as many as a page holds.
func (b *Box) Fetch(ctx context.Context, after uint64, max int) (wire.Page, error) {
	return believe(ctx, b.k, &wire.Fetch{After: after, Max: pageMax(max)}, func(r []byte) (wire.Page, error) { return pageAbove(r, after, max) })
}

func pageMax(n int) uint16 {
	if n <= 0 || n > wire.MaxPage {
		return 0
	}
	return uint16(n)
}

// pageAbove believes a page only if it holds what was asked for.
func pageAbove(result []byte, after uint64, most int) (wire.Page, error) {
	p, err := wire.ParsePage(result)
	switch {
	case err != nil:
	case len(p.Mail) > 0 && p.Mail[0].ID <= after:
		err = fmt.Errorf("page begins at %d, asked for what is above %d", p.Mail[0].ID, after)
	case pageMax(most) > 0 && len(p.Mail) > most:
		err = fmt.Errorf("page of %d envelopes, asked for %d", len(p.Mail), most)
	case p.More && len(p.Mail) == 0:
		err = errors.New("an empty page, and more")
	}
	return p, err
}

// Wait takes a page as soon as there is mail above after, or an empty one after d. Other requests of the box are made meanwhile: they end
// the mailbox's waiting, and it is asked to wait again. One Wait of a box waits at a time.
func (b *Box) Wait(ctx context.Context, after uint64, most int, d time.Duration) (wire.Page, error) {
	select {
	case b.waits <- struct{}{}:
		defer func() { <-b.waits }()
	case <-ctx.Done():
		return wire.Page{}, fmt.Errorf("wait at %s: %w: %w", short(b.k.at.ID), ctx.Err(), wire.ErrUnreachable)
	}
	until := b.c.cfg.Clock.Now().Add(d)
	for {
		began := b.c.cfg.Clock.Now()
		left := max(0, min(until.Sub(began), wire.MaxWaitSeconds*time.Second))
		before := b.k.asked.Load()
		q := &wire.Wait{After: after, Max: pageMax(most), Seconds: uint16((left + time.Second - 1) / time.Second)}
		page, err := believe(ctx, b.k, q, func(r []byte) (wire.Page, error) { return pageAbove(r, after, most) })
		now := b.c.cfg.Clock.Now()
		if err != nil || len(page.Mail) > 0 || !now.Before(until) {
			return page, err
		}
		if others := b.k.asked.Load() - before - 1; others > 0 || now.Sub(began) >= left {
			continue
		}
		// The mailbox waits less than it should: it is not asked in a loop.
		if err := b.c.cfg.Clock.Wait(ctx, min(waitPause, until.Sub(now))); err != nil {
			return wire.Page{}, fmt.Errorf("wait at %s: %w: %w", short(b.k.at.ID), err, wire.ErrUnreachable)
		}
	}
}

// waitPause is how long a mailbox that answered too early is left alone.
const waitPause = 5 * time.Second

// Ack lets mail go for good; it may be called again. At most wire.MaxAckBatch ids at once.
func (b *Box) Ack(ctx context.Context, ids []uint64) (removed int, err error) {
	if len(ids) > wire.MaxAckBatch {
		return 0, fmt.Errorf("ack of %d envelopes at once: %w", len(ids), wire.ErrTooLarge)
	}
	n, err := believe(ctx, b.k, &wire.AckMail{IDs: ids}, wire.ParseCount)
	return int(n), err
}

// Republish hands over DHT records to put, and tells how many of them are kept.
func (b *Box) Republish(ctx context.Context, list []wire.Republish) (kept int, err error) {
	n, err := believe(ctx, b.k, &wire.RepublishList{List: list}, wire.ParseCount)
	return int(n), err
}

// Strangers opens or shuts the box to strangers, and tells the zero bits that their work must have.
func (b *Box) Strangers(ctx context.Context, open bool) (bits uint8, err error) {
	return believe(ctx, b.k, &wire.Strangers{Open: open}, wire.ParseBits)
}

// Remove closes the box at the mailbox: it is gone with all in it.
func (b *Box) Remove(ctx context.Context) error {
	_, err := believe(ctx, b.k, &wire.CloseBox{}, func(r []byte) (struct{}, error) {
		if len(r) > 0 {
			return struct{}{}, fmt.Errorf("result of %d bytes", len(r))
		}
		return struct{}{}, nil
	})
	return err
}
