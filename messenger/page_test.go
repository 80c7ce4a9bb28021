package messenger_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sotto/messenger"
	"sotto/wire"
)

func TestMessagesWrittenAtOneMomentAreAllOnThePagesInOneOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, mallory, bob := pair(t)
		net.Cut(mallory.port, bob.port, true) // neither knows what the other writes
		for range 100 {
			mallory.send("bob", "hers")
			bob.send("mallory", "his")
			settle(time.Second)
		}
		net.Cut(mallory.port, bob.port, false)
		settle(10 * time.Minute)
		mallory.send("bob", "one more") // so that a page ends between two of one moment
		settle(time.Minute)
		var shown [2][]string
		for i, p := range []*person{mallory, bob} {
			with := map[*person]string{mallory: "bob", bob: "mallory"}[p]
			page, err := p.m.Messages(t.Context(), with, messenger.MessagesQuery{Limit: 1000, Peek: true})
			if err != nil || len(page) != 201 {
				t.Errorf("%s sees %d messages, %v", p.name, len(page), err)
			}
			for _, msg := range page {
				shown[i] = append(shown[i], fmt.Sprintf("%x", msg.ID))
			}
		}
		if !slices.Equal(shown[0], shown[1]) {
			t.Error("the two see their messages in different orders")
		}
	})
}

func TestContactWhoFillsTheHistoryDoesNotFillTheMemoryOfWhoReadsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		long := strings.Repeat("x", wire.MaxText)
		for range 80 { // 5 MiB
			mallory.send("bob", long)
		}
		mallory.send("bob", "the last")
		settle(time.Hour)
		page, err := bob.m.Messages(t.Context(), "mallory", messenger.MessagesQuery{Limit: 1000, Peek: true})
		if err != nil || len(page) < 2 || len(page) > 66 || page[len(page)-1].Text != "the last" {
			t.Fatalf("%d messages at once, %v", len(page), err)
		}
		seen, after := 0, uint64(0)
		for seen < 81 {
			events, err := bob.m.Events(t.Context(), after, 256)
			if err != nil {
				t.Fatal(err)
			}
			size := 0
			for _, e := range events {
				after = e.Seq
				if e.Message != nil {
					size += len(e.Message.Text)
					seen++
				}
			}
			if size > 5<<20 {
				t.Fatalf("%d bytes of text at once", size)
			}
		}
	})
}

func TestOnlyWhatWasShownIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, mallory, bob := pair(t)
		if err := bob.m.SetReadMarks(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		for i := range 25 {
			mallory.send("bob", fmt.Sprint("text ", i))
		}
		settle(time.Minute)
		read := func(q messenger.MessagesQuery, shows, unread int, state string) {
			t.Helper()
			page, err := bob.m.Messages(t.Context(), "mallory", q)
			if err != nil || len(page) != shows {
				t.Errorf("%d messages are shown, want %d: %v", len(page), shows, err)
			}
			settle(time.Minute)
			inbox, err := bob.m.Inbox(t.Context())
			if err != nil || inbox[0].Unread != unread {
				t.Errorf("%d are unread, want %d: %v", inbox[0].Unread, unread, err)
			}
			for _, row := range mallory.rows(bob) {
				if row.State != state {
					t.Fatalf("mallory sees %q as %s, want %s", wire.TextOf(row.Raw), row.State, state)
				}
			}
		}
		read(messenger.MessagesQuery{Peek: true}, 25, 25, messenger.StateDelivered)
		read(messenger.MessagesQuery{Limit: 1}, 1, 25, messenger.StateDelivered)
		read(messenger.MessagesQuery{Limit: 24}, 24, 25, messenger.StateDelivered)
		read(messenger.MessagesQuery{}, 25, 0, messenger.StateRead)
	})
}
