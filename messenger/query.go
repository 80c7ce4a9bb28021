package messenger

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sotto/identity"
	"sotto/store"
	"sotto/wire"
)

// settingReadMarks is 1 when the other side is told what was read; off unless the person turns it on.
const settingReadMarks = "read-marks"

// defaultPage is how many messages are shown unless more are asked for.
const defaultPage = 20

// maxPage is how many bytes of text are read at once; one message more may pass it.
const maxPage = 4 << 20

// findMessage finds by id or by a unique beginning of it.
func (m *Messenger) findMessage(tx *store.Tx, id string) (store.Message, error) {
	digits := strings.TrimPrefix(strings.ToLower(strings.TrimSpace(id)), "m")
	missing := refuse(CodeMessageNotFound, "See the ids: sotto read NAME --json", "there is no message %q", id)
	if digits == "" && strings.TrimSpace(id) != "" {
		return store.Message{}, refuse(CodeAmbiguous, "Type more of it; the ids are shown by: sotto read NAME --json", "%q is how every message's id begins", id)
	}
	if digits == "" || len(digits) > 32 || strings.Trim(digits, "0123456789abcdef") != "" {
		return store.Message{}, missing
	}
	rows, err := tx.MessagesByPrefix(digits, somePrefixes)
	if err != nil {
		return store.Message{}, err
	}
	rows = slices.DeleteFunc(rows, func(row store.Message) bool { return row.Held })
	switch len(rows) {
	case 0:
		return store.Message{}, missing
	case 1:
		return rows[0], nil
	}
	var ids []string
	for _, row := range rows[:min(len(rows), 3)] {
		ids = append(ids, wire.MsgID(row.ID).String()[:9])
	}
	return store.Message{}, refuse(CodeAmbiguous, "Type more of it, for example: "+strings.Join(ids, ", "), "%q fits several messages", id)
}

// somePrefixes is how many messages whose ids begin alike are looked at: enough that the held ones among them do not make
// an ambiguous beginning look unique.
const somePrefixes = 32

// Message returns one message.
func (m *Messenger) Message(ctx context.Context, id string) (Message, error) {
	var out Message
	err := m.store.View(func(tx *store.Tx) error {
		row, err := m.findMessage(tx, id)
		if err != nil {
			return err
		}
		out, err = m.messageView(tx, row.ID)
		return err
	})
	return out, err
}

// Messages returns the newest messages of a conversation, oldest first, and marks them read unless Peek.
func (m *Messenger) Messages(ctx context.Context, conv string, q MessagesQuery) ([]Message, error) {
	var out []Message
	var c store.Contact
	var seen seen
	var talk store.Conversation
	err := m.store.View(func(tx *store.Tx) error {
		var err error
		if c, err = m.findTalk(tx, conv); err != nil {
			return err
		}
		if talk, err = m.conversation(tx, c); err != nil {
			return err
		}
		limit := q.Limit
		if limit <= 0 {
			limit = max(defaultPage, talk.Unread)
		}
		out, seen, err = m.page(tx, c, limit, q.Since)
		return err
	})
	if err != nil || q.Peek || talk.Unread == 0 || seen.theirs < talk.Unread { // what was not shown was not read
		return out, err
	}
	return out, m.markRead(ctx, c, talk, seen)
}

// seen is what a page showed of the other side's messages.
type seen struct {
	theirs int    // how many
	order  uint64 // of the newest row, whosever it is
	n      uint64 // counter of their newest
}

// page collects shown rows, the newest, up to maxPage; held ones are passed over.
func (m *Messenger) page(tx *store.Tx, c store.Contact, limit int, since time.Time) (out []Message, shown seen, err error) {
	var oldest *store.Message
	size := 0
	for len(out) < limit && size < maxPage {
		some := min(limit, 32)
		rows, err := tx.Messages(c.Conv, store.MessagesQuery{Limit: some, Before: oldest, Since: since})
		if err != nil {
			return nil, shown, err
		}
		for _, row := range slices.Backward(rows) {
			if row.Held || len(out) >= limit || size >= maxPage {
				continue
			}
			out = append(out, viewMessage(row, c))
			size += len(out[len(out)-1].Text)
			shown.order = max(shown.order, row.Order)
			if !row.Out {
				shown.theirs, shown.n = shown.theirs+1, max(shown.n, row.N)
			}
		}
		if len(rows) < some {
			break
		}
		oldest = &rows[0]
	}
	slices.Reverse(out)
	return out, shown, nil
}

