package cli

import (
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"charm.land/lipgloss/v2"

	"sotto/control"
)

// editor keeps the line that somebody types, so that what arrives meanwhile can be printed above it. It knows the keys that a
// terminal's own lines know: backspace, Ctrl-U, Ctrl-W and Ctrl-D; other control characters and the cursor's keys do nothing.
type editor struct {
	line   []rune
	part   []byte // a character that has not come whole
	escape int    // how far a key's sequence has come, 0 outside of one
}

// Stages of an escape sequence: ESC, then what follows it, then ESC [ up to a final byte.
const (
	escapeBegun = 1 + iota
	escapeOne
	escapeCSI
)

// take eats keys up to the end of a line or of the input. plain says that they did no more than add to the line.
func (e *editor) take(keys []byte) (rest []byte, entered, ended, plain bool) {
	plain = true
	for i, b := range keys {
		switch {
		case e.escape > 0:
			e.skip(b)
		case b == '\r' || b == '\n':
			return keys[i+1:], true, false, plain
		case b == 0x04 && len(e.line) == 0:
			return nil, false, true, plain
		case b == 0x1b:
			e.escape = escapeBegun
		case b == 0x7f || b == 0x08:
			e.back()
			plain = false
		case b == 0x15:
			e.line, plain = nil, false
		case b == 0x17:
			e.line, plain = []rune(strings.TrimRightFunc(strings.TrimRightFunc(string(e.line), unicode.IsSpace), func(r rune) bool { return !unicode.IsSpace(r) })), false
		case b == '\t':
			e.add(' ')
		case b >= 0x20:
			e.part = append(e.part, b)
			if r, n := utf8.DecodeRune(e.part); utf8.FullRune(e.part) {
				e.part = e.part[n:]
				e.add(r)
			}
		}
	}
	return nil, false, false, plain
}

// add takes as much as one message holds, and a byte more, so that what is too long is refused and not cut.
func (e *editor) add(r rune) {
	if r != utf8.RuneError && !unicode.IsControl(r) && len(e.line) <= control.MaxText {
		e.line = append(e.line, r)
	}
}

// skip follows an escape sequence to its end.
func (e *editor) skip(b byte) {
	switch {
	case e.escape == escapeBegun && b == '[':
		e.escape = escapeCSI
	case e.escape == escapeBegun && b == 'O':
		e.escape = escapeOne
	case e.escape == escapeCSI && (b < 0x40 || b > 0x7e):
	default:
		e.escape = 0
	}
}

// back takes the last character away, with the marks on it.
func (e *editor) back() {
	for len(e.line) > 0 {
		last := e.line[len(e.line)-1]
		e.line = e.line[:len(e.line)-1]
		if !unicode.Is(unicode.M, last) && last != '\u200d' {
			return
		}
	}
}

// ascii reports whether what was added to the line is shown by itself, without what is before it.
func (e *editor) ascii(before int) bool {
	return !slices.ContainsFunc(e.line[before:], func(r rune) bool { return r > '~' })
}

// enter gives the line and begins the next one.
func (e *editor) enter() string {
	s := string(e.line)
	e.line = nil
	return s
}

// shown is the end of the line, as much of it as fits so many columns.
func (e *editor) shown(columns int) string {
	from := max(0, len(e.line)-4*max(columns, 1)) // no more than could fit is measured
	for s := slices.Clone(e.line[from:]); ; s = s[1:] {
		if out := line(string(s)); len(s) == 0 || lipgloss.Width(out) <= columns {
			return out
		}
	}
}
