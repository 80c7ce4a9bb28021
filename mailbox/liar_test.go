package mailbox

import (
	"context"
	"crypto/ed25519"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"

	"sotto/internal/canon"
	"sotto/wire"
)

// liar is a mailbox that answers as a test says.
type liar struct {
	host.Host
	t    *testing.T
	key  ed25519.PrivateKey
	self [32]byte
	addr string
}

// lie answers each request with the frames that say returns; nil ends the stream.
func lie(t *testing.T, say func(l *liar, q wire.MailboxRequest) [][]byte) *liar {
	t.Helper()
	nothingLeft(t)
	l := &liar{t: t, key: newKey(t)}
	l.Host, l.self = newHost(t, l.key), ownerKey(l.key)
	l.addr = addrOf(l.Host)
	var wg sync.WaitGroup
	t.Cleanup(wg.Wait)
	t.Cleanup(func() { _ = l.Close() })
	l.SetStreamHandler(protocolOf(""), func(s network.Stream) {
		wg.Add(1)
		defer wg.Done()
		for {
			body, err := wire.ReadFrame(s, wire.MaxMailboxRequest)
			if err != nil {
				_ = s.Reset()
				return
			}
			q, err := wire.ParseMailboxRequest(body)
			if err != nil {
				t.Error(err)
			}
			frames := say(l, q)
			if frames == nil {
				_ = s.Reset()
				return
			}
			for _, f := range frames {
				if _, err := s.Write(f); err != nil {
					return
				}
			}
		}
	})
	return l
}

