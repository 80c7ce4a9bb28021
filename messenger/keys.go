package messenger

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"sotto/identity"
	"sotto/session"
	"sotto/store"
)

// Names of secrets in the vault.
const (
	signedPrekeys  = "prekey/"
	oneTimePrekeys = "onetime/"
	sealKeys       = "seal/"
)

// settingNodeKeyAt says when the node key was drawn, in Unix seconds.
const settingNodeKeyAt = "node-key-at"

// upkeepEvery is how often keys are looked after; they live for days.
const upkeepEvery = time.Hour

// Init makes this device in a new store: its keys, its account's device list, its first card.
func Init(st *store.Store, account *identity.Account, name string, cfg Config) error {
	m := &Messenger{store: st, account: account, clock: cfg.Clock, rand: cfg.Rand, limits: cfg.Limits.withDefaults()}
	m.fillPorts()
	return st.Update(func(tx *store.Tx) error {
		if _, err := tx.GetSelf(); !errors.Is(err, store.ErrNotFound) {
			return errors.Join(err, errors.New("this home has an identity already"))
		}
		device, err := identity.NewDevice(m.rand)
		if err != nil {
			return fmt.Errorf("make a device: %w", err)
		}
		now := m.clock.Now().UTC().Truncate(time.Second)
		list := identity.DeviceList{Account: account.ID(), Seq: 1, Issued: now, Devices: []identity.DeviceEntry{device.Entry(now)}}
		m.self = self{device: device, list: list.Sign(account)}
		row := store.Self{
			Name: identity.CleanName(name), Created: now, DeviceSecret: device.MarshalSecret(), AccountPublic: [32]byte(account.ID()),
			DeviceList: m.self.list, NextKeyID: 1,
		}
		if err := m.renewCard(tx, &row); err != nil {
			return err
		}
		if err := tx.PutSetting(settingNodeKeyAt, strconv.AppendInt(nil, now.Unix(), 10)); err != nil {
			return err
		}
		return tx.PutSelf(row)
	})
}

// renewCard draws a signed prekey and a seal key and signs a card with them.
func (m *Messenger) renewCard(tx *store.Tx, row *store.Self) error {
	now := m.clock.Now().UTC().Truncate(time.Second)
	prekey, err := identity.NewPrekey(m.rand, row.NextKeyID)
	if err != nil {
		return err
	}
	seal, err := identity.NewSealKey(m.rand, row.NextKeyID)
	if err != nil {
		return err
	}
	row.NextKeyID++
	row.CardSeq++
	core := identity.CardCore{Seq: row.CardSeq, Issued: now, NotAfter: now.Add(m.limits.CardLife), Seal: seal.Public()}
	card, err := identity.SignCard(row.DeviceList, m.self.device, core, prekey.Public())
	if err != nil {
		return err
	}
	row.Card, row.CardIssued, row.CardUntil = card, now, core.NotAfter
	if err := putKey(tx, signedPrekeys, prekey.ID, prekey.MarshalSecret(), now, now.Add(m.limits.PrekeyLife)); err != nil {
		return err
	}
	return putKey(tx, sealKeys, seal.ID, seal.MarshalSecret(), now, now.Add(m.limits.PrekeyLife))
}

func putKey(tx *store.Tx, kind string, id uint32, secret []byte, created, expires time.Time) error {
	return tx.PutSecret(store.SecretRow{Name: keyName(kind, id), Value: secret, Created: created, Expires: expires})
}

// keyName sorts by age, because ids rise.
func keyName(kind string, id uint32) string { return fmt.Sprintf("%s%010d", kind, id) }

func prekeySecret(tx *store.Tx, kind string, id uint32) (*identity.PrekeySecret, error) {
	row, err := tx.GetSecret(keyName(kind, id))
	if err != nil {
		return nil, err
	}
	return identity.ParsePrekeySecret(row.Value)
}

// upkeep renews the card when it is due and erases private halves that are past their life.
func (m *Messenger) upkeep(tx *store.Tx) error {
	row, err := tx.GetSelf()
	if err != nil {
		return err
	}
	if age := m.clock.Now().Sub(row.CardIssued); age >= m.limits.PrekeyAge || age < -m.limits.PrekeyAge {
		if err := m.renewCard(tx, &row); err != nil {
			return fmt.Errorf("renew the card: %w", err)
		}
		if err := tx.PutSelf(row); err != nil {
			return err
		}
		card, n := row.Card, row.CardSeq
		tx.AfterCommit(func() {
			m.mu.Lock()
			m.self.card, m.self.cardN = card, n
			m.mu.Unlock()
			poke(m.moved) // invites carry the card
		})
	}
	for _, kind := range []string{signedPrekeys, sealKeys} {
		if err := m.eraseOld(tx, kind); err != nil {
			return err
		}
	}
	if m.doubtful(m.clock.Now()) {
		return nil
	}
	return m.eraseUnused(tx)
}

