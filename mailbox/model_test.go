package mailbox

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sotto/wire"
)

// model is what a queue must hold, kept in the simplest way.
type model struct {
	boxes map[int]*modelBox
}

type modelBox struct {
	tokens  map[int]bool // true: spent
	spentOn map[int]int  // token: envelope
	until   map[int]int64
	mail    []modelMail
}

type modelMail struct {
	n     int
	until int64
}

// A queue and a model are told the same things, restarts and days among them; they must answer alike, and the accounts must agree with
// what is there (I11).
func TestAQueueHoldsWhatAModelHolds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		cfg, h := daysConfig(t)
		cfg.NoSync = true
		cfg.Limits.LotBytes = 40_000
		q := open(t, cfg)
		defer func() { q.stop() }()
		m := model{boxes: map[int]*modelBox{}}
		box := rapid.IntRange(0, 2)
		number := rapid.IntRange(0, 30)
		ctx := context.Background()
		is := func(err, want error) {
			if !errors.Is(err, want) {
				rt.Fatalf("got %v, want %v", err, want)
			}
		}
		of := func(name int) (wire.BoxID, *modelBox) { return boxID(name), m.boxes[name] }
		rt.Repeat(map[string]func(*rapid.T){
			"register": func(rt *rapid.T) {
				name := box.Draw(rt, "box")
				_, err := q.Register(boxID(name), Admit{Vouched: true})
				is(err, nil)
				if m.boxes[name] == nil {
					m.boxes[name] = &modelBox{tokens: map[int]bool{}, spentOn: map[int]int{}, until: map[int]int64{}}
				}
			},
			"pool": func(rt *rapid.T) {
				id, b := of(box.Draw(rt, "box"))
				add, drop := rapid.SliceOfN(number, 0, 8).Draw(rt, "add"), rapid.SliceOfN(number, 0, 3).Draw(rt, "drop")
				var hashes [2][][16]byte
				for i, list := range [][]int{add, drop} {
					for _, n := range list {
						hashes[i] = append(hashes[i], wire.PoolHash(token(n)))
					}
				}
				unspent, err := q.Pool(id, hashes[0], hashes[1])
				if b == nil {
					is(err, wire.ErrNotFound)
					return
				}
				is(err, nil)
				for _, n := range drop {
					if spent, there := b.tokens[n]; there && !spent {
						delete(b.tokens, n)
					}
				}
				for _, n := range add {
					if _, there := b.tokens[n]; !there {
						b.tokens[n] = false
					}
				}
				if want := b.unspent(); unspent != want {
					rt.Fatalf("%d unspent, want %d", unspent, want)
				}
			},
			"deposit": func(rt *rapid.T) {
				id, b := of(box.Draw(rt, "box"))
				n, e := number.Draw(rt, "token"), rapid.IntRange(0, 2).Draw(rt, "envelope")
				size := classSizes[e%len(classSizes)]
				_, until, err := q.Deposit(ctx, wire.Deposit{Box: id, Token: token(n), Envelope: envelope(100*n+e, size)}, netip.Prefix{})
				var spent, there bool
				if b != nil {
					spent, there = b.tokens[n]
				}
				switch {
				case !there || spent && b.spentOn[n] != e:
					is(err, wire.ErrRefused)
				case spent:
					is(err, nil)
					if until != b.until[n] {
						rt.Fatalf("another receipt: %d, before %d", until, b.until[n])
					}
				default:
					is(err, nil)
					b.tokens[n], b.spentOn[n], b.until[n] = true, e, until
					b.mail = append(b.mail, modelMail{n: 100*n + e, until: until})
				}
			},
			"ack": func(rt *rapid.T) {
				name := box.Draw(rt, "box")
				id, b := of(name)
				if b == nil {
					_, err := q.Ack(ctx, id, []uint64{1})
					is(err, wire.ErrNotFound)
					return
				}
				var ids []uint64
				for _, mail := range q.all(t, id) {
					if rapid.Bool().Draw(rt, "ack") {
						ids = append(ids, mail.ID)
						n := int(be.Uint64(mail.Envelope))
						b.mail = slices.DeleteFunc(b.mail, func(mm modelMail) bool { return mm.n == n })
					}
				}
				n, err := q.Ack(ctx, id, append(ids, 999_999))
				is(err, nil)
				if n != len(ids) {
					rt.Fatalf("%d removed, want %d", n, len(ids))
				}
			},
			"close": func(rt *rapid.T) {
				if rapid.IntRange(0, 3).Draw(rt, "really") > 0 {
					return
				}
				name := box.Draw(rt, "box")
				err := q.CloseBox(ctx, boxID(name))
				if m.boxes[name] == nil {
					is(err, wire.ErrNotFound)
					return
				}
				is(err, nil)
				delete(m.boxes, name)
			},
			"time": func(rt *rapid.T) {
				h.pass(time.Duration(rapid.IntRange(1, 30).Draw(rt, "hours")) * time.Hour)
				for range 4 {
					q.mu.Lock()
					before := q.state.Dropped
					q.mu.Unlock()
					q.expire(t)
					q.mu.Lock()
					dropped := int64(q.state.Dropped) * daySeconds
					again := q.state.Dropped != before
					q.mu.Unlock()
					for _, b := range m.boxes {
						b.mail = slices.DeleteFunc(b.mail, func(mm modelMail) bool { return mm.until <= dropped })
						for n, until := range b.until {
							if until <= dropped {
								delete(b.tokens, n)
								delete(b.spentOn, n)
								delete(b.until, n)
							}
						}
					}
					if !again {
						break
					}
					h.pass(time.Hour)
				}
				is(q.freeLotsOf(ctx), nil)
			},
			"restart": func(rt *rapid.T) {
				if rapid.IntRange(0, 3).Draw(rt, "really") > 0 {
					return
				}
				q.stop()
				q = open(t, cfg)
			},
			"": func(rt *rapid.T) {
				held := int64(0)
				for name, b := range m.boxes {
					list := q.all(t, boxID(name))
					if len(list) != len(b.mail) {
						rt.Fatalf("box %d has %d envelopes, want %d", name, len(list), len(b.mail))
					}
					last := uint64(0)
					for i, mail := range list {
						want := b.mail[i].n
						if mail.ID <= last || !bytes.Equal(mail.Envelope, envelope(want, classSizes[want%100%len(classSizes)])) {
							rt.Fatalf("box %d: envelope %d, number %d", name, i, mail.ID)
						}
						last = mail.ID
						held += int64(len(mail.Envelope))
					}
					held += tokenBytes * int64(len(b.tokens))
					if st, err := q.Standing(boxID(name)); err != nil || st.Unspent != b.unspent() || int(st.UsedCount) != len(b.mail) {
						rt.Fatalf("%+v, %v, want %d unspent", st, err, b.unspent())
					}
				}
				if st := q.Stats(); st.Bytes != held || st.Unaccounted != 0 || st.Damaged != 0 || st.Boxes != len(m.boxes) {
					rt.Fatalf("%+v, want %d bytes", st, held)
				}
			},
		})
		q.stop()
		if r, err := VerifyQueue(cfg.Dir); err != nil || len(r.Faults) > 0 {
			rt.Fatal(r, err)
		}
	})
}

