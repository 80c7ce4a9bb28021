package control

import (
	"context"
	"errors"
	"strings"
	"time"

	"sotto/messenger"
	"sotto/store"
	"sotto/wire"
)

// Messenger is the core behind the API: the messenger, spoken to in the API's types.
type Messenger struct {
	*messenger.Messenger
	Store *store.Store
	// Hints are addresses to put into an invite's link; nil when only the store is open.
	Hints func() []string
}

var _ Core = Messenger{}

// exitOf maps the messenger's codes to exit codes; what is not listed is a plain failure.
func exitOf(code string) int {
	switch code {
	case messenger.CodeContactNotFound, messenger.CodeMessageNotFound, messenger.CodeInviteNotFound, messenger.CodeMailboxNotFound:
		return ExitNotFound
	case messenger.CodeAmbiguous, messenger.CodeBadName, messenger.CodeBadText, messenger.CodeBadInvite, messenger.CodeOwnInvite, messenger.CodeBadMailbox, messenger.CodeMailboxKnown:
		return ExitUsage
	case messenger.CodeOffline:
		return ExitNoNode
	case messenger.CodeNotVerified:
		return ExitUnverified
	case messenger.CodeTooLarge, messenger.CodeBlocked, messenger.CodeTooMany, messenger.CodeNotEstablished:
		return ExitRefused
	default:
		return ExitFailed
	}
}

// FromCore puts the core's errors into the API's shape.
func FromCore(err error) error {
	var m *messenger.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &m):
		hint := m.Remedy
		if hint == "" {
			hint = "See the contact: sotto contacts list"
		}
		return &Error{Code: m.Code, Message: m.Message, Hint: hint, Exit: exitOf(m.Code)}
	default:
		return FromStore(err)
	}
}

// FromStore puts the store's errors into the API's shape; others pass.
func FromStore(err error) error {
	for _, known := range []struct {
		is         error
		code, hint string
		exit       int
	}{
		{store.ErrLocked, "home_in_use", "Stop the other one: sotto down, or choose another home with --home.", ExitNoNode},
		{store.ErrFull, "disk_full", "Free some space; reading goes on, and writing will as soon as there is room.", ExitRefused},
		{store.ErrNewerFormat, "newer_format", "Install the newer version that wrote it; nothing was changed.", ExitFailed},
		{store.ErrDamaged, "store_damaged", "Save what can be read into a new home: sotto doctor --salvage NEW-DIRECTORY", ExitFailed},
		{store.ErrReadOnly, "store_read_only", "Restart sotto: sotto down, then sotto up", ExitFailed},
	} {
		if errors.Is(err, known.is) {
			return &Error{Code: known.code, Message: err.Error(), Hint: known.hint, Exit: known.exit}
		}
	}
	return err
}

// Send queues a message.
func (b Messenger) Send(ctx context.Context, p SendParams) (Message, error) {
	m, err := b.Messenger.Send(ctx, messenger.SendRequest{To: p.To, Text: p.Text, ReplyTo: p.ReplyTo,
		Expire: time.Duration(p.ExpireSeconds) * time.Second, Key: p.Key, RequireVerified: p.RequireVerified})
	return message(m), FromCore(err)
}

// Message returns one message.
func (b Messenger) Message(ctx context.Context, id string) (Message, error) {
	m, err := b.Messenger.Message(ctx, id)
	return message(m), FromCore(err)
}

// Messages returns a page of a conversation, oldest first.
func (b Messenger) Messages(ctx context.Context, p ListParams) ([]Message, error) {
	list, err := b.Messenger.Messages(ctx, p.Conv, messenger.MessagesQuery{Limit: p.Limit, Since: p.Since, Peek: p.Peek})
	if len(list) > 0 && notWritten(err) {
		err = nil // they were read; that they are no more unread could not be noted
	}
	return each(list, message), FromCore(err)
}

// notWritten reports whether a store that can be read refused a write.
func notWritten(err error) bool {
	return errors.Is(err, store.ErrFull) || errors.Is(err, store.ErrDamaged) || errors.Is(err, store.ErrReadOnly)
}

// Inbox returns all conversations.
func (b Messenger) Inbox(ctx context.Context) ([]Conversation, error) {
	list, err := b.Messenger.Inbox(ctx)
	return each(list, func(c messenger.Conversation) Conversation {
		out := Conversation{V: 1, Kind: c.Ref.Kind, Name: c.Ref.Name, ID: c.Ref.ID.String(), Removed: c.Removed, Unread: c.Unread}
		if c.Last != nil {
			m := message(*c.Last)
			out.Last = &m
		}
		return out
	}), FromCore(err)
}

