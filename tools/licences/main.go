// Command licences names the licence of every module that is linked into the programs and fails if one may not be: a
// licence that it does not know, none at all, or one that asks the whole program to be under it (GPL, AGPL, LGPL).
//
// Usage: licences DIR, the directory of the main module. It looks at what is linked on each system that is built for.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// systems are the platforms that the project builds for; a module may be linked on one of them only.
var systems = []string{"linux/amd64", "darwin/arm64", "windows/amd64"}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: licences DIR")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

// module is one dependency and those of its directories that are linked.
type module struct {
	path, dir string
	packages  map[string]bool
}

func run(root string, out io.Writer) error {
	modules, err := linked(root)
	if err != nil {
		return err
	}
	count := map[string]int{}
	bad := 0
	for _, m := range modules {
		names, err := m.licences()
		if err != nil {
			bad++
			fmt.Fprintf(out, "✗ %s: %v\n", m.path, err)
			continue
		}
		for _, name := range names {
			count[name]++
		}
	}
	var names []string
	for name := range count {
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Fprintf(out, "%d modules are linked.", len(modules))
	for _, name := range names {
		fmt.Fprintf(out, " %s: %d.", name, count[name])
	}
	fmt.Fprintln(out)
	if bad > 0 {
		return fmt.Errorf("%d modules may not be linked; allowed are %s", bad, strings.Join(allowed(), ", "))
	}
	return nil
}

// linked lists the modules behind the programs, on all systems together.
func linked(root string) ([]*module, error) {
	found := map[string]*module{}
	for _, system := range systems {
		goos, arch, _ := strings.Cut(system, "/")
		cmd := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}\t{{.Dir}}\t{{$.Dir}}{{end}}{{end}}", "./cmd/...")
		cmd.Dir, cmd.Stderr = root, os.Stderr
		cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+arch, "CGO_ENABLED=0")
		list, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("list what is linked on %s: %w", system, err)
		}
		lines := bufio.NewScanner(bytes.NewReader(list))
		for lines.Scan() {
			f := strings.Split(lines.Text(), "\t")
			if len(f) != 3 || f[1] == "" {
				continue
			}
			m := found[f[0]]
			if m == nil {
				m = &module{path: f[0], dir: f[1], packages: map[string]bool{}}
				found[f[0]] = m
			}
			m.packages[f[2]] = true
		}
		if err := lines.Err(); err != nil {
			return nil, err
		}
	}
	var all []*module
	for _, m := range found {
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b *module) int { return strings.Compare(a.path, b.path) })
	if len(all) == 0 {
		return nil, fmt.Errorf("nothing is linked in %s: wrong directory?", root)
	}
	return all, nil
}

var licenceFile = regexp.MustCompile(`(?i)^(un)?licen[cs]e|^copying`)

// licences names what the files at the module's root say, and looks for other claims in the linked sources.
func (m *module) licences() ([]string, error) {
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !e.Type().IsRegular() || !licenceFile.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(m.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		name := Classify(string(text))
		if name == "" {
			// A text may point to the others instead of being one; one that is known must be there then.
			if len(text) < 1024 && bytes.Contains(bytes.ToLower(text), []byte("licen")) && !forbidden.Match(text) {
				continue
			}
			return nil, fmt.Errorf("%s is no licence known here", e.Name())
		}
		if !slices.Contains(allowed(), name) {
			return nil, fmt.Errorf("%s is %s", e.Name(), name)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no licence found in %s", m.dir)
	}
	return names, m.sources()
}

var spdx = regexp.MustCompile(`(?m)^\W*SPDX-License-Identifier:.*\b[AL]?GPL-`)

// sources refuses a linked file that claims a licence of its own that may not be linked.
func (m *module) sources() error {
	for dir := range m.packages {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			return err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if spdx.Match(text[:min(len(text), 4096)]) {
				return fmt.Errorf("%s is under the GPL", file)
			}
		}
	}
	return nil
}

// known are phrases by which a licence's text is told; the first that fits wins.
var known = []struct{ name, phrase string }{
	{"MPL-2.0", "mozilla public license version 2.0"},
	{"MPL-2.0", "mozilla public license, version 2.0"},
	{"GPL", "gnu affero general public license"},
	{"GPL", "gnu lesser general public license"},
	{"GPL", "gnu library general public license"},
	{"GPL", "gnu general public license"},
	{"Apache-2.0", "apache license version 2.0"},
	{"Apache-2.0", "apache license, version 2.0"},
	{"MIT", "permission is hereby granted, free of charge, to any person obtaining a copy"},
	{"ISC", "permission to use, copy, modify, and distribute this software"},
	{"ISC", "permission to use, copy, modify, and/or distribute this software"},
	{"BSD", "redistribution and use in source and binary forms"},
	{"Unlicense", "this is free and unencumbered software released into the public domain"},
	{"CC0-1.0", "cc0 1.0 universal"},
	{"MIT", "spdx-license-identifier: apache-2.0 or mit"}, // one of the two may be chosen
}

var forbidden = regexp.MustCompile(`(?i)general public licen|\b[AL]?GPL`)

// allowed are the licences under which a linked module may be. MPL-2.0 asks only that changes to its own files stay
// open, and no file of such a module is changed here.
func allowed() []string {
	return []string{"Apache-2.0", "BSD", "CC0-1.0", "ISC", "MIT", "MPL-2.0", "Unlicense"}
}

// Classify names the licence whose text it is, "" when it is none that is known.
func Classify(text string) string {
	text = strings.ToLower(strings.Join(strings.Fields(text), " "))
	for _, k := range known {
		if strings.Contains(text, k.phrase) {
			return k.name
		}
	}
	return ""
}
