package messenger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"sotto/identity"
	"sotto/record"
	"sotto/store"
)

// States of an add that is under way.
const (
	addLooking = "looking" // the invite's record was not found yet
	addFound   = "found"   // our hello is in the outbox
)

// addTimeout bounds one attempt to find an invite.
const addTimeout = 20 * time.Second

// Add follows an invite. It keeps the link first, so that it is tried again until it expires, then looks for the
// inviter at once. What is written to the contact meanwhile waits in the outbox.
func (m *Messenger) Add(ctx context.Context, req AddRequest) (AddResult, error) {
	link, err := identity.ParseInvite(req.Link)
	if err != nil {
		return AddResult{}, &Error{Code: CodeBadInvite, Message: err.Error(), Remedy: "Copy the whole link again, from sotto:i/ to its end.", Err: err}
	}
	if link.Account == m.account.ID() {
		return AddResult{}, refuse(CodeOwnInvite, "Send it to the person you want to meet.", "this is an invite of your own")
	}
	if err := m.forget([32]byte(link.Account)); err != nil { // a removal that a full disk interrupted
		return AddResult{}, err
	}
	met := "" // the name of a contact who is one already
	err = m.update(ctx, func(tx *store.Tx) (err error) {
		met, err = m.putAdd(tx, link, req)
		return err
	})
	if err != nil {
		return AddResult{}, err
	}
	err = m.followWithin(ctx, link.ID(), req.Within)
	if met != "" && err != nil {
		return AddResult{}, m.stillMet(ctx, link.ID(), met, err)
	}
	if final(err) {
		return AddResult{}, err
	} else if err != nil {
		m.log.Debug("invite not followed yet", "err", err)
	}
	poke(m.adds)
	m.outbox.kick(link.Account, true) // who follows a link again wants the hello that is under way to be tried now
	c, err := m.contactOf(ctx, link.Account)
	return AddResult{Contact: c, State: c.State}, err
}

// errNoNetwork means that an invite was not looked for, because only the store is open.
var errNoNetwork = errors.New("there is no network")

// followWithin tries an invite once, for no longer than the caller has patience; the tries after it are runAdds'.
func (m *Messenger) followWithin(ctx context.Context, id [16]byte, patience time.Duration) error {
	net, ok := m.network()
	if !ok {
		return errNoNetwork
	}
	if patience > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	return m.follow(ctx, net, id)
}

// alreadyMet refuses an invite of somebody who is a contact and still knows us.
func alreadyMet(name string) error {
	return refuse(CodeAlreadyContact, "Write to them: sotto send "+name+" …", "%s is your contact already", name)
}

// stillMet ends following the link of a contact when that gave no new beginning: the link is not tried again behind the
// person's back, and the contact stays what it was.
func (m *Messenger) stillMet(ctx context.Context, id [16]byte, name string, why error) error {
	err := m.update(ctx, func(tx *store.Tx) error {
		if _, err := tx.PendingAdd(id); errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return tx.DeletePendingAdd(id)
	})
	switch {
	case err != nil:
		return err
	case isCode(why, CodeAlreadyContact):
		return why
	case final(why):
		return alreadyMet(name)
	}
	return refuse(CodeAlreadyContact, "If they invited you because your messages fail, follow the invite again while they are online.",
		"%s is your contact already, and the invite was not found just now", name)
}

// contactOf is a contact by account; its name may have changed while it was met.
func (m *Messenger) contactOf(ctx context.Context, acct identity.AccountID) (Contact, error) {
	return m.Contact(ctx, acct.String())
}

