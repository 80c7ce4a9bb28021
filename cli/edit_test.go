package cli

import (
	"strings"
	"testing"
	"unicode/utf8"

	"charm.land/lipgloss/v2"

	"sotto/control"
)

func TestALineIsEditedAsATerminalDoes(t *testing.T) {
	for keys, want := range map[string]string{
		"hello\r":                              "hello",
		"helo\x7flo\r":                         "hello",
		"\x7f\x7fa\r":                          "a",
		"one two  \x17three\r":                 "one three",
		"all of it\x15new\r":                   "new",
		"你好吗\x7f\r":                            "你好",
		"e\u0301\x7fa\r":                       "a",
		"up\x1b[A\x1b[1;5Ddown\x1bOHs\x1bx\r":  "updowns",
		"a\tb\x07\x00\x9f\r":                   "a b",
		"\xff\xfebad\r":                        "bad",
		"half\x04 done\n":                      "half done",
		strings.Repeat("x", control.MaxText+9): strings.Repeat("x", control.MaxText+1),
	} {
		e := &editor{}
		for i := range len(keys) { // however the bytes come
			if _, entered, ended, _ := e.take([]byte{keys[i]}); ended || entered != (i == len(keys)-1 && i < control.MaxText) {
				t.Fatalf("%.40q: entered %v, ended %v after %d", keys, entered, ended, i)
			}
		}
		if got := e.enter(); got != want {
			t.Errorf("%.40q became %.40q", keys, got)
		}
	}
	e := &editor{}
	rest, entered, _, _ := e.take([]byte("one\rtwo\r"))
	if first := e.enter(); !entered || first != "one" || string(rest) != "two\r" {
		t.Errorf("%q, then %q", first, rest)
	}
	if _, _, ended, _ := e.take([]byte{4}); !ended {
		t.Error("Ctrl-D in an empty line is not the end")
	}
}

func FuzzEditor(f *testing.F) {
	f.Add([]byte("a\x1b[200~b\x7f你\x17\r"))
	f.Fuzz(func(t *testing.T, keys []byte) {
		e := &editor{}
		for len(keys) > 0 {
			rest, entered, _, _ := e.take(keys)
			if s := string(e.line); !utf8.ValidString(s) || strings.ContainsAny(s, "\r\n\x1b\x7f") {
				t.Fatalf("the line became %q", s)
			}
			if w := lipgloss.Width(e.shown(20)); w > 20 {
				t.Fatalf("%d columns are shown of %q", w, string(e.line))
			}
			if entered {
				e.enter()
			}
			if len(rest) >= len(keys) {
				t.Fatal("nothing was eaten")
			}
			keys = rest
		}
	})
}
