package messenger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"sotto/identity"
	"sotto/store"
	"sotto/wire"
)

// Who may leave mail in our boxes was given tokens (PROTOCOL 17.4), in grants of a seed each:
//
//  1. ensureGrants gives contacts and open invites the grants they need, of those that the mailboxes know already;
//  2. what is drawn anew is drawn in batches for whoever will need it, so that tokens that became known together are not one contact's;
//  3. fillPool shows a mailbox their hashes, in their own order and with some that are nobody's;
//  4. a grant that every box knows may be told, and rides on the next content (ride);
//  5. spent tells whose token paid for an envelope, and has more given when few are left.

// Spare grants are drawn when fewer than minSpare are left, up to maxSpare.
const (
	minSpare = 8
	maxSpare = 16
)

// grantsEach is how many grants a contact has in hand, unless so many contacts share a box's pool that it is fewer.
const grantsEach = 4

// poolRoom is how many tokens all grants together may have; the rest of wire.MaxPool is for those that are nobody's.
const poolRoom = wire.MaxPool * 3 / 4

// ensureGrants gives every contact that may connect and every open invite what it needs, and keeps some for later. Without a box nobody needs any.
func (m *Messenger) ensureGrants(tx *store.Tx) error {
	g, err := m.beginGranting(tx)
	if err != nil || g == nil {
		return err
	}
	contacts, err := tx.Contacts()
	if err != nil {
		return err
	}
	invites, err := m.openInvites(tx)
	if err != nil {
		return err
	}
	if err := g.drop(contacts, invites); err != nil {
		return err
	}
	each := max(1, min(grantsEach, (poolRoom/int(g.size)-maxSpare)/max(1, len(contacts)+len(invites))))
	for _, row := range invites {
		if g.ofInvite(row.ID) == nil {
			if err := g.give(func(free *store.Grant) { free.Invite = row.ID }); err != nil {
				return err
			}
		}
	}
	for _, c := range contacts {
		if !mayConnect(c) {
			continue
		}
		changed, err := g.toContact(&c, each)
		if err == nil && changed {
			err = tx.PutContact(c)
		}
		if err != nil {
			return err
		}
	}
	return g.keepSpare()
}

// granting is one round of giving grants.
type granting struct {
	m      *Messenger
	tx     *store.Tx
	boxes  []store.Box
	grants []store.Grant
	size   uint32 // tokens in a grant
}

// beginGranting reads what there is; nil when there is no box.
func (m *Messenger) beginGranting(tx *store.Tx) (*granting, error) {
	boxes, err := tx.Boxes()
	if err != nil || len(boxes) == 0 {
		return nil, err
	}
	grants, err := tx.Grants()
	return &granting{m: m, tx: tx, boxes: boxes, grants: grants, size: uint32(max(1, m.limits.Tokens/grantsEach))}, err
}

// known reports whether every box in our card knows a grant, and there is one.
func (g *granting) known(row store.Grant) bool {
	any := false
	for _, b := range g.boxes {
		if b.Ready && b.State == BoxOpen {
			if !row.Pooled[b.ID] {
				return false
			}
			any = true
		}
	}
	return any
}

// drop marks the grants of those who are no contacts any more and of invites that ended, and forgets those that are used up.
func (g *granting) drop(contacts []store.Contact, invites []store.Invite) error {
	kept := g.grants[:0]
	for _, row := range g.grants {
		wanted := true
		switch {
		case row.Account != [32]byte{}:
			wanted = slices.ContainsFunc(contacts, func(c store.Contact) bool { return c.Account == row.Account && mayConnect(c) })
		case row.Invite != [16]byte{}:
			wanted = slices.ContainsFunc(invites, func(v store.Invite) bool { return v.ID == row.Invite })
		}
		if wanted && row.Spent >= row.Count && row.Account != [32]byte{} {
			if err := g.tx.DeleteGrant(row.ID()); err != nil {
				return err
			}
			continue
		}
		if !wanted && !row.Dropped {
			row.Dropped = true
			if err := g.tx.PutGrant(row); err != nil {
				return err
			}
		}
		kept = append(kept, row)
	}
	g.grants = kept
	return nil
}

