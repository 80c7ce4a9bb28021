package messenger_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"
	"time"

	"sotto/messenger"
	"sotto/store"
)

// view runs fn on the person's store.
func (p *person) view(fn func(tx *store.Tx) error) {
	p.t.Helper()
	if err := p.store.View(fn); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

// update writes into the person's store behind the messenger's back.
func (p *person) update(fn func(tx *store.Tx) error) {
	p.t.Helper()
	if err := p.store.Update(fn); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
}

// rows is the whole conversation with another, as the store has it.
func (p *person) rows(with *person) (rows []store.Message) {
	p.t.Helper()
	p.view(func(tx *store.Tx) error {
		convs, err := tx.Conversations()
		for _, conv := range convs {
			if conv.Account == [32]byte(accountOf(with)) {
				rows, err = tx.Messages(conv.ID, store.MessagesQuery{Limit: 1 << 20})
			}
		}
		return err
	})
	return rows
}

// events reads the person's whole log from after on, some at a time.
func (p *person) events(after uint64) (all []messenger.Event) {
	p.t.Helper()
	_, last, err := p.m.EventRange(context.Background())
	if err != nil {
		p.t.Fatal(err)
	}
	for after < last {
		some, err := p.m.Events(context.Background(), after, 7)
		if err != nil {
			p.t.Fatal(err)
		}
		all = append(all, some...)
		after = some[len(some)-1].Seq
	}
	return all
}

// checkStore holds one store against the invariants that need no other (RELIABILITY 3).
func (p *person) checkStore() {
	p.t.Helper()
	p.checkOutbox()
	p.checkFeed()
	p.checkOrder()
}

// checkOutbox: what is queued has its sealed bytes or its text (I8), what is settled is not kept (I1, E2).
func (p *person) checkOutbox() {
	p.view(func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		if err != nil {
			return err
		}
		for _, c := range contacts {
			rows, err := tx.Messages(c.Conv, store.MessagesQuery{Limit: 1 << 20})
			if err != nil {
				return err
			}
			for _, row := range rows {
				waiting, err := tx.OutgoingByMessage(row.ID)
				if err != nil {
					return err
				}
				if open := row.Out && (row.State == messenger.StateQueued || row.State == messenger.StateHeld); open != (len(waiting) == 1) {
					p.t.Errorf("%s: message %x is %s with %d entries in the outbox", p.name, row.ID[:4], row.State, len(waiting))
				}
				if row.Out && len(row.Raw) == 0 {
					p.t.Errorf("%s: message %x can no longer be sealed anew", p.name, row.ID[:4])
				}
			}
		}
		return nil
	})
}

// checkFeed: numbers without a gap (I14), each message announced once (I2), marks only forward (I9).
func (p *person) checkFeed() {
	rank := map[string]int{"queued": 0, "held": 1, "expired": 2, "failed": 2, "cancelled": 2, "delivered": 3, "read": 4}
	announced, marks := map[[16]byte]int{}, map[[16]byte]string{}
	for i, e := range p.events(0) {
		if e.Seq != uint64(i+1) {
			p.t.Errorf("%s: event %d has number %d", p.name, i+1, e.Seq)
		}
		if e.Message == nil {
			continue
		}
		switch e.Kind {
		case messenger.EventMessage:
			announced[e.Message.ID]++
		case messenger.EventReceipt:
			again := e.Message.State == messenger.StateHeld && marks[e.Message.ID] == messenger.StateHeld // more mailboxes, or for longer
			if e.Message.From.Me && !again && rank[e.Message.State] <= rank[marks[e.Message.ID]] {
				p.t.Errorf("%s: message %s went from %s to %s", p.name, e.Message.ID.Short(), marks[e.Message.ID], e.Message.State)
			}
			marks[e.Message.ID] = e.Message.State
		}
	}
	for id, n := range announced {
		if n != 1 {
			p.t.Errorf("%s: message %x was announced %d times", p.name, id[:4], n)
		}
	}
}

// checkOrder: a sender's counters rise, but for those marked as late or as used before (I4).
func (p *person) checkOrder() {
	p.view(func(tx *store.Tx) error {
		convs, err := tx.Conversations()
		for _, conv := range convs {
			var rows []store.Message
			if rows, err = tx.Messages(conv.ID, store.MessagesQuery{Limit: 1 << 20}); err != nil {
				return err
			}
			last := map[[16]byte]uint64{}
			for _, row := range rows {
				if row.Out || row.Held || row.Late || row.Why != "" {
					continue
				}
				if row.N <= last[row.Device] {
					p.t.Errorf("%s: counter %d is shown after %d", p.name, row.N, last[row.Device])
				}
				last[row.Device] = row.N
			}
		}
		return err
	})
}

// check holds the stores of people against each other: what one has as delivered, the other shows, word for word (I3, I5);
// everything that was accepted is settled (E1, E2).
func check(t *testing.T, people ...*person) {
	t.Helper()
	for _, a := range people {
		a.checkStore()
		if q := a.status().Queued; q != 0 {
			t.Errorf("%s: %d entries left in the outbox: %s", a.name, q, a.queue())
		}
		for _, b := range people {
			if a != b {
				checkPair(t, a, b)
			}
		}
	}
}

func checkPair(t *testing.T, a, b *person) {
	t.Helper()
	shown := map[[16]byte][32]byte{}
	for _, row := range b.rows(a) {
		if !row.Out && !row.Held {
			shown[row.ID] = sha256.Sum256(row.Raw)
		}
	}
	for _, row := range a.rows(b) {
		if !row.Out || row.State != messenger.StateDelivered && row.State != messenger.StateRead {
			continue
		}
		if sum, ok := shown[row.ID]; !ok || sum != sha256.Sum256(row.Raw) {
			t.Errorf("%s has message %d for %s as delivered, which shows it: %v", a.name, row.N, b.name, ok)
		}
	}
}

// state is a digest of what an item could change: ratchets, conversations, acquaintances.
func (p *person) state() [32]byte {
	p.t.Helper()
	h := sha256.New()
	p.view(func(tx *store.Tx) error {
		sessions, err := tx.AllSessions()
		if err != nil {
			return err
		}
		for _, s := range sessions {
			h.Write(s.State)
		}
		convs, err := tx.Conversations()
		if err != nil {
			return err
		}
		for _, c := range convs {
			fmt.Fprintf(h, "%+v", c)
		}
		contacts, err := tx.Contacts()
		for _, c := range contacts {
			c.LastSeen = time.Time{}
			fmt.Fprintf(h, "%+v", c)
		}
		return err
	})
	return [32]byte(h.Sum(nil))
}

// queue describes what waits in the outbox.
func (p *person) queue() (list string) {
	p.view(func(tx *store.Tx) error {
		contacts, err := tx.Contacts()
		for _, c := range contacts {
			var rows []store.Outgoing
			if rows, err = tx.Outgoings(c.Account, 0); err != nil {
				return err
			}
			for _, out := range rows {
				list += fmt.Sprintf("[to %s (%s), %d bytes, control %v, hello %v, lost %d]", c.Name, c.State, len(out.Item), out.Control, out.Hello, out.Lost)
			}
		}
		return err
	})
	return list
}
