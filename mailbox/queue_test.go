package mailbox

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"sotto/wire"
)

func TestAnEnvelopeIsKeptHandedOutAndLetGo(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 10)
	arrived, until, err := s.Deposit(context.Background(), wire.Deposit{Box: id, Token: token(3), Envelope: envelope(3, small)}, netip.Prefix{})
	if err != nil || arrived != someDay.Unix()/3600*3600 || until != wire.HeldUntil(someDay.Unix(), 30) {
		t.Fatal(arrived, until, err)
	}
	list := s.all(t, id)
	if len(list) != 1 || !bytes.Equal(list[0].Envelope, envelope(3, small)) || list[0].Spent != wire.PoolHash(token(3)) || list[0].Arrived != arrived {
		t.Fatalf("%d envelopes", len(list))
	}
	if got, ok, err := s.Envelope(id, sha(envelope(3, small))); err != nil || !ok || !bytes.Equal(got, envelope(3, small)) {
		t.Fatal(ok, err)
	}
	standing, err := s.Standing(id)
	if err != nil || standing.UsedCount != 1 || standing.UsedBytes != small+10*tokenBytes || standing.Unspent != 9 || standing.Bytes != 1<<20 || standing.Count != 32 {
		t.Fatalf("%+v %v", standing, err)
	}
	if n := s.ack(t, id, list[0].ID, list[0].ID, 99); n != 1 {
		t.Fatal(n)
	}
	if list := s.all(t, id); len(list) != 0 {
		t.Fatal("handed out after its ack")
	}
	if _, ok, err := s.Envelope(id, sha(envelope(3, small))); ok || err != nil {
		t.Fatal(ok, err)
	}
	s.wantSound(t)
}

func TestTheSameDepositHasTheSameAnswerAlsoAfterAckAndRestart(t *testing.T) {
	cfg, h := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 2)
	d := wire.Deposit{Box: id, Token: token(0), Envelope: envelope(0, small)}
	a1, u1, err := s.Deposit(context.Background(), d, netip.Prefix{})
	if err != nil {
		t.Fatal(err)
	}
	again := func(when string) {
		t.Helper()
		a2, u2, err := s.Deposit(context.Background(), d, netip.Prefix{})
		if err != nil || a1 != a2 || u1 != u2 {
			t.Fatal(when, a2, u2, err)
		}
		other := d
		other.Envelope = envelope(1, small)
		_, _, err = s.Deposit(context.Background(), other, netip.Prefix{})
		wantErr(t, err, wire.ErrRefused)
	}
	again("at once")
	h.pass(26 * time.Hour)
	again("a day later")
	if list := s.all(t, id); len(list) != 1 {
		t.Fatalf("%d copies", len(list))
	}
	s.ack(t, id, 1)
	again("after the ack")
	s.stop()
	s = open(t, cfg)
	again("after a restart")
	if list := s.all(t, id); len(list) != 0 {
		t.Fatalf("%d copies", len(list))
	}
	s.wantSound(t)
}

func TestTwoDepositsOfOneTokenAtOnceKeepOneEnvelope(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 1)
	answers := make(chan error, 16)
	for i := range 16 {
		go func() {
			_, _, err := s.Deposit(context.Background(), wire.Deposit{Box: id, Token: token(0), Envelope: envelope(i%2, small)}, netip.Prefix{})
			answers <- err
		}()
	}
	good := 0
	for range 16 {
		if err := <-answers; err == nil {
			good++
		} else {
			wantErr(t, err, wire.ErrRefused)
		}
	}
	if list := s.all(t, id); len(list) != 1 || good != 8 {
		t.Fatalf("%d envelopes, %d answers", len(list), good)
	}
	s.wantSound(t)
}

