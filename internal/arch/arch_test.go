// Package arch is tests only: it holds the tree to its architecture. Who may import whom, a charter for every package, a
// sentence for every exported name, formatting, calls that have no place here, secrets compared in variable time, decoders
// without a fuzz target. A rule that must bend names the place and the reason in a table below, never in the code it is about.
package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
)

const module = "sotto"

// imports says which of our packages each package may import; they only point down. "internal/*" stands for the leaves
// canon, clock, fault and safetext, which everything may use. A package that is not listed here may not exist.
var imports = map[string][]string{
	"cmd/sotto":           {"cli"},
	"cmd/sotto-mailbox":   {"operator"},
	"cli":                 {"control", "daemon", "identity", "tui"},
	"tui":                 {"control"},
	"daemon":              {"control", "messenger", "node", "mailbox", "store", "session", "identity", "record", "wire", "web"},
	"web":                 {},
	"control":             {"messenger", "store", "wire"},
	"messenger":           {"identity", "session", "group", "store", "wire", "record"},
	"node":                {"identity", "wire", "record"},
	"mailbox":             {"identity", "wire", "record", "internal/disk", "internal/engine"},
	"operator":            {"node", "mailbox", "identity", "internal/disk"},
	"group":               {"identity", "wire"},
	"session":             {"identity"},
	"store":               {"internal/disk", "internal/engine"},
	"wire":                {"wire/internal/pb"},
	"wire/internal/pb":    {},
	"record":              {},
	"identity":            {},
	"internal/canon":      {},
	"internal/clock":      {},
	"internal/disk":       {},
	"internal/engine":     {},
	"internal/fault":      {},
	"internal/safetext":   {},
	"internal/arch":       {},
	"internal/check":      {"*"},
	"internal/check/kill": {"internal/check"},
	"internal/testnet":    {"*"},
	"bench":               {"*"},
	"bench/cmd":           {"*"},
	"internal/buildinfo":  {},
}

// leaves may be imported by every package.
var leaves = []string{"internal/canon", "internal/clock", "internal/fault", "internal/safetext", "internal/buildinfo"}

// outside says which of our packages may import a library whose types must not spread.
var outside = map[string][]string{
	"github.com/libp2p/":              {"node", "mailbox", "operator", "internal/testnet", "bench"},
	"github.com/multiformats/":        {"node", "mailbox", "operator", "daemon", "internal/testnet", "bench"},
	"github.com/dgraph-io/badger/":    {"store", "mailbox", "node", "bench", "internal/engine"}, // node: the options of a volunteer\'s DHT store
	"github.com/ipfs/go-ds-badger4":   {"node"},
	"google.golang.org/protobuf":      {"wire", "wire/internal/pb", "node"}, // node: messages of kad-dht
	"github.com/zalando/go-keyring":   {"identity"},
	"github.com/tyler-smith/go-bip39": {"identity"},
	"filippo.io/edwards25519":         {"identity", "record"},
	"github.com/spf13/":               {"cli", "operator", "cmd/sotto", "cmd/sotto-mailbox"},
	"charm.land/":                     {"cli", "tui", "operator", "cmd/sotto", "cmd/sotto-mailbox"},
	"net/http":                        {"control", "web", "node", "mailbox", "operator", "daemon", "cli", "bench"},
	"C":                               {},
	"unsafe":                          {},
}

// pure packages touch neither disk nor network.
var pure = []string{"session", "record", "wire", "group", "internal/canon", "internal/safetext"}

// impure is what a pure package may not import.
var impure = []string{"os", "os/exec", "net", "net/http", "syscall", "path/filepath", "log", "log/slog/internal"}

