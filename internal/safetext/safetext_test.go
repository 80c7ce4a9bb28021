package safetext

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

var update = flag.Bool("update", false, "rewrite testdata/golden.json")

// golden is one text and what becomes of it. Bytes that are not UTF-8 stand as \xNN in In.
type golden struct{ In, Text, Line string }

// attacks is the corpus: what a peer could put into a text, a name, a file name or an error.
func attacks() []string {
	list := []string{
		"\x1b[31mred\x1b[0m", "\x1b[2J\x1b[H", "\x1b[1A\x1b[2Koverwritten", "\x1b[8mhidden\x1b[28m", "\x1b[6n", "\x1b[c", "\x1b[>c", "\x1b[?1049h",
		"\x1b[?2004l", "\x1b[?1000h", "\x1b[20t", "\x1b[21t", "\x1bc", "\x1b#8", "\x1b(0", "\x1b%G", "\x1b7\x1b8", "\x1bM", "\x1b=", "\x1b[!p",
		"\x1b]0;title\x07", "\x1b]2;title\x1b\\", "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\", "\x1b]52;c;cm0gLXJmIC8=\x07", "\x1b]4;1;?\x07",
		"\x1b]9;4;1;50\x07", "\x1b]10;?\x07", "\x1b]1337;File=:AAAA\x07", "\x1b]777;notify;a;b\x07", "\x1bP$q\"p\x1b\\", "\x1bP+q544e\x1b\\", "\x1bPq#0;2;0;0;0\x1b\\",
		"\x1b_Gi=1;AAAA\x1b\\", "\x1b^pm\x1b\\", "\x1bXsos\x1b\\", "\x1b[200~pasted\x1b[201~", "\x1b[5i", "\x1b[4i", "\x1b[1;1r", "\x1b[?25l", "\x1b[3J", "\x1b[s\x1b[u",
		"\u009b31mred", "\u009d0;title\u009c", "\u0090q\u009c", "\u0084\u0085\u008d", "\x9b31mraw 8 bit", "\x9d52;c;AAAA\x9c", "\x90\x98\x9e\x9f",
		"ring\x07", "a\b\b\bb", "real\rfake", "a\x00b", "a\x0bb\x0cc", "a\x7fb", "\x0e\x0f", "\x05", "\x11\x13", "\x18\x1a", "tab\there", "two\nlines", "three\r\nlines\r\n",
		"\u202egpj.exe", "\u202dabc\u202c", "\u202a\u202b", "\u2066a\u2067b\u2068c\u2069", "\u200e\u200f", "\u061c", "user\u2069 \u2066admin",
		"a\u200bb", "a\u200cb", "a\u200db", "a\u2060b", "\ufeffbom", "a\u00adb", "\u034f", "\u115f\u1160", "\u3164", "\uffa0", "\u180e", "\u2061\u2062\u2063\u2064",
		"\u206a\u206f", "\ufff9a\ufffab\ufffb", "\U0001d173\U0001d17a", "\u2028line\u2029paragraph", "\U000e0041\U000e0042\U000e007f", "\U000e0001", "\U000e0100",
		"a\ufe00", "a\ufe0f", "\u17b4\u17b5", "\u180b", "\ue000\uf8ff", "\U000f0000", "\U0010fffd", "\ufdd0", "\uffff", "\U0001ffff", "\U0010ffff",
		"\xff\xfe", "\xc0\xaf", "\xe2\x82", "\xed\xa0\x80", "\xf8\x88\x80\x80\x80", "\xf4\x90\x80\x80", "ok\x80", "\xc3\x28", "\xe2\x28\xa1", "\xf0\x9f\x98",
		"e\u0301", "\u0301first", "a\n\u0301b", "a\t\u0301", "a\u202e\u0301b", "Z" + strings.Repeat("\u0335", 20), strings.Repeat("\u0e49", 30), strings.Repeat("\u20dd", 12),
		strings.Repeat("\u200b", 30), strings.Repeat("\x1b", 30), strings.Repeat("\u202e", 9), strings.Repeat("\U000e0041", 100),
		"👍", "👍🏽", "👨\u200d👩\u200d👧\u200d👦", "🏳️\u200d🌈", "❤️", "☎︎", "1️⃣", "🇵🇹", "👩🏽\u200d🚀", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "a\u200d👍", "👍\u200da", "👍\u200d", "\u200d👍",
		"می\u200cخواهم", "क्\u200dष", "ශ්\u200dරී", "العربية", "עברית", "Ελληνικά", "русский", "日本語", "한국어", "ไทย", "Tiếng Việt", "naïve café", "ﬁ ligature", "½ × ¾ ≠ 1", "\u0600123", "a\u200cb",
		"../../.ssh/authorized_keys", "/etc/passwd", `C:\x`, `\\?\`, "CON", "x:ads", "name. ", "-rf", "exe\u202egpj", "a/../../b", "$(reboot)", "`reboot`", "; rm -rf /", "%s%n", "<script>alert(1)</script>",
		"{\"a\":\"\x1b\"}", "\"quoted\"", "back\\slash", "\\u001b[2J", "&lt;", "http://раураl.com", "<U+202E>", "␛[2J", "",
		" leading", "trailing ", "   ", "\n\n\n", "\t\t", "\u00a0nbsp", "\u2003em", "\u2800", "￼", "�",
	}
	for c := rune(0); c < 0xa0; c++ { // every control, alone in a word
		if c < ' ' || c >= 0x7f {
			list = append(list, "a"+string(c)+"z")
		}
	}
	for b := 0x80; b <= 0xff; b += 2 { // stray bytes
		list = append(list, "a"+string([]byte{byte(b)})+"z")
	}
	return list
}

func TestTheGoldenCorpus(t *testing.T) {
	var got []golden
	for _, in := range attacks() {
		got = append(got, golden{In: fmt.Sprintf("%+q", in), Text: SafeText(in), Line: SafeLine(in)})
	}
	if len(got) < 300 {
		t.Errorf("only %d strings", len(got))
	}
	const path = "testdata/golden.json"
	if *update {
		b, err := json.MarshalIndent(got, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var want []golden
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%d strings, %d golden ones", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%s\n  is %q, %q\nwant %q, %q", got[i].In, got[i].Text, got[i].Line, want[i].Text, want[i].Line)
		}
	}
}

func TestNothingDangerousIsLeftOfAnyAttack(t *testing.T) {
	for _, in := range attacks() {
		checkText(t, in)
	}
}

// checkText holds for every input whatever.
func checkText(t *testing.T, in string) {
	t.Helper()
	for _, lines := range []bool{true, false} {
		out := clean(in, lines)
		if !utf8.ValidString(out) {
			t.Errorf("%+q gives invalid UTF-8", in)
		}
		if len(out) > 9*len(in)+64 {
			t.Errorf("%d bytes grow to %d", len(in), len(out))
		}
		if again := clean(out, lines); again != out {
			t.Errorf("%+q\ngives %+q\nthen  %+q", in, out, again)
		}
		marks, prev := 0, rune(0)
		for _, r := range out {
			switch {
			case r == '\n' || r == '\t':
				if !lines {
					t.Errorf("%+q keeps %q on one line", in, r)
				}
			case r < ' ' || r >= 0x7f && r <= 0x9f || unicode.In(r, unicode.Bidi_Control, unicode.Zl, unicode.Zp, unicode.Co):
				t.Errorf("%+q keeps %U", in, r)
			case r == '\u200d' || r == '\u200c' || r == '\ufe0e' || r == '\ufe0f':
				if prev < 0x80 && !strings.ContainsRune("0123456789#*", prev) {
					t.Errorf("%+q keeps %U after %U", in, r, prev)
				}
			case Hidden(r):
				t.Errorf("%+q keeps %U", in, r)
			}
			if unicode.Is(unicode.M, r) {
				marks++
			} else {
				marks = 0
			}
			if marks > MaxMarks {
				t.Errorf("%+q keeps %d marks in a row", in, marks)
			}
			prev = r
		}
	}
}

func TestOrdinaryTextStaysAsItIs(t *testing.T) {
	for _, s := range []string{
		"Hello, world!", "two\nlines\tand a tab", "naïve café — “quotes” … €5", "Ελληνικά русский 日本語 한국어 ไทย", "العربية עברית", "می\u200cخواهم", "क्\u200dष", "e\u0301 n\u0303",
		"👍🏽 👨\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 ❤️ 1️⃣ 🇵🇹 👩🏽\u200d🚀", "Việt Tiếng", "∀x∈ℝ: ⌈x⌉ = −⌊−x⌋", "┌─┐\n│x│\n└─┘",
	} {
		if got := SafeText(s); got != s {
			t.Errorf("%q becomes %q", s, got)
		}
	}
}

func TestHugeTextsTakeLittleTimeAndSpace(t *testing.T) {
	for name, s := range map[string]string{
		"a line of 10 MB":         strings.Repeat("x", 10<<20),
		"10 000 combining marks":  "a" + strings.Repeat("\u0301", 10000),
		"a megabyte of escapes":   strings.Repeat("\x1b", 1<<20),
		"a megabyte of overrides": strings.Repeat("\u202e", 1<<20),
		"escapes between letters": strings.Repeat("a\x1b", 1<<19),
		"marks between letters":   strings.Repeat("a"+strings.Repeat("\u0301", 9), 1<<16),
	} {
		if out := SafeText(s); len(out) > 9*len(s)+64 {
			t.Errorf("%s: %d bytes become %d", name, len(s), len(out))
		}
	}
	if out := SafeText("a" + strings.Repeat("\u0301", 10000)); out != "a"+strings.Repeat("\u0301", 8)+"<+9992 marks>" {
		t.Errorf("%.60q", out)
	}
}

func FuzzSafeText(f *testing.F) {
	for _, s := range attacks() {
		f.Add(s)
	}
	f.Fuzz(checkText)
}