func TestWhatMayNotBeDepositedIsRefusedWithOneAnswer(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 40)
	answer := ""
	for name, d := range map[string]wire.Deposit{
		"an unknown box":     {Box: boxID(2), Token: token(0), Envelope: envelope(0, small)},
		"an unknown token":   {Box: id, Token: token(77), Envelope: envelope(0, small)},
		"too late a date":    {Box: id, Token: token(37), NotBefore: wire.HeldUntil(someDay.Unix(), 30) - daySeconds + 1, Envelope: envelope(37, small)},
		"a box without room": {Box: id, Token: token(39), Envelope: envelope(39, small)},
	} {
		if name == "a box without room" {
			for i := range 32 {
				s.mustPut(t, id, i)
			}
		}
		_, _, err := s.Deposit(context.Background(), d, netip.Prefix{})
		wantErr(t, err, wire.ErrRefused)
		if answer == "" {
			answer = err.Error()
		}
		if err.Error() != answer {
			t.Errorf("%s: %q, another: %q", name, err, answer)
		}
		if name == "a box without room" {
			for _, m := range s.all(t, id) {
				s.ack(t, id, m.ID)
			}
			s.grant(t, id, 0, 1) // nothing: it was spent
		}
	}
	wantErr(t, s.putFrom(id, 38, 9000, netip.Prefix{}), wire.ErrTooLarge)
	wantErr(t, s.putFrom(id, 38, 0, netip.Prefix{}), wire.ErrTooLarge)
}

func TestMailPutOffIsNotHandedOutBeforeItsTime(t *testing.T) {
	cfg, h := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 2)
	due := someDay.Add(3 * time.Hour)
	d := wire.Deposit{Box: id, Token: token(0), NotBefore: due.Unix(), Envelope: envelope(0, small)}
	news, stop := s.Watch(id)
	defer stop()
	if _, _, err := s.Deposit(context.Background(), d, netip.Prefix{}); err != nil {
		t.Fatal(err)
	}
	s.mustPut(t, id, 1)
	<-news
	if list := s.all(t, id); len(list) != 1 || list[0].ID != 2 {
		t.Fatal(list)
	}
	s.stop()
	s = open(t, cfg)
	news, stop = s.Watch(id)
	defer stop()
	h.pass(3 * time.Hour)
	s.tellDue()
	<-news
	if list := s.all(t, id); len(list) != 2 || list[0].ID != 1 {
		t.Fatal(list)
	}
}

func TestAPageHoldsWhatItMayAndTheRestFollows(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{Vouched: true})
	s.grant(t, id, 0, 120)
	for i := range 120 {
		if err := s.putFrom(id, i, []int{small, 32_768, 131_072}[i%3], netip.Prefix{}); err != nil {
			t.Fatal(err)
		}
	}
	after, seen := uint64(0), 0
	for {
		page, err := s.Fetch(id, after, 0)
		if err != nil {
			t.Fatal(err)
		}
		size := 0
		for _, m := range page.Mail {
			if m.ID <= after {
				t.Fatal("out of order")
			}
			after = m.ID
			size += len(m.Envelope)
			seen++
		}
		if size > wire.MaxPageBytes || len(page.Marshal()) > wire.MaxMailboxAnswer {
			t.Fatalf("a page of %d bytes", size)
		}
		if !page.More {
			break
		}
	}
	if seen != 120 {
		t.Fatal(seen)
	}
	page, err := s.Fetch(id, 0, 2)
	if err != nil || len(page.Mail) != 2 || !page.More {
		t.Fatal(len(page.Mail), page.More, err)
	}
	if page, err = s.Fetch(id, ^uint64(0), 0); err != nil || len(page.Mail) != 0 || page.More {
		t.Fatal(page, err)
	}
	_, err = s.Fetch(boxID(2), 0, 0)
	wantErr(t, err, wire.ErrNotFound)
}