// bans are calls and imports with no place in the product. except names files or functions ("dir/file.go",
// "dir/file.go:Function") with the reason; tests tells whether test files must obey too.
var bans = []ban{
	{what: "time.Sleep", why: "wait on the clock port or on an event", tests: true},
	{what: "time.Now", why: "read internal/clock", except: wallClock},
	{what: "time.Since", why: "read internal/clock", except: wallClock},
	{what: "time.Until", why: "read internal/clock", except: wallClock},
	{what: "context.Background", why: "pass the caller's context on", except: rootContext},
	{what: "context.TODO", why: "pass the caller's context on", tests: true},
	{what: "panic", why: "return an error; panic only for a broken promise of our own", except: brokenPromises},
	{what: "fmt.Print", why: "libraries return text or write to what they were given"},
	{what: "fmt.Printf", why: "libraries return text or write to what they were given"},
	{what: "fmt.Println", why: "libraries return text or write to what they were given"},
	{what: "println", why: "libraries return text or write to what they were given", tests: true},
	{what: "log.Fatal", why: "return an error: deferred work must run", tests: true},
	{what: "log.Fatalf", why: "return an error: deferred work must run", tests: true},
	{what: "math/rand", why: "keys and ids come from crypto/rand", except: jitter},
	{what: "math/rand/v2", why: "keys and ids come from crypto/rand", except: jitter},
}

// wallClock: deadlines of sockets are always allowed (see deadline); these measure a duration or are the port itself.
var wallClock = map[string]string{
	"internal/clock/clock.go":            "is the clock port",
	"node/direct.go:offer":               "how long a peer has been silent",
	"node/direct.go:settle":              "how long a peer has been silent",
	"node/direct.go:checkSilence":        "how long a peer has been silent",
	"node/ping.go:ping":                  "how long a round trip took",
	"node/ping.go:pingPeer":              "how long a round trip took",
	"node/records.go:SendRequest":        "how long a round trip took",
	"node/supervisor.go:watchInterfaces": "a jump of the machine's clock means that it slept",
}

// rootContext: where a context begins besides main and tests.
var rootContext = map[string]string{
	"node/volunteer.go:openStore": "counts a local database before anything runs that could be cancelled",
}

// brokenPromises: panics that only a mistake of ours reaches.
var brokenPromises = map[string]string{
	"identity/account.go:Words":        "BIP-39 refuses lengths, and 32 bytes is a right one",
	"identity/prekey.go:MarshalSecret": "an X-Wing key made from its seed has a seed",
	"identity/secret.go:derive":        "HKDF refuses more than 8160 bytes, and every length is a constant",
	"session/crypto.go:expand":         "HKDF-Expand refuses more than 8160 bytes, and every length is a constant",
	"session/crypto.go:derive3":        "HKDF refuses more than 8160 bytes, and every length is a constant",
	"session/crypto.go:aead":           "XChaCha20-Poly1305 refuses key lengths, and 32 bytes is the right one",
	"store/tx.go:must":                 "the options of the row encoding are constants",
	"record/blind.go:expand":           "HKDF refuses more than 8160 bytes, and every length is a constant",
	"record/blind.go:NewOwner":         "clamping refuses lengths, and 32 bytes is a right one",
	"record/blind.go:factor":           "reduction refuses lengths, and 64 bytes is a right one",
	"record/blind.go:hashScalar":       "reduction refuses lengths, and SHA-512 gives a right one",
}

// jitter: randomness that spreads load and protects nothing.
var jitter = map[string]string{
	"mailbox/server.go":   "spreads the return of those who were turned away",
	"messenger/outbox.go": "spreads retries",
	"node/directory.go":   "spreads look-ups and their order",
	"node/front.go":       "spreads what the front host puts again",
	"node/volunteers.go":  "spreads load over volunteers",
}

// mains are programs and measurements: they may print, begin contexts and read the wall clock.
var mains = []string{"cmd/", "bench", "internal/testnet", "internal/check"}

// decoders read bytes from outside; a Fuzz target in the package must name each exported function whose name begins so.
var (
	decoderPackages = []string{"identity", "record", "session", "wire"}
	decoderPrefixes = []string{"Parse", "Read", "Open", "Unmarshal", "Decode", "Accept"}
	// fuzzedBy: the target calls something nearer the bytes than the exported function.
	fuzzedBy = map[string]string{
		"identity.OpenKeyFile": "FuzzOpenKeyFile",
	}
)

// secrets are compared with their Equal methods only.
var secrets = []string{
	"identity.Seed", "identity.Account", "identity.Device", "identity.PrekeySecret", "identity.SealSecret",
	"identity.InviteSecret", "identity.KeyFile", "record.Secret", "record.Owner",
}

type ban struct {
	what, why string
	tests     bool
	except    map[string]string
}

