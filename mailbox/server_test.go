package mailbox

import (
	"bytes"
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"

	"sotto/wire"
)

func TestAnEnvelopeGoesFromItsSenderToTheOwnerOnceAndIsGoneAfterTheAck(t *testing.T) {
	w := start(t, nil)
	owner, sender := w.owner(), w.client()
	terms, err := sender.Terms(within(t), w.addr)
	if err != nil || terms.Service != w.srv.key || terms.KeepDays != 30 || terms.Flags&wire.FlagRepublishes != 0 {
		t.Fatalf("terms: %+v, %v", terms, err)
	}
	token := w.tokens(owner, 1)[0]
	d := wire.Deposit{Box: owner.ID(), Token: token, Envelope: sealed(1)}
	receipt, err := sender.Deposit(within(t), w.addr, d)
	if err != nil || receipt.Hash != hashOf(d.Envelope) || receipt.HeldUntil != wire.HeldUntil(receipt.Arrived, terms.KeepDays) {
		t.Fatalf("receipt: %+v, %v", receipt, err)
	}
	page, err := owner.Wait(within(t), 0, 0, time.Minute)
	if err != nil || len(page.Mail) != 1 || !bytes.Equal(page.Mail[0].Envelope, d.Envelope) || page.Mail[0].Spent != wire.PoolHash(token) {
		t.Fatalf("page: %d, %v", len(page.Mail), err)
	}
	nonce := [32]byte{1}
	proof, err := sender.Prove(within(t), w.addr, owner.ID(), receipt.Hash, nonce)
	if err != nil || !proof.Present || proof.Answer != wire.ProofAnswer(nonce, d.Envelope) {
		t.Errorf("proof of what is there: %+v, %v", proof, err)
	}
	if n, err := owner.Ack(within(t), []uint64{page.Mail[0].ID, 999}); err != nil || n != 1 {
		t.Errorf("ack: %d, %v", n, err)
	}
	if page, err = owner.Fetch(within(t), 0, 0); err != nil || len(page.Mail) != 0 {
		t.Errorf("after the ack: %d, %v", len(page.Mail), err)
	}
	if proof, err = sender.Prove(within(t), w.addr, owner.ID(), receipt.Hash, nonce); err != nil || proof.Present {
		t.Errorf("proof of what is gone: %+v, %v", proof, err)
	}
	again, err := sender.Deposit(within(t), w.addr, d)
	if err != nil || !reflect.DeepEqual(again, receipt) {
		t.Errorf("the same pair again: %+v, %v", again, err)
	}
	if page, err = owner.Fetch(within(t), 0, 0); err != nil || len(page.Mail) != 0 {
		t.Errorf("the same pair was kept twice: %d, %v", len(page.Mail), err)
	}
	d.Envelope = sealed(2)
	_, err = sender.Deposit(within(t), w.addr, d)
	wantIs(t, "the token on another envelope", err, wire.ErrRefused)
	if err := owner.Remove(within(t)); err != nil {
		t.Error(err)
	}
	_, err = owner.Fetch(within(t), 0, 0)
	wantIs(t, "fetch of a box that is gone", err, wire.ErrNotFound)
}

func TestDepositsOfOneSenderShareAStreamAndEachGetsItsOwnReceipt(t *testing.T) {
	w := start(t, nil)
	sender := w.client()
	var boxes []*Box
	for range 10 {
		boxes = append(boxes, w.owner())
	}
	var wg sync.WaitGroup
	for i, b := range boxes {
		for j, token := range w.tokens(b, 20) {
			wg.Go(func() {
				d := wire.Deposit{Box: b.ID(), Token: token, Envelope: sealed(100*i + j)}
				if r, err := sender.Deposit(within(t), w.addr, d); err != nil || r.Box != b.ID() {
					t.Errorf("%v", err)
				}
			})
		}
	}
	wg.Wait()
	if n := w.srv.Status().Streams; n != len(boxes)+1 {
		t.Errorf("%d streams for %d owners and a sender", n, len(boxes))
	}
	for _, b := range boxes {
		if page, err := b.Fetch(within(t), 0, 0); err != nil || len(page.Mail) != 20 {
			t.Errorf("%d envelopes, %v", len(page.Mail), err)
		}
	}
}