// markRead takes off the unread count what was shown, and if the person wants that, tells the other side. What has come since
// the page was read stays unread.
func (m *Messenger) markRead(ctx context.Context, with store.Contact, then store.Conversation, shown seen) error {
	return m.update(ctx, func(tx *store.Tx) error {
		c, err := tx.Contact(with.Account)
		if errors.Is(err, store.ErrNotFound) {
			c, err = with, nil // removed: nobody is told
		}
		if err != nil {
			return err
		}
		conv, err := tx.Conversation(c.Conv)
		if err != nil {
			return err
		}
		if conv.LastRead != then.LastRead {
			return nil // another reader was quicker
		}
		conv.Unread, conv.LastRead = max(0, conv.Unread-then.Unread), max(conv.LastRead+1, shown.order)
		if err := tx.PutConversation(conv); err != nil {
			return err
		}
		on, err := tx.Setting(settingReadMarks)
		if errors.Is(err, store.ErrNotFound) || string(on) != "1" || c.State != ContactEstablished {
			return nil
		}
		if err != nil {
			return err
		}
		return m.queue(tx, &c, &wire.Content{Kind: wire.KindControl, ReadUpTo: shown.n}, time.Time{})
	})
}

// SetReadMarks turns on or off that others are told what was read.
func (m *Messenger) SetReadMarks(ctx context.Context, on bool) error {
	value := []byte("0")
	if on {
		value = []byte("1")
	}
	return m.update(ctx, func(tx *store.Tx) error {
		if err := tx.PutSetting(settingReadMarks, value); err != nil {
			return err
		}
		_, err := m.announce(tx, EventSetting, event{})
		return err
	})
}

// ReadMarks reports whether others are told what was read.
func (m *Messenger) ReadMarks(ctx context.Context) (on bool, err error) {
	err = m.store.View(func(tx *store.Tx) error {
		value, err := tx.Setting(settingReadMarks)
		on = string(value) == "1"
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return err
	})
	return on, err
}

// Inbox lists the conversations, those with people who were removed too: unread ones first, then by newest message.
func (m *Messenger) Inbox(ctx context.Context) ([]Conversation, error) {
	var out []Conversation
	err := m.store.View(func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		left, err := removed(tx)
		if err != nil {
			return err
		}
		for _, c := range append(contacts, left...) {
			conv, err := m.conversation(tx, c)
			if err != nil {
				return err
			}
			last, _, err := m.page(tx, c, 1, time.Time{})
			if err != nil {
				return err
			}
			line := Conversation{Ref: Ref{Kind: "contact", Name: c.Name, ID: c.Conv}, Removed: c.State == store.ContactRemoved, Unread: conv.Unread}
			if len(last) > 0 {
				line.Last = &last[0]
			}
			out = append(out, line)
		}
		return nil
	})
	slices.SortStableFunc(out, func(a, b Conversation) int {
		if (a.Unread > 0) != (b.Unread > 0) {
			if a.Unread > 0 {
				return -1
			}
			return 1
		}
		return lastAt(b).Compare(lastAt(a))
	})
	return out, err
}

func lastAt(c Conversation) time.Time {
	if c.Last == nil {
		return time.Time{}
	}
	return c.Last.At
}

// Trace tells a message's life on this node.
func (m *Messenger) Trace(ctx context.Context, id string) (Trace, error) {
	var out Trace
	err := m.store.View(func(tx *store.Tx) error {
		row, err := m.findMessage(tx, id)
		if err != nil {
			return err
		}
		if out.Message, err = m.messageView(tx, row.ID); err != nil {
			return err
		}
		between, err := tx.Trace(row.ID)
		out.Steps = traceOf(row, between)
		return err
	})
	return out, err
}

// traceOf puts a message's life together: its row tells how it began and where it stands, the trace what came between.
func traceOf(row store.Message, between []store.Step) []Step {
	first := Step{At: row.At, What: "received"}
	if row.Out {
		first.What = "queued"
	}
	steps := []Step{first}
	tries := 0 // how many of the last steps are tries, each kind once
	for _, s := range between {
		next := Step{At: s.At, What: s.What, Detail: s.Detail}
		if !isTry(s.What) {
			tries = 0
		} else if at := slices.IndexFunc(steps[len(steps)-tries:], func(o Step) bool { return o.What == s.What }); at >= 0 {
			same := &steps[len(steps)-tries+at]
			same.Times, same.Last = max(same.Times, 1)+1, s.At
			continue
		} else {
			tries++
		}
		steps = append(steps, next)
	}
	if !row.Changed.IsZero() {
		last := Step{At: row.Changed, What: row.State, Detail: plainWhy(row)}
		if row.State == StateHeld {
			last.Detail = fmt.Sprintf("by %d of %d mailboxes until %s", row.Custody.By, row.Custody.Of, row.Custody.Until.UTC().Format("2 Jan 2006"))
		}
		steps = append(steps, last)
	}
	return steps
}

// isTry reports whether a step is an attempt that came to nothing; a friend who is away makes many of them.
func isTry(what string) bool {
	return strings.HasPrefix(what, "dialled, ") || strings.HasPrefix(what, "knocked, ") || what == tooLargeToKnock
}

