package messenger

import (
	"errors"

	"sotto/identity"
	"sotto/session"
	"sotto/store"
)

// An outbox entry is kept without its sealed header, four fifths of a short message's item, and gets it back when it is
// offered (session.Shorten). What the headers of a chain are made from is in the session while the chain lives, and in a row
// of its own while something of an ended chain waits.

// batchBytes bounds what of a queue is in memory at once, and what is sealed in one transaction.
const batchBytes = 512 << 10

// putOutgoing writes an outbox entry in its short form.
func putOutgoing(tx *store.Tx, out *store.Outgoing) error {
	row := *out
	if !row.Short && len(row.Item) > 0 {
		row.Item, row.Short = session.Shorten(row.Item)
	}
	err := tx.PutOutgoing(&row)
	out.Order = row.Order
	return err
}

// unseal makes an entry one that is to be sealed anew.
func unseal(out *store.Outgoing) { out.Item, out.Short, out.Ack = nil, false, [16]byte{} }

// firstWaiting returns what stands first in a recipient's queue, with whole items.
func firstWaiting(tx *store.Tx, acct identity.AccountID, limit int) ([]store.Outgoing, error) {
	rows, err := tx.OutgoingBatch(acct, limit, batchBytes)
	if err != nil {
		return nil, err
	}
	heads := headings{}
	for i := range rows {
		if err := heads.restore(tx, &rows[i]); err != nil {
			return nil, err
		}
	}
	return rows, nil
}

// headings remembers the headings that a batch needs; nil is one that is lost.
type headings map[store.Heading]*session.Heading

// restore gives an entry its whole item. One whose session is gone has none any more and is sealed anew.
func (h headings) restore(tx *store.Tx, out *store.Outgoing) error {
	if !out.Short {
		return nil
	}
	at := store.Heading{Session: out.Session, Chain: out.Chain}
	head, known := h[at]
	if !known {
		var err error
		if head, err = findHeading(tx, at); err != nil {
			return err
		}
		h[at] = head
	}
	if head == nil {
		unseal(out)
		return nil
	}
	item, err := head.Restore(out.Item, out.N)
	out.Item, out.Short = item, false
	return err
}

func findHeading(tx *store.Tx, at store.Heading) (*session.Heading, error) {
	row, err := tx.Session(at.Session)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	if err == nil {
		s, err := session.Unmarshal(row.State)
		if err != nil {
			return nil, err
		}
		if head, ok := s.Heading(at.Chain); ok {
			return head, nil
		}
	}
	raw, err := tx.Heading(at)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return session.ParseHeading(raw)
}

// keepHeading keeps the heading of a sending chain that an arrival ended, if items of it may wait.
func keepHeading(tx *store.Tx, op *opening) error {
	if op.opened.Ended == nil {
		return nil
	}
	first, err := tx.Outgoings(op.row.Account, 1)
	if err != nil || len(first) == 0 {
		return err
	}
	return tx.PutHeading(store.Heading{Session: op.row.ID, Chain: op.opened.EndedChain}, op.opened.Ended.Marshal())
}

// dropHeadings forgets the headings of chains of which nothing waits any more.
func dropHeadings(tx *store.Tx) error {
	needed := map[store.Heading]bool{}
	accounts, err := tx.OutgoingAccounts()
	if err != nil {
		return err
	}
	for _, acct := range accounts {
		for after := uint64(0); ; {
			rows, err := tx.OutgoingsAfter(acct, after, 256)
			if err != nil {
				return err
			}
			for _, out := range rows {
				needed[store.Heading{Session: out.Session, Chain: out.Chain}] = true
				after = out.Order
			}
			if len(rows) < 256 {
				break
			}
		}
	}
	_, err = tx.DropHeadings(needed)
	return err
}