// file is one parsed source file.
type file struct {
	dir, name string // dir is relative to the module's root
	src       []byte
	ast       *ast.File
	test      bool
	generated bool
}

func (f *file) path() string { return path.Join(f.dir, f.name) }

type tree struct {
	set   *token.FileSet
	files []*file
}

// load parses every Go file of the module: not testdata, not hidden directories, not other modules inside it.
func load(root fs.FS) (*tree, error) {
	t := &tree{set: token.NewFileSet()}
	err := fs.WalkDir(root, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			_, inner := fs.Stat(root, path.Join(p, "go.mod"))
			if p != "." && (inner == nil || d.Name() == "testdata" || d.Name() == "node_modules" || strings.HasPrefix(d.Name(), ".")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		src, err := fs.ReadFile(root, p)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(t.set, p, src, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		t.files = append(t.files, &file{
			dir: path.Dir(p), name: path.Base(p), src: src, ast: parsed,
			test: strings.HasSuffix(p, "_test.go"), generated: ast.IsGenerated(parsed),
		})
		return nil
	})
	return t, err
}

func (t *tree) at(f *file, n ast.Node) string {
	return fmt.Sprintf("%s:%d", f.path(), t.set.Position(n.Pos()).Line)
}

// packages groups the files by directory, in order.
func (t *tree) packages() (dirs []string, byDir map[string][]*file) {
	byDir = map[string][]*file{}
	for _, f := range t.files {
		if byDir[f.dir] == nil {
			dirs = append(dirs, f.dir)
		}
		byDir[f.dir] = append(byDir[f.dir], f)
	}
	return dirs, byDir
}

// imported are a file's imports.
func (f *file) imported() []string {
	var list []string
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			list = append(list, p)
		}
	}
	return list
}

// checkImports holds every file but tests to the tables above.
func checkImports(t *tree) (faults []string) {
	for _, f := range t.files {
		allowed, listed := imports[f.dir]
		if !listed {
			faults = append(faults, fmt.Sprintf("%s: package %q is not in the import table", f.path(), f.dir))
			continue
		}
		if f.test {
			continue
		}
		for _, p := range f.imported() {
			own, ours := strings.CutPrefix(p, module+"/")
			switch {
			case ours && !slices.Contains(allowed, own) && !slices.Contains(leaves, own) && !slices.Contains(allowed, "*"):
				faults = append(faults, fmt.Sprintf("%s: %s may not import %s", f.path(), f.dir, own))
			case !ours && slices.Contains(pure, f.dir) && slices.Contains(impure, p):
				faults = append(faults, fmt.Sprintf("%s: %s is pure and may not import %s", f.path(), f.dir, p))
			case !ours && spreads(f.dir, p) && !(f.generated && p == "unsafe"):
				faults = append(faults, fmt.Sprintf("%s: %s may not import %s", f.path(), f.dir, p))
			}
		}
	}
	return faults
}

func spreads(dir, imported string) bool {
	for prefix, allowed := range outside {
		if imported == prefix || strings.HasSuffix(prefix, "/") && strings.HasPrefix(imported, prefix) || strings.HasPrefix(imported, prefix+"/") && prefix != "C" {
			return !slices.Contains(allowed, dir)
		}
	}
	return false
}

// checkCharters wants a package comment that says what the package is for.
func checkCharters(t *tree) (faults []string) {
	dirs, byDir := t.packages()
	for _, dir := range dirs {
		found := false
		for _, f := range byDir[dir] {
			if f.ast.Doc == nil || f.test && hasProduct(byDir[dir]) {
				continue
			}
			text, name := f.ast.Doc.Text(), f.ast.Name.Name
			found = found || strings.HasPrefix(text, "Package "+name+" ") || name == "main" && len(text) > 0
		}
		if !found && !onlyGenerated(byDir[dir]) {
			faults = append(faults, fmt.Sprintf("%s: no package comment beginning with its charter", dir))
		}
	}
	return faults
}

func hasProduct(files []*file) bool {
	return slices.ContainsFunc(files, func(f *file) bool { return !f.test })
}

func onlyGenerated(files []*file) bool {
	return !slices.ContainsFunc(files, func(f *file) bool { return !f.generated && !f.test })
}