func (g *granting) ofInvite(id [16]byte) *store.Grant {
	at := slices.IndexFunc(g.grants, func(row store.Grant) bool { return !row.Dropped && row.Invite == id && row.Account == [32]byte{} })
	if at < 0 {
		return nil
	}
	return &g.grants[at]
}

// toContact gives a contact grants while it has less than half of what it should have in hand.
func (g *granting) toContact(c *store.Contact, each int) (changed bool, err error) {
	left := func() (n uint32) {
		for _, row := range g.grants {
			if !row.Dropped && row.Account == c.Account {
				n += row.Count - min(row.Spent, row.Count)
			}
		}
		return n
	}
	if left() <= uint32(each)*g.size/2 {
		for left() < uint32(each)*g.size && err == nil {
			err = g.give(func(free *store.Grant) { free.Account = c.Account })
		}
	}
	due := slices.ContainsFunc(g.grants, func(row store.Grant) bool {
		return !row.Dropped && row.Account == c.Account && !row.Told && g.known(row)
	})
	changed = due != c.GrantsDue
	c.GrantsDue = due
	return changed, err
}

// give makes a grant somebody's: one that the boxes know, else any that is nobody's, else a new one.
func (g *granting) give(to func(*store.Grant)) error {
	at := slices.IndexFunc(g.grants, func(row store.Grant) bool { return spare(row) && g.known(row) })
	if at < 0 {
		at = slices.IndexFunc(g.grants, spare)
	}
	if at < 0 {
		if err := g.draw(); err != nil {
			return err
		}
		at = len(g.grants) - 1
	}
	to(&g.grants[at])
	return g.tx.PutGrant(g.grants[at])
}

func spare(row store.Grant) bool {
	return !row.Dropped && row.Account == [32]byte{} && row.Invite == [16]byte{}
}

func (g *granting) draw() error {
	row := store.Grant{Count: g.size, Created: g.m.clock.Now()}
	if _, err := io.ReadFull(g.m.rand, row.Seed[:]); err != nil {
		return fmt.Errorf("draw a token seed: %w", err)
	}
	g.grants = append(g.grants, row)
	return g.tx.PutGrant(row)
}

func (g *granting) keepSpare() error {
	free := 0
	for _, row := range g.grants {
		if spare(row) {
			free++
		}
	}
	if free >= minSpare {
		return nil
	}
	for ; free < maxSpare && len(g.grants)*int(g.size) < poolRoom; free++ {
		if err := g.draw(); err != nil {
			return err
		}
	}
	return nil
}

// grantAtOnce gives a new contact grants that the mailboxes know already, so that it can be told in the first words. The caller writes the contact.
func (m *Messenger) grantAtOnce(tx *store.Tx, c *store.Contact) error {
	g, err := m.beginGranting(tx)
	if err != nil || g == nil {
		return err
	}
	tx.AfterCommit(m.boxes.poke) // others take the place of the spare ones
	_, err = g.toContact(c, 1)
	return err
}

