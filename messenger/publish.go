package messenger

import (
	"context"
	"errors"
	"time"

	"sotto/identity"
	"sotto/record"
	"sotto/store"
)

// How records are kept alive (PROTOCOL 6): a put lasts as long as its servers keep it, so each is put again in time.
const (
	reachLife     = 48 * time.Hour // not_after of a reach record
	lastHours     = 6 * time.Hour  // this long before a day ends the next day's record is put too
	invitesEvery  = 20 * time.Hour
	publishPause  = 5 * time.Second // after a failed put, doubled up to RetryMax
	publishWithin = 30 * time.Second
)

// Moved takes note that the node's addresses may have changed.
func (m *Messenger) Moved() { poke(m.moved) }

// Online takes note that the network can be reached again: mail may wait at our mailboxes.
func (m *Messenger) Online() {
	m.Moved()
	m.boxes.poke()
}

// signedReach is where this node is, signed, and its number; 0 until the network was asked.
func (m *Messenger) signedReach() (uint64, []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reach.Seq, m.signed
}

// runPublish puts this device's reach and its invites into the DHT whenever they change and before they lapse.
func (m *Messenger) runPublish(ctx context.Context, net Network) error {
	pause := publishPause
	for {
		next := m.limits.Republish
		err := m.adoptReach(net)
		if err != nil && !errors.Is(err, store.ErrFull) {
			return err
		}
		if err == nil {
			err = m.publishAll(ctx, net)
		}
		if err != nil {
			m.log.Debug("records not published", "err", err)
			next, pause = jitter(pause), min(2*pause, m.limits.RetryMax)
		} else {
			pause = publishPause
		}
		if err := m.waitOr(ctx, next, m.moved); err != nil {
			return nil
		}
		if err := m.clock.Wait(ctx, m.limits.PublishAfter/10); err != nil { // changes come in clusters
			return nil
		}
	}
}

// adoptReach asks the network where we are and signs it if that is new.
func (m *Messenger) adoptReach(net Network) error {
	offset, agreed := net.ClockOffset()
	reach := net.Reach()
	m.mu.Lock()
	if agreed {
		m.offset = offset
	}
	old := m.reach
	m.mu.Unlock()
	reach.Seq = old.Seq
	if old.Seq != 0 && string(reach.Marshal()) == string(old.Marshal()) {
		return nil
	}
	return m.store.Update(func(tx *store.Tx) error {
		row, err := tx.GetSelf()
		if err != nil {
			return err
		}
		reach.Seq = max(row.ReachSeq+1, uint64(max(m.clock.Now().UnixMilli(), 0)))
		row.ReachSeq = reach.Seq
		tx.AfterCommit(func() {
			m.mu.Lock()
			m.reach, m.signed = reach, identity.SignReach(m.self.device, reach.Marshal())
			m.mu.Unlock()
		})
		return tx.PutSelf(row)
	})
}

// publishAll puts the reach record, if anybody could look for it, and the invites that changed.
func (m *Messenger) publishAll(ctx context.Context, net Network) error {
	var due [][16]byte
	wanted := false
	seq, _ := m.signedReach()
	err := m.store.View(func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		wanted = len(contacts) > 0
		self, err := tx.GetSelf()
		if err != nil {
			return err
		}
		rows, err := tx.Invites()
		for _, row := range rows {
			wanted = wanted || m.inviteState(row) == InviteOpen
			if m.inviteDue(row, seq, self.CardIssued) {
				due = append(due, row.ID)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, id := range due {
		ctx, cancel := context.WithTimeout(ctx, publishWithin)
		if e := m.publishInvite(ctx, net, id); e != nil {
			err = e
		}
		cancel()
	}
	if wanted {
		if e := m.publishReach(ctx, net); e != nil {
			err = e
		}
	}
	return err
}

// inviteDue reports whether an invite's record must be put: open and older than invitesEvery, than our reach or than our card, or no
// longer open and not withdrawn yet.
func (m *Messenger) inviteDue(row store.Invite, reachSeq uint64, card time.Time) bool {
	if m.inviteState(row) != InviteOpen {
		return row.Published.IsZero() && len(row.Record) > 0 && m.now().Before(row.Expires)
	}
	moved := time.UnixMilli(int64(reachSeq))
	renewed := card.Add(time.Second) // a card is dated in whole seconds
	return row.Published.IsZero() || row.Published.Before(moved) || row.Published.Before(renewed) || m.clock.Now().Sub(row.Published) > invitesEvery
}

// publishReach puts the record of today, and in its last hours that of tomorrow.
func (m *Messenger) publishReach(ctx context.Context, net Network) error {
	now := m.now()
	s := m.current()
	secret := record.Secret(s.device.Discovery())
	today := record.Epoch(secret, now)
	if err := m.publishDay(ctx, net, s.device, today, now); err != nil {
		return err
	}
	if record.EpochEnd(secret, today).Sub(now) < lastHours {
		return m.publishDay(ctx, net, s.device, today+1, now)
	}
	return nil
}

func (m *Messenger) publishDay(ctx context.Context, net Network, device *identity.Device, day uint64, now time.Time) error {
	_, signed := m.signedReach()
	var seq uint64
	err := m.store.Update(func(tx *store.Tx) error {
		row, err := tx.GetSelf()
		if err != nil {
			return err
		}
		row.RecordSeq = max(row.RecordSeq+1, uint64(max(now.Unix(), 0)))
		seq = row.RecordSeq
		return tx.PutSelf(row)
	})
	if err != nil {
		return err
	}
	owner := record.NewOwner(device.RecordSeed())
	name, value, err := record.Seal(owner, record.Secret(device.Discovery()), day, seq, now.Add(reachLife), signed, record.Small, m.rand)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, publishWithin)
	defer cancel()
	return net.Publish(ctx, name, value)
}