// checkDocs wants a sentence for each exported name.
func checkDocs(t *tree) (faults []string) {
	for _, f := range t.files {
		if f.test || f.generated || f.ast.Name.Name == "main" {
			continue
		}
		for _, d := range f.ast.Decls {
			for _, name := range undocumented(d) {
				faults = append(faults, fmt.Sprintf("%s: exported %s has no comment", t.at(f, d), name))
			}
		}
	}
	return faults
}

func undocumented(d ast.Decl) (names []string) {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && exportedReceiver(d) {
			names = append(names, d.Name.Name)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			switch s := s.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && d.Doc == nil && s.Doc == nil {
					names = append(names, s.Name.Name)
				}
			case *ast.ValueSpec:
				if len(s.Names) > 0 && s.Names[0].IsExported() && d.Doc == nil && s.Doc == nil && s.Comment == nil {
					names = append(names, s.Names[0].Name)
				}
			}
		}
	}
	return names
}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	typ := d.Recv.List[0].Type
	if star, ok := typ.(*ast.StarExpr); ok {
		typ = star.X
	}
	if generic, ok := typ.(*ast.IndexExpr); ok {
		typ = generic.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

// checkFormat wants gofmt's form.
func checkFormat(t *tree) (faults []string) {
	for _, f := range t.files {
		if want, err := format.Source(f.src); err != nil || !bytes.Equal(want, f.src) {
			faults = append(faults, fmt.Sprintf("%s: not formatted; run gofmt -w %s", f.path(), f.path()))
		}
	}
	return faults
}

// checkComments wants no unfinished work and no skipped tests.
func checkComments(t *tree) (faults []string) {
	for _, f := range t.files {
		if f.generated {
			continue
		}
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				for _, word := range []string{"TO" + "DO", "FIX" + "ME", "XX" + "X:"} {
					if strings.Contains(c.Text, word) {
						faults = append(faults, fmt.Sprintf("%s: %s: finish it or say why it is not needed", t.at(f, c), word))
					}
				}
			}
		}
	}
	return faults
}

// checkBans looks for the calls and imports of the bans table.
func checkBans(t *tree) (faults []string) {
	for _, f := range t.files {
		if f.generated {
			continue
		}
		bubble := slices.Contains(f.imported(), "testing/synctest")
		for _, use := range uses(f) {
			for _, b := range bans {
				if use.what != b.what || f.test && !b.tests || use.deadline && strings.HasPrefix(b.what, "time.") || bubble && b.what == "time.Sleep" {
					continue // a bubble's time is virtual; a socket's deadline is the kernel's time
				}
				if isMain(f) && b.what != "time.Sleep" || excepted(b, f, use) {
					continue
				}
				faults = append(faults, fmt.Sprintf("%s: %s in %s: %s", t.at(f, use.node), b.what, use.function, b.why))
			}
		}
	}
	return faults
}

func isMain(f *file) bool {
	return f.ast.Name.Name == "main" || slices.ContainsFunc(mains, func(p string) bool { return strings.HasPrefix(f.dir, p) })
}

func excepted(b ban, f *file, u use) bool {
	_, whole := b.except[f.path()]
	_, one := b.except[f.path()+":"+u.function]
	return whole || one
}

// use is one call of package.Function or a builtin, or one import, in a function.
type use struct {
	what, function string
	deadline       bool // inside the argument of a Set…Deadline call
	node           ast.Node
}

func uses(f *file) (list []use) {
	names := map[string]string{} // local name of an import → its path
	for _, spec := range f.ast.Imports {
		p, _ := strconv.Unquote(spec.Path.Value)
		local := path.Base(p)
		if local == "v2" {
			local = path.Base(path.Dir(p))
		}
		if spec.Name != nil {
			local = spec.Name.Name
		}
		names[local] = p
		list = append(list, use{what: p, function: "imports", node: spec})
	}
	for _, d := range f.ast.Decls {
		function := "declarations"
		if fd, ok := d.(*ast.FuncDecl); ok {
			function = fd.Name.Name
		}
		var deadlines []ast.Node
		ast.Inspect(d, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.CallExpr:
				if sel, ok := n.Fun.(*ast.SelectorExpr); ok && strings.HasPrefix(sel.Sel.Name, "Set") && strings.HasSuffix(sel.Sel.Name, "Deadline") {
					deadlines = append(deadlines, n)
				}
				if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "panic" || id.Name == "println") {
					list = append(list, use{what: id.Name, function: function, node: n})
				}
			case *ast.SelectorExpr:
				if id, ok := n.X.(*ast.Ident); ok && names[id.Name] != "" {
					inside := slices.ContainsFunc(deadlines, func(d ast.Node) bool { return d.Pos() <= n.Pos() && n.End() <= d.End() })
					list = append(list, use{what: names[id.Name] + "." + n.Sel.Name, function: function, deadline: inside, node: n})
				}
			}
			return true
		})
	}
	return list
}