// putAdd keeps the link and makes a pending contact. For somebody who is a contact already it returns their name and
// changes nothing about them: only what the invite's bundle says can tell whether they left us out and mean us anew.
func (m *Messenger) putAdd(tx *store.Tx, link identity.Invite, req AddRequest) (met string, err error) {
	now := m.clock.Now()
	c, err := tx.Contact([32]byte(link.Account))
	switch {
	case errors.Is(err, store.ErrNotFound):
		c = store.Contact{
			Account: link.Account, State: ContactPending, Verified: VerifiedNo, Created: now, Conv: convID(m.account.ID(), link.Account),
		}
		if c.Name, err = m.freeName(tx, req.Name, c.Account); err != nil {
			return "", err
		}
	case err != nil:
		return "", err
	case c.State == ContactEstablished && c.Warning == "":
		met = c.Name
	case c.State == ContactBlocked:
		return "", refuse(CodeBlocked, "Unblock first: sotto contacts unblock "+c.Name, "%s is blocked", c.Name)
	}
	if req.Name != "" && met == "" {
		if err := setName(tx, &c, req.Name); err != nil {
			return "", err
		}
	}
	if err := tx.PutContact(c); err != nil {
		return "", err
	}
	if held, err := tx.PendingAdd(link.ID()); err == nil && held.State == addFound && c.State == ContactInvited && c.Warning == "" {
		return "", nil // the hello is under way: a second one would use the invite twice
	}
	row := store.PendingAdd{
		ID: link.ID(), Account: link.Account, Secret: link.Secret, Name: req.Name, Created: now,
		Expires: now.Add(m.limits.MaxInvite), State: addLooking, Hints: link.Hints,
	}
	if err := tx.PutPendingAdd(row); err != nil {
		return "", err
	}
	return met, m.announceContact(tx, c.Account)
}

// final reports whether following an invite can never succeed.
func final(err error) bool {
	return isCode(err, CodeAlreadyContact) || isCode(err, CodeInviteUsed) || isCode(err, CodeInviteExpired) || isCode(err, CodeBadInvite)
}

// attempt is one try to follow an invite; err is set before done is closed.
type attempt struct {
	done chan struct{}
	err  error
}

