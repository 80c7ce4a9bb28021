package identity

import (
	"errors"
	"strings"
	"testing"

	"rsc.io/qr"
)

func TestALinkComesBackAsItWentOutHoweverItIsPasted(t *testing.T) {
	i := newPerson("ana").invite()
	link := i.Link()
	for name, text := range map[string]string{
		"as it is":     link,
		"upper case":   strings.ToUpper(link),
		"in brackets":  "<" + link + ">",
		"in quotes":    "“" + link + "”",
		"wrapped":      "  " + link[:40] + "\r\n   " + link[40:90] + "\n" + link[90:] + "\t\n",
		"in the code":  i.QR(),
		"code, lower":  strings.ToLower(i.QR()),
		"code wrapped": i.QR()[:50] + " " + i.QR()[50:],
	} {
		got, err := ParseInvite(text)
		if err != nil || !got.Equal(i) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if strings.Contains(name, "code") != (len(got.Hints) == 0) {
			t.Errorf("%s: hints %q", name, got.Hints)
		}
	}
	if i.ID() != must(ParseInvite(i.QR())).ID() || i.Discovery() == [32]byte{} {
		t.Error("link and code lead to different records")
	}
}

func TestTheCodeFitsNineteenRowsOfATerminal(t *testing.T) {
	i := newPerson("ana").invite()
	i.Reusable = true
	code := must(qr.Encode(i.QR(), qr.L))
	if rows := (code.Size + 4 + 1) / 2; rows > 19 {
		t.Errorf("%d characters make %d modules, %d rows", len(i.QR()), code.Size, rows)
	}
}

func TestAnInviteCutAnywhereIsCalledIncomplete(t *testing.T) {
	i := newPerson("ana").invite()
	i.Hints = []string{"/ip4/192.0.2.1/udp/4001/quic-v1", "/dns/example.org/tcp/4001"}
	for _, link := range []string{i.Link(), i.QR()} {
		for n := 1; n < len(link); n++ {
			if _, err := ParseInvite(link[:n]); !errors.Is(err, ErrTruncated) {
				t.Fatalf("cut to %d of %d: %v", n, len(link), err)
			}
		}
	}
}

func TestAMistypedInviteIsNeverTaken(t *testing.T) {
	link := newPerson("ana").invite().Link()
	for n := len(linkPrefix); n < len(link); n++ {
		for _, c := range "aq7018!é" {
			if rune(link[n]) == c {
				continue
			}
			_, err := ParseInvite(link[:n] + string(c) + link[n+1:])
			if !errors.Is(err, ErrMistyped) && !errors.Is(err, ErrTruncated) {
				t.Fatalf("character %d is %q: %v", n, c, err)
			}
		}
		if n+1 < len(link) && link[n] != link[n+1] {
			swapped := link[:n] + link[n+1:n+2] + link[n:n+1] + link[n+2:]
			if _, err := ParseInvite(swapped); !errors.Is(err, ErrMistyped) && !errors.Is(err, ErrTruncated) {
				t.Fatalf("characters %d and %d swapped: %v", n, n+1, err)
			}
		}
		if _, err := ParseInvite(link[:n] + link[n:n+1] + link[n:]); err == nil {
			t.Fatalf("character %d doubled is taken", n)
		}
	}
	if _, err := ParseInvite(link + "aaaaaaaa"); !errors.Is(err, ErrMistyped) {
		t.Errorf("with something behind: %v", err)
	}
}

func TestOtherTextIsToldApartFromInvites(t *testing.T) {
	for text, want := range map[string]error{
		"":                                    ErrNotInvite,
		"   \n":                               ErrNotInvite,
		"hello":                               ErrNotInvite,
		"https://signal.me/#eu/abc":           ErrNotInvite,
		"simplex:/contact#/?v=2":              ErrNotInvite,
		"12D3KooWabc":                         ErrNotInvite,
		strings.Repeat("a", 1<<20):            ErrNotInvite,
		"sotto:i/" + strings.Repeat("a", 1e6): ErrNotInvite,
		"sotto:d/aebbtk7pd5":                  ErrOtherLink, // a link that links a device must never pass for an invite
		"SOTTO:G/AEBBTK7PD5":                  ErrOtherLink,
		"sotto:":                              ErrTruncated,
		"sotto:i/":                            ErrTruncated,
		"sotto:i/" + strings.Repeat("a", 300): ErrMistyped,
	} {
		if _, err := ParseInvite(text); !errors.Is(err, want) {
			t.Errorf("%.20q: %v, want %v", text, err, want)
		}
	}
}

// relink writes a link around any payload, with the right checksum.
func relink(payload []byte) string {
	return linkPrefix + base32Lower.EncodeToString(append(payload[:len(payload):len(payload)], linkChecksum(payload)...))
}

func TestLinksOfLaterVersionsAndMalformedOnesAreNamed(t *testing.T) {
	i := newPerson("ana").invite()
	payload := func(change func(b []byte) []byte) string {
		b := i.payload(i.Hints)
		return relink(change(b[:len(b)-linkSum]))
	}
	for name, c := range map[string]struct {
		link string
		want error
	}{
		"version 2":          {payload(func(b []byte) []byte { b[0] = 2; return b }), ErrNewer},
		"version 2, shorter": {payload(func(b []byte) []byte { b[0] = 2; return b[:5] }), ErrNewer},
		"an unknown flag":    {payload(func(b []byte) []byte { b[1] |= 0x80; return b }), ErrNewer},
		"no hints counted":   {payload(func(b []byte) []byte { b[linkBase] = 0; return b }), ErrInvalid},
		"five hints counted": {payload(func(b []byte) []byte { b[linkBase] = 5; return b }), ErrInvalid},
		"hint without slash": {payload(func(b []byte) []byte { b[linkBase+2] = 'x'; return b }), ErrInvalid},
		"hint with escape":   {payload(func(b []byte) []byte { b[linkBase+3] = 0x1b; return b }), ErrInvalid},
		"trailing bytes":     {payload(func(b []byte) []byte { return append(b, 0) }), ErrInvalid},
	} {
		if _, err := ParseInvite(c.link); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestHintsThatALinkCannotCarryAreRefusedBeforeItIsMade(t *testing.T) {
	long := "/" + strings.Repeat("a", MaxHint)
	for _, hints := range [][]string{{""}, {"ip4"}, {"/a b"}, {"/\x1b[2J"}, {"/é"}, {long}, {"/a", "/b", "/c", "/d", "/e"}} {
		if err := CheckHints(hints); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.20q: %v", hints, err)
		}
	}
	full := Invite{Account: newPerson("ana").account.ID(), Hints: []string{long[:MaxHint], long[:MaxHint], long[:MaxHint], long[:MaxHint]}}
	if err := CheckHints(full.Hints); err != nil {
		t.Error(err)
	}
	if got, err := ParseInvite(full.Link()); err != nil || len(got.Hints) != MaxHints {
		t.Errorf("the longest link: %v", err)
	}
}
