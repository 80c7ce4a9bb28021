// Command doccheck holds the documents and the code to each other: every section of docs/PROTOCOL.md that a comment cites
// exists, every vector file is listed there and every listed one exists, every test that a document names exists, and no link
// between the documents is broken.
//
// Usage: doccheck DIR, the directory of the main module.
package main

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: doccheck DIR")
		os.Exit(2)
	}
	faults, err := check(os.DirFS(os.Args[1]))
	if err != nil {
		fmt.Fprintln(os.Stderr, "doccheck:", err)
		os.Exit(1)
	}
	for _, f := range faults {
		fmt.Println(f)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
	fmt.Println("documents and code fit each other")
}

const spec = "docs/PROTOCOL.md"

// check returns what is wrong, one line each.
func check(root fs.FS) ([]string, error) {
	docs, code, vectors, err := files(root)
	if err != nil {
		return nil, err
	}
	text, ok := docs[spec]
	if !ok {
		return nil, fmt.Errorf("%s is missing", spec)
	}
	faults := citations(sections(text), code)
	faults = append(faults, listed(text, vectors)...)
	faults = append(faults, tests(docs, code)...)
	faults = append(faults, links(root, docs)...)
	slices.Sort(faults)
	return faults, nil
}

// files reads documents and sources, and lists the vector files. It leaves out hidden directories and other modules.
func files(root fs.FS) (docs, code map[string]string, vectors []string, err error) {
	docs, code = map[string]string{}, map[string]string{}
	err = fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, inner := fs.Stat(root, path.Join(p, "go.mod"))
			if p != "." && (inner == nil || strings.HasPrefix(d.Name(), ".") || d.Name() == "node_modules") {
				return fs.SkipDir
			}
			return nil
		}
		into := docs
		switch path.Ext(p) {
		case ".md":
		case ".go", ".proto":
			into = code
		case ".json":
			if path.Base(path.Dir(p)) == "testdata" {
				vectors = append(vectors, p)
			}
			return nil
		default:
			return nil
		}
		b, err := fs.ReadFile(root, p)
		into[p] = string(b)
		return err
	})
	return docs, code, vectors, err
}

var heading = regexp.MustCompile(`(?m)^#{1,6} (?:Appendix )?([0-9]+(?:\.[0-9]+)?|[A-Z](?:\.[0-9]+)?)\b.*$`)

// sections are the numbers of a document's headings.
func sections(text string) map[string]bool {
	found := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		found[m[1]] = true
	}
	return found
}

var (
	number   = `(?:[0-9]+(?:\.[0-9]+)?|[A-Z]\.[0-9]+|Appendix [A-Z](?:\.[0-9]+)?)`
	citation = regexp.MustCompile(`PROTOCOL (` + number + `(?:(?:, | and )` + number + `)*)`)
	splitter = regexp.MustCompile(`, | and `)
)

// citations reports sections that comments name and the document does not have.
func citations(have map[string]bool, code map[string]string) (faults []string) {
	for name, text := range code {
		for i, line := range strings.Split(text, "\n") {
			for _, m := range citation.FindAllStringSubmatch(line, -1) {
				for _, n := range splitter.Split(m[1], -1) {
					if n = strings.TrimPrefix(n, "Appendix "); !have[n] {
						faults = append(faults, fmt.Sprintf("%s:%d: %s has no section %s", name, i+1, spec, n))
					}
				}
			}
		}
	}
	return faults
}

var vectorName = regexp.MustCompile("`([a-z/]+/testdata/[a-z0-9_]+\\.json)`")

// listed compares the vector files that the document names with those there are. A corpus of texts is no vector.
func listed(text string, vectors []string) (faults []string) {
	named := map[string]bool{}
	for _, m := range vectorName.FindAllStringSubmatch(text, -1) {
		named[m[1]] = true
		if !slices.Contains(vectors, m[1]) {
			faults = append(faults, fmt.Sprintf("%s names %s, which does not exist", spec, m[1]))
		}
	}
	for _, v := range vectors {
		if !named[v] && !strings.HasPrefix(v, "internal/safetext/") {
			faults = append(faults, fmt.Sprintf("%s does not say what %s pins", spec, v))
		}
	}
	return faults
}

var (
	testName = regexp.MustCompile("`(Test[A-Za-z0-9_]+)`")
	testFunc = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
)

// tests reports tests that a document points to and nobody wrote.
func tests(docs, code map[string]string) (faults []string) {
	have := map[string]bool{}
	for _, text := range code {
		for _, m := range testFunc.FindAllStringSubmatch(text, -1) {
			have[m[1]] = true
		}
	}
	for name, text := range docs {
		for _, m := range testName.FindAllStringSubmatch(text, -1) {
			if !have[m[1]] {
				faults = append(faults, fmt.Sprintf("%s names %s, which does not exist", name, m[1]))
			}
		}
	}
	return faults
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	anyHead = regexp.MustCompile(`(?m)^#{1,6} (.*)$`)
	fence   = regexp.MustCompile("(?ms)^```.*?^```")
	notSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// links reports links to files and headings that are not there. Links to other hosts are nobody's business here.
func links(root fs.FS, docs map[string]string) (faults []string) {
	for name, text := range docs {
		for _, m := range link.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file := name
			if target != "" {
				file = path.Join(path.Dir(name), target)
			}
			if _, err := fs.Stat(root, file); err != nil {
				faults = append(faults, fmt.Sprintf("%s: link to %s, which does not exist", name, m[1]))
			} else if anchor != "" && !anchors(docs[file])[anchor] {
				faults = append(faults, fmt.Sprintf("%s: link to %s, a heading that does not exist", name, m[1]))
			}
		}
	}
	return faults
}

// anchors are the names by which a document's headings are linked to.
func anchors(text string) map[string]bool {
	found := map[string]bool{}
	for _, m := range anyHead.FindAllStringSubmatch(fence.ReplaceAllString(text, ""), -1) {
		slug := notSlug.ReplaceAllString(strings.ToLower(m[1]), "")
		found[strings.ReplaceAll(slug, " ", "-")] = true
	}
	return found
}
