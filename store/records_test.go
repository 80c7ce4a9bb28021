package store

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestEveryRecordComesBackAsItWasPut(t *testing.T) {
	s := open(t, testConfig(t))
	self := Self{Name: "me", Created: someTime, DeviceSecret: []byte("secret"), AccountPublic: id32(3), DeviceList: []byte{1}, CardSeq: 4, InnerPort: 5}
	contact := Contact{Account: id32(1), Name: "Zoë", Claimed: "zoe", State: ContactEstablished, Verified: "yes", RecordKey: id32(2),
		Devices: [][16]byte{id16(1), id16(2)}, Conv: id16(3), Created: someTime, LastSeen: someTime, Intro: "invite"}
	conv := Conversation{ID: id16(3), Kind: "direct", SendN: 4, SendHash: id32(5), Clock: 9, Unread: 2, Last: id16(4), LastAt: someTime,
		Recv: map[[16]byte]Received{id16(1): {N: 3, Hash: id32(6), Holes: []Hole{{From: 1, To: 2}}}, id16(2): {N: 1}}}
	message := Message{ID: id16(4), Conv: id16(3), Order: 99, From: id32(1), Device: id16(1), Out: true, N: 4, SentAt: someTime, At: someTime,
		Kind: 1, Text: "hi", Raw: []byte{1, 2}, State: "queued", Why: "why", ReplyTo: id16(9), Gap: 3, Hash: id32(8), Prev: id32(9)}
	out := Outgoing{Account: id32(1), Device: id16(1), MsgID: id16(4), Session: id16(7), Chain: 2, N: 3, Item: []byte("item"), Ack: id16(4),
		Created: someTime, Expires: someTime.Add(time.Hour), Next: someTime, Attempts: 2, LastError: "unreachable"}
	session := Session{ID: id16(7), Account: id32(1), Device: id16(1), State: []byte("state"), Created: someTime, LastUsed: someTime}
	invite := Invite{ID: id16(8), Secret: id16(9), OneTimeID: 3, Created: someTime, Expires: someTime, Uses: 1, MaxUses: 2, Hints: []string{"a"}, Name: id32(9)}
	add := PendingAdd{ID: id16(8), Account: id32(1), Secret: id16(2), Name: "ana", Created: someTime, Expires: someTime, LastError: "x"}
	secret := SecretRow{Name: "prekey/1", Value: []byte("v"), Created: someTime, Expires: someTime}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.PutSelf(self), tx.PutContact(contact), tx.PutConversation(conv), tx.PutMessage(&message), tx.PutOutgoing(&out),
			tx.PutSession(session), tx.PutInvite(invite), tx.PutPendingAdd(add), tx.PutSecret(secret),
			tx.PutContactSecret(id32(1), []byte("discovery")), tx.PutSkipped(id16(7), 1, 2, id32(3), someTime),
			tx.AddTrace(id16(4), someTime, "queued", "for zoë"), tx.SetCursor("tui", 7), tx.PutIdempotency("k", id16(4)),
			tx.MarkHandshake([]byte("handshake"), someTime))
	})
	conv.Count, conv.MaxN = 1, 1
	same := func(what string, got, want any, err error) {
		t.Helper()
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s is %#v (%v), want %#v", what, got, err, want)
		}
	}
	view(t, s, func(tx *Tx) error {
		gotSelf, err := tx.GetSelf()
		if err != nil || !reflect.DeepEqual(struct{ Self }{gotSelf}, struct{ Self }{self}) {
			t.Error("self differs", err)
		}
		gotContact, err := tx.ContactByName("ZOË")
		same("contact", gotContact, contact, err)
		gotConv, err := tx.Conversation(id16(3))
		conv.Running = gotConv.Running
		same("conversation", gotConv, conv, err)
		list, err := tx.Conversations()
		same("conversations", list, []Conversation{conv}, err)
		gotMessage, err := tx.Message(id16(4))
		same("message", gotMessage, message, err)
		gotOut, err := tx.OutgoingByMessage(id16(4))
		same("outgoing", gotOut[0].LastError, out.LastError, err)
		gotSession, err := tx.Session(id16(7))
		same("session", string(gotSession.State), "state", err)
		gotInvite, err := tx.InviteByName(id32(9))
		same("invite", gotInvite.Secret, invite.Secret, err)
		adds, err := tx.PendingAdds()
		same("pending add", adds[0].LastError, "x", err)
		row, err := tx.GetSecret("prekey/1")
		same("secret", string(row.Value), "v", err)
		found, err := tx.ContactSecret(id32(1))
		same("contact secret", string(found), "discovery", err)
		k, ok, err := tx.FindSkipped(id16(7), 1, 2)
		same("skipped", k == id32(3) && ok, true, err)
		steps, err := tx.Trace(id16(4))
		same("trace", steps, []Step{{someTime, "queued", "for zoë"}}, err)
		cursor, err := tx.Cursor("tui")
		same("cursor", cursor, uint64(7), err)
		cursors, err := tx.Cursors()
		same("cursors", cursors, map[string]uint64{"tui": 7}, err)
		by, err := tx.Idempotency("k")
		same("idempotency", by, id16(4), err)
		seen, err := tx.SeenHandshake([]byte("handshake"))
		same("handshake", seen, true, err)
		seen, err = tx.SeenHandshake([]byte("other"))
		same("other handshake", seen, false, err)
		return nil
	})
}