func TestABoxGrowsOnDaysWithFetchAndAckOnly(t *testing.T) {
	cfg, h := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 60)
	n := 0
	quota := func() uint64 {
		st, err := s.Standing(id)
		if err != nil {
			t.Fatal(err)
		}
		return st.Bytes >> 20 * uint64(st.Count) / 32
	}
	put := func() {
		s.mustPut(t, id, n)
		n++
	}
	put()
	if s.ack(t, id, uint64(n)); quota() != 1 {
		t.Fatal("grew without a fetch")
	}
	put()
	if s.all(t, id); quota() != 1 {
		t.Fatal("grew without an ack")
	}
	for day := range 9 {
		put()
		s.all(t, id)
		s.ack(t, id, uint64(n))
		put()
		s.ack(t, id, uint64(n))
		want := uint64(min(1<<(2*(day+1)), 64*128))
		if got := quota(); got != want {
			t.Fatalf("day %d: %d, want %d", day, got, want)
		}
		h.pass(24 * time.Hour)
		if day == 3 {
			s.stop()
			s = open(t, cfg)
		}
	}
	s.wantSound(t)
}

func TestTheOpenPartDoesNotTakeFromTheVouchedOne(t *testing.T) {
	cfg, _ := testConfig(t)
	cfg.Limits.Ceiling = 10 << 20 // 3 MiB open, 6 MiB vouched
	cfg.Limits.MaxBytes, cfg.Limits.MaxCount = 4<<20, 400
	s := open(t, cfg)
	n := 0
	fill := func(id wire.BoxID, prefix func() netip.Prefix) error {
		for {
			n++
			if _, err := s.Pool(id, [][16]byte{wire.PoolHash(token(n))}, nil); err != nil {
				return err
			}
			if err := s.putFrom(id, n, 32_768, prefix()); err != nil {
				return err
			}
		}
	}
	many := func() netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24)
	}
	var last error
	for i := range 5 {
		id, how := boxID(i), Admit{}
		if _, err := s.Register(id, how); err != nil {
			last = err
			break
		}
		last = fill(id, many)
	}
	if st := s.Stats(); st.Open.Bytes > st.Open.Limit || st.Open.Bytes < st.Open.Limit*8/10 {
		t.Fatalf("%+v", st.Open)
	}
	if last == nil {
		t.Fatal("no end")
	}
	_, err := s.Register(boxID(50), Admit{})
	wantErr(t, err, wire.ErrRefused)
	for i := range 2 {
		id := s.register(t, 100+i, Admit{Vouched: true})
		last = fill(id, many)
	}
	wantErr(t, last, wire.ErrOverloaded)
	st := s.Stats()
	if st.Vouched.Bytes > st.Vouched.Limit || st.Vouched.Bytes < st.Vouched.Limit*8/10 || st.Bytes > st.Ceiling {
		t.Fatalf("%+v", st)
	}
	s.wantSound(t)
	s.stop()
	s = open(t, cfg)
	if again := s.Stats(); again.Vouched != st.Vouched || again.Open != st.Open {
		t.Fatalf("%+v, before the restart %+v", again, st)
	}
}

func TestOnePrefixFillsOnlyItsShareOfTheOpenPart(t *testing.T) {
	cfg, _ := testConfig(t)
	cfg.Limits.Ceiling, cfg.Limits.Share, cfg.Limits.StartBytes = 100<<20, 2, 256<<10 // 600 KiB a prefix
	s := open(t, cfg)
	greedy, other := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/48")
	n, boxes := 0, 0
	put := func(from netip.Prefix) (err error) {
		for range 2 {
			id := boxID(boxes)
			if boxes == 0 || n%16 == 0 {
				boxes++
				id = s.register(t, boxes, Admit{})
				s.grant(t, id, n, n+16)
			}
			if err = s.putFrom(id, n, small, from); err != nil {
				return err
			}
			n++
		}
		return nil
	}
	var err error
	for err == nil {
		err = put(greedy)
	}
	wantErr(t, err, wire.ErrOverloaded)
	share := 30 << 20 / 100 * 2
	if bytes := n * small; bytes > share || bytes < share-2*small {
		t.Fatalf("%d bytes of %d", bytes, share)
	}
	if err := put(other); err != nil {
		t.Fatal(err)
	}
	s.ack(t, boxID(1), 1, 2, 3)
	id := s.register(t, 999, Admit{})
	s.grant(t, id, 9000, 9001)
	if err := s.putFrom(id, 9000, small, greedy); err != nil {
		t.Fatal("an ack gives the room back: ", err)
	}
	s.wantSound(t)
}