// checkFuzz wants every decoder of bytes from outside named in a fuzz target of its package.
func checkFuzz(t *tree) (faults []string) {
	_, byDir := t.packages()
	for _, dir := range decoderPackages {
		targets := map[string]map[string]bool{} // fuzz target → identifiers in it
		for _, f := range byDir[dir] {
			for _, d := range f.ast.Decls {
				if fd, ok := d.(*ast.FuncDecl); ok && f.test && strings.HasPrefix(fd.Name.Name, "Fuzz") {
					targets[fd.Name.Name] = identifiers(fd)
				}
			}
		}
		for _, f := range byDir[dir] {
			for _, d := range f.ast.Decls {
				fd, ok := d.(*ast.FuncDecl)
				if !ok || f.test || !decodes(fd) || fuzzed(dir, fd.Name.Name, targets) {
					continue
				}
				faults = append(faults, fmt.Sprintf("%s: no Fuzz target in %s calls %s", t.at(f, fd), dir, fd.Name.Name))
			}
		}
	}
	return faults
}

func fuzzed(dir, name string, targets map[string]map[string]bool) bool {
	if by, ok := fuzzedBy[dir+"."+name]; ok {
		return targets[by] != nil
	}
	for _, names := range targets {
		if names[name] {
			return true
		}
	}
	return false
}

// decodes reports whether a function is an exported decoder by its name and takes bytes, text or a stream.
func decodes(fd *ast.FuncDecl) bool {
	if !fd.Name.IsExported() || !exportedReceiver(fd) || !slices.ContainsFunc(decoderPrefixes, func(p string) bool { return strings.HasPrefix(fd.Name.Name, p) }) {
		return false
	}
	for _, p := range fd.Type.Params.List {
		switch types.ExprString(p.Type) {
		case "[]byte", "string", "io.Reader", "Item":
			return true
		}
	}
	return false
}

func identifiers(n ast.Node) map[string]bool {
	names := map[string]bool{}
	ast.Inspect(n, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			names[id.Name] = true
		}
		return true
	})
	return names
}

// checkSecrets finds secrets compared with ==, != or bytes.Equal. It resolves only our own types: libraries are left
// empty and the errors that this causes are ignored, which keeps it fast.
func checkSecrets(t *tree) (faults []string) {
	own := ownTypes{tree: t, done: map[string]*types.Package{}, infos: map[string]*types.Info{}}
	dirs, byDir := t.packages()
	for _, dir := range dirs {
		own.check(dir)
		info := own.infos[dir]
		if info == nil {
			continue
		}
		for _, f := range byDir[dir] {
			if f.test {
				continue
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				if left, right := compared(n); left != nil && (isSecret(info, left) || isSecret(info, right)) && !isNil(left) && !isNil(right) {
					faults = append(faults, fmt.Sprintf("%s: secrets are compared in variable time; use Equal", t.at(f, n)))
				}
				return true
			})
		}
	}
	return faults
}

// compared returns both sides of ==, != and bytes.Equal.
func compared(n ast.Node) (left, right ast.Expr) {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		if n.Op == token.EQL || n.Op == token.NEQ {
			return n.X, n.Y
		}
	case *ast.CallExpr:
		if name := types.ExprString(n.Fun); (name == "bytes.Equal" || name == "bytes.Compare" || name == "slices.Equal") && len(n.Args) == 2 {
			return n.Args[0], n.Args[1]
		}
	}
	return nil, nil
}

func isNil(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "nil"
}