func TestRecordsWithSecretsDoNotPrint(t *testing.T) {
	for _, v := range []any{
		Self{DeviceSecret: []byte("hunter2")}, SecretRow{Name: "n", Value: []byte("hunter2")}, Session{State: []byte("hunter2")},
		Invite{Link: "hunter2"}, PendingAdd{Link: "hunter2"}, Outgoing{Item: []byte("hunter2")},
	} {
		for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
			if out := fmt.Sprintf(f, v); strings.Contains(out, "hunter2") || strings.Contains(out, fmt.Sprintf("%v", []byte("hunter2"))) || strings.Contains(out, "0x68") {
				t.Errorf("%s prints %s", f, out)
			}
		}
	}
}

func TestANameBelongsToOneContact(t *testing.T) {
	s := open(t, testConfig(t))
	update(t, s, func(tx *Tx) error { return tx.PutContact(Contact{Account: id32(1), Name: "Straße"}) })
	wantErr(t, s.Update(func(tx *Tx) error { return tx.PutContact(Contact{Account: id32(2), Name: "STRASSE"}) }), ErrNameTaken)
	update(t, s, func(tx *Tx) error { return tx.PutContact(Contact{Account: id32(1), Name: "Ana"}) }) // renamed: the old one is free
	update(t, s, func(tx *Tx) error { return tx.PutContact(Contact{Account: id32(2), Name: "STRASSE"}) })
	update(t, s, func(tx *Tx) error { return tx.DeleteContact(id32(1)) })
	update(t, s, func(tx *Tx) error { return tx.PutContact(Contact{Account: id32(3), Name: "ana"}) })
	wantErr(t, s.View(func(tx *Tx) error { _, err := tx.ContactByName("nobody"); return err }), ErrNotFound)
	wantErr(t, s.View(func(tx *Tx) error { _, err := tx.Contact(id32(1)); return err }), ErrNotFound)
	update(t, s, func(tx *Tx) error { return tx.DeleteContact(id32(99)) })
}

