package messenger

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"sotto/identity"
	"sotto/internal/canon"
	"sotto/record"
	"sotto/session"
	"sotto/store"
	"sotto/wire"
)

// Two people meet by an invite (PROTOCOL 5): one makes it (Invite), its record waits in the DHT and at the front door
// (Bundle), the other follows the link (Add), and the first message under it makes both contacts (consumeInvite).

// publishWait is how long making an invite waits for its record to be stored where others can find it.
const publishWait = 5 * time.Second

// Invite makes an invitation.
func (m *Messenger) Invite(ctx context.Context, req InviteRequest) (Invite, error) {
	life := req.Expires
	if life <= 0 {
		life = m.limits.InviteLife
	}
	if life > m.limits.MaxInvite {
		return Invite{}, refuse(CodeTooLarge, "Choose a shorter time, or invite again later.", "an invite lives at most %d days", int(m.limits.MaxInvite.Hours()/24))
	}
	if err := identity.CheckHints(req.Hints); err != nil {
		return Invite{}, &Error{Code: CodeBadInvite, Message: err.Error(), Remedy: "Give multiaddresses such as /ip4/192.0.2.7/udp/4001/quic-v1/p2p/12D3…", Err: err}
	}
	secret, err := identity.NewInviteSecret(m.rand)
	if err != nil {
		return Invite{}, err
	}
	link := identity.Invite{Account: m.account.ID(), Secret: secret, Reusable: req.Reusable || req.Uses > 1, Hints: req.Hints}
	now := m.clock.Now()
	row := store.Invite{
		ID: link.ID(), Secret: secret, Created: now, Expires: now.Add(life), MaxUses: max(req.Uses, 1), Reusable: link.Reusable,
		Hints: req.Hints, Link: link.Link(), State: InviteOpen,
	}
	if req.Reusable && req.Uses == 0 {
		row.MaxUses = 0
	}
	if row.Name, err = m.ownInviteReader(row).Name(record.Fixed); err != nil {
		return Invite{}, err
	}
	if err := m.update(ctx, func(tx *store.Tx) error { return m.putInvite(tx, &row) }); err != nil {
		return Invite{}, err
	}
	if net, ok := m.network(); ok {
		ctx, cancel := context.WithTimeout(ctx, publishWait)
		defer cancel()
		if err := m.adoptReach(net); err != nil { // the bundle says where we are
			return Invite{}, err
		}
		if err := m.publishInvite(ctx, net, row.ID); err != nil {
			m.log.Info("invite not published yet", "err", err)
			poke(m.moved)
		}
	}
	return m.invite(row.ID)
}

// putInvite stores an invite and, for a single use, the one-time prekey that only its first user can take.
func (m *Messenger) putInvite(tx *store.Tx, row *store.Invite) error {
	open, err := m.openInvites(tx)
	if err != nil {
		return err
	}
	if len(open) >= m.limits.MaxInvites {
		return refuse(CodeTooMany, "Revoke one: sotto invite list", "%d invites are open already", len(open))
	}
	if !row.Reusable {
		self, err := tx.GetSelf()
		if err != nil {
			return err
		}
		prekey, err := identity.NewPrekey(m.rand, self.NextKeyID)
		if err != nil {
			return err
		}
		self.NextKeyID++
		row.OneTimeID = prekey.ID
		if err := tx.PutSelf(self); err != nil {
			return err
		}
		if err := putKey(tx, oneTimePrekeys, prekey.ID, prekey.MarshalSecret(), row.Created, row.Expires); err != nil {
			return err
		}
	}
	if err := tx.PutInvite(*row); err != nil {
		return err
	}
	if err := m.ensureGrants(tx); err != nil { // a spare one: the mailboxes know it already
		return err
	}
	tx.AfterCommit(m.boxes.poke)
	_, err = m.announce(tx, EventInvite, event{Invite: row.ID})
	return err
}

// ownInviteReader finds and opens the record of an invite of ours.
func (m *Messenger) ownInviteReader(row store.Invite) record.Reader {
	link := identity.Invite{Account: m.account.ID(), Secret: row.Secret}
	return record.Reader{A: [32]byte(m.account.ID()), S: record.Secret(link.Discovery())}
}

