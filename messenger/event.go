package messenger

import (
	"context"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"sotto/store"
	"sotto/wire"
)

// event is what the store's log keeps of an entry: who it is about, not what it says, so that a text that is deleted is
// gone here too.
type event struct {
	Message [16]byte `cbor:"1,keyasint,omitzero"`
	Account [32]byte `cbor:"2,keyasint,omitzero"`
	Invite  [16]byte `cbor:"3,keyasint,omitzero"`
	State   string   `cbor:"4,keyasint,omitempty"`
}

// announce adds an entry to the numbered log; all news leaves by it.
func (m *Messenger) announce(tx *store.Tx, kind string, e event) (uint64, error) {
	return tx.AppendEvent(kind, e)
}

func (m *Messenger) announceContact(tx *store.Tx, acct [32]byte) error {
	_, err := m.announce(tx, EventContact, event{Account: acct})
	return err
}

// Events returns up to limit entries after the given one. It waits for the first of them, or for the context's end.
func (m *Messenger) Events(ctx context.Context, after uint64, limit int) ([]Event, error) {
	for {
		news := m.store.Notify()
		var out []Event
		err := m.store.View(func(tx *store.Tx) error {
			rows, err := tx.EventsAfter(after, limit)
			if err != nil {
				return err
			}
			in := &lookup{tx: tx, contacts: map[[16]byte]store.Contact{}}
			for size := 0; len(rows) > 0 && size < maxPage; rows = rows[1:] {
				e, err := m.resolve(in, rows[0])
				if err != nil {
					return err
				}
				if out = append(out, e); e.Message != nil {
					size += len(e.Message.Text)
				}
			}
			return nil
		})
		if err != nil || len(out) > 0 {
			return out, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// resolve attaches to an entry what it is about, as it is now. What was removed since is left out.
func (m *Messenger) resolve(in *lookup, row store.Event) (Event, error) {
	out := Event{Seq: row.Seq, At: row.At, Kind: row.Kind}
	var e event
	if err := cbor.Unmarshal(row.Data, &e); err != nil {
		return out, fmt.Errorf("event %d: %w", row.Seq, err)
	}
	err := m.attach(in, &out, e)
	if errors.Is(err, store.ErrNotFound) {
		return out, nil
	}
	return out, err
}

func (m *Messenger) attach(in *lookup, out *Event, e event) error {
	tx := in.tx
	switch {
	case e.Message != [16]byte{}:
		msg, err := in.message(e.Message)
		if err != nil {
			return err
		}
		if e.State != "" {
			msg.State = e.State
		}
		out.Message = &msg
	case e.Account != [32]byte{}:
		c, err := tx.Contact(e.Account)
		if err != nil {
			return err
		}
		v, err := m.viewContact(tx, c, nil)
		if err != nil {
			return err
		}
		out.Contact = &v
	case e.Invite != [16]byte{}:
		row, err := tx.Invite(e.Invite)
		if err != nil {
			return err
		}
		v := m.viewInvite(row)
		out.Invite = &v
	}
	return nil
}

// EventRange returns the oldest and the newest entry kept, 0 and 0 when there is none.
func (m *Messenger) EventRange(ctx context.Context) (first, last uint64, err error) {
	err = m.store.View(func(tx *store.Tx) (err error) {
		if first, err = tx.FirstSeq(); err != nil {
			return err
		}
		last, err = tx.LastSeq()
		return err
	})
	return first, last, err
}

// Cursor returns up to where a named reader has come, and whether it ever was here.
func (m *Messenger) Cursor(ctx context.Context, name string) (seq uint64, known bool, err error) {
	err = m.store.View(func(tx *store.Tx) error {
		all, err := tx.Cursors()
		seq, known = all[name]
		return err
	})
	return seq, known, err
}

// AckCursor remembers that a named reader is done with everything up to seq; it never goes back.
func (m *Messenger) AckCursor(ctx context.Context, name string, seq uint64) error {
	return m.update(ctx, func(tx *store.Tx) error {
		at, err := tx.Cursor(name)
		if err != nil {
			return err
		}
		last, err := tx.LastSeq()
		if err != nil {
			return err
		}
		return tx.SetCursor(name, max(at, min(seq, last)))
	})
}

// lookup reads messages with whom they were exchanged; a page of events is mostly about the same few people.
type lookup struct {
	tx       *store.Tx
	contacts map[[16]byte]store.Contact // by conversation
}

// message is a message as it is shown.
func (l *lookup) message(id [16]byte) (Message, error) {
	row, err := l.tx.Message(id)
	if err != nil {
		return Message{}, err
	}
	c, known := l.contacts[row.Conv]
	if !known {
		if c, err = contactIn(l.tx, row.Conv); err != nil {
			return Message{}, err
		}
		l.contacts[row.Conv] = c
	}
	return viewMessage(row, c), nil
}

// contactIn is whom a conversation is with, also when the contact was removed since.
func contactIn(tx *store.Tx, id [16]byte) (store.Contact, error) {
	conv, err := tx.Conversation(id)
	if err != nil {
		return store.Contact{}, err
	}
	c, err := tx.Contact(conv.Account)
	if errors.Is(err, store.ErrNotFound) {
		return gone(tx, conv)
	}
	return c, err
}

// messageView is a message as it is shown.
func (m *Messenger) messageView(tx *store.Tx, id [16]byte) (Message, error) {
	return (&lookup{tx: tx, contacts: map[[16]byte]store.Contact{}}).message(id)
}

func viewMessage(row store.Message, c store.Contact) Message {
	text := row.Text
	if text == "" {
		text = wire.TextOf(row.Raw)
	}
	out := Message{
		ID: row.ID, Seq: row.Event, Conv: Ref{Kind: "contact", Name: c.Name, ID: row.Conv}, SentAt: row.SentAt, At: row.At,
		Kind: wire.Kind(row.Kind), Text: text, ReplyTo: row.ReplyTo, Edited: row.Edited, State: row.State, Held: row.Custody, Why: plainWhy(row), Missing: row.Gap,
	}
	out.From = Author{Name: c.Name, Verified: c.Verified == VerifiedYes}
	if row.Out {
		out.From = Author{Me: true, Verified: true}
	}
	return out
}