func (l *liar) client() *Client {
	c := NewClient(newHost(l.t, newKey(l.t)), "", ClientConfig{AnswerTimeout: 500 * time.Millisecond})
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

func ok(result []byte) [][]byte { return [][]byte{wire.MailboxAnswer{Result: result}.Append(nil)} }

// receipt is an honest one, spoiled and then signed by key.
func (l *liar) receipt(d *wire.Deposit, key ed25519.PrivateKey, spoil func(*wire.Custody)) []byte {
	const hour = 498_611
	r := wire.Custody{Box: d.Box, Hash: hashOf(d.Envelope), Arrived: hour * 3600, HeldUntil: wire.HeldUntil(hour*3600, 30)}
	if spoil != nil {
		spoil(&r)
	}
	copy(r.Signature[:], canon.Sign(key, wire.SigCustody, r.Fields()))
	return r.Marshal()
}

func TestAReceiptIsBelievedOnlyForThisEnvelopeByThisMailbox(t *testing.T) {
	other := newKey(t)
	for name, answer := range map[string]func(l *liar, d *wire.Deposit) []byte{
		"signed by another key": func(l *liar, d *wire.Deposit) []byte { return l.receipt(d, other, nil) },
		"a flipped signature":   func(l *liar, d *wire.Deposit) []byte { b := l.receipt(d, l.key, nil); b[len(b)-1] ^= 1; return b },
		"signed as something else": func(l *liar, d *wire.Deposit) []byte {
			b := l.receipt(d, l.key, nil)
			return append(b[:len(b)-64], canon.Sign(l.key, wire.SigProof, b[:len(b)-64])...)
		},
		"another envelope": func(l *liar, d *wire.Deposit) []byte {
			return l.receipt(d, l.key, func(r *wire.Custody) { r.Hash[0] ^= 1 })
		},
		"another box": func(l *liar, d *wire.Deposit) []byte {
			return l.receipt(d, l.key, func(r *wire.Custody) { r.Box[0] ^= 1 })
		},
		"no time at all": func(l *liar, d *wire.Deposit) []byte {
			return l.receipt(d, l.key, func(r *wire.Custody) { r.HeldUntil = r.Arrived / 86_400 * 86_400 })
		},
		"less than a day": func(l *liar, d *wire.Deposit) []byte {
			return l.receipt(d, l.key, func(r *wire.Custody) { r.HeldUntil = (r.Arrived/86_400 + 1) * 86_400 })
		},
		"40 days": func(l *liar, d *wire.Deposit) []byte {
			return l.receipt(d, l.key, func(r *wire.Custody) { r.HeldUntil += 10 * 86_400 })
		},
		"a date within the day": func(l *liar, d *wire.Deposit) []byte {
			return l.receipt(d, l.key, func(r *wire.Custody) { r.HeldUntil-- })
		},
		"before it may be handed out": func(l *liar, d *wire.Deposit) []byte {
			return l.receipt(d, l.key, func(r *wire.Custody) {
				r.HeldUntil = d.NotBefore / 86_400 * 86_400
				r.Arrived = r.HeldUntil - 20*86_400
			})
		},
		"no receipt":     func(*liar, *wire.Deposit) []byte { return nil },
		"a proof":        func(*liar, *wire.Deposit) []byte { return wire.Proof{}.Marshal() },
		"trailing bytes": func(l *liar, d *wire.Deposit) []byte { return append(l.receipt(d, l.key, nil), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			l := lie(t, func(l *liar, q wire.MailboxRequest) [][]byte { return ok(answer(l, q.(*wire.Deposit))) })
			d := wire.Deposit{Box: wire.BoxID{1}, Token: [16]byte{2}, NotBefore: 498_611*3600 + 86_400, Envelope: sealed(1)}
			_, err := l.client().Deposit(within(t), l.addr, d)
			wantIs(t, "the receipt", err, wire.ErrUntrusted)
			if errors.Is(err, wire.ErrUnreachable) {
				t.Errorf("a liar is called unreachable: %v", err)
			}
		})
	}
	l := lie(t, func(l *liar, q wire.MailboxRequest) [][]byte { return ok(l.receipt(q.(*wire.Deposit), l.key, nil)) })
	if _, err := l.client().Deposit(within(t), l.addr, wire.Deposit{Envelope: sealed(1)}); err != nil {
		t.Errorf("the honest one: %v", err)
	}
}

func TestTermsAndProofsAreBelievedOnlyFromTheirMailbox(t *testing.T) {
	other := newKey(t)
	terms := func(l *liar, service [32]byte, key ed25519.PrivateKey) []byte {
		v := wire.Terms{Service: service, KeepDays: 30}
		copy(v.Signature[:], canon.Sign(key, wire.SigTerms, v.Fields()))
		return v.Marshal()
	}
	proof := func(q wire.Prove, key ed25519.PrivateKey) []byte {
		v := wire.Proof{Time: 1_795_000_000}
		copy(v.Signature[:], canon.Sign(key, wire.SigProof, v.Fields(q)))
		return v.Marshal()
	}
	for name, answer := range map[string]func(l *liar, q wire.MailboxRequest) []byte{
		"another mailbox's": func(l *liar, q wire.MailboxRequest) []byte {
			if p, is := q.(*wire.Prove); is {
				return proof(*p, other)
			}
			return terms(l, ownerKey(other), other)
		},
		"for another question": func(l *liar, q wire.MailboxRequest) []byte {
			if p, is := q.(*wire.Prove); is {
				p.Nonce[0] ^= 1
				return proof(*p, l.key)
			}
			return terms(l, l.self, other)
		},
		"nothing": func(*liar, wire.MailboxRequest) []byte { return nil },
	} {
		l := lie(t, func(l *liar, q wire.MailboxRequest) [][]byte { return ok(answer(l, q)) })
		c := l.client()
		_, err := c.Terms(within(t), l.addr)
		wantIs(t, name+" terms", err, wire.ErrUntrusted)
		_, err = c.Prove(within(t), l.addr, wire.BoxID{}, [32]byte{}, [32]byte{})
		wantIs(t, name+" proof", err, wire.ErrUntrusted)
	}
}

func TestPagesAreBelievedOnlyAboveTheCursor(t *testing.T) {
	mail := func(ids ...uint64) (p wire.Page) {
		for _, id := range ids {
			p.Mail = append(p.Mail, wire.Mail{ID: id, Envelope: sealed(int(id))})
		}
		return p
	}
	for name, page := range map[string]wire.Page{
		"an old one":              mail(7),
		"old ones before new":     mail(3, 8),
		"falling":                 mail(9, 8),
		"more than were asked":    mail(8, 9, 10),
		"none, and more":          {More: true},
		"one of 100 bytes":        {Mail: []wire.Mail{{ID: 8, Envelope: make([]byte, 100)}}},
		"one from the year 10000": {Mail: []wire.Mail{{ID: 8, Arrived: 253_402_300_800, Envelope: sealed(1)}}},
	} {
		l := lie(t, func(l *liar, q wire.MailboxRequest) [][]byte {
			if a, is := q.(*wire.Auth); is {
				id := wire.NewBoxID(l.self, a.Key)
				return ok(id[:])
			}
			return ok(page.Marshal())
		})
		b, err := l.client().Open(within(t), l.addr, newKey(t))
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Fetch(within(t), 7, 2)
		wantIs(t, name, err, wire.ErrUntrusted)
		_, err = b.Wait(within(t), 7, 2, time.Minute)
		wantIs(t, name+", waiting", err, wire.ErrUntrusted)
	}
}

func TestAMailboxThatNamesAnotherBoxIsNotOpened(t *testing.T) {
	l := lie(t, func(*liar, wire.MailboxRequest) [][]byte { return ok(make([]byte, 32)) })
	_, err := l.client().Open(within(t), l.addr, newKey(t))
	wantIs(t, "another box", err, wire.ErrUntrusted)
}

func TestAMailboxThatStallsIsGivenUpAndAskedAnewTheNextTime(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	l := lie(t, func(l *liar, q wire.MailboxRequest) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		if asked++; asked == 1 {
			return [][]byte{{}}
		}
		return ok(l.receipt(q.(*wire.Deposit), l.key, nil))
	})
	c := l.client()
	d := wire.Deposit{Envelope: sealed(1)}
	_, err := c.Deposit(within(t), l.addr, d)
	wantIs(t, "no answer", err, wire.ErrUnreachable)
	if _, err := c.Deposit(within(t), l.addr, d); err != nil {
		t.Errorf("the next time: %v", err)
	}
}