// Trace returns a message's life on this node.
func (b Messenger) Trace(ctx context.Context, id string) (Trace, error) {
	t, err := b.Messenger.Trace(ctx, id)
	return Trace{V: 1, Message: message(t.Message), Steps: each(t.Steps, func(s messenger.Step) Step {
		return Step{At: s.At.UTC(), What: s.What, Detail: s.Detail, Times: s.Times, Last: s.Last.UTC()}
	})}, FromCore(err)
}

// Invite makes an invitation.
func (b Messenger) Invite(ctx context.Context, p InviteParams) (Invite, error) {
	switch {
	case p.Uses < 0 || p.Uses > 10000:
		return Invite{}, Errorf(ExitUsage, "bad_uses", "Use 1 to 10000, or --reusable.", "an invite cannot have %d uses", p.Uses)
	case p.ExpiresSeconds < 0:
		return Invite{}, Errorf(ExitUsage, "bad_expiry", "Give a time such as 24h or 7d.", "an invite cannot expire before it is made")
	case p.ExpiresSeconds > 0 && p.ExpiresSeconds < MinInvite:
		return Invite{}, Errorf(ExitUsage, "bad_expiry", "Give a time such as 10m, 24h or 7d.", "an invite lives at least %d seconds: it must be made known, sent and followed", MinInvite)
	}
	req := messenger.InviteRequest{Reusable: p.Reusable, Uses: p.Uses, Expires: time.Duration(p.ExpiresSeconds) * time.Second}
	if b.Hints != nil {
		req.Hints = b.Hints()
	}
	i, err := b.Messenger.Invite(ctx, req)
	return invite(i), FromCore(err)
}

// Invites returns the invitations this node made.
func (b Messenger) Invites(ctx context.Context) ([]Invite, error) {
	list, err := b.Messenger.Invites(ctx)
	return each(list, invite), FromCore(err)
}

// RevokeInvite makes an invitation worthless.
func (b Messenger) RevokeInvite(ctx context.Context, id string) error {
	list, err := b.Messenger.Invites(ctx)
	if err != nil {
		return FromCore(err)
	}
	for _, i := range list {
		if id != "" && strings.HasPrefix(i.ID, strings.ToLower(id)) && i.State == messenger.InviteUsed {
			return Errorf(ExitFailed, "invite_used", "Nobody can use it again. Whom you do not want: sotto contacts remove NAME", "the invite %s was used already", i.ID)
		}
	}
	return FromCore(b.Messenger.RevokeInvite(ctx, id))
}

// Add follows an invitation.
func (b Messenger) Add(ctx context.Context, p AddParams) (Added, error) {
	if p.TimeoutMS < 0 || p.TimeoutMS > MaxWait.Milliseconds() {
		return Added{}, Errorf(ExitUsage, "bad_timeout", "Use at most 24h.", "cannot look for an invite for %d ms", p.TimeoutMS)
	}
	a, err := b.Messenger.Add(ctx, messenger.AddRequest{Link: p.Link, Name: p.Name, Within: time.Duration(p.TimeoutMS) * time.Millisecond})
	return Added{V: 1, Contact: contact(a.Contact), State: a.State}, FromCore(err)
}

// Contacts returns everybody, strangers who ask included.
func (b Messenger) Contacts(ctx context.Context) ([]Contact, error) {
	list, err := b.Messenger.Contacts(ctx)
	return each(list, contact), FromCore(err)
}

// Contact returns one contact.
func (b Messenger) Contact(ctx context.Context, name string) (Contact, error) {
	c, err := b.Messenger.Contact(ctx, name)
	return contact(c), FromCore(err)
}

// Rename gives a contact another name.
func (b Messenger) Rename(ctx context.Context, name, to string) (Contact, error) {
	if err := b.Messenger.Rename(ctx, name, to); err != nil {
		return Contact{}, FromCore(err)
	}
	return b.Contact(ctx, to)
}

// Remove forgets a contact.
func (b Messenger) Remove(ctx context.Context, name string) error {
	return FromCore(b.Messenger.Remove(ctx, name))
}

// Block ends all traffic with a contact.
func (b Messenger) Block(ctx context.Context, name string) error {
	return FromCore(b.Messenger.Block(ctx, name))
}

