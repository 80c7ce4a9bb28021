package identity

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"sotto/internal/safetext"
)

// ErrName: a name that could not be typed, told apart or shown safely.
var ErrName = errors.New("not usable as a name")

// CleanName makes a claimed name safe to show and to type: NFC, no control, invisible or direction-changing characters,
// single spaces, no leading dash, at most MaxName bytes. It may come out empty.
func CleanName(s string) string {
	if len(s) > 16*MaxName {
		s = s[:16*MaxName]
	}
	s = norm.NFC.String(strings.ToValidUTF8(s, ""))
	var out strings.Builder
	marks := 0
	for _, r := range s {
		switch {
		case unicode.IsSpace(r) || r == '\u2800': // braille blank looks like a space
			r, marks = ' ', 0
		case safetext.Hidden(r):
			continue
		case unicode.Is(unicode.M, r):
			if marks++; marks > safetext.MaxMarks {
				continue
			}
		default:
			marks = 0
		}
		out.WriteRune(r)
	}
	return strings.TrimRight(cutUTF8(strings.TrimLeft(strings.Join(strings.Fields(norm.NFC.String(out.String())), " "), "- "), MaxName), " ")
}

// cutUTF8 cuts to at most n bytes without splitting a character.
func cutUTF8(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// CheckName refuses a name that CleanName would change, so that a person sees why at once.
func CheckName(s string) error {
	switch {
	case s == "":
		return told{"a name cannot be empty", ErrName}
	case len(s) > MaxName:
		return told{fmt.Sprintf("a name has at most %d bytes, and this one has %d", MaxName, len(s)), ErrName}
	case CleanName(s) != norm.NFC.String(s):
		return told{"a name has no invisible characters, no doubled spaces and no dash in front", ErrName}
	}
	return nil
}

// Skeleton maps names that look alike to one string (after UTS 39): two names with equal skeletons deserve a warning.
func Skeleton(s string) string {
	var out strings.Builder
	for _, r := range norm.NFKD.String(CleanName(s)) {
		if !unicode.Is(unicode.M, r) && !unicode.IsSpace(r) && !unicode.IsPunct(r) {
			out.WriteRune(unicode.ToLower(r))
		}
	}
	return lookAlikes.Replace(out.String())
}

// lookAlikes maps what is taken for a Latin letter to that letter, in lower case: Cyrillic, Greek, Armenian, IPA, digits,
// letters with a stroke, and the one pair that reads as another letter.
var lookAlikes = strings.NewReplacer(
	"а", "a", "е", "e", "р", "p", "с", "c", "у", "y", "х", "x", "ѕ", "s", "і", "l", "ј", "j", "һ", "h", "ԁ", "d", "ԛ", "q",
	"ԝ", "w", "в", "b", "к", "k", "м", "rn", "н", "h", "о", "o", "т", "t", "ь", "b", "ӏ", "l", "г", "r",
	"α", "a", "β", "b", "ε", "e", "ι", "l", "κ", "k", "ν", "v", "ο", "o", "ρ", "p", "τ", "t", "υ", "u", "χ", "x", "γ", "y", "η", "n", "ω", "w",
	"օ", "o", "ս", "u", "ո", "n", "հ", "h", "ց", "g",
	"ı", "l", "ɩ", "l", "i", "l", "|", "l", "1", "l", "0", "o", "ɡ", "g", "ɑ", "a", "ʏ", "y", "ß", "b",
	"ł", "l", "ø", "o", "đ", "d", "ħ", "h", "ŧ", "t", "m", "rn",
)
