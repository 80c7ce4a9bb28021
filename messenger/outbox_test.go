package messenger_test

import (
	"testing"

	"sotto/identity"
	"sotto/session"
	"sotto/store"
)

// outbox returns the sealed items that wait for a contact, in their order.
func outbox(t *testing.T, p, to *person) [][]byte {
	t.Helper()
	var items [][]byte
	err := p.store.View(func(tx *store.Tx) error {
		rows, err := tx.Outgoings([32]byte(accountOf(to)), 0)
		for _, row := range rows {
			items = append(items, wholeItem(t, tx, row))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return items
}

// wholeItem is an entry's item as it is offered.
func wholeItem(t *testing.T, tx *store.Tx, out store.Outgoing) []byte {
	t.Helper()
	if !out.Short {
		return out.Item
	}
	row, err := tx.Session(out.Session)
	if err != nil {
		t.Fatal(err)
	}
	s, err := session.Unmarshal(row.State)
	if err != nil {
		t.Fatal(err)
	}
	head, live := s.Heading(out.Chain)
	if !live {
		raw, err := tx.Heading(store.Heading{Session: out.Session, Chain: out.Chain})
		if err != nil {
			t.Fatal(err)
		}
		if head, err = session.ParseHeading(raw); err != nil {
			t.Fatal(err)
		}
	}
	item, err := head.Restore(out.Item, out.N)
	if err != nil {
		t.Fatal(err)
	}
	return item
}

func accountOf(p *person) identity.AccountID { return p.account.ID() }
