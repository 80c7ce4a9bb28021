package messenger

import (
	"context"
	"crypto/sha256"
	"errors"
	"slices"
	"time"

	"sotto/identity"
	"sotto/session"
	"sotto/store"
	"sotto/wire"
)

// Mail that others left in our boxes comes in by Receive like everything else (PROTOCOL 17.5). What is different is the answer: it cannot go
// back by the door the item came through, so acknowledgements are said in a content of their own.
//
//  1. wait for a page of envelopes; open each; hand its items to Receive, all of a page at once, so that they share commits;
//  2. queue what is to be answered: acknowledgements, and items that no session opens;
//  3. only then let the mailbox forget what was taken or will never be; what may open later stays there for unopenedFor.

// unopenedFor is how long an envelope that cannot be opened is left at the mailbox: what it needs may still come.
const unopenedFor = 24 * time.Hour

// collect takes the mail of one box until the context ends or the box is gone.
func (m *Messenger) collect(ctx context.Context, boxes Mailboxes, id [32]byte) error {
	pause := boxRetryMin
	changed := m.boxes.watch()
	defer m.boxes.unwatch(changed)
	c := &collector{m: m, box: id, unopened: map[uint64]time.Time{}}
	for ctx.Err() == nil {
		row, err := m.box(id)
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		if row.State == BoxNew { // its tender says when it is open
			if err := m.waitOr(ctx, tendEvery, changed); err != nil {
				return nil
			}
			continue
		}
		took, err := c.run(ctx, boxes, row)
		if c.failed != nil {
			return c.failed
		}
		if took {
			pause = boxRetryMin
		}
		if ctx.Err() == nil {
			m.log.Debug("mailbox left", "err", err)
			if err := m.waitOr(ctx, jitter(pause), changed); err != nil {
				return nil
			}
		}
		pause = min(2*pause, boxRetryMax)
	}
	return nil
}

// collector is the state of one box's collecting.
type collector struct {
	m      *Messenger
	box    [32]byte
	payers payers
	failed error // of our own store: nothing can go on

	unopened map[uint64]time.Time // envelopes that could not be opened, and since when
}

// run collects over one connection until it fails. Took says that the mailbox answered.
func (c *collector) run(ctx context.Context, boxes Mailboxes, row store.Box) (took bool, err error) {
	opening, cancel := context.WithTimeout(ctx, askTimeout)
	s, err := boxes.Open(opening, row.Raw, boxKey(row))
	cancel()
	if err != nil {
		return false, err
	}
	defer func() { _ = s.Close() }()
	begun := c.m.clock.Now()
	for after := uint64(0); ; {
		page, err := s.Wait(ctx, after, 0, waitFor)
		if err != nil {
			return took, err
		}
		took = true
		if len(page.Mail) > 0 {
			done, err := c.takePage(ctx, page.Mail)
			if err != nil {
				return took, err
			}
			if err := ackMail(ctx, s, done); err != nil {
				return took, err
			}
			after = page.Mail[len(page.Mail)-1].ID
		}
		if c.m.clock.Now().Sub(begun) > time.Hour { // what was left there may open by now
			after, begun = 0, c.m.clock.Now()
		}
	}
}