func TestAPoolHoldsWhatItMayAndKnowsEachTokenOnce(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{Vouched: true})
	var list [][16]byte
	for i := range wire.MaxPoolBatch {
		list = append(list, wire.PoolHash(token(i)))
	}
	for range 2 {
		if n, err := s.Pool(id, list, nil); err != nil || n != wire.MaxPoolBatch {
			t.Fatal(n, err)
		}
	}
	if n, err := s.Pool(id, list[:1], list[:3]); err != nil || n != wire.MaxPoolBatch-2 {
		t.Fatal(n, err)
	}
	s.mustPut(t, id, 5)
	if n, err := s.Pool(id, nil, list[5:6]); err != nil || n != wire.MaxPoolBatch-3 {
		t.Fatal("a spent token was dropped", n, err)
	}
	s.mustPut(t, id, 5)
	wantErr(t, s.put(id, 1), wire.ErrRefused)
	s.grant(t, id, 3000, 3000+wire.MaxPool-wire.MaxPoolBatch+3)
	_, err := s.Pool(id, [][16]byte{{1}}, nil)
	wantErr(t, err, wire.ErrRefused)
	_, err = s.Pool(id, make([][16]byte, wire.MaxPoolBatch+1), nil)
	wantErr(t, err, wire.ErrRefused)
	open := s.register(t, 2, Admit{})
	s.grant(t, open, 200_000, 200_001)
	s.mustPut(t, open, 200_000)
	for full := 0; ; full++ { // a spent one counts too: one less than fills a fresh box
		add := make([][16]byte, wire.MaxPoolBatch)
		for i := range add {
			add[i] = wire.PoolHash(token(100_000 + full*len(add) + i))
		}
		if _, err = s.Pool(open, add, nil); err != nil {
			break
		}
	}
	wantErr(t, err, wire.ErrRefused)
	if st, err := s.Standing(open); err != nil || st.UsedBytes > st.Bytes || st.Unspent < 7*wire.MaxPoolBatch {
		t.Fatal(st, err)
	}
	s.wantSound(t)
}

func TestASuccessorHasItsPredecessorsStandingOnce(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	first := s.register(t, 1, Admit{Vouched: true})
	second := s.register(t, 2, Admit{Old: first})
	st, err := s.Standing(second)
	if err != nil || st.Bytes != 64<<20 || st.Count != 4096 {
		t.Fatalf("%+v %v", st, err)
	}
	_, err = s.Register(boxID(3), Admit{Old: first})
	wantErr(t, err, wire.ErrRefused)
	_, err = s.Register(boxID(3), Admit{Old: second})
	wantErr(t, err, wire.ErrRefused)
	_, err = s.Register(boxID(3), Admit{Old: boxID(99)})
	wantErr(t, err, wire.ErrRefused)
	s.grant(t, first, 0, 1)
	s.mustPut(t, first, 0)
	if err := s.CloseBox(context.Background(), first); err != nil {
		t.Fatal(err)
	}
	s.register(t, 3, Admit{Old: second})
	s.wantSound(t)
}

