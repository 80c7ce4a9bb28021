package session

import (
	"bytes"
	"crypto/hpke"
	"errors"
	"testing"

	"sotto/identity"
	"sotto/internal/canon"
)

func TestEnvelopesHaveThreeSizesOnly(t *testing.T) {
	bob := newPerson(t, "bob")
	keys := []*identity.SealSecret{bob.seal}
	room := EnvelopeOverhead + ItemFrame
	for _, c := range []struct{ item, size int }{
		{1, EnvelopeSmall}, {EnvelopeSmall - room, EnvelopeSmall}, {EnvelopeSmall - room + 1, EnvelopeMedium},
		{EnvelopeMedium - room, EnvelopeMedium}, {EnvelopeMedium - room + 1, EnvelopeLarge}, {MaxItem, EnvelopeLarge},
	} {
		item := bytes.Repeat([]byte{0xa5}, c.item)
		env := must(SealEnvelope(bob.seal.Public(), [][]byte{item}))(t)
		if len(env) != c.size {
			t.Errorf("item of %d bytes in an envelope of %d", c.item, len(env))
		}
		items := must(OpenEnvelope(keys, env))(t)
		if len(items) != 1 || !bytes.Equal(items[0], item) {
			t.Errorf("item of %d bytes does not come back", c.item)
		}
	}
	full := make([][]byte, MaxEnvelopeItems)
	for i := range full {
		full[i] = []byte{byte(i)}
	}
	if got := must(OpenEnvelope(keys, must(SealEnvelope(bob.seal.Public(), full))(t)))(t); len(got) != MaxEnvelopeItems {
		t.Errorf("%d items came back", len(got))
	}
	for name, items := range map[string][][]byte{
		"none": nil, "too many": append(full, []byte{1}), "empty item": {{}},
		"too large in all": {make([]byte, MaxItem), make([]byte, MaxItem)}, "item too large": {make([]byte, MaxItem+1)},
	} {
		if _, err := SealEnvelope(bob.seal.Public(), items); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestATextAndAFirstMessageFitTheSmallEnvelope(t *testing.T) {
	a, b := newPerson(t, "alice"), newPerson(t, "bob")
	first := firstItem(t, a, b, true)
	// What a first message carries beside its text: card core, reach, record pair, grant, and 700 bytes of text.
	room := EnvelopeSmall - EnvelopeOverhead - ItemFrame - len(first) + len("hello")
	if room < 1800+400+64+48+700 {
		t.Errorf("a first message has room for %d bytes", room)
	}
}

func TestTwoSealedCopiesShareNothing(t *testing.T) {
	bob := newPerson(t, "bob")
	alice, _ := pair(t)
	item := alice.say(t, "the same text").Item
	one := must(SealEnvelope(bob.seal.Public(), [][]byte{item}))(t)
	two := must(SealEnvelope(bob.seal.Public(), [][]byte{item}))(t)
	for i := 0; i+8 <= len(one); i++ {
		if bytes.Contains(two, one[i:i+8]) {
			t.Fatalf("both copies hold the bytes at %d", i)
		}
		if i+8 <= len(item) && (bytes.Contains(one, item[i:i+8]) || bytes.Contains(two, item[i:i+8])) {
			t.Fatalf("the item's bytes at %d show", i)
		}
	}
}

func TestEnvelopesOpenWithAnyLiveSealKey(t *testing.T) {
	bob := newPerson(t, "bob")
	old := must(identity.NewSealKey(newStream("old"), 1))(t)
	env := must(SealEnvelope(old.Public(), [][]byte{{2}}))(t)
	must(OpenEnvelope([]*identity.SealSecret{bob.seal, old}, env))(t)
	for name, keys := range map[string][]*identity.SealSecret{"no key": nil, "another key": {bob.seal}} {
		if _, err := OpenEnvelope(keys, env); !errors.Is(err, ErrNotOurs) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The key's number is bound, so that one key under two numbers is two keys.
	renumbered := old.Public()
	renumbered.ID++
	if _, err := OpenEnvelope([]*identity.SealSecret{old}, must(SealEnvelope(renumbered, [][]byte{{2}}))(t)); !errors.Is(err, ErrNotOurs) {
		t.Errorf("renumbered key: %v", err)
	}
	if _, err := SealEnvelope(identity.SealKey{Key: [1216]byte(bytes.Repeat([]byte{0xff}, 1216))}, [][]byte{{2}}); !errors.Is(err, ErrBad) {
		t.Errorf("key that is none: %v", err)
	}
}

func TestChangedEnvelopesAreRefused(t *testing.T) {
	bob := newPerson(t, "bob")
	keys := []*identity.SealSecret{bob.seal}
	env := must(SealEnvelope(bob.seal.Public(), [][]byte{[]byte("\x02item")}))(t)
	for i := 1; i < len(env); i += 1 + i/60 {
		if _, err := OpenEnvelope(keys, flip(env, i)); !errors.Is(err, ErrNotOurs) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
	}
	if _, err := OpenEnvelope(keys, flip(env, 0)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("version changed: %v", err)
	}
	for _, size := range []int{0, 1, EnvelopeSmall - 1, EnvelopeSmall + 1, 9 << 10, EnvelopeLarge + 1} {
		if _, err := OpenEnvelope(keys, make([]byte, size)); !errors.Is(err, ErrBad) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	low := bytes.Clone(env)
	clear(low[1+ctSize : 1+sealEncSize]) // X25519 share of low order
	if _, err := OpenEnvelope(keys, low); !errors.Is(err, ErrNotOurs) {
		t.Errorf("share of low order: %v", err)
	}
}

// sealPlain seals a plaintext that SealEnvelope would not make.
func sealPlain(t testing.TB, to identity.SealKey, plain []byte) []byte {
	t.Helper()
	key := must(to.HPKE())(t)
	enc, sender, err := hpke.NewSender(key, hpke.HKDFSHA256(), hpke.ChaCha20Poly1305(), envelopeInfo(&to))
	if err != nil {
		t.Fatal(err)
	}
	sealed := must(sender.Seal([]byte{envelopeVersion}, plain))(t)
	return append(append([]byte{envelopeVersion}, enc...), sealed...)
}

func TestEnvelopesHaveOneForm(t *testing.T) {
	bob := newPerson(t, "bob")
	for name, plain := range map[string][]byte{
		"no item":               {0},
		"more items than bytes": {2, 0, 0, 0, 1, 9},
		"empty item":            {1, 0, 0, 0, 0},
		"length of 2^32-1":      {1, 0xff, 0xff, 0xff, 0xff},
		"length over the cap":   canon.AppendLP([]byte{1}, make([]byte, MaxItem+1)),
		"pad not zero":          append(canon.AppendLP([]byte{1}, []byte{2, 3}), 0, 0, 1),
	} {
		size := EnvelopeSmall
		if len(plain) > size-EnvelopeOverhead {
			size = EnvelopeLarge
		}
		padded := append(plain, make([]byte, size-EnvelopeOverhead+1-len(plain))...)
		if _, err := OpenEnvelope([]*identity.SealSecret{bob.seal}, sealPlain(t, bob.seal.Public(), padded)); !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
