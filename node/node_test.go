package node

import (
	"bytes"
	"testing"
	"time"

	"sotto/wire"
)

func TestItemsArriveInOrderAndAreAnsweredInOrder(t *testing.T) {
	a, b := start(t, nil), start(t, nil)
	friends(a, b)
	items := numbered(1000)
	next := 0
	err := a.Send(within(t, 20*time.Second), b.Reach(), items, func(i int, ans wire.Answer) {
		if i != next || ans.Code != wire.CodeOK || ans.Ack != ackOf(items[i]) {
			t.Errorf("answer %d: got %+v, want the one for %d", i, ans, next)
		}
		next++
	})
	if err != nil || next != len(items) {
		t.Fatalf("send: %d of %d answered, %v", next, len(items), err)
	}
	for i, got := range b.received() {
		if !bytes.Equal(got, items[i]) {
			t.Fatalf("item %d arrived as %q", i, got)
		}
	}
}

func TestANodeListensAtOnce(t *testing.T) {
	a := start(t, nil)
	if r := a.Reach(); len(r.Inner) == 0 || len(r.Front) == 0 || r.InnerKey != innerKey(a.key) {
		t.Fatalf("reach right after New: %+v", r)
	}
}

func TestARecordPublishedByOneIsFoundByAnother(t *testing.T) {
	v := startVolunteer(t, nil)
	boot := func(c *Config, _ *person) { c.Bootstrap = v.Addrs() }
	a, b := start(t, boot), start(t, boot)
	name, value := inviteRecord(t, "hello", uint64(time.Now().Unix()))
	if err := a.Publish(within(t, 20*time.Second), name, value); err != nil {
		t.Fatal(err)
	}
	got, err := b.Fetch(within(t, 20*time.Second), name, nil)
	if err != nil || !bytes.Equal(got, value) {
		t.Fatalf("fetch: %v", err)
	}
	if got, err = b.Find(within(t, 20*time.Second), name); err != nil || !bytes.Equal(got, value) {
		t.Fatalf("find: %v", err)
	}
	other, _ := inviteRecord(t, "other", 1)
	_, err = b.Find(within(t, 20*time.Second), other)
	wantErr(t, err, wire.ErrNotFound)
	_, err = b.Fetch(within(t, 20*time.Second), other, nil)
	wantErr(t, err, wire.ErrNotFound)
}

func TestARecordPutByAVolunteerForSomebodyIsFound(t *testing.T) {
	v := startVolunteer(t, nil)
	b := start(t, func(c *Config, _ *person) { c.Bootstrap = v.Addrs() })
	name, value := inviteRecord(t, "hello", uint64(time.Now().Unix()))
	forged := bytes.Clone(value)
	forged[100] ^= 1
	if err := v.PutRecord(within(t, 20*time.Second), name, forged); err == nil {
		t.Error("a forged record is put")
	}
	if err := v.PutRecord(within(t, 20*time.Second), name, value); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Find(within(t, 20*time.Second), name); err != nil || !bytes.Equal(got, value) {
		t.Fatalf("find: %v", err)
	}
}

func TestAnInviteIsFetchedFromTheFrontHostNamedByAHint(t *testing.T) {
	a, b := start(t, nil), start(t, nil)
	name, value := inviteRecord(t, "hello", uint64(time.Now().Unix()))
	a.bundles[name] = value
	got, err := b.Fetch(within(t, 20*time.Second), name, []string{a.Hint()})
	if err != nil || !bytes.Equal(got, value) {
		t.Fatalf("fetch: %v", err)
	}
}

func TestAHintMayBeAVolunteer(t *testing.T) {
	v := startVolunteer(t, nil)
	a := start(t, func(c *Config, _ *person) { c.Bootstrap = v.Addrs() })
	b := start(t, nil)
	name, value := inviteRecord(t, "hello", uint64(time.Now().Unix()))
	if err := a.Publish(within(t, 20*time.Second), name, value); err != nil {
		t.Fatal(err)
	}
	got, err := b.Fetch(within(t, 20*time.Second), name, v.Addrs()[:1])
	if err != nil || !bytes.Equal(got, value) {
		t.Fatalf("fetch: %v", err)
	}
}

func TestAKnockUnderALiveInviteNeedsNoWorkAndAnyOtherDoes(t *testing.T) {
	a, b := start(t, nil), start(t, nil)
	name, value := inviteRecord(t, "hello", 1)
	a.bundles[name] = value
	for _, invite := range [][32]byte{name, {}} {
		got, err := b.Knock(within(t, 20*time.Second), a.Reach(), invite, []byte("envelope"))
		if err != nil || got.Code != wire.CodeOK || len(got.Acks) != 1 || got.Acks[0] != ackOf([]byte("envelope")) {
			t.Fatalf("knock: %+v, %v", got, err)
		}
	}
	got, err := b.Knock(within(t, 20*time.Second), a.Reach(), [32]byte{1}, []byte("envelope"))
	if err != nil || got.Code != wire.CodeRefused || a.Status().Refused[refusedKnockStamp] != 1 {
		t.Fatalf("knock under an unknown invite: %+v, %v, %v", got, err, a.Status().Refused)
	}
}