// Unblock undoes Block.
func (b Messenger) Unblock(ctx context.Context, name string) error {
	return FromCore(b.Messenger.Unblock(ctx, name))
}

// Accept lets a stranger in.
func (b Messenger) Accept(ctx context.Context, name, as string) (Contact, error) {
	c, err := b.AcceptRequest(ctx, name, as)
	return contact(c), FromCore(err)
}

// Reject turns a stranger away.
func (b Messenger) Reject(ctx context.Context, name string, block bool) error {
	return FromCore(b.RejectRequest(ctx, name, block))
}

// Verify returns what to compare with a contact.
func (b Messenger) Verify(ctx context.Context, name string) (Verification, error) {
	v, err := b.Messenger.Verify(ctx, name)
	if err != nil {
		return Verification{}, FromCore(err)
	}
	c, err := b.Contact(ctx, v.Name)
	return Verification{V: 1, Name: v.Name, Digits: v.Digits, Emoji: v.Emoji, State: c.Verified}, err
}

// SetVerified records the result of comparing.
func (b Messenger) SetVerified(ctx context.Context, name string, same bool) (Verification, error) {
	if err := b.Messenger.SetVerified(ctx, name, same); err != nil {
		return Verification{}, FromCore(err)
	}
	return b.Verify(ctx, name)
}

// Mailboxes lists where mail for us waits.
func (b Messenger) Mailboxes(ctx context.Context) ([]Mailbox, error) {
	list, err := b.Messenger.Mailboxes(ctx)
	return each(list, mailbox), FromCore(err)
}

// AddMailbox begins a box at a mailbox.
func (b Messenger) AddMailbox(ctx context.Context, p MailboxParams) (Mailbox, error) {
	m, err := b.Messenger.AddMailbox(ctx, p.Addr, p.Voucher)
	return mailbox(m), FromCore(err)
}

// DropMailbox gives a box up.
func (b Messenger) DropMailbox(ctx context.Context, id string) (Mailbox, error) {
	m, err := b.Messenger.DropMailbox(ctx, id)
	return mailbox(m), FromCore(err)
}

// TestMailbox asks a mailbox how our box stands.
func (b Messenger) TestMailbox(ctx context.Context, id string) (Mailbox, error) {
	m, took, err := b.Messenger.TestMailbox(ctx, id)
	out := mailbox(m)
	out.RTT = float64(took.Microseconds()) / 1000
	return out, FromCore(err)
}

// Settings tells what the program keeps for its person.
func (b Messenger) Settings(ctx context.Context) (Settings, error) {
	on, err := b.Messenger.ReadMarks(ctx)
	return Settings{V: 1, ReadMarks: on}, FromCore(err)
}

// Set changes a setting.
func (b Messenger) Set(ctx context.Context, p Setting) (Settings, error) {
	if p.Key != "read-marks" {
		return Settings{}, Errorf(ExitUsage, "no_such_setting", "There is: read-marks", "there is no setting %q", p.Key)
	}
	if p.Value != "on" && p.Value != "off" {
		return Settings{}, Errorf(ExitUsage, "bad_value", "Say on or off.", "%s cannot be %q", p.Key, p.Value)
	}
	if err := b.Messenger.SetReadMarks(ctx, p.Value == "on"); err != nil {
		return Settings{}, FromCore(err)
	}
	return b.Settings(ctx)
}

// Identity tells who this node is.
func (b Messenger) Identity(ctx context.Context) (Identity, error) {
	i, err := b.Messenger.Identity(ctx)
	return Identity{V: 1, Name: i.Name, Account: i.Account, Device: i.Device, Created: i.Created.UTC()}, FromCore(err)
}

// Status tells how messenger and store do.
func (b Messenger) Status(ctx context.Context) (Status, error) {
	m, err := b.Messenger.Status(ctx)
	if err != nil {
		return Status{}, FromCore(err)
	}
	st := Status{Name: m.Name, Account: m.Account, Queued: m.Queued, Unread: m.Unread, Requests: m.Requests, Seq: m.Seq, Clock: m.ClockOffset.Seconds()}
	boxes, err := b.Messenger.Mailboxes(ctx)
	if err != nil {
		return Status{}, FromCore(err)
	}
	for _, m := range boxes {
		if m.State == messenger.BoxOpen && m.Ready && m.Failing.IsZero() {
			st.Boxes++
		}
	}
	s := b.Store.Stats()
	st.Store = StoreStatus{State: "ok", Bytes: s.Size, Free: s.Free}
	switch {
	case len(s.Damage) > 0:
		st.Store.State = "damaged"
		st.Warnings = append(st.Warnings, Warning{Text: "the database is damaged: " + s.Damage[0].String(), Fix: "stop sotto, then save what can be read: sotto doctor --salvage NEW-DIRECTORY"})
	case s.Full:
		st.Store.State = "full"
		st.Warnings = append(st.Warnings, Warning{Text: "the disk is nearly full: nothing new is taken", Fix: "free some space"})
	}
	if off := m.ClockOffset.Abs(); off > 10*time.Minute {
		st.Warnings = append(st.Warnings, Warning{Text: "this computer's clock is off by " + off.Round(time.Second).String() + "; invites may look expired", Fix: "enable time sync"})
	}
	return st, nil
}

