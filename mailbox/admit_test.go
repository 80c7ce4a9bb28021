package mailbox

import (
	"context"
	"crypto/rand"
	"sync"
	"testing"
	"time"

	"sotto/record"
	"sotto/wire"
)

func TestAVoucherGivesTheFullQuotaOnceAndAListedKeyNeedsNone(t *testing.T) {
	w := start(t, func(c *ServerConfig, _ *slowQueue) { c.Terms.Mode = wire.ModeInvite })
	if err := w.q.AddVoucher([]byte("for ana"), time.Time{}); err != nil {
		t.Fatal(err)
	}
	c := w.client()
	terms, err := c.Terms(within(t), w.addr)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []error{nil, wire.ErrRefused} {
		b, err := c.Open(within(t), w.addr, newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		standing, err := b.Register(within(t), wire.Admission{Voucher: []byte("for ana")})
		wantIs(t, "register", err, want)
		if i == 0 && (standing.Bytes != terms.MaxBytes || standing.Count != terms.MaxCount) {
			t.Errorf("standing %+v", standing)
		}
	}
	w = start(t, func(c *ServerConfig, _ *slowQueue) { c.Terms.Mode = wire.ModeAllowlist })
	key := newKey(t)
	own := ownerKey(key)
	if err := w.q.Allow(hashOf(own[:])); err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		key  []byte
		want error
	}{{key, nil}, {newKey(t), wire.ErrRefused}} {
		b, err := w.client().Open(within(t), w.addr, k.key)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Register(within(t), wire.Admission{})
		wantIs(t, "register", err, k.want)
	}
}

func TestADrainingMailboxTakesNothingNewSaysSoAndServesOwners(t *testing.T) {
	w := start(t, nil)
	owner, sender := w.owner(), w.client()
	tokens := w.tokens(owner, 2)
	if _, err := sender.Deposit(within(t), w.addr, wire.Deposit{Box: owner.ID(), Token: tokens[0], Envelope: sealed(0)}); err != nil {
		t.Fatal(err)
	}
	until := time.Unix(1_900_000_000, 0)
	if err := w.q.Drain(until); err != nil {
		t.Fatal(err)
	}
	if terms, err := sender.Terms(within(t), w.addr); err != nil || terms.DrainUntil != until.Unix() {
		t.Errorf("terms: %+v, %v", terms, err)
	}
	for name, box := range map[string]wire.BoxID{"its box": owner.ID(), "no box": {1}} {
		_, err := sender.Deposit(within(t), w.addr, wire.Deposit{Box: box, Token: tokens[1], Envelope: sealed(1)})
		wantIs(t, "a deposit into "+name, err, wire.ErrRefused)
	}
	key := newKey(t)
	b, err := w.client().Open(within(t), w.addr, key)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.Register(within(t), w.work(key))
	wantIs(t, "a new box", err, wire.ErrRefused)
	if page, err := owner.Fetch(within(t), 0, 0); err != nil || len(page.Mail) != 1 {
		t.Errorf("fetch: %d, %v", len(page.Mail), err)
	}
	if n, err := owner.Ack(within(t), []uint64{1}); err != nil || n != 1 {
		t.Errorf("ack: %d, %v", n, err)
	}
}

func TestAFullBoxIsAnsweredLikeAnUnknownOne(t *testing.T) {
	w := start(t, nil)
	owner, sender := w.owner(), w.client()
	var last error
	for i, token := range w.tokens(owner, 33) {
		_, last = sender.Deposit(within(t), w.addr, wire.Deposit{Box: owner.ID(), Token: token, Envelope: sealed(i)})
		if i < 32 && last != nil {
			t.Fatalf("deposit %d: %v", i, last)
		}
	}
	_, unknown := sender.Deposit(within(t), w.addr, wire.Deposit{Box: wire.BoxID{1}, Envelope: sealed(1)})
	if last == nil || last.Error() != unknown.Error() {
		t.Errorf("full: %v; unknown: %v", last, unknown)
	}
}

// puts collects what a mailbox gives to the DHT.
type puts struct {
	mu   sync.Mutex
	list map[[32]byte]int
}

func (p *puts) put(_ context.Context, name [32]byte, value []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.list[name]++
	return nil
}

func (p *puts) of(name [32]byte) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.list[name]
}

// put1 makes a record of that owner as of a moment.
func put1(t *testing.T, o *record.Owner, seq uint64, at time.Time) (name [32]byte, value []byte) {
	t.Helper()
	name, value, err := record.Seal(o, record.Secret{1}, record.Fixed, seq, at.Add(48*time.Hour), []byte("reach"), record.Small, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return name, value
}

func TestRecordsOfAnOwnerAreCheckedAndPutWhenTheyAreDue(t *testing.T) {
	p := &puts{list: map[[32]byte]int{}}
	w := start(t, func(c *ServerConfig, _ *slowQueue) { c.Put, c.Limits.PutPause = p.put, 10*time.Millisecond })
	owner := w.owner()
	if terms, err := w.client().Terms(within(t), w.addr); err != nil || terms.Flags&wire.FlagRepublishes == 0 {
		t.Errorf("terms: %+v, %v", terms, err)
	}
	now := time.Now()
	var list []wire.Republish
	add := func(at time.Time, notBefore int64, spoil bool) [32]byte {
		var seed [32]byte
		_, _ = rand.Read(seed[:])
		name, value := put1(t, record.NewOwner(seed), uint64(now.Unix()), at)
		if spoil {
			value[100] ^= 1
		}
		list = append(list, wire.Republish{Name: name, NotBefore: notBefore, Record: value})
		return name
	}
	week := now.Add(7 * 24 * time.Hour)
	due, later := add(now, 0, false), add(week, week.Unix(), false)
	forged, early, far := add(now, 0, true), add(week, 0, false), add(now.Add(31*24*time.Hour), now.Add(31*24*time.Hour).Unix(), false)
	kept, err := owner.Republish(within(t), list)
	if err != nil || kept != 2 {
		t.Fatalf("kept %d, %v", kept, err)
	}
	eventually(t, "the record is put", func() bool { return p.of(due) == 1 })
	again, err := owner.Republish(within(t), []wire.Republish{{Name: due}, {Name: later}})
	if err != nil || again != 2 {
		t.Errorf("forgot %d, %v", again, err)
	}
	for what, name := range map[string][32]byte{"one for next week": later, "a forged one": forged, "one too early": early, "one beyond 30 days": far} {
		if p.of(name) != 0 {
			t.Errorf("%s was put", what)
		}
	}
}

func TestAMailboxWithoutADHTTakesNoRecords(t *testing.T) {
	w := start(t, nil)
	_, err := w.owner().Republish(within(t), []wire.Republish{{Name: [32]byte{1}}})
	wantIs(t, "republish", err, wire.ErrRefused)
}
