package main

import (
	"slices"
	"testing"
	"testing/fstest"
)

func TestWhatDoesNotFitIsNamed(t *testing.T) {
	const doc = "# 1 One\n\n## 1.2 Two, or three\n\n# Appendix A Local\n\n## A.3 Rows\n\n" +
		"[here](#12-two-or-three) [code](../x/a.go) [gone](#nowhere) [lost](LOST.md) [away](https://example.org/x#y)\n" +
		"`x/testdata/named.json` `x/testdata/imagined.json` `TestThere` `TestNowhere`\n\n```\n# not a heading\n[not](a-link)\n```\n"
	root := fstest.MapFS{
		"docs/PROTOCOL.md":           {Data: []byte(doc)},
		"x/a.go":                     {Data: []byte("// Good: PROTOCOL 1, 1.2 and Appendix A. PROTOCOL A.3.\n// Bad: PROTOCOL 1.2 and 1.4 (PROTOCOL A.9).\n")},
		"x/a_test.go":                {Data: []byte("func TestThere(t *testing.T) {}\n")},
		"x/testdata/named.json":      {},
		"x/testdata/forgotten.json":  {},
		".ci/hidden.go":              {Data: []byte("// PROTOCOL 99")},
		"x/testdata/script/talk.txt": {},
	}
	got, err := check(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"docs/PROTOCOL.md does not say what x/testdata/forgotten.json pins",
		"docs/PROTOCOL.md names TestNowhere, which does not exist",
		"docs/PROTOCOL.md names x/testdata/imagined.json, which does not exist",
		"docs/PROTOCOL.md: link to #nowhere, a heading that does not exist",
		"docs/PROTOCOL.md: link to LOST.md, which does not exist",
		"x/a.go:2: docs/PROTOCOL.md has no section 1.4",
		"x/a.go:2: docs/PROTOCOL.md has no section A.9",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
