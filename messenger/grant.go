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

// Who may leave mail in our boxes was given tokens (PROTOCOL 17.4):
//
//  1. ensureGrants draws seeds: one for each contact, one for each open invite, some for nobody yet;
//  2. fillPool shows their hashes to a mailbox, shuffled, so that it cannot tell whose are whose;
//  3. what every box knows may be told (granted), and rides on the next content (ride);
//  4. spent tells whose token paid for an envelope, and has more made when few are left.

// spareGrants is how many seeds are known to the mailboxes before anybody needs them: a new contact then makes no upload.
const spareGrants = 2

// poolRoom is how many tokens all grants together may have unspent; the rest of wire.MaxPool is for those that hide how many there are.
const poolRoom = wire.MaxPool * 3 / 4

// ensureGrants gives every contact that may connect and every open invite a grant, and keeps some spare ones. Without a box nobody needs any.
func (m *Messenger) ensureGrants(tx *store.Tx) error {
	boxes, err := tx.Boxes()
	if err != nil || len(boxes) == 0 {
		return err
	}
	grants, err := tx.Grants()
	if err != nil {
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
	g := &granting{m: m, tx: tx, grants: grants, each: m.tokensEach(len(contacts) + len(invites))}
	if err := g.drop(contacts, invites); err != nil {
		return err
	}
	for _, c := range contacts {
		if err := g.toContact(c); err != nil {
			return err
		}
	}
	for _, row := range invites {
		if g.ofInvite(row.ID) == nil {
			if err := g.give(func(free *store.Grant) { free.Invite = row.ID }); err != nil {
				return err
			}
		}
	}
	return g.keepSpare()
}

// tokensEach is how many tokens one contact has in hand, fewer when many share a box's pool.
func (m *Messenger) tokensEach(holders int) uint32 {
	return uint32(max(8, min(m.limits.Tokens, poolRoom/(holders+spareGrants+1))))
}

// granting is one round of ensureGrants.
type granting struct {
	m      *Messenger
	tx     *store.Tx
	grants []store.Grant
	each   uint32
}

// drop marks the grants of those who are no contacts any more and of invites that ended.
func (g *granting) drop(contacts []store.Contact, invites []store.Invite) error {
	for i := range g.grants {
		row := &g.grants[i]
		kept := row.Dropped
		switch {
		case row.Account != [32]byte{}:
			kept = kept || slices.ContainsFunc(contacts, func(c store.Contact) bool { return c.Account == row.Account && mayConnect(c) })
		case row.Invite != [16]byte{}:
			kept = kept || slices.ContainsFunc(invites, func(v store.Invite) bool { return v.ID == row.Invite })
		default:
			kept = true
		}
		if !kept {
			row.Dropped = true
			if err := g.tx.PutGrant(*row); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *granting) ofInvite(id [16]byte) *store.Grant {
	at := slices.IndexFunc(g.grants, func(row store.Grant) bool { return !row.Dropped && row.Invite == id && row.Account == [32]byte{} })
	if at < 0 {
		return nil
	}
	return &g.grants[at]
}

func (g *granting) toContact(c store.Contact) error {
	if !mayConnect(c) {
		return nil
	}
	at := slices.IndexFunc(g.grants, func(row store.Grant) bool { return !row.Dropped && row.Account == c.Account })
	if at < 0 {
		if err := g.give(func(free *store.Grant) { free.Account = c.Account }); err != nil {
			return err
		}
		at = slices.IndexFunc(g.grants, func(row store.Grant) bool { return !row.Dropped && row.Account == c.Account })
	}
	row := &g.grants[at]
	if left := row.Count - min(row.Spent, row.Count); left < g.each/2 {
		row.Count = row.Spent + g.each
		if err := g.tx.PutGrant(*row); err != nil {
			return err
		}
	}
	if id := row.ID(); c.Grant != id {
		c.Grant, c.Granted, c.ToldGrant = id, 0, 0
		return g.tx.PutContact(c)
	}
	return nil
}

// grantAtOnce gives a new contact a grant that the mailboxes know already, so that it can be told in the first words. The caller writes the contact.
func (m *Messenger) grantAtOnce(tx *store.Tx, c *store.Contact) error {
	boxes, err := tx.Boxes()
	if err != nil || len(boxes) == 0 {
		return err
	}
	grants, err := tx.Grants()
	if err != nil {
		return err
	}
	theirs := func(row store.Grant) bool { return !row.Dropped && row.Account == c.Account }
	g := &granting{m: m, tx: tx, grants: grants, each: m.tokensEach(len(grants))}
	if !slices.ContainsFunc(grants, theirs) {
		if err := g.give(func(free *store.Grant) { free.Account = c.Account }); err != nil {
			return err
		}
	}
	row := g.grants[slices.IndexFunc(g.grants, theirs)]
	if id := row.ID(); c.Grant != id {
		c.Grant, c.Granted, c.ToldGrant = id, 0, 0
	}
	known, err := m.knownTokens(tx, c.Grant)
	c.Granted = max(c.Granted, known)
	tx.AfterCommit(m.boxes.poke) // another spare one is wanted
	return err
}

// give finds a grant that is nobody's, or makes one, and makes it somebody's.
func (g *granting) give(to func(*store.Grant)) error {
	at := slices.IndexFunc(g.grants, spare)
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
	row := store.Grant{Count: g.each, Created: g.m.clock.Now()}
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
	for ; free < spareGrants; free++ {
		if err := g.draw(); err != nil {
			return err
		}
	}
	return nil
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
		if row.Dropped {
			drop = appendHashes(drop, row, id, row.Spent, row.Pooled[id])
		} else {
			add = appendHashes(add, row, id, max(row.Spent, row.Pooled[id]), row.Count)
		}
	}
	if len(add) > 0 { // as many as make the batch a multiple of what one contact gets: none can be told by its size
		for n := m.limits.Tokens - len(add)%m.limits.Tokens; n > 0 && len(add) < wire.MaxPool; n-- {
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

func appendHashes(list [][16]byte, row store.Grant, box [32]byte, from, to uint32) [][16]byte {
	for i := from; i < to; i++ {
		list = append(list, wire.PoolHash(wire.BoxToken(row.Seed, i, box)))
	}
	return list
}

// pooled notes which tokens a mailbox confirmed, forgets dropped grants that no mailbox knows, and lets what all boxes know be told.
func (m *Messenger) pooled(tx *store.Tx, id [32]byte, shown []store.Grant) error {
	boxes, err := tx.Boxes()
	if err != nil {
		return err
	}
	for _, row := range shown {
		now, err := tx.Grant(row.ID())
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if now.Pooled == nil {
			now.Pooled = map[[32]byte]uint32{}
		}
		switch {
		case row.Dropped:
			delete(now.Pooled, id)
		case now.Pooled[id] < row.Count:
			now.Pooled[id] = row.Count
		default:
			continue
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
	return m.grantKnown(tx, id)
}

// grantKnown makes the box ready for the card, and tells contacts of tokens that all ready boxes know.
func (m *Messenger) grantKnown(tx *store.Tx, id [32]byte) error {
	box, err := tx.Box(id)
	if err != nil {
		return err
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
	contacts, err := tx.Contacts()
	if err != nil {
		return err
	}
	for _, c := range contacts {
		if c.Grant == [16]byte{} {
			continue
		}
		known, err := m.knownTokens(tx, c.Grant)
		if err != nil {
			return err
		}
		if known > c.Granted {
			c.Granted = known
			if err := tx.PutContact(c); err != nil {
				return err
			}
		}
	}
	return nil
}

// knownTokens is how many tokens of a grant every ready box knows; 0 without one.
func (m *Messenger) knownTokens(tx *store.Tx, id [16]byte) (uint32, error) {
	row, err := tx.Grant(id)
	if errors.Is(err, store.ErrNotFound) || err == nil && row.Dropped {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	boxes, err := tx.Boxes()
	if err != nil {
		return 0, err
	}
	known, any := row.Count, false
	for _, b := range boxes {
		if b.Ready && b.State == BoxOpen {
			known, any = min(known, row.Pooled[b.ID]), true
		}
	}
	if !any {
		return 0, nil
	}
	return known, nil
}

// emptyPool notes that a mailbox knows none of our tokens any more.
func (m *Messenger) emptyPool(id [32]byte) error {
	return m.store.Update(func(tx *store.Tx) error {
		grants, err := tx.Grants()
		for _, row := range grants {
			if _, ok := row.Pooled[id]; ok {
				delete(row.Pooled, id)
				err = errors.Join(err, tx.PutGrant(row))
			}
		}
		return err
	})
}

// grantFor is the grant to tell a contact of, nil when it knows all that may be told.
func (m *Messenger) grantFor(tx *store.Tx, c store.Contact) (*wire.TokenGrant, error) {
	if c.Granted <= c.ToldGrant {
		return nil, nil
	}
	row, err := tx.Grant(c.Grant)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil || c.Granted <= row.Spent {
		return nil, err
	}
	return &wire.TokenGrant{Seed: row.Seed, From: row.Spent, Count: c.Granted - row.Spent}, nil
}

// inviteGrant is the grant that an invite's bundle carries, nil when no box of ours knows it.
func (m *Messenger) inviteGrant(tx *store.Tx, id [16]byte) (*wire.TokenGrant, error) {
	grants, err := tx.Grants()
	if err != nil {
		return nil, err
	}
	g := granting{grants: grants}
	row := g.ofInvite(id)
	if row == nil {
		return nil, nil
	}
	known, err := m.knownTokens(tx, row.ID())
	if err != nil || known <= row.Spent {
		return nil, err
	}
	return &wire.TokenGrant{Seed: row.Seed, From: row.Spent, Count: known - row.Spent}, nil
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
	row.Account = [32]byte(acct)
	return tx.PutGrant(*row)
}

// takeGrant keeps the tokens a contact gave us. One of a seed we have goes on where we are.
func takeGrant(tx *store.Tx, acct [32]byte, g wire.TokenGrant) error {
	held, err := tx.Granted(acct)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	fresh := store.Granted{Seed: g.Seed, Next: g.From, End: g.From + g.Count}
	if err == nil && held.Seed == g.Seed {
		fresh.Next, fresh.End = max(fresh.Next, held.Next), max(fresh.End, held.End)
	}
	if err == nil && held == fresh {
		return nil
	}
	return tx.PutGranted(acct, fresh)
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
			for i := row.Spent - min(row.Spent, uint32(m.limits.Tokens)); i < row.Count; i++ {
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
		low = low || row.Count-min(row.Count, row.Spent) < uint32(m.limits.Tokens/2)
	}
	if low {
		tx.AfterCommit(m.boxes.poke)
	}
	return nil
}
