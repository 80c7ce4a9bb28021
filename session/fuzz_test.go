package session

import (
	"bytes"
	"testing"

	"sotto/identity"
	"sotto/internal/canon"
)

func FuzzParseItem(f *testing.F) {
	a, b := newPerson(f, "alice"), newPerson(f, "bob")
	item := firstItem(f, a, b, true)
	f.Add(item)
	f.Add(item[:100])
	f.Add(append([]byte{byte(KindMessage)}, make([]byte, MessageOverhead)...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, item []byte) {
		it, err := ParseItem(item)
		if err != nil {
			if !isRefusal(err) {
				t.Fatalf("unnamed error: %v", err)
			}
			return
		}
		again := []byte{byte(it.Kind)}
		if it.Initial != nil {
			again = canon.AppendLP(again, it.Initial.marshal())
		}
		if !bytes.Equal(append(again, it.Message...), item) {
			t.Fatal("an item has two forms")
		}
		if it.Initial != nil {
			if _, _, err := Accept(b.local, it, b.keys(it.Initial)); err != nil && !isRefusal(err) {
				t.Fatalf("unnamed error: %v", err)
			}
		}
	})
}

func FuzzUnmarshal(f *testing.F) {
	alice, bob := pair(f)
	f.Add(alice.Marshal())
	alice.say(f, "lost")
	f.Add(alice.Marshal())
	bob.mustHear(f, alice.say(f, "x").Item, "x")
	alice.mustHear(f, bob.say(f, "y").Item, "y")
	bob.mustHear(f, alice.say(f, "z").Item, "z")
	f.Add(bob.Marshal())
	a, b := newPerson(f, "alice"), newPerson(f, "bob")
	f.Add(must(Initiate(a.local, b.card, nil, newStream("fuzz")))(f).Marshal())
	message := bytes.Repeat([]byte{1}, MessageOverhead)
	f.Fuzz(func(t *testing.T, stored []byte) {
		s, err := Unmarshal(stored)
		if err != nil {
			return
		}
		if !bytes.Equal(s.Marshal(), stored) {
			t.Fatal("a state has two forms")
		}
		// Whatever is accepted can be used without panic.
		s.NextSend()
		if _, err := s.Decrypt(Item{Kind: KindMessage, Message: message}, nil); err == nil {
			t.Fatal("garbage opened")
		}
		if _, err := s.Encrypt([]byte("x"), newStream("fuzz")); err == nil {
			if _, err := Unmarshal(s.Marshal()); err != nil {
				t.Fatalf("state after a send: %v", err)
			}
		}
	})
}

// FuzzDecrypt lets the fuzzer play a peer who holds the keys: header fields are its own, sealed rightly.
func FuzzDecrypt(f *testing.F) {
	alice, bob := pair(f)
	item := alice.say(f, "genuine").Item
	f.Add(item[1:], uint8(1), uint32(1), uint32(0), make([]byte, 32), false)
	f.Add(item[1:], uint8(0), uint32(0), uint32(9), make([]byte, 40), true)
	f.Add(item[1:100], uint8(1), uint32(20_000), uint32(20_000), []byte{}, true)
	f.Fuzz(func(t *testing.T, raw []byte, flag uint8, pn, n uint32, keys []byte, insider bool) {
		message := raw
		if insider {
			if n > MaxJump+1 {
				n |= 1 << 30 // a far jump costs the test its time, not the receiver
			}
			item := crafted(t, alice, func(h []byte, c *sending) {
				h[0] = flag
				put32(h[offPN:], pn)
				copy(h[offDH:], keys[:min(len(keys), 32)])
				if len(keys) > 32 {
					copy(h[offEK:], keys[32:])
				}
				c.n = n
			})
			message = item[1:]
		}
		e := bob.clone()
		before := e.Marshal()
		o, err := e.Decrypt(Item{Kind: KindMessage, Message: message}, e.keys)
		if err != nil {
			if !bytes.Equal(before, e.Marshal()) {
				t.Fatal("a refused message changed the session")
			}
			return
		}
		if len(o.Store) > MaxSkipped || e.SkippedTotal() != len(o.Store) {
			t.Fatalf("%d keys to store, %d counted", len(o.Store), e.SkippedTotal())
		}
		if _, err := Unmarshal(e.Marshal()); err != nil {
			t.Fatalf("state after an accepted message: %v", err)
		}
	})
}

func FuzzOpenEnvelope(f *testing.F) {
	bob := newPerson(f, "bob")
	keys := []*identity.SealSecret{bob.seal}
	f.Add(must(SealEnvelope(bob.seal.Public(), [][]byte{{2, 3}}))(f), false)
	f.Add([]byte{1, 0, 0, 0, 1, 9}, true)
	f.Add([]byte{2, 0, 0, 0, 1, 9, 0, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, b []byte, insider bool) {
		env := b
		if insider {
			plain := make([]byte, EnvelopeSmall-EnvelopeOverhead+1)
			copy(plain, b)
			env = sealPlain(t, bob.seal.Public(), plain)
		}
		items, err := OpenEnvelope(keys, env)
		if err != nil {
			if !isRefusal(err) {
				t.Fatalf("unnamed error: %v", err)
			}
			return
		}
		for _, it := range items {
			if len(it) == 0 {
				t.Fatal("empty item")
			}
		}
	})
}

func FuzzRestore(f *testing.F) {
	alice, bob := pair(f)
	item := alice.say(f, "genuine")
	bob.mustHear(f, item.Item, "genuine")
	head, _ := alice.Heading(item.Chain)
	short, _ := Shorten(item.Item)
	f.Add(head.Marshal(), short, item.N)
	f.Add(head.Marshal(), short[:20], item.N)
	f.Add([]byte{1}, short, item.N)
	f.Fuzz(func(t *testing.T, heading, short []byte, n uint32) {
		h, err := ParseHeading(heading)
		if err != nil {
			return
		}
		if !bytes.Equal(h.Marshal(), heading) {
			t.Fatal("a heading has two forms")
		}
		item, err := h.Restore(short, n)
		if err != nil {
			return
		}
		if again, ok := Shorten(item); !ok || !bytes.Equal(again, short) {
			t.Fatal("what was restored does not shorten to the same")
		}
	})
}