func TestAMessageIsKnownForEver(t *testing.T) {
	s := open(t, testConfig(t))
	putMessages(t, s, id16(1), 1, 3)
	wantErr(t, s.Update(func(tx *Tx) error { return tx.PutMessage(testMessage(id16(1), 2)) }), ErrExists)
	wantErr(t, s.Update(func(tx *Tx) error { return tx.PutMessage(testMessage(id16(2), 2)) }), ErrExists)
	update(t, s, func(tx *Tx) error { return tx.DeleteMessage(id16(2)) })
	update(t, s, func(tx *Tx) error { return tx.DeleteMessage(id16(2)) })
	wantErr(t, s.Update(func(tx *Tx) error { return tx.PutMessage(testMessage(id16(1), 2)) }), ErrExists)
	unknown := testMessage(id16(1), 77)
	unknown.Seq = 77
	wantErr(t, s.Update(func(tx *Tx) error { return tx.PutMessage(unknown) }), ErrNotFound)
	view(t, s, func(tx *Tx) error {
		if has, err := tx.HasMessage(id16(2)); !has || err != nil {
			t.Error("a deleted message is forgotten", err)
		}
		if has, _ := tx.HasMessage(id16(4)); has {
			t.Error("an unknown message is known")
		}
		if _, err := tx.Message(id16(2)); !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
		c, err := tx.tally(key(tTally, append([]byte(nil), id16b(1)...)))
		if c.Count != 2 || c.Last != 3 {
			t.Errorf("count is %+v", c)
		}
		return err
	})
}

func id16b(n int) []byte { id := id16(n); return id[:] }

func TestMessagesComeInOrderWithinBounds(t *testing.T) {
	s := open(t, testConfig(t))
	conv, other := id16(1), id16(2)
	update(t, s, func(tx *Tx) error {
		for i, order := range []uint64{50, 10, 40, 20, 30} { // they came in another order than they are shown
			m := testMessage(conv, i+1)
			m.Order, m.At, m.Text = order, someTime.Add(time.Duration(i)*time.Hour), fmt.Sprint(order)
			if err := tx.PutMessage(m); err != nil {
				return err
			}
		}
		return tx.PutMessage(testMessage(other, 9))
	})
	for _, c := range []struct {
		q    MessagesQuery
		want string
	}{
		{MessagesQuery{}, "10 20 30 40 50"},
		{MessagesQuery{Limit: 2}, "40 50"},
		{MessagesQuery{Before: &Message{Order: 40}}, "10 20 30"},
		{MessagesQuery{Before: &Message{Order: 40}, Limit: 1}, "30"},
		{MessagesQuery{After: 20}, "30 40 50"},
		{MessagesQuery{After: 20, Limit: 2}, "30 40"},
		{MessagesQuery{After: 20, Before: &Message{Order: 50}}, "30 40"},
		{MessagesQuery{Since: someTime.Add(2 * time.Hour)}, "20 30 40"},
		{MessagesQuery{After: ^uint64(0)}, ""},
		{MessagesQuery{Before: &Message{Order: 5}}, ""},
	} {
		view(t, s, func(tx *Tx) error {
			list, err := tx.Messages(conv, c.q)
			var got []string
			for _, m := range list {
				got = append(got, m.Text)
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%+v shows %q, want %q", c.q, got, c.want)
			}
			return err
		})
	}
	update(t, s, func(tx *Tx) error { // an edit that moves a row
		m, err := tx.Message(id16(2))
		m.Order = 45
		return errors.Join(err, tx.PutMessage(&m))
	})
	view(t, s, func(tx *Tx) error {
		list, err := tx.Messages(conv, MessagesQuery{})
		if len(list) != 5 || list[3].Text != "10" {
			t.Errorf("%d rows after the move", len(list))
		}
		return err
	})
}

