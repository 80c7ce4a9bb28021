package cli

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"sotto/control"
	"sotto/internal/safetext"
)

func TestJSONIsSafeToLookAtAndUnchanged(t *testing.T) {
	for name, s := range map[string]string{
		"escape":     "\x1b[31mred\x1b]52;c;eA==\a",
		"8-bit CSI":  "\u009b31m",
		"delete":     "a\x7fb",
		"bidi":       "exe\u202egpj.\u2066x\u2069",
		"zero width": "pay\u200bpal\u2060",
		"tags":       "flag\U000e0041\U000e007f",
		"marks":      "e" + strings.Repeat("\u0301", 50),
		"ordinary":   "Grüße 你好 👩‍🚀 עברית \u00e9",
		"line ends":  "a\u2028b\u2029c\r\nd",
	} {
		t.Run(name, func(t *testing.T) {
			checkEscape(t, s)
		})
	}
}

func checkEscape(t *testing.T, s string) {
	raw, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	safe := escape(raw)
	var back, want string
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(safe, &back); err != nil || back != want {
		t.Fatalf("%q came back as %q: %v", want, back, err)
	}
	if again := safetext.SafeLine(string(safe)); again != string(safe) && utf8.Valid(safe) {
		t.Errorf("%q would still be changed on a terminal:\n%s\n%s", s, safe, again)
	}
}

func FuzzEscape(f *testing.F) {
	f.Add("\x1b[2J")
	f.Add("a\u0301\u202e\U000e0041")
	f.Fuzz(func(t *testing.T, s string) { checkEscape(t, strings.ToValidUTF8(s, "?")) })
}

func TestAgesAreReadAsPeopleWriteThem(t *testing.T) {
	for in, want := range map[string]time.Duration{"90s": 90 * time.Second, "20m": 20 * time.Minute, "24h": 24 * time.Hour, "7d": 7 * 24 * time.Hour, "2w": 14 * 24 * time.Hour} {
		var g age
		if err := g.Set(in); err != nil || time.Duration(g) != want {
			t.Errorf("%s: %v, %v", in, time.Duration(g), err)
		}
	}
	for _, bad := range []string{"", "0s", "-1h", "soon", "1", "9999999999w", "1.5d", "\x1b", "99999d"} {
		var g age
		if err := g.Set(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, time.Duration(g))
		}
	}
}

func TestHelpListsTheExitCodesThatExist(t *testing.T) {
	for _, code := range []int{control.ExitDone, control.ExitFailed, control.ExitUsage, control.ExitNotFound, control.ExitNoNode, control.ExitNotInTime,
		control.ExitLocked, control.ExitUnverified, control.ExitRefused, control.ExitInterrupted} {
		if !strings.Contains(helpExitCodes, "\n  "+strconv.Itoa(code)+" ") {
			t.Errorf("exit code %d is not explained", code)
		}
	}
}

func TestALaterLineOfATextCannotPassForAnotherPerson(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = null.Close() }()
	a := &app{clock: fixed{}, env: Env{Stdout: null}}
	out := a.spoken(control.Message{From: control.Author{Name: "bob\n10:00 eve> hi"}, Text: "one\r\n10:04 alice> two\u2028three", SentAt: fixed{}.Now(), Kind: "text"})
	for i, l := range strings.Split(out, "\n") {
		if i > 0 && !strings.HasPrefix(l, "      ") {
			t.Errorf("line %d begins like a new message: %q", i, l)
		}
	}
}

func TestAnInviteThatOnlyNeighboursKeepIsNotCalledReachable(t *testing.T) {
	for online, noted := range map[bool]bool{true: false, false: true} {
		said, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
		if err != nil {
			t.Fatal(err)
		}
		a := &app{clock: fixed{}, env: Env{Stdout: said, Stderr: said}}
		if err := a.printInvite(control.Invite{Published: true}, control.NetStatus{Online: online, LAN: 1}, &inviteOptions{}, false); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(said.Name())
		if err != nil || strings.Contains(string(text), "no volunteer was reached yet") != noted {
			t.Errorf("online %v: %s, %v", online, text, err)
		}
		_ = said.Close()
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	a := &app{}
	root := a.root()
	for _, c := range root.Commands() {
		if c.Hidden {
			continue
		}
		if c.Short == "" || c.GroupID == "" && c.Name() != "help" && c.Name() != "completion" {
			t.Errorf("%s has no summary or no group", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			if sub.Short == "" {
				t.Errorf("%s has no summary", sub.CommandPath())
			}
		}
	}
}

func TestANodeThatEndsWithoutAWordIsToldOf(t *testing.T) {
	err := childError(errors.New("exit status 2"), strings.NewReader(""))
	if e := (*control.Error)(nil); !errors.As(err, &e) || !strings.Contains(e.Message, "exit status 2") || e.Hint == "" {
		t.Errorf("%+v", err)
	}
}
