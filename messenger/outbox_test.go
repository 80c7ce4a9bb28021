package messenger_test

import (
	"testing"

	"sotto/identity"
	"sotto/store"
)

// outbox returns the sealed items that wait for a contact, in their order.
func outbox(t *testing.T, p, to *person) [][]byte {
	t.Helper()
	var items [][]byte
	err := p.store.View(func(tx *store.Tx) error {
		rows, err := tx.Outgoings([32]byte(accountOf(to)), 0)
		for _, row := range rows {
			items = append(items, row.Item)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return items
}

func accountOf(p *person) identity.AccountID { return p.account.ID() }
