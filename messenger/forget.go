package messenger

import (
	"context"
	"errors"
	"fmt"

	"sotto/identity"
	"sotto/session"
	"sotto/store"
)

// Whoever is shut out is marked first, which ends all traffic, and then forgotten in steps that can be repeated.

// Block ends all traffic with a contact and changes where we can be found, so that what it knew is worth nothing.
func (m *Messenger) Block(ctx context.Context, name string) error {
	return m.shutOut(ctx, name, func(c *store.Contact) { c.State, c.BlockedAt = ContactBlocked, m.clock.Now() })
}

// Unblock lets a blocked contact write again; both must meet by a new invite, because their keys were thrown away.
func (m *Messenger) Unblock(ctx context.Context, name string) error {
	return m.change(ctx, name, func(tx *store.Tx, c *store.Contact) error {
		if c.State != ContactBlocked {
			return refuse(CodeNotEstablished, "", "%s is not blocked", c.Name)
		}
		c.State, c.Warning = ContactPending, warnUnblocked
		return nil
	})
}

// warnUnblocked stays with an unblocked contact until both have met again.
const warnUnblocked = "unblocked: nothing passes until you meet again by a new invite, yours or theirs"

// contactRemoved is a contact of which nothing is left but what forget has not come to yet; then its row goes, too.
const contactRemoved = store.ContactRemoved

// Remove forgets a contact and its keys. What was said stays, and can be read under the name it had.
func (m *Messenger) Remove(ctx context.Context, name string) error {
	return m.shutOut(ctx, name, func(c *store.Contact) { c.State = contactRemoved })
}

// shutOut marks a contact as one who is to be forgotten, which ends all traffic at once, and then forgets it. What waits for
// it may be too much for one transaction: a crash between two of them, or an error, leaves the mark, and New goes on from there.
func (m *Messenger) shutOut(ctx context.Context, name string, mark func(c *store.Contact)) error {
	var acct [32]byte
	err := m.update(ctx, func(tx *store.Tx) error {
		c, err := m.findContact(tx, name)
		if err != nil {
			return err
		}
		mark(&c)
		c.Reach, c.ReachSeq, c.InnerKey, c.RecordKey = nil, 0, [32]byte{}, [32]byte{} // what they told before is told again when they meet anew
		acct = c.Account
		if err := endAdds(tx, acct); err != nil {
			return err
		}
		if err := m.putContact(tx, c); err != nil {
			return err
		}
		if c.State == ContactBlocked {
			if err := m.announceContact(tx, acct); err != nil {
				return err
			}
		}
		return m.hide(tx)
	})
	if err != nil {
		return err
	}
	poke(m.moved)
	if err := m.forget(acct); err != nil {
		return err
	}
	return m.tellAll()
}

// forgetAll goes on with what a crash interrupted.
func (m *Messenger) forgetAll() error {
	var marked []store.Contact
	err := m.store.View(func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		for _, c := range contacts {
			if c.State == contactRemoved || c.State == ContactBlocked {
				marked = append(marked, c)
			}
		}
		return err
	})
	for _, c := range marked {
		if err == nil {
			err = m.forget(c.Account)
		}
	}
	return err
}

// What one transaction of a sweep changes at most: the store takes about a mebibyte, and 8000 rows, at once.
const (
	sweepRows  = 128
	sweepBytes = 256 << 10
	sweepKeys  = 2000 // skipped keys, which are rows of no size
)

// forget throws away, in as many transactions as it takes, what waits for a contact that was shut out, the sessions with it, and
// last the row of one who was removed. Nothing new comes to wait: nobody may write to it.
func (m *Messenger) forget(acct [32]byte) error {
	for done := false; !done; {
		err := m.store.Update(func(tx *store.Tx) error {
			c, err := tx.Contact(acct)
			if errors.Is(err, store.ErrNotFound) || err == nil && c.State != contactRemoved && c.State != ContactBlocked {
				done = true // met again meanwhile
				return nil
			}
			if err != nil {
				return err
			}
			done, err = m.forgetSome(tx, c)
			return err
		})
		if err != nil {
			return fmt.Errorf("forget %s: %w", identity.AccountID(acct).Short(), err)
		}
	}
	return nil
}