func TestAnswersComeInTheOrderOfTheRequestsAndDepositsCommitTogether(t *testing.T) {
	hold, begun := make(chan struct{}), make(chan struct{}, 100)
	w := start(t, func(_ *ServerConfig, q *slowQueue) { q.hold, q.begun = hold, begun })
	owner := w.owner()
	tokens := w.tokens(owner, 3)
	s := w.attacker().open()
	var all []byte
	for i, token := range tokens {
		all = wire.AppendMailboxRequest(all, &wire.Deposit{Box: owner.ID(), Token: token, Envelope: sealed(i)})
	}
	all = wire.AppendMailboxRequest(all, &wire.TermsRequest{})
	all = wire.AppendMailboxRequest(all, &wire.UnknownRequest{Code: 99, Fields: []byte("later")})
	if _, err := s.Write(all); err != nil {
		t.Fatal(err)
	}
	for range tokens { // all three are in the queue before one is answered
		<-begun
	}
	close(hold)
	for i := range tokens {
		r, err := wire.ParseCustody(hear(t, s).Result)
		if err != nil || r.Hash != hashOf(sealed(i)) {
			t.Fatalf("answer %d: %v", i, err)
		}
	}
	if _, err := wire.ParseTerms(hear(t, s).Result); err != nil {
		t.Error(err)
	}
	if a := hear(t, s); a.Code != wire.CodeRefused || len(a.Result) != 0 {
		t.Errorf("an unknown op is answered %+v", a)
	}
	if a := ask1(t, s, &wire.TermsRequest{}); a.Code != wire.CodeOK {
		t.Errorf("after an unknown op the stream does not go on: %+v", a)
	}
}

