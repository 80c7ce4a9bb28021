package identity

import (
	"encoding/hex"
	"strings"
	"testing"
)

// The constants of libsignal's NumericFingerprintGenerator tests (facts, taken as data).
func TestFingerprintsAgreeWithSignals(t *testing.T) {
	alice := must(hex.DecodeString("0506863bc66d02b40d27b8d49ca7c09e9239236f9d7d25d6fcca5ce13c7064d868"))
	bob := must(hex.DecodeString("05f781b6fb32fed9ba1cf2de978d4d5da28dc34046ae814402b5c0dbd96fda907b"))
	a, b := fingerprint(alice, []byte("+14152222222")), fingerprint(bob, []byte("+14153333333"))
	const want = "300354477692869396892869876765458257569162576843440918079131"
	if got := joinFingerprints(a, b); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if joinFingerprints(b, a) != want {
		t.Error("the two ends see different numbers")
	}
}

func TestBothEndsSeeOneSafetyNumberAndAnotherForAnotherKey(t *testing.T) {
	a, b, c := newPerson("ana").account.ID(), newPerson("bob").account.ID(), newPerson("mallory").account.ID()
	if SafetyNumber(a, b) != SafetyNumber(b, a) || SafetyEmoji(a, b) != SafetyEmoji(b, a) {
		t.Error("the two ends differ")
	}
	if SafetyNumber(a, b) == SafetyNumber(a, c) || SafetyEmoji(a, b) == SafetyEmoji(a, c) {
		t.Error("another key gives the same number")
	}
	if groups := strings.Fields(SafetyNumber(a, b)); len(groups) != 12 || len(strings.Join(groups, "")) != 60 {
		t.Errorf("not 60 digits in twelve groups: %q", groups)
	}
}

func TestTheEmojiAreSixtyFourDistinctOnes(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range strings.Fields(emojiTable) {
		if seen[e] || strings.ContainsAny(e, "\u200d\ufe0f") {
			t.Errorf("%s is there twice, or needs joining", e)
		}
		seen[e] = true
	}
	if len(seen) != 64 {
		t.Errorf("%d emoji", len(seen))
	}
}