func (b *modelBox) unspent() (n uint32) {
	for _, spent := range b.tokens {
		if !spent {
			n++
		}
	}
	return n
}

func FuzzRows(f *testing.F) {
	for _, b := range [][]byte{
		indexRow{Class: 2, Lot: 3}.marshal(), tokenRow{}.marshal(), tokenRow{Spent: true, Day: 9}.marshal(), dayRow{1, 2}.marshal(),
		boxRow{Next: 7}.marshal(), stateRow{Commit: 5, Refusing: true}.marshal(), recordRow{Record: []byte("r")}.marshal(),
		sentinel{Clean: true, Created: time.UnixMilli(1)}.marshal(), headRecord(3),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(again []byte, err error) {
			if err == nil && !bytes.Equal(again, b) {
				t.Errorf("%x became %x", b, again)
			}
		}
		index, err := parseIndex(b)
		same(index.marshal(), err)
		tok, err := parseToken(b)
		same(tok.marshal(), err)
		d, err := parseDay(b)
		same(d.marshal(), err)
		row, err := parseBox(b)
		same(row.marshal(), err)
		state, err := parseState(b)
		if len(b) == stateSize && b[stateSize-3] <= 1 {
			same(state.marshal(), err)
		}
		rec, err := parseRecord(b)
		same(rec.marshal(), err)
		s, err := parseSentinel(b)
		same(s.marshal(), err)
		_, _, _, _ = parseIndexKey(b)
		parseHead(b)
	})
}