func TestAMessageIsFoundByTheFirstDigitsOfItsID(t *testing.T) {
	s := open(t, testConfig(t))
	putMessages(t, s, id16(1), 1, 40)
	for _, digits := range []string{"", "9", fmt.Sprintf("%x", id16(5))[:5], strings.ToUpper(fmt.Sprintf("%x", id16(6))), "ffffffffff"} {
		view(t, s, func(tx *Tx) error {
			list, err := tx.MessagesByPrefix(digits, 100)
			want := 0
			for n := 1; n <= 40; n++ {
				if strings.HasPrefix(fmt.Sprintf("%x", id16(n)), strings.ToLower(digits)) {
					want++
				}
			}
			if len(list) != want {
				t.Errorf("%q finds %d messages, want %d", digits, len(list), want)
			}
			return err
		})
	}
	for _, bad := range []string{"xyz", strings.Repeat("a", 34)} {
		if err := s.View(func(tx *Tx) error { _, err := tx.MessagesByPrefix(bad, 0); return err }); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestTheOutboxKeepsItsOrder(t *testing.T) {
	s := open(t, testConfig(t))
	a, b := id32(0xff), id32(2)
	update(t, s, func(tx *Tx) error {
		for i := range 6 {
			o := Outgoing{Account: a, MsgID: id16(i / 2), Item: []byte{byte(i)}}
			if i%3 == 2 {
				o.Account = b
			}
			if err := tx.PutOutgoing(&o); err != nil {
				return err
			}
		}
		return nil
	})
	items := func(list []Outgoing) (out string) {
		for _, o := range list {
			out += fmt.Sprint(o.Item[0])
		}
		return out
	}
	check := func(wantA, wantB string, accounts int) {
		t.Helper()
		view(t, s, func(tx *Tx) error {
			listA, err := tx.Outgoings(a, 0)
			listB, err2 := tx.Outgoings(b, 0)
			who, err3 := tx.OutgoingAccounts()
			nA, err4 := tx.CountOutgoing(a)
			n, err5 := tx.CountAllOutgoing()
			if items(listA) != wantA || items(listB) != wantB || len(who) != accounts || nA != len(wantA) || n != len(wantA)+len(wantB) {
				t.Errorf("a %s, b %s, %d accounts, counts %d %d", items(listA), items(listB), len(who), nA, n)
			}
			return errors.Join(err, err2, err3, err4, err5)
		})
	}
	check("0134", "25", 2)
	view(t, s, func(tx *Tx) error {
		by, err := tx.OutgoingByMessage(id16(1))
		two, err2 := tx.Outgoings(a, 2)
		rest, err3 := tx.OutgoingsAfter(a, two[1].Order, 0)
		if items(by) != "23" || items(two) != "01" || items(rest) != "34" {
			t.Error(items(by), items(two), items(rest))
		}
		return errors.Join(err, err2, err3)
	})
	update(t, s, func(tx *Tx) error {
		list, err := tx.Outgoings(a, 1)
		o := list[0]
		o.Attempts = 3
		return errors.Join(err, tx.PutOutgoing(&o), tx.DeleteOutgoing(a, list[0].Order+1), tx.DeleteOutgoing(a, 999))
	})
	check("034", "25", 2)
	update(t, s, func(tx *Tx) error {
		list, err := tx.Outgoings(b, 0)
		return errors.Join(err, tx.DeleteOutgoing(b, list[0].Order), tx.DeleteOutgoing(b, list[1].Order))
	})
	check("034", "", 1)
	update(t, s, func(tx *Tx) error { // numbers are not given twice
		o := Outgoing{Account: b, MsgID: id16(9), Item: []byte{9}}
		err := tx.PutOutgoing(&o)
		if o.Order <= 6 {
			t.Errorf("order %d was given before", o.Order)
		}
		return err
	})
}

func TestSkippedKeysAreFoundDroppedAndExpire(t *testing.T) {
	s := open(t, testConfig(t))
	one, two := id16(1), id16(2)
	update(t, s, func(tx *Tx) error {
		for n := range uint32(10) {
			for _, session := range [][16]byte{one, two} {
				if err := tx.PutSkipped(session, n%2, n, id32(int(n)), someTime.Add(time.Duration(n)*time.Hour)); err != nil {
					return err
				}
			}
		}
		return tx.PutSession(Session{ID: two, Account: id32(1)})
	})
	update(t, s, func(tx *Tx) error {
		n, err := tx.DropSkipped(one, 1, 3, 7)
		if n != 3 {
			t.Errorf("%d dropped", n)
		}
		return errors.Join(err, tx.DeleteSkipped(one, 0, 0))
	})
	update(t, s, func(tx *Tx) error {
		counts, err := tx.ExpireSkipped(someTime.Add(4*time.Hour), 0)
		want := []SkippedCount{{one, 0, 1}, {one, 1, 1}, {two, 0, 2}, {two, 1, 2}}
		for _, w := range want {
			ok := false
			for _, c := range counts {
				ok = ok || c == w
			}
			if !ok {
				t.Errorf("%+v is not in %+v", w, counts)
			}
		}
		return err
	})
	view(t, s, func(tx *Tx) error {
		_, gone, err := tx.FindSkipped(one, 0, 0)
		_, ok, err2 := tx.FindSkipped(one, 1, 9)
		if gone || !ok {
			t.Error("wrong keys are left")
		}
		return errors.Join(err, err2)
	})
	update(t, s, func(tx *Tx) error { return errors.Join(tx.DeleteSession(two), tx.DeleteSession(id16(99))) })
	view(t, s, func(tx *Tx) error {
		n, err := tx.count(key(tSkipped, two[:]))
		_, serr := tx.Session(two)
		if n != 0 || !errors.Is(serr, ErrNotFound) {
			t.Error("the session left something behind")
		}
		return err
	})
}

func TestSessionsOfADeviceComeNewestUseFirst(t *testing.T) {
	s := open(t, testConfig(t))
	update(t, s, func(tx *Tx) error {
		var err error
		for i := range 4 {
			err = errors.Join(err, tx.PutSession(Session{ID: id16(i), Account: id32(1), Device: id16(100 + i/3), LastUsed: someTime.Add(time.Duration(i) * time.Minute)}))
		}
		return err
	})
	view(t, s, func(tx *Tx) error {
		device, err := tx.Sessions(id32(1), id16(100))
		account, err2 := tx.AccountSessions(id32(1))
		every, err3 := tx.AllSessions()
		if len(device) != 3 || device[0].ID != id16(2) || len(account) != 4 || account[0].ID != id16(3) || len(every) != 4 {
			t.Errorf("%d %d %d", len(device), len(account), len(every))
		}
		return errors.Join(err, err2, err3)
	})
}

func TestEventsAreNumberedAndResumeFromACursor(t *testing.T) {
	s := open(t, testConfig(t))
	news := s.Notify()
	update(t, s, func(tx *Tx) error { return tx.PutSetting("x", nil) })
	select {
	case <-news:
		t.Fatal("a commit without events woke the feed")
	default:
	}
	update(t, s, func(tx *Tx) error {
		for i := range 5 {
			if seq, err := tx.AppendEvent("n", map[string]int{"i": i}); err != nil || seq != uint64(i+1) {
				return fmt.Errorf("event %d: %w", seq, err)
			}
		}
		return tx.SetCursor("bot", 3)
	})
	<-news
	view(t, s, func(tx *Tx) error {
		from, err := tx.Cursor("bot")
		list, err2 := tx.EventsAfter(from, 0)
		none, err3 := tx.EventsAfter(5, 0)
		some, err4 := tx.EventsAfter(0, 2)
		never, err5 := tx.Cursor("nobody")
		if len(list) != 2 || list[0].Seq != 4 || len(none) != 0 || len(some) != 2 || never != 0 {
			t.Errorf("%+v %+v %+v %d", list, none, some, never)
		}
		return errors.Join(err, err2, err3, err4, err5)
	})
	update(t, s, func(tx *Tx) error { return tx.DeleteCursor("bot") })
}

func TestPagesOfRowsThatWereWrittenAtOneMomentMissNone(t *testing.T) {
	s := open(t, testConfig(t))
	conv := id16(1)
	update(t, s, func(tx *Tx) error {
		for i := range 30 {
			m := testMessage(conv, i+1)
			m.Order = uint64(1 + i/3)
			if err := tx.PutMessage(m); err != nil {
				return err
			}
		}
		return nil
	})
	view(t, s, func(tx *Tx) error {
		seen := map[[16]byte]bool{}
		var oldest *Message
		for {
			page, err := tx.Messages(conv, MessagesQuery{Limit: 4, Before: oldest})
			if err != nil || len(page) == 0 {
				if len(seen) != 30 {
					t.Errorf("%d of 30 rows are on the pages", len(seen))
				}
				return err
			}
			for _, m := range page {
				if seen[m.ID] {
					t.Errorf("row %d is on two pages", m.Seq)
				}
				seen[m.ID] = true
			}
			oldest = &page[0]
		}
	})
}
