package messenger

import (
	"errors"
	"fmt"
	"io"
	"time"

	"sotto/identity"
	"sotto/store"
	"sotto/wire"
)

// A hello goes in front of whatever waits for a contact, however much that is.

// clearWay makes room in front of what waits for a contact, so that the hello can go first, and returns the place: 0 when so little
// waits that sayHello can put it behind the hello itself. Orders only rise, so an entry that keeps the place is put behind all, and
// what was before it is moved behind it, in as many transactions as it takes. Meanwhile nothing can be sealed for the contact. After
// a crash the link is followed again, and this goes on.
func (m *Messenger) clearWay(row store.PendingAdd, bundle identity.Bundle) (place uint64, err error) {
	for ready := false; !ready; {
		err := m.store.Update(func(tx *store.Tx) (err error) {
			if _, err := tx.PendingAdd(row.ID); err != nil {
				return err // its contact was removed or blocked meanwhile
			}
			if place == 0 {
				c, err := tx.Contact(row.Account)
				if err != nil {
					return err
				}
				if ready = knowEachOther(c, bundle); ready {
					return nil // sayHello says none
				}
				known := c
				if err := takeList(&known, bundle.Parsed.Devices, bundle.Parsed.Core.Device); err != nil {
					return err
				}
				place, ready, err = m.keepPlace(tx, c)
				return err
			}
			ready, err = moveBehind(tx, row.Account, place)
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("make way for the hello: %w", err)
		}
	}
	return place, nil
}

// placeMark is on an entry that keeps the place for a hello.
const placeMark = "place"

// keepPlace finds the entry that keeps a place for a hello, or makes one if what waits is more than one transaction should move.
func (m *Messenger) keepPlace(tx *store.Tx, c store.Contact) (place uint64, ready bool, err error) {
	few, size := 0, 0
	for after := uint64(0); ; {
		rows, err := tx.OutgoingsAfter(c.Account, after, sweepRows)
		if err != nil {
			return 0, false, err
		}
		for _, out := range rows {
			if string(out.Extra) == placeMark {
				return out.Order, false, nil
			}
			few, size, after = few+1, size+len(out.Payload), out.Order
		}
		if len(rows) < sweepRows {
			break
		}
	}
	if few <= sweepRows && size <= sweepBytes {
		return 0, true, nil
	}
	c.State, c.Card = ContactPending, nil
	if err := m.archiveAll(tx, &c); err != nil {
		return 0, false, err
	}
	if err := m.putContact(tx, c); err != nil {
		return 0, false, err
	}
	filler := wire.Content{Kind: wire.KindControl, Device: [16]byte(m.current().device.ID())}
	if _, err := io.ReadFull(m.rand, filler.ID[:]); err != nil {
		return 0, false, fmt.Errorf("draw a message id: %w", err)
	}
	raw, err := filler.Marshal()
	if err != nil {
		return 0, false, err
	}
	out := store.Outgoing{Account: c.Account, MsgID: filler.ID, Control: true, Hello: true, Created: m.clock.Now(), Payload: raw, Extra: []byte(placeMark)}
	err = tx.PutOutgoing(&out)
	return out.Order, false, err
}

// moveBehind moves some of the entries before a place behind all; ready says that none is left.
func moveBehind(tx *store.Tx, acct [32]byte, place uint64) (ready bool, err error) {
	rows, err := tx.Outgoings(acct, sweepRows)
	if err != nil {
		return false, err
	}
	size := 0
	for _, out := range rows {
		if out.Order >= place {
			return true, nil
		}
		if size >= sweepBytes {
			return false, nil
		}
		size += len(out.Payload)
		if err := putBehind(tx, out); err != nil {
			return false, err
		}
	}
	return len(rows) == 0, nil
}

// putBehind moves an entry behind all others, to be sealed anew. A hello of an invite that did not work is dropped.
func putBehind(tx *store.Tx, out store.Outgoing) error {
	if err := tx.DeleteOutgoing(out.Account, out.Order); err != nil || out.Hello {
		return err
	}
	out.Order = 0
	unseal(&out)
	return tx.PutOutgoing(&out)
}

// sayHello makes the contact of a verified bundle and queues the first content of the first session.
func (m *Messenger) sayHello(tx *store.Tx, row store.PendingAdd, bundle identity.Bundle, place uint64) error {
	if _, err := tx.PendingAdd(row.ID); err != nil {
		return err // its contact was removed or blocked meanwhile
	}
	c, err := tx.Contact(row.Account)
	if err != nil {
		return err
	}
	if knowEachOther(c, bundle) {
		if c.Established.Before(row.Created) {
			return alreadyMet(c.Name)
		}
		return m.metMeanwhile(tx, c)
	}
	self, err := tx.GetSelf()
	if err != nil {
		return err
	}
	card := bundle.Parsed
	if err := takeList(&c, card.Devices, card.Core.Device); err != nil {
		return err
	}
	c.Card, c.RecordKey, c.Claimed = bundle.Card, bundle.RecordKey, identity.CleanName(bundle.Name)
	c.Warning = ""
	untell(&c)
	if row.Name == "" && c.State == ContactPending && c.Established.IsZero() {
		if c.Name, err = m.freeName(tx, c.Claimed, c.Account); err != nil {
			return err
		}
	}
	if c.State == ContactPending || c.State == ContactRequested { // who follows a stranger's link accepts them
		c.State = ContactInvited
	}
	if err := tx.PutContactSecret(c.Account, bundle.Discovery[:]); err != nil {
		return err
	}
	for _, e := range bundle.Exts {
		if e.ID != identity.ExtTokenGrant {
			continue
		}
		if g, err := wire.ParseTokenGrant(e.Data); err != nil {
			m.log.Info("tokens in the invite refused", "err", err)
		} else if err := takeGrants(tx, c.Account, []wire.TokenGrant{g}); err != nil {
			return err
		}
	}
	if len(bundle.Reach) > 0 {
		if err := m.takeReach(tx, &c, bundle.Reach); err != nil {
			m.log.Info("reach in the invite refused", "err", err)
		}
	}
	if err := m.archiveAll(tx, &c); err != nil {
		return err
	}
	if _, _, err := m.beginSession(tx, &c, bundle.OneTime); err != nil {
		return err
	}
	if err := m.grantAtOnce(tx, &c); err != nil {
		return err
	}
	if err := m.queueHello(tx, &c, row, self.Name, place); err != nil {
		return err
	}
	row.State = addFound
	if err := tx.PutPendingAdd(row); err != nil {
		return err
	}
	if err := m.putContact(tx, c); err != nil {
		return err
	}
	return m.announceContact(tx, c.Account)
}

// knowEachOther reports whether the one who made the bundle has not left us out: whoever blocks or removes us draws a new record
// key (hide).
func knowEachOther(c store.Contact, bundle identity.Bundle) bool {
	return c.State == ContactEstablished && c.Warning == "" && c.RecordKey == bundle.RecordKey
}

// metMeanwhile ends following the link of somebody whose own hello came first. They had no name yet but a stand-in.
func (m *Messenger) metMeanwhile(tx *store.Tx, c store.Contact) (err error) {
	if c.Name == standIn(c.Account) {
		if c.Name, err = m.freeName(tx, c.Claimed, c.Account); err != nil {
			return err
		}
	}
	if err := m.putContact(tx, c); err != nil {
		return err
	}
	if err := endAdds(tx, c.Account); err != nil {
		return err
	}
	return m.announceContact(tx, c.Account)
}

// queueHello puts the hello before whatever waits for the contact already: into the place that was kept, or, when little waits,
// by putting that behind.
func (m *Messenger) queueHello(tx *store.Tx, c *store.Contact, row store.PendingAdd, name string, place uint64) error {
	var earlier []store.Outgoing
	var last uint64
	var err error
	if place == 0 {
		if earlier, err = tx.Outgoings(c.Account, 0); err != nil {
			return err
		}
	} else if last, err = lastOrder(tx, c.Account, place); err != nil {
		return err
	}
	hello := &wire.Hello{Name: name, Invite: row.ID, RecordKeys: ownRecordKeys(m.current().device)}
	if err := m.queue(tx, c, &wire.Content{Kind: wire.KindHello, Hello: hello}, time.Time{}); err != nil {
		return err
	}
	if place != 0 {
		if err := fillPlace(tx, c.Account, last, place); err != nil {
			return err
		}
	}
	c.ToldRecord = hello.RecordKeys.Key
	if err := m.tell(tx, c); err != nil {
		return err
	}
	for _, out := range earlier {
		if err := putBehind(tx, out); err != nil {
			return err
		}
	}
	return nil
}

// lastOrder is the order of the last entry that waits for an account.
func lastOrder(tx *store.Tx, acct [32]byte, after uint64) (last uint64, err error) {
	for last = after; ; {
		rows, err := tx.OutgoingsAfter(acct, last, sweepRows)
		if err != nil || len(rows) == 0 {
			return last, err
		}
		last = rows[len(rows)-1].Order
	}
}

// fillPlace moves the one entry that was put behind last into the place that was kept.
func fillPlace(tx *store.Tx, acct [32]byte, last, place uint64) error {
	rows, err := tx.OutgoingsAfter(acct, last, 1)
	if err != nil || len(rows) != 1 {
		return errors.Join(err, fmt.Errorf("%d entries for one hello", len(rows)))
	}
	out := rows[0]
	if err := tx.DeleteOutgoing(acct, out.Order); err != nil {
		return err
	}
	out.Order = place
	return tx.PutOutgoing(&out)
}
