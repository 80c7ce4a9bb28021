package identity

import (
	"errors"
	"strings"
	"testing"
)

func TestClaimedNamesAreMadeSafe(t *testing.T) {
	for in, want := range map[string]string{
		"Ana":                               "Ana",
		"  Ana \t\n Maria ":                 "Ana Maria",
		"Jose\u0301":                        "José",
		"\x1b[31mAna\x1b[0m":                "[31mAna[0m",
		"Ana\u202eexe.gpj":                  "Anaexe.gpj",
		"A\u200bn\u200da\ufeff":             "Ana",
		"-rf":                               "rf",
		"-- -":                              "",
		"\u3164\u2800\u115f":                "",
		"Ana\xff\xfe":                       "Ana",
		"\x00":                              "",
		"محمد":                              "محمد",
		"张伟":                                "张伟",
		strings.Repeat("é", 40):             strings.Repeat("é", 32),
		"Z" + strings.Repeat("\u0335", 100): "Z" + strings.Repeat("\u0335", 8),
		strings.Repeat("x", 63) + "é":       strings.Repeat("x", 63),
	} {
		if got := CleanName(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
		if want != "" && CheckName(CleanName(in)) != nil {
			t.Errorf("clean name %q is refused", CleanName(in))
		}
	}
}

func TestNamesThatCouldNotBeTypedAreRefused(t *testing.T) {
	for _, s := range []string{"", " Ana", "Ana ", "A  b", "-Ana", "A\u200bna", "Ana\n", "\x1b[2J", strings.Repeat("x", 65), "\xff"} {
		if err := CheckName(s); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"Ana", "Jose\u0301", "ana maria", "Łukasz", "李"} {
		if err := CheckName(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestNamesThatLookAlikeHaveOneSkeleton(t *testing.T) {
	for _, pair := range [][2]string{
		{"paypal", "раураl"}, {"Ana", "Аna"}, {"alice", "alісe"}, {"modern", "rnodern"}, {"Bill", "BilI"},
		{"Bill", "Bi1l"}, {"Zoo", "Z00"}, {"Ana Maria", "ana-maria"}, {"José", "Jose"}, {"ｆull", "full"}, {"𝐀na", "Ana"},
		{"nikos", "nіkοѕ"}, {"Ana", "Ana\u200b"},
	} {
		if a, b := Skeleton(pair[0]), Skeleton(pair[1]); a != b {
			t.Errorf("%q and %q: %q, %q", pair[0], pair[1], a, b)
		}
	}
	for _, pair := range [][2]string{{"Ana", "Ann"}, {"Bob", "Rob"}, {"李", "张"}, {"Анна", "Инна"}} {
		if Skeleton(pair[0]) == Skeleton(pair[1]) {
			t.Errorf("%q and %q clash", pair[0], pair[1])
		}
	}
}
