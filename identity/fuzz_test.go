package identity

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzParseDeviceList(f *testing.F) {
	f.Add(newPerson("ana").list)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseDeviceList(b)
		if err != nil {
			if !named(err) {
				t.Errorf("unnamed error: %v", err)
			}
			return
		}
		if again := append(l.fields(), b[len(b)-64:]...); !bytes.Equal(again, b) {
			t.Errorf("two encodings of one list:\n%x\n%x", b, again)
		}
	})
}

func FuzzParseCard(f *testing.F) {
	f.Add(newPerson("ana").card)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCard(b)
		if err != nil {
			if !named(err) {
				t.Errorf("unnamed error: %v", err)
			}
			return
		}
		if c.Account() != c.Devices.Account || c.Entry().ID != c.Core.Device {
			t.Error("the card is of another device than it says")
		}
	})
}

// FuzzCardCore skips the signature, which no mutation would get past.
func FuzzCardCore(f *testing.F) {
	core := newPerson("ana").core()
	f.Add(core.fields())
	p := newPerson("ana")
	list := must(ParseDeviceList(p.list))
	f.Fuzz(func(t *testing.T, fields []byte) {
		c, err := parseCore(append(bytes.Clone(fields), p.device.Sign(typCard, fields)...), list)
		if err == nil && !bytes.Equal(c.fields(), fields) {
			t.Errorf("two encodings of one core:\n%x\n%x", fields, c.fields())
		}
		if err != nil && !named(err) {
			t.Errorf("unnamed error: %v", err)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	p := newPerson("ana")
	id := p.invite().ID()
	f.Add(p.bundle().fields())
	f.Fuzz(func(t *testing.T, fields []byte) {
		raw := append(bytes.Clone(fields), p.device.Sign(typBundle, bundleSigned(id, fields))...)
		b, err := ParseBundle(raw, p.account.ID(), id)
		if err != nil {
			if !named(err) {
				t.Errorf("unnamed error: %v", err)
			}
			return
		}
		if !bytes.Equal(b.fields(), fields) {
			t.Errorf("two encodings of one bundle:\n%x\n%x", fields, b.fields())
		}
	})
}

func FuzzOpenReach(f *testing.F) {
	p := newPerson("ana")
	f.Add(SignReach(p.device, []byte("here")))
	entry := p.device.Entry(made)
	f.Fuzz(func(t *testing.T, b []byte) {
		reach, err := OpenReach(entry, b)
		if err == nil && !bytes.Equal(SignReach(p.device, reach), b) {
			t.Errorf("a second signature over %x is taken: %x", reach, b)
		}
		if err != nil && !named(err) {
			t.Errorf("unnamed error: %v", err)
		}
	})
}

func FuzzParseInvite(f *testing.F) {
	i := newPerson("ana").invite()
	for _, s := range []string{i.Link(), i.QR(), "<" + i.Link() + ">", "sotto:d/abc", "https://example.org", ""} {
		f.Add(s)
	}
	f.Add(relink(i.payload(nil)[:20]))
	f.Fuzz(func(t *testing.T, s string) {
		i, err := ParseInvite(s)
		if err != nil {
			return
		}
		again, err := ParseInvite(i.Link())
		if err != nil || !again.Equal(i) || strings.Join(again.Hints, " ") != strings.Join(i.Hints, " ") {
			t.Errorf("%q does not come back: %v", s, err)
		}
	})
}

// FuzzInvitePayload supplies the checksum, which no mutation would get past.
func FuzzInvitePayload(f *testing.F) {
	i := newPerson("ana").invite()
	f.Add(i.payload(nil)[:linkBase])
	p := i.payload(i.Hints)
	f.Add(p[:len(p)-linkSum])
	f.Fuzz(func(t *testing.T, payload []byte) {
		i, err := ParseInvite(relink(payload))
		if err == nil && !strings.EqualFold(i.Link(), relink(payload)) {
			t.Errorf("two links for one invite: %q, %q", i.Link(), relink(payload))
		}
	})
}

func FuzzParseAccountID(f *testing.F) {
	f.Add(newPerson("ana").account.ID().String())
	f.Fuzz(func(t *testing.T, s string) {
		if id, err := ParseAccountID(s); err == nil && !strings.EqualFold(id.String(), s) {
			t.Errorf("%q is also %s", s, id)
		}
	})
}

func FuzzSeedFromWords(f *testing.F) {
	f.Add(newPerson("ana").seed.Words())
	f.Fuzz(func(t *testing.T, s string) {
		if seed, err := SeedFromWords(s); err == nil && seed.Words() != strings.Join(strings.Fields(strings.ToLower(s)), " ") {
			t.Errorf("%q gives other words", s)
		}
	})
}

func FuzzParseSecrets(f *testing.F) {
	p := newPerson("ana")
	f.Add(p.device.MarshalSecret())
	f.Add(p.spk.MarshalSecret())
	f.Add(p.lk.MarshalSecret())
	f.Fuzz(func(t *testing.T, b []byte) {
		if d, err := ParseDevice(b); err == nil && !bytes.Equal(d.MarshalSecret(), b) {
			t.Error("device keys change on the way")
		}
		if k, err := ParsePrekeySecret(b); err == nil && !bytes.Equal(k.MarshalSecret(), b) {
			t.Error("prekey changes on the way")
		}
		if k, err := ParseSealSecret(b); err == nil && !bytes.Equal(k.MarshalSecret(), b) {
			t.Error("seal key changes on the way")
		}
	})
}

func FuzzOpenKeyFile(f *testing.F) {
	f.Add(fixedKeyFile(Seed{1}, Unencrypted()))
	f.Add(fixedKeyFile(Seed{1}, cheap("pass")))
	f.Add(forge(LockPassphrase, make([]byte, 25), make([]byte, 104)))
	limits := kdfBounds{least: cheapCost, most: cheapCost}
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, err := decodeKeyFile(b, WithPassphrase([]byte("pass")), limits); err == nil && k.Lock() > LockKeyring {
			t.Errorf("opened with lock %d", k.Lock())
		}
	})
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"Ana", "\x1b[2J", "-rf", "e\u0301", "\u202e", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		clean := CleanName(s)
		if !utf8.ValidString(clean) || len(clean) > MaxName || CleanName(clean) != clean {
			t.Errorf("%q becomes %q, then %q", s, clean, CleanName(clean))
		}
		if clean != "" && CheckName(clean) != nil {
			t.Errorf("clean name %q is refused: %v", clean, CheckName(clean))
		}
		_ = Skeleton(s)
	})
}