func TestAnswersOutOfOrderTwiceOrUnaskedAreNeverTakenForAnothersReceipt(t *testing.T) {
	var mu sync.Mutex
	var held [][]byte
	l := lie(t, func(l *liar, q wire.MailboxRequest) [][]byte { // answers the first two the wrong way round
		mu.Lock()
		defer mu.Unlock()
		mine := wire.MailboxAnswer{Result: l.receipt(q.(*wire.Deposit), l.key, nil)}.Append(nil)
		if len(held) == 0 {
			held = append(held, mine)
			return [][]byte{{}}
		}
		return [][]byte{mine, held[0]}
	})
	c := l.client()
	errs := make(chan error, 2)
	for i := range 2 {
		go func() {
			_, err := c.Deposit(within(t), l.addr, wire.Deposit{Envelope: sealed(i)})
			errs <- err
		}()
	}
	for range 2 {
		if err := <-errs; err == nil {
			t.Error("an answer in the wrong place is believed")
		}
	}
	twice := lie(t, func(l *liar, q wire.MailboxRequest) [][]byte {
		mine := wire.MailboxAnswer{Result: l.receipt(q.(*wire.Deposit), l.key, nil)}.Append(nil)
		return [][]byte{mine, mine}
	})
	c = twice.client()
	for i := range 5 {
		if r, err := c.Deposit(within(t), twice.addr, wire.Deposit{Envelope: sealed(i)}); err == nil && r.Hash != hashOf(sealed(i)) {
			t.Error("the second answer is taken for the next deposit's")
		}
	}
}

func TestAnswersAgainstTheFormatEndTheStream(t *testing.T) {
	for name, frames := range map[string][][]byte{
		"length zero":            {u32(0)},
		"length over the limit":  {u32(wire.MaxMailboxAnswer + 1)},
		"length 2^32-1":          {u32(1<<32 - 1)},
		"a refusal with results": {framed([]byte{1, 0, 0, 7})},
		"two bytes":              {framed([]byte{0, 0})},
	} {
		l := lie(t, func(*liar, wire.MailboxRequest) [][]byte { return frames })
		_, err := l.client().Terms(within(t), l.addr)
		wantIs(t, name, err, wire.ErrUntrusted)
	}
	l := lie(t, func(*liar, wire.MailboxRequest) [][]byte { return [][]byte{u32(100), {0}} }) // and never the rest
	c := NewClient(newHost(t, newKey(t)), "", ClientConfig{AnswerTimeout: 200 * time.Millisecond, WriteTimeout: 200 * time.Millisecond})
	t.Cleanup(func() { _ = c.Close() })
	_, err := c.Terms(within(t), l.addr)
	wantIs(t, "half an answer", err, wire.ErrUnreachable)
}

func TestRefusalsAreTheSentinelsOfTheirCodes(t *testing.T) {
	for code, want := range map[wire.Code]error{
		wire.CodeRefused: wire.ErrRefused, wire.CodeLater: wire.ErrLater, wire.CodeOverloaded: wire.ErrOverloaded, wire.CodeTooLarge: wire.ErrTooLarge,
		wire.CodeNotFound: wire.ErrNotFound, 99: wire.ErrRefused,
	} {
		l := lie(t, func(*liar, wire.MailboxRequest) [][]byte {
			return [][]byte{wire.MailboxAnswer{Code: code, RetryAfter: 7}.Append(nil)}
		})
		_, err := l.client().Terms(within(t), l.addr)
		wantIs(t, code.String(), err, want)
		var refusal *AnswerError
		if !errors.As(err, &refusal) || refusal.RetryAfter != 7*time.Second || !strings.Contains(err.Error(), "terms at ") {
			t.Errorf("%v", err)
		}
	}
}

