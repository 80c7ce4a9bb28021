package messenger

import (
	"errors"
	"slices"
	"strings"

	"sotto/identity"
	"sotto/store"
)

// A contact that is removed leaves its conversation behind, and the name under which that can be read: names of contacts are
// free for others again, so this one is kept apart and shown with a mark.

// removedMark follows the name of somebody who was removed wherever it is shown.
const removedMark = " (removed)"

func removedKey(acct [32]byte) string { return "removed-name:" + identity.AccountID(acct).String() }

// rememberName keeps the name of a contact that is about to be removed, if anything was said.
func rememberName(tx *store.Tx, c store.Contact) error {
	if _, err := tx.Conversation(c.Conv); errors.Is(err, store.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	return tx.PutSetting(removedKey(c.Account), []byte(c.Name))
}

// gone is a removed contact as far as its conversation needs one.
func gone(tx *store.Tx, conv store.Conversation) (store.Contact, error) {
	name, err := tx.Setting(removedKey(conv.Account))
	if errors.Is(err, store.ErrNotFound) {
		name, err = []byte(identity.AccountID(conv.Account).Short()), nil
	}
	return store.Contact{Account: conv.Account, Conv: conv.ID, State: store.ContactRemoved, Name: string(name) + removedMark}, err
}

// removed lists whom one talked with and then removed, by conversation.
func removed(tx *store.Tx) ([]store.Contact, error) {
	convs, err := tx.Conversations()
	if err != nil {
		return nil, err
	}
	var out []store.Contact
	for _, conv := range convs {
		if _, err := tx.Contact(conv.Account); !errors.Is(err, store.ErrNotFound) || conv.Count == 0 {
			if err != nil && !errors.Is(err, store.ErrNotFound) {
				return nil, err
			}
			continue
		}
		c, err := gone(tx, conv)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// leastAccount is how much of an account's or a conversation's id must be typed to mean it.
const leastAccount = 6

// findTalk finds whom a conversation is with: a contact, or somebody who was removed. A whole name goes before a beginning,
// and a contact before somebody who was removed.
func (m *Messenger) findTalk(tx *store.Tx, name string) (store.Contact, error) {
	name = strings.TrimSpace(name)
	c, err := m.findContact(tx, name)
	if err == nil && (strings.EqualFold(c.Name, name) || identity.AccountID(c.Account).String() == name) {
		return c, nil
	}
	if err != nil && !isCode(err, CodeContactNotFound) && !isCode(err, CodeAmbiguous) {
		return c, err
	}
	all, failed := removed(tx)
	if failed != nil {
		return c, failed
	}
	whole := slices.DeleteFunc(slices.Clone(all), func(c store.Contact) bool {
		return !strings.EqualFold(c.Name, name) && !strings.EqualFold(strings.TrimSuffix(c.Name, removedMark), name)
	})
	if len(whole) == 0 && isCode(err, CodeContactNotFound) {
		whole = slices.DeleteFunc(all, func(c store.Contact) bool { return !begins(c, strings.ToLower(name)) })
	}
	switch len(whole) {
	case 0:
		return c, err
	case 1:
		return whole[0], nil
	}
	var ids []string
	for _, c := range whole {
		ids = append(ids, c.Name+": "+identity.AccountID(c.Account).Short())
	}
	return c, refuse(CodeAmbiguous, "Give the beginning of the account instead: "+strings.Join(ids, ", "), "%q fits several people who were removed", name)
}

func begins(c store.Contact, start string) bool {
	if start == "" {
		return false
	}
	return strings.HasPrefix(strings.ToLower(c.Name), start) ||
		len(start) >= leastAccount && strings.HasPrefix(identity.AccountID(c.Account).String(), start)
}
