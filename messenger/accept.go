package messenger

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"sotto/identity"
	"sotto/session"
	"sotto/store"
	"sotto/wire"
)

// A handshake is answered in four steps: its prekeys are looked up, the session proves its sender, the sender is introduced
// as a contact or as a stranger who asks, and only then is anything used up (PROTOCOL 7.5).

// equivocation is a proved handshake whose device list contradicts the one we hold: two devices claim to be the only one.
type equivocation struct {
	account [32]byte
	err     error
}

func (e *equivocation) Error() string { return e.err.Error() }

func (e *equivocation) Is(target error) bool { return target == errRefused }

// handshakePause is the least time between as many handshakes of one contact as there may be sessions: each costs
// a session, a mark and an answer of ours.
const handshakePause = 10 * time.Minute

// accept answers a handshake: first contact under a live invite, or a contact who begins anew.
func (m *Messenger) accept(tx *store.Tx, in session.Item) (*opening, error) {
	init := in.Initial
	id := init.ID()
	if seen, err := tx.SeenHandshake(id[:]); err != nil {
		return nil, err
	} else if seen { // a replay, or a contact whose session was lost here: the latter must begin anew
		return nil, fmt.Errorf("%w: handshake seen before", wire.ErrLost)
	}
	keys, err := m.handshakeKeys(tx, init)
	if err != nil {
		return nil, err
	}
	s, opened, err := session.Accept(m.local(), in, keys)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errRefused, err)
	}
	content := m.parse(opened.Payload)
	if content == nil {
		return nil, fmt.Errorf("%w: first content is malformed", errRefused)
	}
	c, err := m.introduce(tx, init, content)
	if err != nil {
		return nil, err
	}
	now := m.clock.Now()
	if err := m.markHandshake(tx, id, init.SPKID); err != nil {
		return nil, err
	}
	if err := m.makeRoom(tx, c); err != nil {
		return nil, err
	}
	row := store.Session{ID: id, Account: c.Account, Device: [16]byte(init.Device.ID), Created: now}
	return &opening{row: row, session: s, opened: opened, contact: c, content: content, initial: init}, nil
}

// markHandshake remembers a handshake for as long as its signed prekey could answer it again. Marks are counted by prekey, because
// none is needed when its prekey is erased; whoever comes when one has too many is asked to come later, with a newer card.
func (m *Messenger) markHandshake(tx *store.Tx, id [16]byte, prekey uint32) error {
	name := keyName(handshakesUnder, prekey)
	raw, err := tx.Setting(name)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	n, _ := strconv.Atoi(string(raw))
	if n >= m.limits.MaxHandshakes {
		return fmt.Errorf("%w: %d handshakes under signed prekey %d", wire.ErrLater, n, prekey)
	}
	if err := tx.PutSetting(name, strconv.AppendInt(nil, int64(n+1), 10)); err != nil {
		return err
	}
	return tx.MarkHandshake(id[:], m.clock.Now().Add(m.limits.PrekeyLife))
}

// makeRoom archives the sessions that a new one follows. One that we began ourselves and that was not answered yet stays:
// both sides began at the same moment, and both will choose the same of the two.
func (m *Messenger) makeRoom(tx *store.Tx, c store.Contact) error {
	m.choose(tx, identity.AccountID(c.Account), [16]byte{})
	rows, err := tx.AccountSessions(c.Account)
	if err != nil {
		return err
	}
	begun, dropped := 0, 0
	for _, row := range rows {
		if since := m.clock.Now().Sub(row.Created); since >= 0 && since < handshakePause {
			begun++
		}
	}
	if begun >= m.limits.MaxSessions {
		return fmt.Errorf("%w: too many sessions begun within minutes", wire.ErrLater)
	}
	for i, row := range rows {
		s, err := session.Unmarshal(row.State)
		if err != nil {
			return err
		}
		if !s.Initial() && !row.Archived {
			row.Archived = true
			if err := tx.PutSession(row); err != nil {
				return err
			}
		}
		if i < m.limits.MaxSessions-1 {
			continue
		}
		if dropped += s.SkippedTotal(); dropped <= sweepKeys {
			if err := tx.DeleteSession(row.ID); err != nil {
				return err
			}
			continue
		}
		row.Archived, row.LastUsed = true, time.Time{} // too much for one transaction: runCrowded drops it
		if err := tx.PutSession(row); err != nil {
			return err
		}
		tx.AfterCommit(func() { poke(m.crowded) })
	}
	return nil
}

// handshakeKeys finds the private prekeys that an initial header names.
func (m *Messenger) handshakeKeys(tx *store.Tx, init *session.Initial) (session.Keys, error) {
	var keys session.Keys
	signed, err := prekeySecret(tx, signedPrekeys, init.SPKID)
	if errors.Is(err, store.ErrNotFound) {
		return keys, fmt.Errorf("%w: signed prekey %d is gone", errRefused, init.SPKID)
	}
	if err != nil {
		return keys, err
	}
	keys.Signed = signed
	if !init.OneTime {
		return keys, nil
	}
	keys.OneTime, err = prekeySecret(tx, oneTimePrekeys, init.OPKID)
	if errors.Is(err, store.ErrNotFound) {
		return keys, reusedError(init.OPKID)
	}
	return keys, err
}