func TestAKeptStreamThatEndedIsOpenedAnewOnce(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	l := lie(t, func(l *liar, q wire.MailboxRequest) [][]byte {
		mu.Lock()
		defer mu.Unlock()
		if asked++; asked == 2 {
			return nil
		}
		return ok(l.receipt(q.(*wire.Deposit), l.key, nil))
	})
	c := l.client()
	for i := range 3 {
		if _, err := c.Deposit(within(t), l.addr, wire.Deposit{Envelope: sealed(i)}); err != nil {
			t.Errorf("deposit %d: %v", i, err)
		}
	}
	never := lie(t, func(*liar, wire.MailboxRequest) [][]byte { return nil })
	_, err := never.client().Terms(within(t), never.addr)
	wantIs(t, "a mailbox that ends every stream", err, wire.ErrUnreachable)
}

func TestAMailboxThatNeverWaitsIsNotAskedInALoop(t *testing.T) {
	var mu sync.Mutex
	asked := 0
	l := lie(t, func(l *liar, q wire.MailboxRequest) [][]byte {
		if a, is := q.(*wire.Auth); is {
			id := wire.NewBoxID(l.self, a.Key)
			return ok(id[:])
		}
		mu.Lock()
		defer mu.Unlock()
		asked++
		return ok(wire.Page{}.Marshal())
	})
	b, err := l.client().Open(within(t), l.addr, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err = b.Wait(ctx, 0, 0, time.Minute)
	wantIs(t, "the wait", err, context.DeadlineExceeded)
	mu.Lock()
	defer mu.Unlock()
	if asked > 2 {
		t.Errorf("asked %d times in a second", asked)
	}
}

func TestAddressesThatNameNoMailboxAreUnreachable(t *testing.T) {
	c := NewClient(newHost(t, newKey(t)), "", ClientConfig{DialTimeout: time.Second})
	t.Cleanup(func() { _ = c.Close() })
	plain := newHost(t, newKey(t)) // speaks no such protocol
	gone := newHost(t, newKey(t))
	addr := addrOf(gone)
	_ = gone.Close()
	for _, a := range []string{"", "/ip4/127.0.0.1/tcp/1", "not an address", "/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", addrOf(plain), addr} {
		_, err := c.Terms(within(t), a)
		wantIs(t, a, err, wire.ErrUnreachable)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	_, err := c.Terms(within(t), addrOf(plain))
	wantIs(t, "a closed client", err, wire.ErrUnreachable)
	_, err = c.Open(within(t), addrOf(plain), newKey(t))
	wantIs(t, "a closed client", err, wire.ErrUnreachable)
}

func TestACallerWhoGivesUpDoesNotEndTheOthersStream(t *testing.T) {
	hold, begun := make(chan struct{}), make(chan struct{}, 10)
	w := start(t, func(_ *ServerConfig, q *slowQueue) { q.hold, q.begun = hold, begun })
	owner, sender := w.owner(), w.client()
	tokens := w.tokens(owner, 2)
	ctx, cancel := context.WithCancel(context.Background())
	gaveUp, stays := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := sender.Deposit(ctx, w.addr, wire.Deposit{Box: owner.ID(), Token: tokens[0], Envelope: sealed(0)})
		gaveUp <- err
	}()
	<-begun
	go func() {
		_, err := sender.Deposit(within(t), w.addr, wire.Deposit{Box: owner.ID(), Token: tokens[1], Envelope: sealed(1)})
		stays <- err
	}()
	<-begun
	cancel()
	wantIs(t, "who gave up", <-gaveUp, context.Canceled)
	close(hold)
	if err := <-stays; err != nil {
		t.Errorf("the other: %v", err)
	}
}

func TestAClosedBoxIsNotOpenedAgainByItself(t *testing.T) {
	w := start(t, nil)
	owner := w.owner()
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := owner.Fetch(within(t), 0, 0)
	wantIs(t, "fetch", err, wire.ErrUnreachable)
	eventually(t, "its stream ends", func() bool { return w.srv.Status().Streams == 0 })
}