func TestAVoucherIsHonouredOnce(t *testing.T) {
	cfg, h := testConfig(t)
	s := open(t, cfg)
	for _, v := range []string{"one", "two"} {
		if err := s.AddVoucher([]byte(v), someDay.Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	s.register(t, 1, Admit{Voucher: []byte("one")})
	if st, err := s.Standing(boxID(1)); err != nil || st.Bytes != 64<<20 {
		t.Fatal(st, err)
	}
	_, err := s.Register(boxID(2), Admit{Voucher: []byte("one")})
	wantErr(t, err, wire.ErrRefused)
	s.register(t, 1, Admit{Voucher: []byte("nothing: the box is there")})
	s.stop()
	s = open(t, cfg)
	_, err = s.Register(boxID(2), Admit{Voucher: []byte("one")})
	wantErr(t, err, wire.ErrRefused)
	h.pass(time.Hour)
	_, err = s.Register(boxID(2), Admit{Voucher: []byte("two")})
	wantErr(t, err, wire.ErrRefused)
	wantErr(t, s.SpendVoucher([]byte("one")), wire.ErrRefused)
}

func TestAClosedBoxIsGoneWithAllInIt(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{Vouched: true})
	s.grant(t, id, 0, 9000)
	for i := range 20 {
		s.mustPut(t, id, i)
	}
	if _, err := s.Republish(context.Background(), id, []wire.Republish{{Name: [32]byte{1}, Record: []byte("r")}}); err != nil {
		t.Fatal(err)
	}
	news, stop := s.Watch(id)
	defer stop()
	if err := s.CloseBox(context.Background(), id); err != nil {
		t.Fatal(err)
	}
	<-news
	_, err := s.Fetch(id, 0, 0)
	wantErr(t, err, wire.ErrNotFound)
	wantErr(t, s.CloseBox(context.Background(), id), wire.ErrNotFound)
	if st := s.Stats(); st.Bytes != 0 || st.Boxes != 0 || st.Waiting != 0 {
		t.Fatalf("%+v", st)
	}
	if due, err := s.DueRecords(someDay, 10); err != nil || len(due) != 0 {
		t.Fatal(due, err)
	}
	s.register(t, 1, Admit{})
	wantErr(t, s.put(id, 0), wire.ErrRefused)
	wantErr(t, s.put(id, 8999), wire.ErrRefused)
	s.wantSound(t)
	s.stop()
	if r, err := VerifyQueue(cfg.Dir); err != nil || len(r.Faults) > 0 || r.Tokens != 0 || r.Boxes != 1 {
		t.Fatal(r, err)
	}
}

func TestStrangersComeOnlyIntoABoxThatIsOpenToThem(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{Vouched: true})
	put := func(n int) error {
		_, _, err := s.DepositStranger(context.Background(), id, envelope(n, small), netip.Prefix{})
		return err
	}
	wantErr(t, put(0), wire.ErrRefused)
	if err := s.SetStrangers(id, true); err != nil {
		t.Fatal(err)
	}
	_, _, err := s.DepositStranger(context.Background(), id, envelope(0, 32_768), netip.Prefix{})
	wantErr(t, err, wire.ErrTooLarge)
	for i := range wire.MaxStrangers {
		if err := put(i); err != nil {
			t.Fatal(err)
		}
	}
	wantErr(t, put(99), wire.ErrRefused)
	s.stop()
	s = open(t, cfg)
	wantErr(t, put(99), wire.ErrRefused)
	list := s.all(t, id)
	if len(list) != wire.MaxStrangers || list[0].Spent != [16]byte{} {
		t.Fatal(len(list))
	}
	s.ack(t, id, list[0].ID)
	if err := put(99); err != nil {
		t.Fatal(err)
	}
	s.wantSound(t)
}

