package messenger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sotto/identity"
	"sotto/store"
	"sotto/wire"
)

// convID names the talk of two accounts, the same at both ends.
func convID(a, b identity.AccountID) [16]byte {
	if bytes.Compare(a[:], b[:]) > 0 {
		a, b = b, a
	}
	sum := sha256.Sum256(slices.Concat([]byte("sotto/v1 conversation"), a[:], b[:]))
	return [16]byte(sum[:16])
}

// conversation returns the talk with a contact, a new one if there was none.
func (m *Messenger) conversation(tx *store.Tx, c store.Contact) (store.Conversation, error) {
	conv, err := tx.Conversation(c.Conv)
	if errors.Is(err, store.ErrNotFound) {
		return store.Conversation{ID: c.Conv, Kind: "contact", Account: c.Account}, nil
	}
	return conv, err
}

// contactReach is where the contact was last known to be.
func contactReach(c store.Contact) (wire.Reach, error) {
	if len(c.Reach) == 0 {
		return wire.Reach{}, wire.ErrNotFound
	}
	return wire.ParseReach(c.Reach)
}

// openReach verifies a signed reach against the contact's devices.
func openReach(c store.Contact, signed []byte) (wire.Reach, error) {
	list, err := identity.ParseDeviceList(c.DeviceList)
	if err != nil {
		return wire.Reach{}, err
	}
	err = errors.New("reach of a contact without devices")
	for _, entry := range list.Devices {
		var raw []byte
		if raw, err = identity.OpenReach(entry, signed); err == nil {
			return wire.ParseReach(raw)
		}
	}
	return wire.Reach{}, err
}

// putContact writes a contact and lets its node key in or out.
func (m *Messenger) putContact(tx *store.Tx, c store.Contact) error {
	if err := tx.PutContact(c); err != nil {
		return err
	}
	tx.AfterCommit(func() { m.remember(c) })
	return nil
}

// established takes note that a contact holds our hello.
func (m *Messenger) established(tx *store.Tx, acct [32]byte) error {
	c, err := tx.Contact(acct)
	if errors.Is(err, store.ErrNotFound) {
		return nil // removed while the hello was under way
	}
	if err != nil || c.State != ContactInvited {
		return err
	}
	if err := endAdds(tx, acct); err != nil {
		return err
	}
	c.State, c.Established, c.LastSeen, c.Warning = ContactEstablished, m.clock.Now(), m.clock.Now(), ""
	if err := m.putContact(tx, c); err != nil {
		return err
	}
	return m.announceContact(tx, acct)
}

// welcome answers a handshake, so that its sender stops repeating the initial header and learns our news.
func (m *Messenger) welcome(tx *store.Tx, c *store.Contact) error {
	if c.State != ContactEstablished {
		return m.announceContact(tx, c.Account)
	}
	if err := endAdds(tx, c.Account); err != nil {
		return err
	}
	if c.Established.IsZero() {
		c.Established = m.clock.Now()
	}
	if c.Warning == warnUnblocked {
		c.Warning = ""
	}
	if err := m.grantAtOnce(tx, c); err != nil {
		return err
	}
	if err := m.queue(tx, c, &wire.Content{Kind: wire.KindControl}, time.Time{}); err != nil {
		return err
	}
	return m.announceContact(tx, c.Account)
}

// reset begins a new session with a contact for whatever is sealed from now on; old ciphertexts are never keyed anew.
func (m *Messenger) reset(tx *store.Tx, c *store.Contact, why string) error {
	if err := m.archiveAll(tx, c); err != nil {
		return err
	}
	c.Reset = m.clock.Now()
	c.Warning = warnAnew + why
	if err := m.putContact(tx, *c); err != nil {
		return err
	}
	m.counters.resets.Add(1)
	return m.announceContact(tx, c.Account)
}

// warnAnew begins the warning that stays with a contact after a reset.
const warnAnew = "the encrypted session was begun anew: "

func (m *Messenger) archiveAll(tx *store.Tx, c *store.Contact) error {
	m.choose(tx, identity.AccountID(c.Account), [16]byte{})
	rows, err := tx.AccountSessions(c.Account)
	if err != nil {
		return err
	}
	for _, row := range rows {
		row.Archived = true
		if err := tx.PutSession(row); err != nil {
			return err
		}
	}
	return nil
}

// freeName finds a name for a new contact: what it calls itself, made distinct if somebody has that already.
func (m *Messenger) freeName(tx *store.Tx, claimed string, acct [32]byte) (string, error) {
	base := identity.CleanName(claimed)
	if base == "" {
		base = standIn(acct)
	}
	for i := 1; ; i++ {
		name := base
		if i > 1 {
			name = fmt.Sprintf("%s-%d", base, i)
		}
		c, err := tx.ContactByName(name)
		if errors.Is(err, store.ErrNotFound) || err == nil && c.Account == acct {
			return name, nil
		}
		if err != nil {
			return "", err
		}
	}
}

