// Package safetext makes text from other people harmless on a terminal, in a log and in JSON: what would move the
// cursor, change the direction of writing or hide is shown as a visible mark instead of being obeyed.
//
// Begin with SafeText (many lines) and SafeLine (one line). Both keep ordinary text of any script and emoji as they are.
package safetext

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxMarks is how many combining marks in a row are left on one character: more only smear over other lines.
const MaxMarks = 8

// maxShown is how many characters of one run of hidden ones are named one by one.
const maxShown = 8

// SafeText keeps line breaks and tabs and makes everything else that is not plain text visible.
func SafeText(s string) string { return clean(s, true) }

// SafeLine is SafeText for places that hold one line: line breaks and tabs become visible too.
func SafeLine(s string) string { return clean(s, false) }

// clean walks the text once; its output is at most a few times as long as the input.
func clean(s string, lines bool) string {
	if plain(s, lines) {
		return s
	}
	w := writer{lines: lines}
	w.out.Grow(len(s) + 64)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		next, _ := utf8.DecodeRuneInString(s[i+n:])
		if r == '\r' && next == '\n' && lines {
			r, n = '\n', 2 // a text written on Windows
		}
		w.rune(r, n, next)
		i += n
	}
	w.endRuns()
	return w.out.String()
}

// plain is the common case: printable ASCII needs no work.
func plain(s string, lines bool) bool {
	for i := range len(s) {
		if c := s[i]; (c < ' ' || c > '~') && !(lines && (c == '\n' || c == '\t')) {
			return false
		}
	}
	return true
}

type writer struct {
	out    strings.Builder
	lines  bool
	prev   rune // the last character that was kept
	marks  int  // combining marks since then
	hidden int  // hidden characters in the run that is being shown
}

// rune writes one character of n input bytes; next is the one after it.
func (w *writer) rune(r rune, n int, next rune) {
	switch {
	case r == utf8.RuneError && n == 1:
		w.keep(utf8.RuneError)
	case w.lines && (r == '\n' || r == '\t'):
		w.keep(r)
	case Hidden(r) && !w.joins(r, next):
		w.show(r)
	case unicode.Is(unicode.M, r):
		w.mark(r)
	default:
		w.keep(r)
	}
}

func (w *writer) keep(r rune) {
	w.endRuns()
	w.out.WriteRune(r)
	w.prev = r
}

// mark writes a combining mark, on a dotted circle where it would otherwise sit on what stands before the text.
func (w *writer) mark(r rune) {
	if w.hidden > 0 || w.prev == 0 || w.prev == '\n' || w.prev == '\t' {
		w.keep('◌')
	}
	if w.marks++; w.marks <= MaxMarks {
		w.out.WriteRune(r)
	}
}

// show names a hidden character instead of writing it.
func (w *writer) show(r rune) {
	if w.marks > 0 {
		w.endRuns()
	}
	if w.hidden++; w.hidden > maxShown {
		return
	}
	switch {
	case r < ' ':
		w.out.WriteRune('␀' + r)
	case r == 0x7f:
		w.out.WriteRune('␡')
	default:
		fmt.Fprintf(&w.out, "<U+%04X>", r)
	}
	w.prev = ' '
}

// endRuns says how much of a run was left out.
func (w *writer) endRuns() {
	if over := w.hidden - maxShown; over > 0 {
		fmt.Fprintf(&w.out, "<+%d hidden>", over)
	}
	if over := w.marks - MaxMarks; over > 0 {
		fmt.Fprintf(&w.out, "<+%d marks>", over)
	}
	w.hidden, w.marks = 0, 0
}

// joins reports whether an invisible character does honest work here: between two emoji, after one that it colours,
// or between letters of a script that needs it to be spelled (Persian, Hindi and others).
func (w *writer) joins(r, next rune) bool {
	switch r {
	case '\u200d': // zero width joiner
		return emojiLike(w.prev) && emojiLike(next) || needsJoiner(w.prev) && needsJoiner(next)
	case '\u200c': // zero width non-joiner
		return needsJoiner(w.prev) && needsJoiner(next)
	case '\ufe0e', '\ufe0f': // text or emoji style of the character before
		return w.marks == 0 && (emojiLike(w.prev) || w.prev == '#' || w.prev == '*' || w.prev >= '0' && w.prev <= '9')
	}
	return false
}

func emojiLike(r rune) bool {
	if r == utf8.RuneError {
		return false // also what follows the last character
	}
	return r >= 0x1f000 && r <= 0x1faff || unicode.Is(unicode.So, r) || r >= 0x2190 && unicode.Is(unicode.Sm, r) || r == '‼' || r == '⁉'
}

func needsJoiner(r rune) bool {
	return unicode.In(r, unicode.Arabic, unicode.Syriac, unicode.Mongolian, unicode.Nko, unicode.Devanagari, unicode.Bengali,
		unicode.Gurmukhi, unicode.Gujarati, unicode.Oriya, unicode.Tamil, unicode.Telugu, unicode.Kannada, unicode.Malayalam,
		unicode.Sinhala, unicode.Tibetan, unicode.Khmer, unicode.Myanmar)
}

// Hidden reports whether a character is a control, changes the direction of writing, or shows nothing where it stands.
func Hidden(r rune) bool {
	switch {
	case r < ' ', r >= 0x7f && r <= 0x9f, r == '\u00ad':
		return true
	case r < 0x300:
		return false
	case unicode.In(r, unicode.Cf, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp),
		unicode.Is(unicode.Variation_Selector, r), unicode.Is(unicode.Other_Default_Ignorable_Code_Point, r):
		return !prependedMark(r)
	case r >= 0xfdd0 && r <= 0xfdef, r >= 0xfff0 && r <= 0xfff8, r >= 0xe0000 && r <= 0xe0fff, r&0xfffe == 0xfffe:
		return true
	}
	return false
}

// prependedMark: format characters that are drawn, such as the Arabic number sign.
func prependedMark(r rune) bool { return unicode.Is(unicode.Prepended_Concatenation_Mark, r) }