func TestTheOperatorsSwitchesRefuseNewThingsAndKeepOldOnes(t *testing.T) {
	cfg, _ := testConfig(t)
	s := open(t, cfg)
	id := s.register(t, 1, Admit{})
	s.grant(t, id, 0, 9)
	s.mustPut(t, id, 0)
	from := netip.MustParsePrefix("192.0.2.0/24")
	for name, c := range map[string]struct {
		on, off func() error
		want    error
	}{
		"box":     {func() error { return s.BlockBox(id, true) }, func() error { return s.BlockBox(id, false) }, wire.ErrRefused},
		"prefix":  {func() error { return s.BlockPrefix(netip.MustParsePrefix("192.0.0.0/16"), true) }, func() error { return s.BlockPrefix(netip.MustParsePrefix("192.0.0.0/16"), false) }, wire.ErrRefused},
		"drain":   {func() error { return s.Drain(someDay.Add(time.Hour)) }, func() error { return s.Drain(time.Time{}) }, wire.ErrOverloaded},
		"deposit": {func() error { return s.RefuseDeposits(true) }, func() error { return s.RefuseDeposits(false) }, wire.ErrOverloaded},
	} {
		if err := c.on(); err != nil {
			t.Fatal(name, err)
		}
		for range 2 {
			wantErr(t, s.putFrom(id, 1, small, from), c.want)
			if len(s.all(t, id)) != 1 {
				t.Fatal(name)
			}
			s.stop()
			s = open(t, cfg)
		}
		if err := c.off(); err != nil {
			t.Fatal(name, err)
		}
	}
	if err := s.putFrom(id, 1, small, from); err != nil {
		t.Fatal(err)
	}
	if err := s.Allow([32]byte{7}); err != nil || !s.Allowed([32]byte{7}) {
		t.Fatal(err)
	}
	s.stop()
	s = open(t, cfg)
	if list := s.ListAllowed(); len(list) != 1 || list[0] != [32]byte{7} {
		t.Fatal(list)
	}
	if err := s.Deny([32]byte{7}); err != nil || s.Allowed([32]byte{7}) {
		t.Fatal(err)
	}
}

func TestRecordsComeDueAndTheHigherNumberWins(t *testing.T) {
	cfg, h := testConfig(t)
	cfg.Inspect = func(b []byte) (uint64, time.Time, error) { // "number:days"
		var seq uint64
		var days int
		_, err := fmt.Sscanf(string(b), "%d:%d", &seq, &days)
		return seq, someDay.Add(time.Duration(days) * 24 * time.Hour), err
	}
	s := open(t, cfg)
	id, other := s.register(t, 1, Admit{}), s.register(t, 2, Admit{})
	put := func(id wire.BoxID, name byte, notBefore int64, record string) int {
		t.Helper()
		n, err := s.Republish(context.Background(), id, []wire.Republish{{Name: [32]byte{name}, NotBefore: notBefore, Record: []byte(record)}})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	due := func(want ...string) {
		t.Helper()
		list, err := s.DueRecords(h.Now(), 10)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range list {
			got = append(got, string(r.Record))
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("due %q, want %q", got, want)
		}
	}
	if put(id, 1, 0, "5:2") != 1 || put(id, 1, 0, "4:9") != 0 || put(id, 1, 0, "5:2") != 1 || put(id, 2, someDay.Unix()+3600, "1:9") != 1 || put(id, 3, 0, "1:-1") != 0 || put(id, 3, 0, "garbage") != 0 {
		t.Fatal("kept the wrong ones")
	}
	due("5:2")
	if put(id, 1, 0, "6:2") != 1 || put(other, 1, 0, "9:1") != 1 {
		t.Fatal("did not replace")
	}
	if err := s.RecordPut([32]byte{1}, h.Now()); err != nil {
		t.Fatal(err)
	}
	due()
	h.pass(time.Hour)
	s.stop()
	s = open(t, cfg)
	due("1:9")
	h.pass(8 * time.Hour)
	if list, err := s.DueRecords(h.Now(), 10); err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	if put(id, 2, 0, "") != 1 || put(id, 2, 0, "") != 0 {
		t.Fatal("did not forget")
	}
	h.pass(48 * time.Hour)
	if err := s.RecordPut([32]byte{1}, h.Now()); err != nil {
		t.Fatal(err)
	}
	due() // past their last dates
	s.wantSound(t)
	if st := s.Stats(); st.Bytes != 0 {
		t.Fatalf("%+v", st)
	}
}

func TestAQueueThatNobodyRunsAnswersWhenItIsClosed(t *testing.T) {
	cfg, _ := testConfig(t)
	q, err := OpenQueue(cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		close(ready)
		_, err := q.Register(boxID(1), Admit{})
		done <- err
	}()
	<-ready
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, <-done, errClosed)
	_, _, err = q.Envelope(boxID(1), [32]byte{})
	wantErr(t, err, errClosed)
}