func isSecret(info *types.Info, e ast.Expr) bool {
	if slice, ok := e.(*ast.SliceExpr); ok {
		e = slice.X
	}
	typ := info.TypeOf(e)
	if pointer, ok := typ.(*types.Pointer); ok {
		typ = pointer.Elem()
	}
	named, ok := typ.(*types.Named)
	return ok && named.Obj().Pkg() != nil && slices.Contains(secrets, strings.TrimPrefix(named.Obj().Pkg().Path(), module+"/")+"."+named.Obj().Name())
}

// ownTypes type-checks the module's packages on demand and is their importer.
type ownTypes struct {
	tree  *tree
	done  map[string]*types.Package
	infos map[string]*types.Info
}

// Import gives our own packages their types and every other package none.
func (o ownTypes) Import(p string) (*types.Package, error) {
	if dir, ours := strings.CutPrefix(p, module+"/"); ours {
		return o.check(dir), nil
	}
	if o.done[p] == nil {
		empty := types.NewPackage(p, path.Base(p))
		empty.MarkComplete()
		o.done[p] = empty
	}
	return o.done[p], nil
}

func (o ownTypes) check(dir string) *types.Package {
	if o.done[dir] != nil {
		return o.done[dir]
	}
	var files []*ast.File
	for _, f := range o.tree.files {
		if f.dir == dir && !f.test {
			files = append(files, f.ast)
		}
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}, Defs: map[*ast.Ident]types.Object{}}
	config := types.Config{Importer: o, Error: func(error) {}, DisableUnusedImportCheck: true}
	p, _ := config.Check(module+"/"+dir, o.tree.set, files, info)
	o.done[dir], o.infos[dir] = p, info
	return p
}

// checkTables wants no exception that nothing needs any more.
func checkTables(t *tree) (faults []string) {
	for _, b := range bans {
		for where := range b.except {
			needed := false
			for _, f := range t.files {
				for _, u := range uses(f) {
					needed = needed || sameKind(u.what, b.except) && (where == f.path() || where == f.path()+":"+u.function)
				}
			}
			if !needed {
				faults = append(faults, fmt.Sprintf("the exception for %s in %s is needed no more", b.what, where))
			}
		}
	}
	return faults
}

// sameKind: several bans share one table, so any of them makes an exception needed.
func sameKind(what string, table map[string]string) bool {
	return slices.ContainsFunc(bans, func(b ban) bool {
		return b.what == what && fmt.Sprintf("%p", b.except) == fmt.Sprintf("%p", table)
	})
}

var checks = []struct {
	name string
	run  func(*tree) []string
}{
	{"imports only point down the table", checkImports},
	{"every package has a charter", checkCharters},
	{"every exported name has a sentence", checkDocs},
	{"every file is formatted", checkFormat},
	{"nothing is left unfinished", checkComments},
	{"no call is out of place", checkBans},
	{"every decoder is fuzzed", checkFuzz},
	{"secrets are compared in constant time", checkSecrets},
	{"every exception is still needed", checkTables},
}

func TestTheTreeKeepsItsArchitecture(t *testing.T) {
	tree, err := load(os.DirFS("../.."))
	if err != nil {
		t.Fatal(err)
	}
	if len(tree.files) < 20 {
		t.Fatalf("only %d files found", len(tree.files))
	}
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) {
			for _, fault := range c.run(tree) {
				t.Error(fault)
			}
		})
	}
}