// fillPool shows a mailbox the hashes of tokens it does not know yet, and takes back those of grants that were dropped.
func (m *Messenger) fillPool(ctx context.Context, s BoxStream, id [32]byte) error {
	if err := m.store.Update(m.ensureGrants); err != nil {
		return err
	}
	var grants []store.Grant
	err := m.store.View(func(tx *store.Tx) (err error) {
		grants, err = tx.Grants()
		return err
	})
	if err != nil {
		return err
	}
	var add, drop [][16]byte
	for _, row := range grants {
		switch {
		case row.Dropped && row.Pooled[id]:
			drop = appendHashes(drop, row, id)
		case !row.Dropped && !row.Pooled[id]:
			add = appendHashes(add, row, id)
		}
	}
	if n := len(add) % poolStep; n > 0 {
		for range poolStep - n {
			var none [16]byte
			if _, err := io.ReadFull(m.rand, none[:]); err != nil {
				return err
			}
			add = append(add, none)
		}
	}
	for _, list := range [][][16]byte{add, drop} { // in their own order, which is as good as shuffled
		slices.SortFunc(list, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	}
	for len(add)+len(drop) > 0 {
		a, d := add[:min(len(add), wire.MaxPoolBatch)], drop[:min(len(drop), wire.MaxPoolBatch)]
		if err := s.Pool(ctx, a, d); err != nil {
			return fmt.Errorf("show tokens: %w", err)
		}
		add, drop = add[len(a):], drop[len(d):]
	}
	if err := m.store.Update(func(tx *store.Tx) error { return m.pooled(tx, id, grants) }); err != nil {
		return err
	}
	return m.tellAll()
}

// poolStep is what the number of hashes shown at once is a multiple of, so that it tells little.
const poolStep = 128

func appendHashes(list [][16]byte, row store.Grant, box [32]byte) [][16]byte {
	for i := row.Spent; i < row.Count; i++ {
		list = append(list, wire.PoolHash(wire.BoxToken(row.Seed, i, box)))
	}
	return list
}

// pooled notes which grants a mailbox confirmed, forgets dropped ones that no mailbox knows, puts the box into our card, and lets what all
// boxes know be told.
func (m *Messenger) pooled(tx *store.Tx, id [32]byte, shown []store.Grant) error {
	box, err := tx.Box(id)
	if err != nil {
		return err
	}
	boxes, err := tx.Boxes()
	if err != nil {
		return err
	}
	for _, row := range shown {
		now, err := tx.Grant(row.ID())
		if errors.Is(err, store.ErrNotFound) || err == nil && now.Pooled[id] == !row.Dropped {
			continue
		}
		if err != nil {
			return err
		}
		if now.Pooled == nil {
			now.Pooled = map[[32]byte]bool{}
		}
		if row.Dropped {
			delete(now.Pooled, id)
		} else {
			now.Pooled[id] = true
		}
		for known := range now.Pooled { // boxes that are gone
			if !slices.ContainsFunc(boxes, func(b store.Box) bool { return b.ID == known }) {
				delete(now.Pooled, known)
			}
		}
		if now.Dropped && len(now.Pooled) == 0 {
			err = tx.DeleteGrant(now.ID())
		} else {
			err = tx.PutGrant(now)
		}
		if err != nil {
			return err
		}
	}
	if !box.Ready {
		box.Ready = true
		if err := tx.PutBox(box); err != nil {
			return err
		}
		if err := m.resignCard(tx); err != nil {
			return err
		}
	}
	return m.ensureGrants(tx)
}

// emptyPool notes that a mailbox knows none of our tokens any more.
func (m *Messenger) emptyPool(id [32]byte) error {
	return m.store.Update(func(tx *store.Tx) error {
		grants, err := tx.Grants()
		for _, row := range grants {
			if row.Pooled[id] {
				delete(row.Pooled, id)
				err = errors.Join(err, tx.PutGrant(row))
			}
		}
		return err
	})
}

// grantsAtOnce is how many grants ride on one content at most.
const grantsAtOnce = 8

// grantsFor takes the grants that a contact is to be told now. The caller writes the contact.
func (m *Messenger) grantsFor(tx *store.Tx, c *store.Contact) (list []wire.TokenGrant, err error) {
	if !c.GrantsDue && !c.GrantsAgain {
		return nil, nil
	}
	g, err := m.beginGranting(tx)
	if err != nil || g == nil {
		return nil, err
	}
	for _, row := range g.grants {
		if row.Dropped || row.Account != c.Account || row.Told && !c.GrantsAgain || row.Spent >= row.Count || !g.known(row) || len(list) >= grantsAtOnce {
			continue
		}
		list = append(list, wire.TokenGrant{Seed: row.Seed, From: row.Spent, Count: row.Count - row.Spent})
		if !row.Told {
			row.Told = true
			if err := tx.PutGrant(row); err != nil {
				return nil, err
			}
		}
	}
	c.GrantsDue, c.GrantsAgain = false, false
	return list, nil
}

// inviteGrant is the grant that an invite's bundle carries, nil when our boxes do not know it.
func (m *Messenger) inviteGrant(tx *store.Tx, id [16]byte) (*wire.TokenGrant, error) {
	g, err := m.beginGranting(tx)
	if err != nil || g == nil {
		return nil, err
	}
	row := g.ofInvite(id)
	if row == nil || !g.known(*row) || row.Spent >= row.Count {
		return nil, nil
	}
	return &wire.TokenGrant{Seed: row.Seed, From: row.Spent, Count: row.Count - row.Spent}, nil
}

// inviteUsed makes a single-use invite's grant that of who came by it.
func inviteUsed(tx *store.Tx, id [16]byte, acct identity.AccountID) error {
	grants, err := tx.Grants()
	if err != nil {
		return err
	}
	g := granting{grants: grants}
	row := g.ofInvite(id)
	if row == nil {
		return nil
	}
	row.Account, row.Told = [32]byte(acct), true
	return tx.PutGrant(*row)
}

// maxRuns is how many grants of one contact are kept.
const maxRuns = 16

// takeGrants keeps the tokens a contact gave us. Of a seed we have, we go on where we are.
func takeGrants(tx *store.Tx, acct [32]byte, list []wire.TokenGrant) error {
	held, err := tx.Granted(acct)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	for _, g := range list {
		run := store.TokenRun{Seed: g.Seed, Next: g.From, End: g.From + g.Count}
		at := slices.IndexFunc(held.Runs, func(r store.TokenRun) bool { return r.Seed == g.Seed })
		if at < 0 {
			held.Runs = append(held.Runs, run)
			continue
		}
		held.Runs[at].Next, held.Runs[at].End = max(held.Runs[at].Next, run.Next), max(held.Runs[at].End, run.End)
	}
	held.Runs = slices.DeleteFunc(held.Runs, func(r store.TokenRun) bool { return r.Next >= r.End })
	held.Runs = held.Runs[max(0, len(held.Runs)-maxRuns):]
	return tx.PutGranted(acct, held)
}

// payers knows whose token paid for an envelope at one box.
type payers struct {
	mu    sync.Mutex // guards what follows
	known map[[16]byte]payer
}

type payer struct {
	grant [16]byte
	i     uint32
}

// find looks a spent token's hash up, in all grants anew if it is not known: they may have grown since.
func (p *payers) find(m *Messenger, box [32]byte, spent [16]byte) (payer, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if who, ok := p.known[spent]; ok || spent == [16]byte{} {
		return who, ok, nil
	}
	p.known = map[[16]byte]payer{}
	err := m.store.View(func(tx *store.Tx) error {
		grants, err := tx.Grants()
		for _, row := range grants {
			for i := range row.Count {
				p.known[wire.PoolHash(wire.BoxToken(row.Seed, i, box))] = payer{row.ID(), i}
			}
		}
		return err
	})
	who, ok := p.known[spent]
	return who, ok, err
}

// spent notes the tokens that paid, and has more made when few are left.
func (m *Messenger) spent(tx *store.Tx, list []payer) error {
	low := false
	for _, p := range list {
		row, err := tx.Grant(p.grant)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if p.i >= row.Spent {
			row.Spent = p.i + 1
			if err := tx.PutGrant(row); err != nil {
				return err
			}
		}
		low = low || row.Spent >= row.Count/2
	}
	if low {
		tx.AfterCommit(m.boxes.poke)
	}
	return nil
}