// sealInvite makes the record of an invite as it stands: the bundle while it is open, an empty one when it is not.
func (m *Messenger) sealInvite(row store.Invite, name string) (value []byte, seq uint64, err error) {
	now := m.clock.Now()
	var plain []byte
	if m.inviteState(row) == InviteOpen {
		if plain, err = m.bundle(row, name); err != nil {
			return nil, 0, err
		}
	}
	seq = max(row.RecordSeq+1, uint64(now.Unix()))
	reader := m.ownInviteReader(row)
	owner := record.NewOwner(m.account.RecordSeed())
	expires := row.Expires
	if soon := now.Add(time.Hour); expires.Before(soon) {
		expires = soon
	}
	_, value, err = record.Seal(owner, reader.S, record.Fixed, seq, expires, plain, record.Invite, m.rand)
	return value, seq, err
}

func (m *Messenger) bundle(row store.Invite, name string) ([]byte, error) {
	s := m.current()
	_, signed := m.signedReach()
	keys := ownRecordKeys(s.device)
	b := identity.Bundle{
		Card: s.card, RecordKey: keys.Key, Discovery: keys.Discovery, Name: name, Reach: signed,
		NotAfter: row.Expires, Uses: uint16(min(row.MaxUses, math.MaxUint16)),
	}
	if row.MaxUses == 0 { // any number
		b.Uses = math.MaxUint16
	}
	err := m.store.View(func(tx *store.Tx) error {
		grant, err := m.inviteGrant(tx, row.ID)
		if grant != nil {
			b.Exts = []canon.Extension{{ID: identity.ExtTokenGrant, Data: grant.Marshal()}}
		}
		if err != nil || row.OneTimeID == 0 {
			return err
		}
		secret, err := prekeySecret(tx, oneTimePrekeys, row.OneTimeID)
		if err != nil {
			return err
		}
		public := secret.Public()
		b.OneTime = &public
		return nil
	})
	if err != nil {
		return nil, err
	}
	return b.Marshal(s.device, row.ID)
}

// publishInvite seals the record of an invite anew and puts it where others find it.
func (m *Messenger) publishInvite(ctx context.Context, net Network, id [16]byte) error {
	var row store.Invite
	var name string
	err := m.store.View(func(tx *store.Tx) error {
		self, err := tx.GetSelf()
		if err != nil {
			return err
		}
		name = self.Name
		row, err = tx.Invite(id)
		return err
	})
	if err != nil {
		return err
	}
	value, seq, err := m.sealInvite(row, name)
	if err != nil {
		return fmt.Errorf("seal the invite's record: %w", err)
	}
	stamp := func(published bool) error {
		return m.store.Update(func(tx *store.Tx) error {
			row, err := tx.Invite(id)
			if err != nil {
				return err
			}
			row.Record, row.RecordSeq = value, max(seq, row.RecordSeq)
			if published {
				row.Published = m.clock.Now()
			}
			return tx.PutInvite(row)
		})
	}
	if err := stamp(false); err != nil { // the front door has it from now on
		return err
	}
	if err := net.Publish(ctx, row.Name, value); err != nil {
		return err
	}
	return stamp(true)
}

// Bundle returns the record of an invite of ours for whoever asks at the front door by its name.
func (m *Messenger) Bundle(name [32]byte) (value []byte, ok bool) {
	err := m.store.View(func(tx *store.Tx) error {
		row, err := tx.InviteByName(name)
		value, ok = row.Record, err == nil && len(row.Record) > 0
		return err
	})
	return value, ok && err == nil
}

func (m *Messenger) inviteState(row store.Invite) string {
	switch {
	case row.Revoked:
		return InviteRevoked
	case row.MaxUses > 0 && row.Uses >= row.MaxUses:
		return InviteUsed
	case m.now().After(row.Expires):
		return InviteExpired
	}
	return InviteOpen
}

func (m *Messenger) openInvites(tx *store.Tx) ([]store.Invite, error) {
	rows, err := tx.Invites()
	return slices.DeleteFunc(rows, func(row store.Invite) bool { return m.inviteState(row) != InviteOpen }), err
}