// standIn is the name of a contact who has not told one yet.
func standIn(acct [32]byte) string { return "friend-" + identity.AccountID(acct).Short()[:4] }

// findContact finds by name, by a unique beginning of a name, or by account.
func (m *Messenger) findContact(tx *store.Tx, name string) (store.Contact, error) {
	name = strings.TrimSpace(name)
	c, err := tx.ContactByName(name)
	if err == nil || !errors.Is(err, store.ErrNotFound) {
		return c, err
	}
	contacts, err := tx.Contacts()
	if err != nil {
		return c, err
	}
	var hits []store.Contact
	for _, c := range contacts {
		if identity.AccountID(c.Account).String() == name {
			return c, nil
		}
		if name != "" && strings.HasPrefix(strings.ToLower(c.Name), strings.ToLower(name)) {
			hits = append(hits, c)
		}
	}
	switch len(hits) {
	case 0:
		return c, refuse(CodeContactNotFound, meant(contacts, name)+"See everybody: sotto contacts list", "there is no contact named %q", name)
	case 1:
		return hits[0], nil
	}
	return c, refuse(CodeAmbiguous, "Type more of the name: "+names(hits), "%q fits several contacts", name)
}

// meant guesses which name a typo was for.
func meant(contacts []store.Contact, name string) string {
	best, at := "", 3
	for _, c := range contacts {
		if d := distance(strings.ToLower(c.Name), strings.ToLower(name)); d < at {
			best, at = c.Name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("Did you mean %s? ", best)
}

// distance is how many letters must be put in, taken out or changed to turn a into b.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i := range x {
		diagonal := row[0]
		row[0] = i + 1
		for j := range y {
			cost := diagonal
			if x[i] != y[j] {
				cost = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], cost
		}
	}
	return row[len(y)]
}

func names(contacts []store.Contact) string {
	var list []string
	for _, c := range contacts {
		list = append(list, c.Name)
	}
	return strings.Join(list, ", ")
}

func newestFirst(contacts []store.Contact) {
	slices.SortFunc(contacts, func(a, b store.Contact) int { return b.LastSeen.Compare(a.LastSeen) })
}

// Contacts lists everybody, by name.
func (m *Messenger) Contacts(ctx context.Context) ([]Contact, error) {
	var out []Contact
	err := m.store.View(func(tx *store.Tx) error {
		rows, err := tx.Contacts()
		if err != nil {
			return err
		}
		for _, c := range rows {
			v, err := m.viewContact(tx, c, rows)
			if err != nil {
				return err
			}
			if err := withNews(tx, c, &v); err != nil {
				return err
			}
			out = append(out, v)
		}
		return nil
	})
	slices.SortFunc(out, func(a, b Contact) int { return strings.Compare(strings.ToLower(a.Name), strings.ToLower(b.Name)) })
	return out, err
}

// Contact returns one contact.
func (m *Messenger) Contact(ctx context.Context, name string) (Contact, error) {
	var out Contact
	err := m.store.View(func(tx *store.Tx) error {
		c, err := m.findContact(tx, name)
		if err != nil {
			return err
		}
		rows, err := tx.Contacts()
		if err != nil {
			return err
		}
		if out, err = m.viewContact(tx, c, rows); err != nil {
			return err
		}
		return withNews(tx, c, &out)
	})
	return out, err
}

func (m *Messenger) viewContact(tx *store.Tx, c store.Contact, all []store.Contact) (Contact, error) {
	queued, err := tx.CountMessages(c.Account)
	out := Contact{
		Account: identity.AccountID(c.Account).String(), Name: c.Name, Claimed: c.Claimed, State: c.State, Verified: c.Verified,
		Conv: c.Conv, Created: c.Created, LastSeen: c.LastSeen, Queued: queued, Intro: c.Intro, Warning: c.Warning,
	}
	for _, o := range all {
		if o.Account != c.Account && identity.Skeleton(o.Name) == identity.Skeleton(c.Name) {
			out.Warning = fmt.Sprintf("the name looks like that of another contact, %s", o.Name)
		}
	}
	return out, err
}

// lately is how many of the newest messages tell how a contact does.
const lately = 16