// Events returns what is new after a place, waiting for the first.
func (b Messenger) Events(ctx context.Context, after uint64, limit int) ([]Event, error) {
	list, err := b.Messenger.Events(ctx, after, limit)
	return each(list, func(e messenger.Event) Event {
		out := Event{V: 1, Seq: e.Seq, At: e.At.UTC(), Kind: e.Kind}
		if e.Message != nil {
			m := message(*e.Message)
			m.Seq = e.Seq
			out.Message = &m
		}
		if e.Contact != nil {
			c := contact(*e.Contact)
			out.Contact = &c
		}
		if e.Invite != nil {
			i := invite(*e.Invite)
			i.Link, i.QR = "", "" // secrets are for those who ask, not for every reader of the log
			out.Invite = &i
		}
		return out
	}), FromCore(err)
}

// Range returns the oldest and the newest event kept.
func (b Messenger) Range(ctx context.Context) (first, last uint64, err error) {
	first, last, err = b.EventRange(ctx)
	return first, last, FromCore(err)
}

// AckCursor moves a reader's place.
func (b Messenger) AckCursor(ctx context.Context, name string, seq uint64) error {
	return FromCore(b.Messenger.AckCursor(ctx, name, seq))
}

func message(m messenger.Message) Message {
	out := Message{V: 1, ID: m.ID.String(), Seq: m.Seq, Conv: Ref{Kind: m.Conv.Kind, Name: m.Conv.Name, ID: m.Conv.ID.String()},
		From: Author{Name: m.From.Name, Verified: m.From.Verified, Me: m.From.Me}, SentAt: m.SentAt.UTC(), At: m.At.UTC(),
		Kind: "unknown", Text: m.Text, Edited: m.Edited, State: m.State, Why: m.Why, Missing: m.Missing}
	if m.Kind == wire.KindText {
		out.Kind = "text"
	}
	if m.ReplyTo != (wire.MsgID{}) {
		id := m.ReplyTo.String()
		out.ReplyTo = &id
	}
	if m.From.Me {
		out.From.Name = "me"
	}
	if m.Held.By > 0 {
		out.Held = &Held{By: m.Held.By, Of: m.Held.Of, Until: m.Held.Until.UTC()}
	}
	return out
}

func mailbox(m messenger.Mailbox) Mailbox {
	return Mailbox{V: 1, ID: m.ID, Addr: m.Addr, Key: m.Key, State: m.State, Ready: m.Ready, Chosen: m.Chosen, Since: m.Since.UTC(), Seen: m.Seen.UTC(), Failing: m.Failing.UTC(),
		Why: m.Why, Quota: m.Quota, Used: m.Used, Days: m.Days}
}

func contact(c messenger.Contact) Contact {
	if c.Verified == messenger.VerifiedChanged && c.Warning == messenger.WarnDiffer {
		c.Verified = "differs" // a person said so; no key need have changed
	}
	return Contact{V: 1, Name: c.Name, Claimed: c.Claimed, ID: c.Account, State: c.State, Verified: c.Verified, Created: c.Created.UTC(),
		LastSeen: c.LastSeen.UTC(), Queued: c.Queued, Intro: c.Intro, Warning: c.Warning}
}

func invite(i messenger.Invite) Invite {
	return Invite{V: 1, ID: i.ID, Link: i.Link, QR: i.QR, State: i.State, Created: i.Created.UTC(), Expires: i.Expires.UTC(), Uses: i.Uses,
		MaxUses: i.MaxUses, Reusable: i.Reusable, Published: i.Published}
}

func each[A, B any](list []A, fn func(A) B) []B {
	out := make([]B, len(list))
	for i, a := range list {
		out[i] = fn(a)
	}
	return out
}