// turnedAway reports whether the other side's node said that it will never take a message.
func turnedAway(row store.Message) bool {
	return row.Out && row.State == StateFailed && strings.HasPrefix(row.Why, "refused by the other side")
}

// plainWhy is a row's reason in words that help. A refusal says no more than that: who blocks or removes somebody does not
// tell them.
func plainWhy(row store.Message) string {
	if turnedAway(row) {
		return "their program did not take it: you may no longer be among their contacts; ask them for a new invite"
	}
	return row.Why
}

// Cancel takes a message back that was not delivered yet.
func (m *Messenger) Cancel(ctx context.Context, id string) error {
	return m.update(ctx, func(tx *store.Tx) error {
		row, err := m.findMessage(tx, id)
		if err != nil {
			return err
		}
		waiting, err := tx.OutgoingByMessage(row.ID)
		if err != nil {
			return err
		}
		if len(waiting) == 0 {
			return refuse(CodeNotCancellable, "", "the message is %s, it cannot be taken back", row.State)
		}
		for _, out := range waiting {
			why := "taken back"
			if len(out.Custody) > 0 {
				why = "taken back; mailboxes keep copies, which their program will not open"
			}
			if err := m.giveUp(tx, out, StateCancelled, why); err != nil {
				return err
			}
		}
		return nil
	})
}

// Identity tells who this node is.
func (m *Messenger) Identity(ctx context.Context) (IdentityInfo, error) {
	var out IdentityInfo
	err := m.store.View(func(tx *store.Tx) error {
		row, err := tx.GetSelf()
		out = IdentityInfo{
			Name: row.Name, Account: m.account.ID().String(), Device: m.current().device.ID().String(), Created: row.Created, CardUntil: row.CardUntil,
		}
		return err
	})
	return out, err
}

// SetName changes what this person calls themself; those who meet them from now on see it.
func (m *Messenger) SetName(ctx context.Context, name string) error {
	if err := identity.CheckName(name); err != nil {
		return &Error{Code: CodeBadName, Message: err.Error(), Remedy: "Choose letters and digits, at most 64 bytes.", Err: err}
	}
	return m.update(ctx, func(tx *store.Tx) error {
		row, err := tx.GetSelf()
		if err != nil {
			return err
		}
		row.Name = name
		if err := tx.PutSelf(row); err != nil {
			return err
		}
		_, err = m.announce(tx, EventSetting, event{})
		return err
	})
}

// Ports returns the listening ports that were used last, 0 before the first start.
func (m *Messenger) Ports() (inner, front int, err error) {
	err = m.store.View(func(tx *store.Tx) error {
		row, err := tx.GetSelf()
		inner, front = row.InnerPort, row.FrontPort
		return err
	})
	return inner, front, err
}

// SetPorts keeps the listening ports, so that a router's mapping and contacts' addresses stay good over restarts.
func (m *Messenger) SetPorts(inner, front int) error {
	return m.store.Update(func(tx *store.Tx) error {
		row, err := tx.GetSelf()
		if err != nil || row.InnerPort == inner && row.FrontPort == front {
			return err
		}
		row.InnerPort, row.FrontPort = inner, front
		return tx.PutSelf(row)
	})
}

// Status is the messenger at a glance.
func (m *Messenger) Status(ctx context.Context) (Status, error) {
	out := Status{Account: m.account.ID().String(), Counters: m.counters.snapshot()}
	m.mu.Lock()
	out.ClockOffset = m.offset
	m.mu.Unlock()
	err := m.store.View(func(tx *store.Tx) error {
		row, err := tx.GetSelf()
		if err != nil {
			return err
		}
		out.Name = row.Name
		if out.Seq, err = tx.LastSeq(); err != nil {
			return err
		}
		convs, err := tx.Conversations()
		if err != nil {
			return err
		}
		for _, conv := range convs {
			out.Unread += conv.Unread
		}
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		for _, c := range contacts {
			if c.State == ContactRequested {
				out.Requests++
			}
			waiting, err := tx.CountMessages(c.Account)
			if err != nil {
				return err
			}
			out.Queued += waiting
		}
		return nil
	})
	return out, err
}

// ContactByInner names the contact whose node key it is.
func (m *Messenger) ContactByInner(inner [32]byte) (name string, ok bool) {
	m.mu.Lock()
	claims := m.inner[inner]
	m.mu.Unlock()
	if len(claims) == 0 {
		return "", false
	}
	err := m.store.View(func(tx *store.Tx) error {
		c, err := tx.Contact([32]byte(claims[0]))
		name = c.Name
		return err
	})
	return name, err == nil
}

// ReachOf is where a contact was last known to be.
func (m *Messenger) ReachOf(name string) (wire.Reach, error) {
	var reach wire.Reach
	err := m.store.View(func(tx *store.Tx) error {
		c, err := m.findContact(tx, name)
		if err != nil {
			return err
		}
		reach, err = contactReach(c)
		return err
	})
	return reach, err
}
