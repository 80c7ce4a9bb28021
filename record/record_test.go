package record

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha3"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/edwards25519"
)

var update = flag.Bool("update", false, "rewrite the vectors in testdata")

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// fixed is an endless stream of fixed bytes: SHAKE-256 of a label.
func fixed(label string) io.Reader {
	h := sha3.NewSHAKE256()
	_, _ = h.Write([]byte(label))
	return h
}

func bytes32(label string) (b [32]byte) {
	_, _ = io.ReadFull(fixed(label), b[:])
	return b
}

var (
	owner  = NewOwner(bytes32("record seed"))
	secret = Secret(bytes32("discovery secret"))
	reader = Reader{A: owner.Public(), S: secret}
)

// sealed is a record of the given kind that everyone should take.
func sealed(t testing.TB, plain string, size Size) (name [32]byte, epoch uint64, value []byte) {
	t.Helper()
	epoch = Epoch(secret, now)
	if size == Invite {
		epoch = Fixed
	}
	name, value, err := Seal(owner, secret, epoch, uint64(now.Unix()), now.Add(48*time.Hour), []byte(plain), size, fixed("nonce"))
	if err != nil {
		t.Fatal(err)
	}
	return name, epoch, value
}

func TestEveryByteIsPinnedByAVector(t *testing.T) {
	smallName, epoch, small := sealed(t, "where I am", Small)
	inviteName, _, invite := sealed(t, "what the link leads to", Invite)
	public := owner.Public()
	seed := bytes32("record seed")
	got := map[string]string{
		"record seed":            hex.EncodeToString(seed[:]),
		"record key A":           hex.EncodeToString(public[:]),
		"discovery secret S":     hex.EncodeToString(secret[:]),
		"time":                   now.Format(time.RFC3339),
		"epoch":                  fmt.Sprint(epoch),
		"epoch end":              EpochEnd(secret, epoch).Format(time.RFC3339),
		"small plain":            hex.EncodeToString([]byte("where I am")),
		"small name":             hex.EncodeToString(smallName[:]),
		"small key":              Key(smallName),
		"small blinding factor":  hex.EncodeToString(factor(public, secret, epoch).Bytes()),
		"small record":           hex.EncodeToString(small),
		"invite plain":           hex.EncodeToString([]byte("what the link leads to")),
		"invite name":            hex.EncodeToString(inviteName[:]),
		"invite blinding factor": hex.EncodeToString(factor(public, secret, Fixed).Bytes()),
		"invite record":          hex.EncodeToString(invite),
	}
	const path = "testdata/vectors.json"
	if *update {
		if err := os.WriteFile(path, append(must(json.MarshalIndent(got, "", "  ")), '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var want map[string]string
	if err := json.Unmarshal(must(os.ReadFile(path)), &want); err != nil {
		t.Fatal(err)
	}
	for k := range got {
		if got[k] != want[k] {
			t.Errorf("%s is\n%s, the vector says\n%s", k, got[k], want[k])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d values, %d vectors", len(got), len(want))
	}
}

func TestAReaderOpensWhatTheOwnerSealedAndEveryoneCanCheckIt(t *testing.T) {
	for size, lengths := range map[Size][]int{Small: {0, Small.Max()}, Invite: {1, Invite.Max()}} {
		for _, n := range lengths {
			plain := bytes.Repeat([]byte{7}, n)
			epoch := Epoch(secret, now)
			name, value, err := Seal(owner, secret, epoch, 42, now.Add(time.Hour), plain, size, fixed("nonce"))
			if err != nil || len(value) != int(size) {
				t.Fatalf("%d bytes in %d: %d, %v", n, size, len(value), err)
			}
			if want := must(reader.Name(epoch)); name != want {
				t.Fatalf("the owner calls it %x, the reader %x", name, want)
			}
			if err := Validate(name, value, now); err != nil {
				t.Error(err)
			}
			got, seq, err := reader.Open(epoch, value)
			if err != nil || !bytes.Equal(got, plain) || seq != 42 {
				t.Errorf("%d bytes in %d open as %d, seq %d, %v", n, size, len(got), seq, err)
			}
			if seq, until, err := Seq(value); err != nil || seq != 42 || !until.Equal(now.Add(time.Hour)) {
				t.Errorf("Seq: %d %s %v", seq, until, err)
			}
		}
		if _, _, err := Seal(owner, secret, 1, 1, now, make([]byte, size.Max()+1), size, fixed("nonce")); !errors.Is(err, ErrInvalid) {
			t.Errorf("a byte too many: %v", err)
		}
	}
}

func TestTheBlindedKeyIsAnOrdinaryEd25519Key(t *testing.T) {
	seed := bytes32("record seed")
	if want := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey); !bytes.Equal(want, reader.A[:]) {
		t.Errorf("the record key is not the Ed25519 key of its seed")
	}
	for e := range uint64(50) {
		k := owner.blind(secret, e)
		message := []byte{byte(e)}
		if !ed25519.Verify(k.public[:], message, k.sign(message)) {
			t.Fatalf("day %d: the standard library refuses the signature", e)
		}
	}
}

func TestNoNonceRepeatsUnderTwoDaysKeys(t *testing.T) {
	seen := map[string]bool{}
	for e := range uint64(100) {
		r := string(owner.blind(secret, e).sign([]byte("one message"))[:32])
		if seen[r] {
			t.Fatalf("day %d repeats a nonce: two equations would give the key away", e)
		}
		seen[r] = true
	}
}

func TestDaysAndPeopleCannotBeLinkedByName(t *testing.T) {
	names := map[[32]byte]string{}
	for _, who := range []string{"ana", "bob"} {
		for _, s := range []string{"one", "two"} {
			for _, e := range []uint64{1, 2, 3, Fixed} {
				r := Reader{A: NewOwner(bytes32(who)).Public(), S: bytes32(s)}
				name := must(r.Name(e))
				this := fmt.Sprint(who, s, e)
				if other, ok := names[name]; ok {
					t.Errorf("%s and %s share a name", this, other)
				}
				names[name] = this
			}
		}
	}
}

func TestADayLasts24HoursAndStartsWhenOnlyItsReadersKnow(t *testing.T) {
	starts := map[int64]bool{}
	for i := range 20 {
		s := Secret(bytes32(fmt.Sprint("secret ", i)))
		e := Epoch(s, now)
		end := EpochEnd(s, e)
		if Epoch(s, end.Add(-time.Second)) != e || Epoch(s, end) != e+1 || end.Sub(EpochEnd(s, e-1)) != 24*time.Hour {
			t.Errorf("day %d ends at %s", e, end)
		}
		if !end.After(now) || end.Sub(now) > 24*time.Hour {
			t.Errorf("now lies outside its day, which ends %s", end)
		}
		starts[end.Unix()%daySeconds] = true
	}
	if len(starts) < 15 {
		t.Errorf("twenty people share %d starts of the day", len(starts))
	}
	for _, odd := range []time.Time{time.Unix(-1, 0), {}, time.Unix(0, 0)} {
		if e := Epoch(secret, odd); e > 1 {
			t.Errorf("%s is day %d", odd, e)
		}
	}
	if !EpochEnd(secret, Fixed).After(now.AddDate(1000, 0, 0)) {
		t.Error("the fixed epoch ends")
	}
}

func TestARecordIsRefusedWhenCutFlippedOrUnderAnotherName(t *testing.T) {
	name, epoch, value := sealed(t, "where I am", Small)
	for n := range value {
		if err := Validate(name, value[:n], now); !errors.Is(err, ErrInvalid) {
			t.Fatalf("cut to %d: %v", n, err)
		}
		if n%flipStride != 0 {
			continue
		}
		bad := bytes.Clone(value)
		bad[n] ^= 1 << (n % 8)
		if err := Validate(name, bad, now); err == nil {
			t.Fatalf("byte %d flipped: taken", n)
		}
		if _, _, err := reader.Open(epoch, bad); !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNewer) {
			t.Fatalf("byte %d flipped: opens with %v", n, err)
		}
	}
	for what, bad := range map[string][]byte{
		"empty": nil, "9 KiB": make([]byte, 9216), "a byte too many": append(bytes.Clone(value), 0), "zeros": make([]byte, Small), "zeros, large": make([]byte, Invite),
	} {
		if err := Validate(name, bad, now); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	other := must(reader.Name(epoch + 1))
	if err := Validate(other, value, now); !errors.Is(err, ErrInvalid) {
		t.Errorf("under tomorrow's name: %v", err)
	}
	if _, _, err := reader.Open(epoch+1, value); !errors.Is(err, ErrInvalid) {
		t.Errorf("opened as tomorrow's: %v", err)
	}
	if _, _, err := (Reader{A: reader.A, S: Secret{1}}).Open(epoch, value); !errors.Is(err, ErrInvalid) {
		t.Errorf("opened with another secret: %v", err)
	}
}

func TestARecordOfALaterVersionIsNamedSo(t *testing.T) {
	name, _, value := sealed(t, "x", Small)
	value[0] = 2
	if err := Validate(name, value, now); !errors.Is(err, ErrNewer) {
		t.Error(err)
	}
}

// resign signs a changed record again with the right key, so that only the change can be its fault.
func resign(epoch uint64, value []byte) []byte {
	k := owner.blind(secret, epoch)
	body := value[:len(value)-64]
	return append(bytes.Clone(body), k.sign(signed(k.public, body))...)
}

func TestAStampIsNeededAndOnlyGoodForItsNameDateAndSize(t *testing.T) {
	name, epoch, value := sealed(t, "x", Small)
	stamp := binary.BigEndian.Uint64(value[len(value)-72:])
	until := binary.BigEndian.Uint64(value[atExpiry:])
	if !stamped(name, until, Small, stamp) || stamped(name, until+1, Small, stamp) || stamped(name, until, Invite, stamp) || stamped([32]byte{1}, until, Small, stamp) {
		t.Error("the stamp is good for something else")
	}
	bad := bytes.Clone(value)
	binary.BigEndian.PutUint64(bad[len(bad)-72:], stamp+1)
	if err := Validate(name, resign(epoch, bad), now); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "stamp") {
		t.Errorf("wrong stamp, right signature: %v", err)
	}
}

func TestPaddingHidesNothing(t *testing.T) {
	_, epoch, value := sealed(t, "x", Small)
	aead := must(sealKey(reader.A, secret, epoch))
	name := must(reader.Name(epoch))
	for what, change := range map[string]func(p []byte){
		"a byte behind the text": func(p []byte) { p[len(p)-1] = 1 },
		"a length beyond":        func(p []byte) { p[0], p[1] = 0xff, 0xff },
	} {
		padded := make([]byte, 2+Small.Max())
		padded[1] = 1
		change(padded)
		bad := bytes.Clone(value)
		copy(bad[atSealed:], aead.Seal(nil, bad[atNonce:atSealed], padded, append(bytes.Clone(name[:]), bad[:atNonce]...)))
		if _, _, err := reader.Open(epoch, resign(epoch, bad)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDatesAreCheckedWithADaysGrace(t *testing.T) {
	const day = 24 * time.Hour
	for what, c := range map[string]struct {
		size  Size
		until time.Duration // from now
		seq   time.Duration
		want  error
	}{
		"an hour left":                {Small, time.Hour, 0, nil},
		"over for 23 h":               {Small, -23 * time.Hour, 0, nil},
		"over for 25 h":               {Small, -25 * time.Hour, 0, ErrExpired},
		"over for a month":            {Small, -30 * day, 0, ErrExpired},
		"72 h left":                   {Small, 72 * time.Hour, 0, nil},
		"5 days left":                 {Small, 5 * day, 0, ErrTooEarly},
		"an invite with 30 days left": {Invite, 30 * day, 0, nil},
		"an invite with 32 days left": {Invite, 32 * day, 0, ErrTooEarly},
		"number a day ahead":          {Small, time.Hour, 23 * time.Hour, nil},
		"number two days ahead":       {Small, time.Hour, 48 * time.Hour, ErrTooEarly},
	} {
		name, value, err := Seal(owner, secret, 1, uint64(now.Add(c.seq).Unix()), now.Add(c.until), nil, c.size, fixed("nonce"))
		if err != nil {
			t.Fatal(err)
		}
		if err := Validate(name, value, now); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: %v", what, err)
		}
	}
	name, value, _ := Seal(owner, secret, 1, 1<<63, now.Add(time.Hour), nil, Small, fixed("nonce"))
	if err := Validate(name, value, now); !errors.Is(err, ErrInvalid) {
		t.Errorf("number 2^63: %v", err)
	}
	if _, _, err := Seal(owner, secret, 1, 1, time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), nil, Small, fixed("nonce")); !errors.Is(err, ErrInvalid) {
		t.Errorf("year 10 000: %v", err)
	}
}

func TestTheNewestRecordIsChosenInAnyOrder(t *testing.T) {
	make := func(seq uint64, until time.Duration, nonce string) []byte {
		_, v, err := Seal(owner, secret, 1, seq, now.Add(until), nil, Small, fixed(nonce))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	old, later, best := make(1, time.Hour, "a"), make(2, time.Hour, "a"), make(2, 2*time.Hour, "a")
	twin := make(2, 2*time.Hour, "b")
	if bytes.Compare(twin, best) > 0 {
		twin, best = best, twin
	}
	values := [][]byte{[]byte("junk"), old, later, twin, best}
	for i := range values {
		turned := append(slices.Clone(values[i:]), values[:i]...)
		if got, err := Select(turned); err != nil || !bytes.Equal(turned[got], best) {
			t.Errorf("turned by %d: %d, %v", i, got, err)
		}
	}
	if _, err := Select([][]byte{[]byte("junk"), nil}); !errors.Is(err, ErrInvalid) {
		t.Errorf("junk only: %v", err)
	}
	if _, err := Select(nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("nothing: %v", err)
	}
}

// Points that are no public keys of anybody: small order, mixed order, not canonical, not on the curve.
func hostilePoints() [][32]byte {
	var list [][32]byte
	for _, s := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0000000000000000000000000000000000000000000000000000000000000000",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"0100000000000000000000000000000000000000000000000000000000000080",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0200000000000000000000000000000000000000000000000000000000000000",
	} {
		list = append(list, [32]byte(must(hex.DecodeString(s))))
	}
	a := must(new(edwards25519.Point).SetBytes(reader.A[:]))
	torsion := must(new(edwards25519.Point).SetBytes(list[3][:]))
	return append(list, [32]byte(a.Add(a, torsion).Bytes()))
}

func TestKeysThatAreNotOfPrimeOrderAreRefused(t *testing.T) {
	_, _, value := sealed(t, "x", Small)
	for _, p := range hostilePoints() {
		if _, err := (Reader{A: p, S: secret}).Name(1); !errors.Is(err, ErrInvalid) {
			t.Errorf("reader of %x: %v", p, err)
		}
		if _, _, err := (Reader{A: p, S: secret}).Open(1, value); !errors.Is(err, ErrInvalid) {
			t.Errorf("open by %x: %v", p, err)
		}
		if _, err := primeOrder(p); !errors.Is(err, ErrInvalid) {
			t.Errorf("%x: %v", p, err)
		}
	}
	p := hostilePoints()[3]
	forged := bytes.Clone(value)
	binary.BigEndian.PutUint64(forged[len(forged)-72:], mint(p, binary.BigEndian.Uint64(forged[atExpiry:]), Small))
	if err := Validate(p, forged, now); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "prime order") {
		t.Errorf("record named %x: %v", p, err)
	}
}

func TestKeysAndNamesHaveOneSpelling(t *testing.T) {
	name := bytes32("a name")
	key := Key(name)
	if got, err := ParseKey(key); err != nil || got != name {
		t.Errorf("%s: %v", key, err)
	}
	for _, bad := range []string{"", "/sotto/", key[1:], strings.ToUpper(key), key + "a", key[:len(key)-1], "/pk/" + key[7:], key[:len(key)-1] + "b", key + "\n"} {
		if _, err := ParseKey(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestSecretsShowNothingHoweverTheyArePrinted(t *testing.T) {
	for _, v := range []any{secret, &secret, owner, reader} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d"} {
			if text := fmt.Sprintf(verb, v); !strings.Contains(text, redaction) {
				t.Errorf("%T prints with %s as %.80q", v, verb, text)
			}
		}
		if text := string(must(json.Marshal(v))); !strings.Contains(text, redaction) {
			t.Errorf("%T marshals as %.80q", v, text)
		}
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "k", v)
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "k", v)
		if strings.Count(log.String(), redaction) != 2 {
			t.Errorf("%T logs as %.200q", v, log.String())
		}
	}
	if text := string(must(secret.MarshalText())) + string(must(owner.MarshalText())) + secret.String() + owner.String() + secret.GoString() + owner.GoString(); strings.ReplaceAll(text, redaction, "") != "" {
		t.Errorf("text is %q", text)
	}
	if !owner.Equal(NewOwner(bytes32("record seed"))) || owner.Equal(NewOwner(bytes32("other"))) || !secret.Equal(secret) || secret.Equal(Secret{}) {
		t.Error("Equal")
	}
}

func FuzzValidate(f *testing.F) {
	name, epoch, value := sealed(f, "where I am", Small)
	f.Add(name[:], value)
	_, _, large := sealed(f, "what the link leads to", Invite)
	f.Add(name[:], large)
	f.Fuzz(func(t *testing.T, n, v []byte) {
		var name [32]byte
		copy(name[:], n)
		if err := Validate(name, v, now); err == nil && len(v) != int(Small) && len(v) != int(Invite) {
			t.Errorf("%d bytes are taken", len(v))
		}
		if _, err := Select([][]byte{v, value}); err != nil {
			t.Error(err)
		}
		_, _, _ = reader.Open(epoch, v)
		_, _, _ = Seq(v)
	})
}

// FuzzSignedRecord signs what the fuzzer writes, which it could not do itself.
func FuzzSignedRecord(f *testing.F) {
	name, epoch, value := sealed(f, "where I am", Small)
	f.Add(value[:len(value)-72])
	f.Fuzz(func(t *testing.T, head []byte) {
		v := bytes.Clone(value)
		copy(v[:len(v)-72], head)
		v = resign(epoch, v)
		if err := Validate(name, v, now); err == nil {
			plain, _, err := reader.Open(epoch, v)
			if err == nil && !bytes.Equal(v[atNonce:], value[atNonce:]) {
				t.Errorf("a seal was forged: %q", plain)
			}
		}
	})
}

func FuzzParseKey(f *testing.F) {
	f.Add(Key(bytes32("a name")))
	f.Fuzz(func(t *testing.T, s string) {
		if name, err := ParseKey(s); err == nil && Key(name) != s {
			t.Errorf("%q is also %q", s, Key(name))
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for i := range b.N {
		_, _, _ = Seal(owner, secret, uint64(i), 1, now, nil, Small, fixed("nonce"))
	}
}

func BenchmarkValidate(b *testing.B) {
	name, _, value := sealed(b, "where I am", Small)
	for b.Loop() {
		if err := Validate(name, value, now); err != nil {
			b.Fatal(err)
		}
	}
}