// forgetSome is one transaction of forget.
func (m *Messenger) forgetSome(tx *store.Tx, c store.Contact) (done bool, err error) {
	m.choose(tx, identity.AccountID(c.Account), [16]byte{})
	why := "blocked"
	if c.State == contactRemoved {
		why = "contact removed"
	}
	waiting, err := tx.Outgoings(c.Account, sweepRows)
	if err != nil {
		return false, err
	}
	for _, out := range waiting {
		if err := tx.DeleteOutgoing(out.Account, out.Order); err != nil {
			return false, err
		}
		if out.Control {
			continue
		}
		if err := m.markWaiting(tx, out, StateCancelled, why); err != nil {
			return false, err
		}
	}
	if len(waiting) > 0 {
		return false, nil
	}
	rows, err := tx.AccountSessions(c.Account)
	if err != nil {
		return false, err
	}
	for _, row := range rows {
		if gone, err := dropSession(tx, row); err != nil || !gone {
			return false, err
		}
	}
	if c.State != contactRemoved {
		return true, nil
	}
	if err := rememberName(tx, c); err != nil {
		return false, err
	}
	tx.AfterCommit(func() { m.remember(c) })
	return true, tx.DeleteContact(c.Account)
}

// dropSession takes a session out of the store, or some of its skipped keys when it has more than one transaction should drop.
func dropSession(tx *store.Tx, row store.Session) (gone bool, err error) {
	s, err := session.Unmarshal(row.State)
	if err != nil {
		return false, fmt.Errorf("session with %s: %w", identity.AccountID(row.Account).Short(), err)
	}
	if s.SkippedTotal() <= sweepKeys {
		return true, tx.DeleteSession(row.ID)
	}
	left := sweepKeys
	for _, chain := range s.SkippedChains() {
		for from := uint32(0); from < session.MaxChain && left > 0; from += sweepKeys {
			n, err := tx.DropSkipped(row.ID, chain, from, from+sweepKeys-1)
			if err != nil {
				return false, err
			}
			s.ForgetSkipped(chain, n)
			left -= n
		}
	}
	row.State, row.Head, row.Archived = s.Marshal(), s.Head(), true
	return false, tx.PutSession(row)
}

// hide draws a new record key and discovery secret, so that the one shut out can no longer find this device. tellAll tells
// the others.
func (m *Messenger) hide(tx *store.Tx) error {
	row, err := tx.GetSelf()
	if err != nil {
		return err
	}
	device, err := identity.ParseDevice(row.DeviceSecret)
	if err != nil {
		return err
	}
	if err := device.RotateRecord(m.rand); err != nil {
		return err
	}
	row.DeviceSecret = device.MarshalSecret()
	if err := tx.PutSelf(row); err != nil {
		return err
	}
	tx.AfterCommit(func() {
		m.mu.Lock()
		m.self.device = device
		m.mu.Unlock()
	})
	return nil
}

// tellAll tells established contacts a new card or a new record key, so that those to whom nothing is said for weeks can still
// begin a session and find us. Each is told in a transaction of its own: all of them may be too much for one.
func (m *Messenger) tellAll() error {
	var behind [][32]byte
	s := m.current()
	untold := func(c store.Contact) bool {
		return c.State == ContactEstablished && (s.cardN > c.ToldCard || c.GrantsDue || c.ToldRecord != ownRecordKeys(s.device).Key)
	}
	err := m.store.View(func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		for _, c := range contacts {
			if untold(c) {
				behind = append(behind, c.Account)
			}
		}
		return err
	})
	for _, acct := range behind {
		if err != nil {
			return err
		}
		err = m.store.Update(func(tx *store.Tx) error {
			c, err := tx.Contact(acct)
			if errors.Is(err, store.ErrNotFound) || err == nil && !untold(c) {
				return nil
			}
			if err != nil {
				return err
			}
			return m.tell(tx, &c)
		})
	}
	return err
}