func TestAnOwnerMayDoOtherThingsWhileItWaits(t *testing.T) {
	w := start(t, nil)
	owner, sender := w.owner(), w.client()
	tokens := w.tokens(owner, 1)
	type result struct {
		page wire.Page
		err  error
	}
	got := make(chan result, 1)
	go func() {
		page, err := owner.Wait(within(t), 0, 0, 10*time.Minute)
		got <- result{page, err}
	}()
	eventually(t, "the owner waits", func() bool { return w.srv.Status().Waiting == 1 })
	for range 3 {
		if _, err := owner.Standing(within(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := owner.Ack(within(t), []uint64{7}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the owner waits again", func() bool { return w.srv.Status().Waiting == 1 })
	}
	if _, err := sender.Deposit(within(t), w.addr, wire.Deposit{Box: owner.ID(), Token: tokens[0], Envelope: sealed(1)}); err != nil {
		t.Fatal(err)
	}
	if r := <-got; r.err != nil || len(r.page.Mail) != 1 {
		t.Errorf("%d envelopes, %v", len(r.page.Mail), r.err)
	}
	if n := w.srv.Status().Streams; n != 2 {
		t.Errorf("%d streams for an owner and a sender", n)
	}
}

func TestABoxServesTwoWaitingStreamsAndAThirdEndsTheOldest(t *testing.T) {
	w := start(t, nil)
	key := newKey(t)
	owner := w.register(w.client(), key)
	a := w.attacker() // the owner's other hosts, restarted and restarted
	var streams []network.Stream
	for range 3 {
		s := a.open()
		if got := ask1(t, s, auth(key, w.srv.key, ownerKey(a.key))); got.Code != wire.CodeOK {
			t.Fatal(got.Code)
		}
		if _, err := s.Write(wire.AppendMailboxRequest(nil, &wire.Wait{Seconds: 900})); err != nil {
			t.Fatal(err)
		}
		streams = append(streams, s)
		eventually(t, "it waits", func() bool {
			return w.srv.Status().Waiting == min(len(streams), 2) && w.refused(refusedWaits) == uint64(max(0, len(streams)-2))
		})
	}
	if _, err := wire.ReadFrame(streams[0], 1<<20); err == nil {
		t.Error("the oldest was answered")
	}
	d := wire.Deposit{Box: owner.ID(), Token: w.tokens(owner, 1)[0], Envelope: sealed(1)}
	if _, err := w.client().Deposit(within(t), w.addr, d); err != nil {
		t.Fatal(err)
	}
	for _, s := range streams[1:] {
		if page, err := wire.ParsePage(hear(t, s).Result); err != nil || len(page.Mail) != 1 {
			t.Errorf("%d envelopes, %v", len(page.Mail), err)
		}
	}
}

func TestAStreamWhoseOpenerIsDoneDoesNotWaitOn(t *testing.T) {
	w := start(t, nil)
	key := newKey(t)
	w.register(w.client(), key)
	a := w.attacker()
	s := a.open()
	q := wire.AppendMailboxRequest(nil, auth(key, w.srv.key, ownerKey(a.key)))
	got, err := say(s, wire.AppendMailboxRequest(q, &wire.Wait{Seconds: 900}))
	if want := 4 + 3 + 32 + 4 + 3 + 3; err != nil || len(got) != want {
		t.Errorf("%d bytes of answers, want %d: %v", len(got), want, err)
	}
}

func TestOwnersOpsNeedTheSignatureOfThisVeryConnection(t *testing.T) {
	w, other := start(t, nil), start(t, nil)
	key := newKey(t)
	w.register(w.client(), key)
	a := w.attacker()
	front := ownerKey(a.key)
	for name, q := range map[string]*wire.Auth{
		"of another connection": auth(key, w.srv.key, ownerKey(newKey(t))),
		"of another mailbox":    auth(key, other.srv.key, front),
		"by another key":        {Key: ownerKey(key), Signature: auth(newKey(t), w.srv.key, front).Signature},
		"of zeros":              {Key: ownerKey(key)},
		"by a key of zeros":     {},
	} {
		s := a.open()
		if got := ask1(t, s, q); got.Code != wire.CodeRefused {
			t.Errorf("a signature %s is answered %v", name, got.Code)
		}
		if got := ask1(t, s, &wire.Fetch{}); got.Code != wire.CodeRefused {
			t.Errorf("fetch after a signature %s is answered %v", name, got.Code)
		}
		_ = s.Reset()
	}
	s := a.open()
	for _, q := range []wire.MailboxRequest{
		&wire.Admission{}, &wire.StandingRequest{}, &wire.PoolChange{}, &wire.Fetch{}, &wire.Wait{Seconds: 900}, &wire.AckMail{}, &wire.RepublishList{},
		&wire.CloseBox{}, &wire.Strangers{Open: true},
	} {
		if got := ask1(t, s, q); got.Code != wire.CodeRefused {
			t.Errorf("%v before auth is answered %v", q.Op(), got.Code)
		}
	}
	mine := newKey(t)
	if got := ask1(t, s, auth(mine, w.srv.key, front)); got.Code != wire.CodeOK {
		t.Fatal(got.Code)
	}
	if got := ask1(t, s, auth(key, w.srv.key, front)); got.Code != wire.CodeRefused {
		t.Errorf("a second auth on one stream is answered %v", got.Code)
	}
	for _, q := range []wire.MailboxRequest{
		&wire.StandingRequest{}, &wire.PoolChange{}, &wire.Fetch{}, &wire.Wait{Seconds: 900}, &wire.AckMail{}, &wire.CloseBox{}, &wire.Strangers{Open: true},
	} {
		if got := ask1(t, s, q); got.Code != wire.CodeNotFound {
			t.Errorf("%v on a box that is not registered is answered %v", q.Op(), got.Code)
		}
	}
}

func TestCursorsThatNobodyGaveAreHarmless(t *testing.T) {
	w := start(t, nil)
	owner, sender := w.owner(), w.client()
	for i, token := range w.tokens(owner, 3) {
		if _, err := sender.Deposit(within(t), w.addr, wire.Deposit{Box: owner.ID(), Token: token, Envelope: sealed(i)}); err != nil {
			t.Fatal(err)
		}
	}
	all, err := owner.Fetch(within(t), 0, 0)
	if err != nil || len(all.Mail) != 3 {
		t.Fatal(len(all.Mail), err)
	}
	for after, want := range map[uint64]int{all.Mail[0].ID: 2, all.Mail[2].ID: 0, all.Mail[2].ID + 1: 0, 1<<64 - 1: 0, 1 << 63: 0} {
		if page, err := owner.Fetch(within(t), after, 0); err != nil || len(page.Mail) != want {
			t.Errorf("after %d: %d, %v", after, len(page.Mail), err)
		}
	}
	for most, want := range map[int]int{1: 1, 2: 2, 3: 3, 512: 3, 513: 3} {
		if page, err := owner.Fetch(within(t), 0, most); err != nil || len(page.Mail) != want || page.More != (want < 3) {
			t.Errorf("at most %d: %d, more %v, %v", most, len(page.Mail), page.More, err)
		}
	}
	if n, err := owner.Ack(within(t), []uint64{0, 1<<64 - 1}); err != nil || n != 0 {
		t.Errorf("ack of ids that are not there: %d, %v", n, err)
	}
	other := w.owner()
	if page, err := other.Fetch(within(t), 0, 0); err != nil || len(page.Mail) != 0 {
		t.Errorf("another box has %d of it, %v", len(page.Mail), err)
	}
}

func TestUnknownBoxBadTokenAndSpentTokenAreAnsweredAlike(t *testing.T) {
	w := start(t, nil)
	owner := w.owner()
	token := w.tokens(owner, 1)[0]
	s := w.attacker().open()
	if a := ask1(t, s, &wire.Deposit{Box: owner.ID(), Token: token, Envelope: sealed(1)}); a.Code != wire.CodeOK {
		t.Fatal(a.Code)
	}
	for name, d := range map[string]*wire.Deposit{
		"unknown box": {Box: wire.BoxID{1}, Token: token, Envelope: sealed(1)},
		"bad token":   {Box: owner.ID(), Token: [16]byte{1}, Envelope: sealed(1)},
		"spent token": {Box: owner.ID(), Token: token, Envelope: sealed(2)},
	} {
		if a := ask1(t, s, d); a.Code != wire.CodeRefused || a.RetryAfter != 0 || len(a.Result) != 0 {
			t.Errorf("%s: %+v", name, a)
		}
	}
	for _, n := range []int{0, 1, 8191, 8193, 32_767, 131_071} {
		if a := ask1(t, s, &wire.Deposit{Box: owner.ID(), Token: token, Envelope: make([]byte, n)}); a.Code != wire.CodeTooLarge {
			t.Errorf("an envelope of %d bytes: %v", n, a.Code)
		}
	}
	p := ask1(t, s, &wire.Prove{Box: wire.BoxID{1}})
	if proof, err := wire.ParseProof(p.Result); err != nil || proof.Present {
		t.Errorf("proof for an unknown box: %+v, %v", proof, err)
	}
}

func TestABoxIsMadeOnlyForWhoeverTheModeAdmits(t *testing.T) {
	stale := func(w *world, bk [32]byte, hour uint32) wire.Admission {
		nonce, err := RegisterStamp(context.Background(), w.srv.key, bk, hour, testBits)
		if err != nil {
			t.Fatal(err)
		}
		return wire.Admission{Hour: hour, Nonce: nonce}
	}
	now := uint32(time.Now().Unix() / 3600)
	for _, mode := range []wire.Mode{wire.ModeOpen, wire.ModeInvite, wire.ModeAllowlist, wire.ModeClosed, 77} {
		t.Run(mode.String(), func(t *testing.T) {
			w := start(t, func(c *ServerConfig, _ *slowQueue) { c.Terms.Mode, c.Terms.RegisterBits = mode, 12 })
			key := newKey(t)
			b, err := w.client().Open(within(t), w.addr, key)
			if err != nil {
				t.Fatal(err)
			}
			for name, how := range map[string]wire.Admission{
				"nothing":                {},
				"work of 4 bits":         stale(w, ownerKey(key), now),
				"work for another key":   stale(w, ownerKey(newKey(t)), now),
				"work of two hours ago":  stale(w, ownerKey(key), now-2),
				"work of two hours on":   stale(w, ownerKey(key), now+2),
				"a voucher nobody gave":  {Voucher: []byte("please")},
				"an old key's signature": {OldKey: ownerKey(newKey(t)), OldSignature: [64]byte{1}},
			} {
				for wire.RegisterFits(w.srv.key, ownerKey(key), how.Hour, how.Nonce, 12) { // chance
					how.Nonce++
				}
				_, err := b.Register(within(t), how)
				wantIs(t, name, err, wire.ErrRefused)
			}
			if mode != wire.ModeOpen {
				return
			}
			nonce, err := RegisterStamp(context.Background(), w.srv.key, ownerKey(key), now, 12)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Register(within(t), wire.Admission{Hour: now, Nonce: nonce}); err != nil {
				t.Error(err)
			}
			if _, err := b.Register(within(t), wire.Admission{}); err != nil {
				t.Errorf("a box that is there needs nothing: %v", err)
			}
			next := newKey(t)
			follower, err := b.c.Open(within(t), w.addr, next)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := follower.Register(within(t), follower.Succeed(newKey(t))); !errors.Is(err, wire.ErrRefused) {
				t.Errorf("follows a box that nobody has: %v", err)
			}
			forged := follower.Succeed(key)
			forged.OldSignature[0] ^= 1
			if _, err := follower.Register(within(t), forged); !errors.Is(err, wire.ErrRefused) {
				t.Errorf("follows by a forged signature: %v", err)
			}
			if _, err := follower.Register(within(t), follower.Succeed(key)); err != nil {
				t.Errorf("follows: %v", err)
			}
		})
	}
}

func TestStrangersNeedAnOpenBoxAndWork(t *testing.T) {
	const bits = 12 // quick to find; a mailbox never asks for so few
	w := start(t, nil)
	if got := w.srv.cfg.Terms.StrangerBits; got != wire.MinStrangerBits {
		t.Errorf("asks for %d bits", got)
	}
	w.srv.cfg.Terms.StrangerBits = bits
	owner, sender := w.owner(), w.client()
	hour := uint32(time.Now().Unix() / 3600)
	d := wire.StrangerDeposit{Box: owner.ID(), Hour: hour, Envelope: sealed(1)}
	_, err := sender.DepositStranger(within(t), w.addr, d)
	wantIs(t, "without work", err, wire.ErrRefused)
	d.Nonce, err = StrangerStamp(within(t), w.srv.key, d.Box, hour, d.Envelope, bits)
	if err != nil {
		t.Fatal(err)
	}
	_, err = sender.DepositStranger(within(t), w.addr, d)
	wantIs(t, "a box that takes none", err, wire.ErrRefused)
	if got, err := owner.Strangers(within(t), true); err != nil || got != bits {
		t.Fatalf("%d bits, %v", got, err)
	}
	if _, err = sender.DepositStranger(within(t), w.addr, d); err != nil {
		t.Error(err)
	}
	moved := d
	moved.Box = w.owner().ID()
	_, err = sender.DepositStranger(within(t), w.addr, moved)
	wantIs(t, "the work for another box", err, wire.ErrRefused)
	large := d
	large.Envelope = make([]byte, 32_768)
	_, err = sender.DepositStranger(within(t), w.addr, large)
	wantIs(t, "a large envelope", err, wire.ErrTooLarge)
	if page, err := owner.Fetch(within(t), 0, 0); err != nil || len(page.Mail) != 1 || page.Mail[0].Spent != ([16]byte{}) {
		t.Errorf("%d envelopes, %v", len(page.Mail), err)
	}
}