// consumeInvite reports whether a handshake came under a live invite of ours, and counts the use.
func (m *Messenger) consumeInvite(tx *store.Tx, init *session.Initial, content *wire.Content, acct identity.AccountID) (bool, error) {
	if content.Hello == nil || content.Hello.Invite == [16]byte{} {
		return false, nil
	}
	row, err := tx.Invite(content.Hello.Invite)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(row.Accounts, func(a []byte) bool { return string(a) == string(acct[:]) }) {
		return true, nil // the same person begins again
	}
	switch state := m.inviteState(row); {
	case state != InviteOpen:
		return false, fmt.Errorf("%w: invite is %s", errRefused, state)
	case init.OneTime != (row.OneTimeID != 0) || init.OneTime && init.OPKID != row.OneTimeID:
		return false, fmt.Errorf("%w: not the prekey of its invite", errRefused)
	}
	row.Uses++
	row.Accounts = append(row.Accounts, acct[:])
	if row.OneTimeID != 0 {
		if err := tx.DeleteSecret(keyName(oneTimePrekeys, row.OneTimeID)); err != nil {
			return false, err
		}
	}
	if row.State = m.inviteState(row); row.State != InviteOpen {
		if err := inviteUsed(tx, row.ID, acct); err != nil {
			return false, err
		}
		row.Published = time.Time{} // the record is to be withdrawn
		tx.AfterCommit(func() { poke(m.moved) })
	}
	if err := tx.PutInvite(row); err != nil {
		return false, err
	}
	_, err = m.announce(tx, EventInvite, event{Invite: row.ID})
	return true, err
}

// noteReuse tells the owner that a second person followed a single-use invite: the link leaked. Only who holds the link
// knows the name of its record, so nobody else can raise the alarm.
func (m *Messenger) noteReuse(oneTime uint32, name [32]byte) {
	err := m.store.Update(func(tx *store.Tx) error {
		row, err := tx.InviteByName(name)
		if err != nil || row.OneTimeID != oneTime || row.Uses == 0 {
			return err
		}
		tx.AfterCommit(func() { m.counters.invitesReused.Add(1) })
		_, err = m.announce(tx, EventInvite, event{Invite: row.ID})
		return err
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		m.log.Warn("second use of an invite not noted", "err", err)
	}
}

// Invites lists the invitations of this device, newest first.
func (m *Messenger) Invites(ctx context.Context) ([]Invite, error) {
	var out []Invite
	err := m.store.View(func(tx *store.Tx) error {
		rows, err := tx.Invites()
		for _, row := range rows {
			out = append(out, m.viewInvite(row))
		}
		return err
	})
	slices.SortFunc(out, func(a, b Invite) int { return b.Created.Compare(a.Created) })
	return out, err
}

func (m *Messenger) invite(id [16]byte) (Invite, error) {
	var out Invite
	err := m.store.View(func(tx *store.Tx) error {
		row, err := tx.Invite(id)
		out = m.viewInvite(row)
		return err
	})
	return out, err
}

func (m *Messenger) viewInvite(row store.Invite) Invite {
	out := Invite{
		ID: hex.EncodeToString(row.ID[:]), State: m.inviteState(row), Created: row.Created, Expires: row.Expires,
		Uses: row.Uses, MaxUses: row.MaxUses, Reusable: row.Reusable, Published: !row.Published.IsZero(),
	}
	if out.State == InviteOpen {
		link := identity.Invite{Account: m.account.ID(), Secret: row.Secret, Reusable: row.Reusable, Hints: row.Hints}
		out.Link, out.QR = link.Link(), link.QR()
	}
	return out
}

// RevokeInvite takes an invite back; the id may be shortened.
func (m *Messenger) RevokeInvite(ctx context.Context, id string) error {
	var revoked [16]byte
	err := m.update(ctx, func(tx *store.Tx) error {
		rows, err := tx.Invites()
		if err != nil {
			return err
		}
		rows = slices.DeleteFunc(rows, func(row store.Invite) bool {
			return id == "" || !strings.HasPrefix(hex.EncodeToString(row.ID[:]), strings.ToLower(id))
		})
		switch len(rows) {
		case 0:
			return refuse(CodeInviteNotFound, "See all: sotto invite list", "there is no invite %q", id)
		case 1:
		default:
			return refuse(CodeAmbiguous, "Type more of it: sotto invite list", "%q fits several invites", id)
		}
		row := rows[0]
		revoked = row.ID
		row.Revoked, row.State, row.Published = true, InviteRevoked, time.Time{}
		if row.OneTimeID != 0 {
			if err := tx.DeleteSecret(keyName(oneTimePrekeys, row.OneTimeID)); err != nil {
				return err
			}
		}
		if err := tx.PutInvite(row); err != nil {
			return err
		}
		_, err = m.announce(tx, EventInvite, event{Invite: row.ID})
		return err
	})
	if err != nil {
		return err
	}
	if net, ok := m.network(); ok { // whoever follows the link from now on is to be told
		ctx, cancel := context.WithTimeout(ctx, publishWait)
		defer cancel()
		if err := m.publishInvite(ctx, net, revoked); err == nil {
			return nil
		}
	}
	poke(m.moved)
	return nil
}