// A rule is worth something only if it catches what breaks it.
func TestEveryRuleCatchesAPlantedFault(t *testing.T) {
	identity := "// Package identity is here for its types.\npackage identity\n\n// Seed is secret.\ntype Seed [32]byte\n"
	for _, c := range []struct {
		check, file, src, want string
	}{
		{"imports", "session/a.go", "package session\n\nimport _ \"sotto/store\"\n", "may not import store"},
		{"imports", "mailbox/a.go", "package mailbox\n\nimport _ \"sotto/session\"\n", "may not import session"},
		{"imports", "session/a.go", "package session\n\nimport _ \"os\"\n", "is pure"},
		{"imports", "messenger/a.go", "package messenger\n\nimport _ \"github.com/libp2p/go-libp2p/core/peer\"\n", "may not import"},
		{"imports", "store/a.go", "package store\n\nimport \"C\"\n", "may not import C"},
		{"imports", "novelty/a.go", "package novelty\n", "not in the import table"},
		{"charter", "store/a.go", "package store\n", "no package comment"},
		{"charter", "store/a.go", "// Some words.\npackage store\n", "no package comment"},
		{"sentence", "store/a.go", "package store\n\nfunc Open() {}\n", "exported Open"},
		{"sentence", "store/a.go", "package store\n\ntype T struct{}\n", "exported T"},
		{"formatted", "store/a.go", "package store\nvar  a int\n", "not formatted"},
		{"unfinished", "store/a.go", "package store\n\n// TO" + "DO later\n", "finish it"},
		{"out of place", "store/a_test.go", "package store\n\nimport \"time\"\n\nfunc f() { time.Sleep(1) }\n", "time.Sleep in f"},
		{"out of place", "store/a.go", "package store\n\nimport t \"time\"\n\nvar now = t.Now\n", "time.Now in declarations"},
		{"out of place", "store/a.go", "package store\n\nimport \"context\"\n\nfunc f() { _ = context.Background() }\n", "context.Background"},
		{"out of place", "store/a.go", "package store\n\nfunc f() { panic(1) }\n", "panic in f"},
		{"out of place", "store/a.go", "package store\n\nimport \"math/rand/v2\"\n\nvar _ = rand.Int\n", "math/rand/v2"},
		{"out of place", "store/a.go", "package store\n\nimport \"fmt\"\n\nfunc f() { fmt.Println() }\n", "fmt.Println"},
		{"fuzzed", "wire/a.go", "package wire\n\nfunc ParseThing(b []byte) {}\n", "ParseThing"},
		{"constant time", "store/a.go", "package store\n\nimport \"sotto/identity\"\n\nfunc f(a, b identity.Seed) bool { return a == b }\n", "variable time"},
		{"constant time", "store/a.go", "package store\n\nimport (\n\t\"bytes\"\n\t\"sotto/identity\"\n)\n\nfunc f(a, b identity.Seed) bool { return bytes.Equal(a[:], b[:]) }\n", "variable time"},
	} {
		tree, err := load(fstest.MapFS{"identity/identity.go": {Data: []byte(identity)}, c.file: {Data: []byte(c.src)}})
		if err != nil {
			t.Fatal(err)
		}
		var faults []string
		for _, check := range checks {
			if strings.Contains(check.name, c.check) {
				faults = check.run(tree)
			}
		}
		if !strings.Contains(strings.Join(faults, "\n"), c.want) {
			t.Errorf("%s is not caught in %q: %q", c.want, c.src, faults)
		}
	}
}

func TestWhatTheRulesAllowIsNotAFault(t *testing.T) {
	tree, err := load(fstest.MapFS{
		"go.mod":          {Data: []byte("module sotto\n")},
		"tools/go.mod":    {Data: []byte("module tools\n")},
		"tools/a.go":      {Data: []byte("package   tools")},
		"store/a.go":      {Data: []byte("// Package store keeps things.\npackage store\n\nimport (\n\t\"time\"\n\n\t\"sotto/internal/clock\"\n)\n\nvar _ clock.Clock\n\nfunc f(s interface{ SetReadDeadline(time.Time) }) { s.SetReadDeadline(time.Now().Add(1)) }\n")},
		"store/b_test.go": {Data: []byte("package store\n\nimport (\n\t\"testing/synctest\"\n\t\"time\"\n)\n\nvar _ = synctest.Wait\n\nfunc g() { time.Sleep(1) }\n")},
		"cmd/sotto/a.go":  {Data: []byte("// Command sotto is the binary.\npackage main\n\nimport \"context\"\n\nfunc main() { _ = context.Background() }\n")},
		"wire/a.go":       {Data: []byte("// Package wire has bytes.\npackage wire\n\n// ParseThing reads.\nfunc ParseThing(b []byte) {}\n")},
		"wire/a_test.go":  {Data: []byte("package wire\n\nimport \"testing\"\n\nfunc FuzzThing(f *testing.F) { f.Fuzz(func(t *testing.T, b []byte) { ParseThing(b) }) }\n")},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks[:len(checks)-1] { // the tables' exceptions belong to the real tree
		for _, fault := range c.run(tree) {
			t.Errorf("%s: %s", c.name, fault)
		}
	}
}
