package identity

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestSecretsShowNothingHoweverTheyArePrinted(t *testing.T) {
	p := newPerson("ana")
	b := p.bundle()
	k := &KeyFile{secrets: &keySecrets{seed: p.seed, root: fixedRoot}}
	id := p.invite().ID()
	parsed := must(ParseBundle(must(b.Marshal(p.device, id)), p.account.ID(), id))
	for _, secret := range []any{
		p.seed, &p.seed, p.account, *p.account, p.device, *p.device, p.spk, *p.spk, p.lk, *p.lk,
		p.invite().Secret, b, &b, parsed, k, *k, Passphrase([]byte("correct horse")),
	} {
		name := fmt.Sprintf("%T", secret)
		var texts []string
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%08b"} {
			texts = append(texts, fmt.Sprintf(verb, secret))
		}
		texts = append(texts, fmt.Sprint(secret), fmt.Sprintln("x", secret), secret.(fmt.Stringer).String(), secret.(fmt.GoStringer).GoString())
		texts = append(texts, string(must(json.Marshal(secret))), string(must(secret.(encoding.TextMarshaler).MarshalText())))
		texts = append(texts, string(must(json.Marshal(map[string]any{"inside": secret}))))
		var log bytes.Buffer
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "k", secret)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "k", secret)
		texts = append(texts, log.String())
		for _, text := range texts {
			if !strings.Contains(text, "(secret)") || len(strings.ReplaceAll(text, "(secret)", "")) > 200 {
				t.Errorf("%s prints as %.100q", name, text)
			}
		}
	}
	if text := fmt.Sprintf("%+v %#v", p.invite(), p.invite()); strings.Count(text, "(secret)") != 2 {
		t.Errorf("an invite prints as %s", text)
	}
}

func TestSecretsAreEqualToThemselvesAndNothingElse(t *testing.T) {
	p, q := newPerson("ana"), newPerson("bob")
	for name, eq := range map[string][2]bool{
		"seed":    {p.seed.Equal(p.seed), p.seed.Equal(q.seed)},
		"account": {p.account.Equal(p.seed.Account()), p.account.Equal(q.account)},
		"device":  {p.device.Equal(must(ParseDevice(p.device.MarshalSecret()))), p.device.Equal(q.device)},
		"prekey":  {p.spk.Equal(must(ParsePrekeySecret(p.spk.MarshalSecret()))), p.spk.Equal(q.spk)},
		"seal":    {p.lk.Equal(must(ParseSealSecret(p.lk.MarshalSecret()))), p.lk.Equal(q.lk)},
		"invite":  {p.invite().Equal(p.invite()), p.invite().Equal(Invite{Account: p.account.ID()})},
	} {
		if eq != [2]bool{true, false} {
			t.Errorf("%s: %v", name, eq)
		}
	}
}

func TestKeysThatMayBeReplacedLeaveTheOthersAlone(t *testing.T) {
	d := newPerson("ana").device
	before := must(ParseDevice(d.MarshalSecret()))
	if err := d.RotateNodeKey(fixed("node")); err != nil {
		t.Fatal(err)
	}
	if err := d.RotateRecord(fixed("record")); err != nil {
		t.Fatal(err)
	}
	if d.NodeKey().Equal(before.NodeKey()) || d.RecordSeed() == before.RecordSeed() || d.Discovery() == before.Discovery() || d.RecordKey() == before.RecordKey() {
		t.Error("a rotated key is the old one")
	}
	if d.ID() != before.ID() || !d.SignKey().Equal(before.SignKey()) || !d.IdentityKey().Equal(before.IdentityKey()) {
		t.Error("rotation changed who the device is")
	}
}

func TestTooLittleRandomnessIsAnErrorNotAWeakKey(t *testing.T) {
	short := func() *bytes.Reader { return bytes.NewReader(make([]byte, 15)) }
	for name, err := range map[string]error{
		"seed":   second(NewSeed(short())),
		"device": second(NewDevice(short())),
		"prekey": second(NewPrekey(short(), 1)),
		"seal":   second(NewSealKey(short(), 1)),
		"invite": second(NewInviteSecret(short())),
		"node":   newPerson("ana").device.RotateNodeKey(short()),
		"record": newPerson("ana").device.RotateRecord(short()),
	} {
		if err == nil {
			t.Errorf("%s: made from 15 bytes", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestRecoveryWordsAreReadInAnyFormAndFaultsAreNamed(t *testing.T) {
	seed := newPerson("ana").seed
	words := strings.Fields(seed.Words())
	for name, text := range map[string]string{
		"as they are": strings.Join(words, " "), "upper case": strings.ToUpper(strings.Join(words, " ")), "one a line": "\n" + strings.Join(words, "\r\n") + "\n",
	} {
		if got, err := SeedFromWords(text); err != nil || !got.Equal(seed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	swapped := append([]string{words[1], words[0]}, words[2:]...)
	for text, want := range map[string]string{
		"":                                      "0 words",
		strings.Join(words[:23], " "):           "23 words",
		strings.Join(words[:12], " "):           "12 words",
		"sotto " + strings.Join(words[1:], " "): "word 1 ",
		strings.Join(swapped, " "):              "swapped",
		strings.Repeat("zoo ", 1000):            "far longer",
	} {
		if _, err := SeedFromWords(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.30q: %v, want %q", text, err, want)
		} else if strings.Contains(err.Error(), words[5]) {
			t.Errorf("the error repeats the words: %v", err)
		}
	}
}

func TestAccountIDsHaveOneSpelling(t *testing.T) {
	id := newPerson("ana").account.ID()
	for _, s := range []string{id.String(), strings.ToUpper(id.String())} {
		if got, err := ParseAccountID(s); err != nil || got != id {
			t.Errorf("%s: %v", s, err)
		}
	}
	last := id.String()[:51] + "b" // spare bits set
	for _, s := range []string{"", "x", id.String()[:51], id.String() + "a", last, id.String() + "====", strings.Repeat("1", 52)} {
		if got, err := ParseAccountID(s); err == nil {
			t.Errorf("%q is taken as %s", s, got)
		}
	}
}