// reusedError is a handshake with a one-time prekey that is gone: somebody else used the invite before.
type reusedError uint32

func (e reusedError) Error() string { return fmt.Sprintf("one-time prekey %d was used", uint32(e)) }

func (e reusedError) Is(target error) bool { return target == errRefused }

// introduce finds or makes the contact behind a handshake that was proved.
func (m *Messenger) introduce(tx *store.Tx, init *session.Initial, content *wire.Content) (store.Contact, error) {
	acct := init.Account()
	if acct == m.account.ID() {
		return store.Contact{}, fmt.Errorf("%w: from our own account", errRefused)
	}
	c, err := tx.Contact(acct)
	known := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return c, err
	}
	if known {
		if c.State == ContactBlocked {
			return c, fmt.Errorf("%w: blocked", errRefused)
		}
		if c.State == contactRemoved {
			return c, fmt.Errorf("%w: its removal is not finished", wire.ErrLater)
		}
		if err := takeList(&c, init.Devices, init.Device.ID); err != nil {
			return c, err
		}
	} else {
		c = store.Contact{
			Account: acct, DeviceList: init.List, Devices: [][16]byte{init.Device.ID},
			Conv: convID(m.account.ID(), acct), Verified: VerifiedNo, Created: m.clock.Now(),
		}
	}
	welcome, err := m.consumeInvite(tx, init, content, acct)
	if err != nil {
		return c, err
	}
	switch {
	case welcome:
		c.State = ContactEstablished
		untell(&c) // who comes by an invite may have forgotten what we told before
	case !known:
		if err := m.requestRoom(tx); err != nil {
			return c, err
		}
		c.State, c.Intro = ContactRequested, content.Text
	case c.State == ContactPending:
		return c, fmt.Errorf("%w: not under an invite", errRefused)
	}
	if content.Hello != nil {
		if err := m.meet(tx, &c, content.Hello); err != nil {
			return c, err
		}
	} else if !known {
		return c, fmt.Errorf("%w: a stranger without a hello", errRefused)
	}
	return c, nil
}

// requestRoom refuses strangers beyond a number, so that they cannot fill the disk.
func (m *Messenger) requestRoom(tx *store.Tx) error {
	contacts, err := tx.Contacts()
	if err != nil {
		return err
	}
	n := 0
	for _, c := range contacts {
		if c.State == ContactRequested {
			n++
		}
	}
	if n >= m.limits.MaxRequests {
		return fmt.Errorf("%w: %d strangers are waiting", errRefused, n)
	}
	return nil
}

// takeList takes the device list by which a device of a contact proved itself, if it is newer than the held one. A contradicting one
// is an equivocation, whatever it came with: a handshake, a card, an invite's bundle (PROTOCOL 4.1).
func takeList(c *store.Contact, list identity.DeviceList, from identity.DeviceID) error {
	if len(c.DeviceList) == 0 {
		c.DeviceList, c.Devices = list.Bytes(), deviceIDs(list)
		return nil
	}
	held, err := identity.ParseDeviceList(c.DeviceList)
	if err != nil {
		return err
	}
	newer, err := list.Follows(held)
	if err != nil {
		return &equivocation{c.Account, err}
	}
	if newer {
		c.DeviceList, c.Devices = list.Bytes(), deviceIDs(list)
	} else if _, ok := held.Find(from); !ok {
		return fmt.Errorf("%w: from a device that was removed", errRefused)
	}
	return nil
}

func deviceIDs(list identity.DeviceList) (ids [][16]byte) {
	for _, d := range list.Devices {
		ids = append(ids, d.ID)
	}
	return ids
}

// warn puts the alarm of a contradicting device list on a contact and reports whether it is new.
func warn(c *store.Contact) bool {
	if c.Verified == VerifiedChanged {
		return false
	}
	c.Verified = VerifiedChanged
	c.Warning = "another device claims to be theirs: compare the safety number, then remove them and meet again by an invite"
	return true
}

// noteEquivocation raises the alarm of a contradicting device list.
func (m *Messenger) noteEquivocation(acct [32]byte) {
	err := m.store.Update(func(tx *store.Tx) error {
		c, err := tx.Contact(acct)
		if err != nil || !warn(&c) {
			return err
		}
		if err := m.putContact(tx, c); err != nil {
			return err
		}
		return m.announceContact(tx, acct)
	})
	if err != nil {
		m.log.Warn("contradicting device list not noted", "err", err)
	}
}

// meet takes over what a hello says about its sender.
func (m *Messenger) meet(tx *store.Tx, c *store.Contact, hello *wire.Hello) error {
	if c.Claimed == "" {
		c.Claimed = identity.CleanName(hello.Name)
	}
	if c.Name == "" || c.Name == standIn(c.Account) { // their hello came before we had followed their own link
		name, err := m.freeName(tx, c.Claimed, c.Account)
		if err != nil {
			return err
		}
		c.Name = name
	}
	c.RecordKey = hello.RecordKeys.Key
	c.LastSeen = m.clock.Now()
	if err := tx.PutContact(*c); err != nil {
		return err
	}
	return tx.PutContactSecret(c.Account, hello.RecordKeys.Discovery[:])
}
