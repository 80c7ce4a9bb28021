package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLicencesAreToldByTheirText(t *testing.T) {
	for text, want := range map[string]string{
		"                    GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007":                         "GPL",
		"GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3":                                                       "GPL",
		"GNU LESSER GENERAL PUBLIC LICENSE":                                                                  "GPL",
		"Mozilla Public License Version 2.0 … Secondary License means the GNU General Public License":        "MPL-2.0",
		"  Apache License\n  Version 2.0, January 2004":                                                      "Apache-2.0",
		"Permission is hereby granted, free of charge, to any person\nobtaining a copy of this software":     "MIT",
		"Redistribution and use in source and binary forms, with or without modification, are permitted":     "BSD",
		"Permission to use, copy, modify, and/or distribute this software for any purpose is hereby granted": "ISC",
		"All rights reserved.": "",
	} {
		if got := Classify(text); got != want {
			t.Errorf("%.40q is told to be %q, want %q", text, got, want)
		}
	}
}

func TestAModuleThatMayNotBeLinkedIsRefusedWithTheReason(t *testing.T) {
	write := func(dir, name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const mit = "Permission is hereby granted, free of charge, to any person obtaining a copy"
	for want, files := range map[string]map[string]string{
		"COPYING is GPL":          {"COPYING": "GNU GENERAL PUBLIC LICENSE"},
		"LICENSE.AGPL is GPL":     {"LICENSE": mit, "LICENSE.AGPL": "GNU AFFERO GENERAL PUBLIC LICENSE"},
		"no licence found":        {"README.md": mit},
		"no licence known here":   {"LICENSE": strings.Repeat("You may look but not touch. ", 60)},
		"a.go is under the GPL":   {"LICENSE": mit, "a.go": "// SPDX-License-Identifier: GPL-3.0-only\npackage a\n"},
		"LICENSE is no licence":   {"LICENSE": "Dual licensed under MIT and the GPL."},
		"no licence found in dir": {"LICENSE": "Dual licensed, see LICENSE-X."},
	} {
		dir := t.TempDir()
		for name, text := range files {
			write(dir, name, text)
		}
		_, err := (&module{path: "x", dir: dir, packages: map[string]bool{dir: true}}).licences()
		if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), dir, "dir"), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	dir := t.TempDir()
	write(dir, "LICENSE", mit)
	write(dir, "a.go", "package a\n")
	if names, err := (&module{path: "x", dir: dir, packages: map[string]bool{dir: true}}).licences(); err != nil || len(names) != 1 || names[0] != "MIT" {
		t.Errorf("an allowed module: %v, %v", names, err)
	}
}
