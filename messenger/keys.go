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

// handshakesUnder names the setting that counts the handshakes answered under a signed prekey.
const handshakesUnder = "handshakes/"

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
	boxes, err := m.cardBoxes(tx)
	if err != nil {
		return err
	}
	core := identity.CardCore{Seq: row.CardSeq, Issued: now, NotAfter: now.Add(m.limits.CardLife), Seal: seal.Public(), Boxes: boxes}
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
		m.adoptCard(tx, row)
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
			if id, ok := strings.CutPrefix(row.Name, signedPrekeys); ok {
				if err := tx.DeleteSetting(handshakesUnder + id); err != nil {
					return err
				}
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
			return m.upkeep(tx)
		})
		if err == nil && round%24 == 0 && !m.doubtful(m.clock.Now()) { // walks over rows that are many and live for weeks
			err = m.expireSessions()
		}
		if err == nil {
			err = m.tellAll()
		}
		if err != nil && !errors.Is(err, store.ErrFull) {
			return err
		}
	}
}

// expireSessions drops what is kept for mail that may come late, once it cannot come any more. Each kind goes in transactions
// of its own, as many as it takes: what has gathered in a month may be too much for one.
func (m *Messenger) expireSessions() error {
	before := m.clock.Now().Add(-m.limits.SessionLife)
	for more := true; more; {
		err := m.store.Update(func(tx *store.Tx) error {
			n, err := tx.ExpireAcks(before, sweepKeys)
			more = n >= sweepKeys
			return err
		})
		if err != nil {
			return err
		}
	}
	for more := true; more; {
		err := m.store.Update(func(tx *store.Tx) error {
			n, err := tx.ExpireLate(m.clock.Now(), sweepKeys)
			more = n >= sweepKeys
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := m.store.Update(dropHeadings); err != nil {
		return err
	}
	for more := true; more; {
		err := m.store.Update(func(tx *store.Tx) (err error) {
			more, err = expireSkipped(tx, before)
			return err
		})
		if err != nil {
			return err
		}
	}
	return m.dropArchived(before)
}

// expireSkipped drops some of the skipped keys from before the moment and counts them off their sessions.
func expireSkipped(tx *store.Tx, before time.Time) (more bool, err error) {
	counts, err := tx.ExpireSkipped(before, sweepKeys)
	if err != nil {
		return false, err
	}
	sum := 0
	for _, n := range counts {
		sum += n.Count
		row, err := tx.Session(n.Session)
		if err != nil {
			return false, err
		}
		s, err := session.Unmarshal(row.State)
		if err != nil {
			return false, err
		}
		s.ForgetSkipped(n.Chain, n.Count)
		row.State, row.Head = s.Marshal(), s.Head()
		if err := tx.PutSession(row); err != nil {
			return false, err
		}
	}
	return sum >= sweepKeys, nil
}

// runCrowded drops sessions that newer ones crowded out and that were too much for the transaction that did so.
func (m *Messenger) runCrowded(ctx context.Context) error {
	for {
		if err := m.dropArchived(time.Unix(0, 0)); err != nil && !errors.Is(err, store.ErrFull) {
			return err
		}
		if err := m.waitOr(ctx, 24*time.Hour, m.crowded); err != nil {
			return nil
		}
	}
}

// dropArchived drops the archived sessions that were used last before the moment.
func (m *Messenger) dropArchived(before time.Time) error {
	var old []store.Session
	err := m.store.View(func(tx *store.Tx) error {
		rows, err := tx.AllSessions()
		for _, row := range rows {
			if row.Archived && row.LastUsed.Before(before) {
				old = append(old, row)
			}
		}
		return err
	})
	for _, row := range old {
		for gone := false; !gone && err == nil; {
			err = m.store.Update(func(tx *store.Tx) error {
				row, err := tx.Session(row.ID)
				if errors.Is(err, store.ErrNotFound) || err == nil && !row.LastUsed.Before(before) {
					gone = true
					return nil
				}
				if err != nil {
					return err
				}
				gone, err = dropSession(tx, row)
				return err
			})
		}
	}
	return err
}

// raiseFloors brings each session's counter up to what the send floor reserved, so that no key is used twice even after
// the database was rolled back; a chain the database does not know yet means that it is too old to go on with (I6). Each session
// has a transaction of its own: after a crash all that sent anything since the start are behind.
func (m *Messenger) raiseFloors() error {
	var rows []store.Session
	err := m.store.View(func(tx *store.Tx) (err error) {
		rows, err = tx.AllSessions()
		return err
	})
	for _, row := range rows {
		if err != nil {
			return err
		}
		chain, floor, ok := m.store.Floor(row.ID)
		if !ok || row.Archived {
			continue
		}
		s, e := session.Unmarshal(row.State)
		if e != nil {
			return fmt.Errorf("session with %s: %w", identity.AccountID(row.Account).Short(), e)
		}
		have, n := s.NextSend()
		switch {
		case chain > have:
			err = m.store.Update(func(tx *store.Tx) error {
				c, err := tx.Contact(row.Account)
				if err != nil {
					return err
				}
				row.Archived = true
				if err := tx.PutSession(row); err != nil {
					return err
				}
				return m.reset(tx, &c, "the database is older than what was sent from it")
			})
		case chain == have && floor > n:
			err = m.store.Update(func(tx *store.Tx) error { return m.skipTo(tx, row, s, have, n, floor) })
		}
	}
	return err
}

func (m *Messenger) skipTo(tx *store.Tx, row store.Session, s *session.Session, chain, n, floor uint32) error {
	if err := s.SkipTo(floor); err != nil {
		return err
	}
	row.State, row.Head = s.Marshal(), s.Head()
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