// withNews adds what the newest messages tell: one of theirs or a receipt shows that they were there, a refusal that they may have left us
// out.
func withNews(tx *store.Tx, c store.Contact, out *Contact) error {
	rows, err := tx.Messages(c.Conv, store.MessagesQuery{Limit: lately})
	if err != nil {
		return err
	}
	newest := true
	for _, row := range slices.Backward(rows) {
		if !row.Out && row.At.After(out.LastSeen) {
			out.LastSeen = row.At
		}
		if !row.Out || row.State == StateQueued || row.State == StateHeld {
			continue
		}
		switch {
		case row.State == StateDelivered || row.State == StateRead:
			if row.Changed.After(out.LastSeen) {
				out.LastSeen = row.Changed
			}
		case newest && turnedAway(row) && c.State == ContactEstablished && (out.Warning == "" || strings.HasPrefix(out.Warning, warnAnew)):
			out.Warning = "their program did not take your last message; what you write may wait in vain until you meet again by a new invite"
		}
		newest = false
	}
	return nil
}

// change runs fn on one contact and announces it.
func (m *Messenger) change(ctx context.Context, name string, fn func(tx *store.Tx, c *store.Contact) error) error {
	return m.update(ctx, func(tx *store.Tx) error {
		c, err := m.findContact(tx, name)
		if err != nil {
			return err
		}
		if err := fn(tx, &c); err != nil {
			return err
		}
		if err := m.putContact(tx, c); err != nil {
			return err
		}
		return m.announceContact(tx, c.Account)
	})
}

// Rename gives a contact another petname.
func (m *Messenger) Rename(ctx context.Context, name, to string) error {
	return m.change(ctx, name, func(tx *store.Tx, c *store.Contact) error { return setName(tx, c, to) })
}

func setName(tx *store.Tx, c *store.Contact, to string) error {
	if err := identity.CheckName(to); err != nil {
		return &Error{Code: CodeBadName, Message: err.Error(), Remedy: "Choose letters and digits, at most 64 bytes.", Err: err}
	}
	if other, err := tx.ContactByName(to); err == nil && other.Account != c.Account {
		return refuse(CodeNameTaken, "Choose another name, or rename the other first.", "there is a contact named %s already", other.Name)
	}
	c.Name = to
	return nil
}

func ownRecordKeys(d *identity.Device) wire.RecordKeys {
	return wire.RecordKeys{Key: d.RecordKey(), Discovery: d.Discovery()}
}

// AcceptRequest makes a stranger who wrote a contact, under the name given.
func (m *Messenger) AcceptRequest(ctx context.Context, name, as string) (Contact, error) {
	err := m.change(ctx, name, func(tx *store.Tx, c *store.Contact) error {
		if c.State != ContactRequested {
			return refuse(CodeNotEstablished, "See who asked: sotto requests", "%s did not ask to be a contact", c.Name)
		}
		if as != "" {
			if err := setName(tx, c, as); err != nil {
				return err
			}
			name = as
		}
		c.State, c.Established = ContactEstablished, m.clock.Now()
		if err := tx.PutContact(*c); err != nil {
			return err
		}
		return m.queue(tx, c, &wire.Content{Kind: wire.KindControl}, time.Time{})
	})
	if err != nil {
		return Contact{}, err
	}
	return m.Contact(ctx, name)
}

// RejectRequest turns a stranger away, silently; blocked ones cannot ask again.
func (m *Messenger) RejectRequest(ctx context.Context, name string, block bool) error {
	var c store.Contact
	err := m.store.View(func(tx *store.Tx) (err error) {
		c, err = m.findContact(tx, name)
		return err
	})
	switch {
	case err != nil:
		return err
	case c.State != ContactRequested:
		return refuse(CodeNotEstablished, "See who asked: sotto requests", "%s did not ask to be a contact", c.Name)
	case block:
		return m.Block(ctx, c.Name)
	}
	return m.Remove(ctx, c.Name)
}

// Verify returns what to compare with a contact by another way than this program.
func (m *Messenger) Verify(ctx context.Context, name string) (Verification, error) {
	c, err := m.Contact(ctx, name)
	if err != nil {
		return Verification{}, err
	}
	theirs, err := identity.ParseAccountID(c.Account)
	if err != nil {
		return Verification{}, err
	}
	ours := m.account.ID()
	return Verification{Name: c.Name, Digits: identity.SafetyNumber(ours, theirs), Emoji: identity.SafetyEmoji(ours, theirs), State: c.Verified}, nil
}

// WarnDiffer stays with a contact whose safety number was found to be another one.
const WarnDiffer = "the safety numbers differ, so somebody may be in between: block them, and meet again by an invite that you hand over yourselves"

// SetVerified records whether the numbers were the same.
func (m *Messenger) SetVerified(ctx context.Context, name string, same bool) error {
	return m.change(ctx, name, func(tx *store.Tx, c *store.Contact) error {
		if same {
			c.Verified = VerifiedYes
			if c.Warning == WarnDiffer {
				c.Warning = ""
			}
			return nil
		}
		c.Verified, c.Warning = VerifiedChanged, WarnDiffer
		return nil
	})
}