// follow tries once to find the record of an invite and to queue our hello. One attempt runs at a time per invite; who
// comes second gets its outcome.
func (m *Messenger) follow(ctx context.Context, net Network, id [16]byte) error {
	m.mu.Lock()
	try, running := m.adding[id]
	if !running {
		try = &attempt{done: make(chan struct{})}
		m.adding[id] = try
	}
	m.mu.Unlock()
	if running {
		select {
		case <-try.done:
			return try.err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	try.err = m.followOnce(ctx, net, id)
	m.mu.Lock()
	delete(m.adding, id)
	m.mu.Unlock()
	close(try.done)
	return try.err
}

func (m *Messenger) followOnce(ctx context.Context, net Network, id [16]byte) error {
	var row store.PendingAdd
	err := m.store.View(func(tx *store.Tx) (err error) {
		row, err = tx.PendingAdd(id)
		return err
	})
	if err != nil || row.State != addLooking {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, addTimeout)
	defer cancel()
	err = m.meetInviter(ctx, net, row)
	if err == nil {
		return nil
	}
	return errors.Join(err, m.store.Update(func(tx *store.Tx) error { return m.noteAdd(tx, id, err) }))
}

// noteAdd keeps why an attempt failed; one that can never succeed takes the pending contact with it.
func (m *Messenger) noteAdd(tx *store.Tx, id [16]byte, why error) error {
	row, err := tx.PendingAdd(id)
	if errors.Is(err, store.ErrNotFound) {
		return nil // the contact was removed while the link was followed
	}
	if err != nil {
		return err
	}
	row.Attempts++
	row.LastError = reason(why)
	if !final(why) {
		return tx.PutPendingAdd(row)
	}
	if err := tx.DeletePendingAdd(id); err != nil {
		return err
	}
	c, err := tx.Contact(row.Account)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if c.State == ContactEstablished && c.Warning == "" {
		return nil // only the link is worthless
	}
	c.Warning = why.Error()
	waiting, err := tx.CountOutgoing(c.Account)
	if err != nil {
		return err
	}
	if c.State == ContactPending && waiting == 0 && len(c.Card) == 0 {
		return tx.DeleteContact(c.Account)
	}
	return m.putContact(tx, c)
}

// linkOf is the link that a pending add keeps.
func linkOf(row store.PendingAdd) identity.Invite {
	return identity.Invite{Account: row.Account, Secret: row.Secret}
}

func addReader(row store.PendingAdd) record.Reader {
	return record.Reader{A: row.Account, S: record.Secret(linkOf(row).Discovery())}
}

// meetInviter fetches the bundle, verifies it against the account in the link and queues our hello.
func (m *Messenger) meetInviter(ctx context.Context, net Network, row store.PendingAdd) error {
	reader := addReader(row)
	name, err := reader.Name(record.Fixed)
	if err != nil {
		return refuse(CodeBadInvite, "Ask for a new link.", "the invite names an impossible account")
	}
	value, err := net.Fetch(ctx, name, row.Hints)
	if err != nil {
		return fmt.Errorf("find the invite: %w", err)
	}
	plain, _, err := reader.Open(record.Fixed, value)
	if err != nil {
		return fmt.Errorf("open the invite's record: %w", err)
	}
	bundle, err := identity.ParseBundle(plain, row.Account, row.ID)
	if errors.Is(err, identity.ErrWithdrawn) {
		return &Error{Code: CodeInviteUsed, Message: "the invite was used already or taken back", Remedy: "Ask for a new one.", Err: err}
	}
	if err != nil {
		return &Error{Code: CodeBadInvite, Message: err.Error(), Remedy: "Ask for a new one.", Err: err}
	}
	if err := bundle.CheckTime(m.now()); err != nil {
		return &Error{Code: CodeInviteExpired, Message: err.Error(), Remedy: "Check this computer's clock; if it is right, ask for a new invite.", Err: err}
	}
	place, err := m.clearWay(row, bundle)
	if err == nil {
		err = m.store.Update(func(tx *store.Tx) error { return m.sayHello(tx, row, bundle, place) })
	}
	if two := (*equivocation)(nil); errors.As(err, &two) {
		m.noteEquivocation(two.account)
		return &Error{Code: CodeBadInvite, Message: "the invite names other devices than we know of this contact", Err: err,
			Remedy: "Compare the safety number with them; if it is right, remove the contact and follow the link again."}
	}
	return err
}

// inviteName is the name of the invite under which a contact was not met yet; zeros when there is none.
func (m *Messenger) inviteName(c store.Contact) (name [32]byte, err error) {
	if c.State != ContactInvited {
		return name, nil
	}
	err = m.store.View(func(tx *store.Tx) error {
		rows, err := tx.PendingAdds()
		if err != nil {
			return err
		}
		at := slices.IndexFunc(rows, func(row store.PendingAdd) bool { return row.Account == c.Account && row.State == addFound })
		if at >= 0 {
			name, err = addReader(rows[at]).Name(record.Fixed)
		}
		return err
	})
	return name, err
}

// endAdds forgets the links by which a contact was met.
func endAdds(tx *store.Tx, acct [32]byte) error {
	rows, err := tx.PendingAdds()
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.Account == acct {
			if err := tx.DeletePendingAdd(row.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// runAdds follows pending invites again, at growing intervals, until they work or expire.
func (m *Messenger) runAdds(ctx context.Context, net Network) error {
	pause := m.limits.RetryMin
	for {
		looking := false
		var rows []store.PendingAdd
		err := m.store.View(func(tx *store.Tx) (err error) {
			rows, err = tx.PendingAdds()
			return err
		})
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.State != addLooking {
				continue
			}
			if now := m.clock.Now(); now.After(row.Expires) && !m.doubtful(now) {
				err := m.store.Update(func(tx *store.Tx) error {
					return m.noteAdd(tx, row.ID, refuse(CodeInviteExpired, "Ask for a new one.", "the invite was never found"))
				})
				if err != nil && !errors.Is(err, store.ErrFull) {
					return err
				}
				continue
			}
			if err := m.follow(ctx, net, row.ID); err != nil {
				m.log.Debug("invite not followed yet", "err", err)
				looking = looking || !final(err)
			}
		}
		wait := time.Hour
		if looking {
			wait, pause = jitter(pause), min(2*pause, m.limits.RetryMax)
		} else {
			pause = m.limits.RetryMin
		}
		if err := m.waitOr(ctx, wait, m.adds); err != nil {
			return nil
		}
	}
}