// eraseOld erases keys whose life is over. A clock that jumped must not erase what may still be needed: so many newer
// keys must exist as an honest clock would have made in that time.
func (m *Messenger) eraseOld(tx *store.Tx, kind string) error {
	rows, err := tx.ListSecrets(kind)
	if err != nil {
		return err
	}
	keep := int(m.limits.PrekeyLife / m.limits.PrekeyAge)
	for i, row := range rows {
		if len(rows)-i > keep && row.Expires.Before(m.clock.Now()) {
			if err := tx.DeleteSecret(row.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// eraseUnused erases the one-time prekeys of invites that can no longer be used.
func (m *Messenger) eraseUnused(tx *store.Tx) error {
	rows, err := tx.ListSecrets(oneTimePrekeys)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.Expires.Add(m.limits.MaxInvite).Before(m.clock.Now()) {
			if err := tx.DeleteSecret(row.Name); err != nil {
				return err
			}
		}
	}
	return nil
}

// runUpkeep looks after keys, old acknowledgements, skipped keys and sessions.
func (m *Messenger) runUpkeep(ctx context.Context) error {
	for round := 0; ; round++ {
		if err := m.clock.Wait(ctx, upkeepEvery); err != nil {
			return nil
		}
		err := m.store.Update(func(tx *store.Tx) error {
			if err := m.noteClock(tx, upkeepEvery); err != nil {
				return err
			}
			if err := m.upkeep(tx); err != nil {
				return err
			}
			if round%24 != 0 || m.doubtful(m.clock.Now()) { // walks over rows that are many and live for weeks
				return nil
			}
			return m.expireSessions(tx)
		})
		if err == nil {
			err = m.tellAll()
		}
		if err != nil && !errors.Is(err, store.ErrFull) {
			return err
		}
	}
}

// tellAll sends a new card to everybody, so that those who say nothing for weeks can still begin a session.
func (m *Messenger) tellAll() error {
	return m.store.Update(func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		for _, c := range contacts {
			if c.State != ContactEstablished || m.current().cardN <= c.ToldCard {
				continue
			}
			if err := m.tell(tx, &c); err != nil {
				return err
			}
		}
		return nil
	})
}

// expireSessions drops what is kept for mail that may come late, once it cannot come any more.
func (m *Messenger) expireSessions(tx *store.Tx) error {
	before := m.clock.Now().Add(-m.limits.SessionLife)
	if _, err := tx.ExpireAcks(before, 0); err != nil {
		return err
	}
	if err := dropHeadings(tx); err != nil {
		return err
	}
	counts, err := tx.ExpireSkipped(before, 0)
	if err != nil {
		return err
	}
	for _, n := range counts {
		row, err := tx.Session(n.Session)
		if err != nil {
			return err
		}
		s, err := session.Unmarshal(row.State)
		if err != nil {
			return err
		}
		s.ForgetSkipped(n.Chain, n.Count)
		row.State, row.Tail = s.Marshal(), s.Tail()
		if err := tx.PutSession(row); err != nil {
			return err
		}
	}
	rows, err := tx.AllSessions()
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.Archived && row.LastUsed.Before(before) {
			if err := tx.DeleteSession(row.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// raiseFloors brings each session's counter up to what the send floor reserved, so that no key is used twice even after
// the database was rolled back; a chain the database does not know yet means that it is too old to go on with (I6).
func (m *Messenger) raiseFloors(tx *store.Tx) error {
	rows, err := tx.AllSessions()
	if err != nil {
		return err
	}
	for _, row := range rows {
		chain, floor, ok := m.store.Floor(row.ID)
		if !ok || row.Archived {
			continue
		}
		s, err := session.Unmarshal(row.State)
		if err != nil {
			return fmt.Errorf("session with %s: %w", identity.AccountID(row.Account).Short(), err)
		}
		have, n := s.NextSend()
		switch {
		case chain > have:
			c, err := tx.Contact(row.Account)
			if err != nil {
				return err
			}
			row.Archived = true
			if err := tx.PutSession(row); err != nil {
				return err
			}
			if err := m.reset(tx, &c, "the database is older than what was sent from it"); err != nil {
				return err
			}
		case chain == have && floor > n:
			if err := m.skipTo(tx, row, s, have, n, floor); err != nil {
				return err
			}
		}
	}
	return nil
}

func (m *Messenger) skipTo(tx *store.Tx, row store.Session, s *session.Session, chain, n, floor uint32) error {
	if err := s.SkipTo(floor); err != nil {
		return err
	}
	row.State, row.Tail = s.Marshal(), s.Tail()
	if err := tx.PutSession(row); err != nil {
		return err
	}
	c, err := tx.Contact(row.Account)
	if err != nil {
		return err
	}
	c.Voids = addVoid(c.Voids, store.Void{Session: row.ID, Chain: chain, From: n, To: floor - 1})
	return tx.PutContact(c)
}

// rotateNodeKey draws a new node key when the old one is a month old. It happens only while nothing is connected.
func (m *Messenger) rotateNodeKey(tx *store.Tx, device *identity.Device, row *store.Self) error {
	raw, err := tx.Setting(settingNodeKeyAt)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	at, _ := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	now := m.clock.Now()
	if now.Sub(time.Unix(at, 0)) < m.limits.NodeKeyAge {
		return nil
	}
	if err := device.RotateNodeKey(m.rand); err != nil {
		return err
	}
	row.DeviceSecret = device.MarshalSecret()
	if err := tx.PutSelf(*row); err != nil {
		return err
	}
	return tx.PutSetting(settingNodeKeyAt, strconv.AppendInt(nil, now.Unix(), 10))
}