func ackMail(ctx context.Context, s BoxStream, ids []uint64) error {
	for len(ids) > 0 {
		n := min(len(ids), wire.MaxAckBatch)
		if err := s.Ack(ctx, ids[:n]); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// piece is one item of a page on its way.
type piece struct {
	mail    int
	item    []byte
	claims  []identity.AccountID
	pending *store.Pending
	got     arrival
}

// takePage takes a page's items and queues the answers; it returns the ids of envelopes that the mailbox may forget. Its error is the mailbox's
// or the context's; a failure of our own store is in c.failed.
func (c *collector) takePage(ctx context.Context, mail []wire.Mail) (done []uint64, err error) {
	m := c.m
	var pieces []*piece
	var paid []payer
	keep := make([]bool, len(mail))
	for i, one := range mail {
		claims, who, err := c.payer(one)
		if err != nil {
			return nil, c.fail(err)
		}
		if who != nil {
			paid = append(paid, *who)
		}
		items, err := m.openEnvelope(one.Envelope)
		if err != nil {
			m.counters.unopened.Add(1)
			switch {
			case errors.Is(err, session.ErrBad), errors.Is(err, session.ErrUnsupported), errors.Is(err, session.ErrTooLarge):
			case errors.Is(err, session.ErrNotOurs):
				keep[i] = c.mayOpenLater(one.ID)
			default: // our own trouble
				keep[i] = true
			}
			continue
		}
		for _, item := range items {
			p := &piece{mail: i, item: item, claims: claims}
			p.pending = m.store.Submit(func(tx *store.Tx) (err error) {
				p.got, err = m.receiveMail(tx, p.claims, p.item)
				return err
			})
			pieces = append(pieces, p)
		}
	}
	answers := map[identity.AccountID]*answerTo{}
	for _, p := range pieces {
		err := p.pending.Wait()
		if storeFailed(err) {
			return nil, c.fail(err)
		}
		code := m.answer(err, &p.got, [32]byte{})
		switch code {
		case wire.CodeOK, wire.CodeRefused:
			to(answers, p.got.from, p.claims).add(p.got)
		case wire.CodeLost:
			to(answers, p.got.from, p.claims).lose(p.item)
		default:
			keep[p.mail] = keep[p.mail] || ownTrouble(err) || c.mayOpenLater(mail[p.mail].ID)
		}
	}
	if err := m.queueAnswers(ctx, answers, paid); err != nil {
		return nil, c.fail(err)
	}
	for i, one := range mail {
		if !keep[i] {
			done = append(done, one.ID)
		}
	}
	return done, nil
}

// fail keeps a failure of our own store, unless it may pass.
func (c *collector) fail(err error) error {
	if storeFailed(err) {
		c.failed = err
	}
	return err
}

// payer finds whose token paid for an envelope: most often its items are theirs.
func (c *collector) payer(one wire.Mail) ([]identity.AccountID, *payer, error) {
	who, ok, err := c.payers.find(c.m, c.box, one.Spent)
	if err != nil || !ok {
		return nil, nil, err
	}
	var claims []identity.AccountID
	err = c.m.store.View(func(tx *store.Tx) error {
		row, err := tx.Grant(who.grant)
		if err == nil && row.Account != [32]byte{} {
			claims = []identity.AccountID{row.Account}
		}
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	return claims, &who, err
}

// mayOpenLater reports whether an envelope that does not open now is left where it is.
func (c *collector) mayOpenLater(id uint64) bool {
	now := c.m.clock.Now()
	since, known := c.unopened[id]
	if !known {
		if len(c.unopened) >= maxUnopened {
			clear(c.unopened) // forgotten ones are only kept longer
		}
		c.unopened[id] = now
		return true
	}
	return now.Sub(since) < unopenedFor
}

// maxUnopened is how many envelopes are remembered as unopened.
const maxUnopened = 10_000

// ownTrouble tells what hinders this node, such as a full disk, from what is wrong with an item.
func ownTrouble(err error) bool {
	return err != nil && !errors.Is(err, errRefused) && !errors.Is(err, wire.ErrLost) && !errors.Is(err, wire.ErrLater) && !session.Passing(err)
}

// receiveMail is Receive for an item that somebody's token paid for: another may have been given it.
func (m *Messenger) receiveMail(tx *store.Tx, claims []identity.AccountID, item []byte) (arrival, error) {
	got, err := m.Receive(tx, claims, item)
	if claims != nil && errors.Is(err, errNoSession) {
		return m.Receive(tx, nil, item)
	}
	return got, err
}

// answerTo gathers what one contact is to be told of the items it left.
type answerTo struct {
	acks []wire.Ack
	lost [][16]byte
}

// to finds whom an item is answered to: who it was from, else whose token paid; nobody for what is neither.
func to(answers map[identity.AccountID]*answerTo, from identity.AccountID, claims []identity.AccountID) *answerTo {
	if from == (identity.AccountID{}) && len(claims) == 1 {
		from = claims[0]
	}
	if from == (identity.AccountID{}) {
		return &answerTo{}
	}
	if answers[from] == nil {
		answers[from] = &answerTo{}
	}
	return answers[from]
}

func (a *answerTo) add(got arrival) {
	if got.ack != (wire.Ack{}) && !got.quiet && !slices.Contains(a.acks, got.ack) {
		a.acks = append(a.acks, got.ack)
	}
}

func (a *answerTo) lose(item []byte) {
	sum := sha256.Sum256(item)
	a.lost = append(a.lost, [16]byte(sum[:16]))
}

// queueAnswers queues the answers to everybody, and notes the tokens that were spent.
func (m *Messenger) queueAnswers(ctx context.Context, answers map[identity.AccountID]*answerTo, paid []payer) error {
	for acct, a := range answers {
		for len(a.acks)+len(a.lost) > 0 {
			acks, lost := a.acks[:min(len(a.acks), wire.MaxContentAcks)], a.lost[:min(len(a.lost), wire.MaxLost)]
			err := m.update(ctx, func(tx *store.Tx) error { return m.queueAnswer(tx, acct, acks, lost) })
			if err != nil {
				return err
			}
			a.acks, a.lost = a.acks[len(acks):], a.lost[len(lost):]
		}
	}
	if len(paid) == 0 {
		return nil
	}
	return m.update(ctx, func(tx *store.Tx) error { return m.spent(tx, paid) })
}

func (m *Messenger) queueAnswer(tx *store.Tx, acct identity.AccountID, acks []wire.Ack, lost [][16]byte) error {
	c, err := tx.Contact(acct)
	if errors.Is(err, store.ErrNotFound) || err == nil && !mayConnect(c) {
		return nil
	}
	if err != nil {
		return err
	}
	content := &wire.Content{Kind: wire.KindControl, Acks: acks}
	if len(lost) > 0 {
		content.Receipts = []wire.Receipt{{Device: firstDevice(c), Lost: lost}}
	}
	return m.queue(tx, &c, content, m.clock.Now().Add(m.limits.OutboxAge))
}

func firstDevice(c store.Contact) (id [16]byte) {
	if len(c.Devices) > 0 {
		id = c.Devices[0]
	}
	return id
}
