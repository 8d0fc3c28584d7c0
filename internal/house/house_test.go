// Package house holds the tests that look at the source itself: rules about this
// repository which no compiler checks.
package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

const (
	root   = "../.."
	module = "github.com/keyledger/keyledger"
)

// sources are the Go files of the repository by slash path from its root.
func sources(t *testing.T) map[string]*ast.File {
	t.Helper()
	files := map[string]*ast.File{}
	set := token.NewFileSet()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); p != root && (strings.HasPrefix(n, ".") || n == "testdata" || n == "node_modules") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil && p != root {
				return filepath.SkipDir // a module of its own is not this program's
			}
			return nil
		}
		if !strings.HasSuffix(p, ".go") {
			return nil
		}
		f, err := parser.ParseFile(set, p, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		files[filepath.ToSlash(rel)] = f
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Nothing in Go code knows a product by name: a product is a document.
func TestNoProductIsNamed(t *testing.T) {
	entries, err := os.ReadDir(filepath.Join(root, "keyspaces"))
	if err != nil {
		t.Fatal(err)
	}
	var products []string
	for _, e := range entries {
		// parcelbird is made up, to show every field.
		if name, ok := strings.CutSuffix(e.Name(), ".yaml"); ok && name != "parcelbird" {
			products = append(products, name)
		}
	}
	if len(products) != 5 {
		t.Fatalf("keyspaces/ holds the products %v, want five of them", products)
	}
	for name, f := range sources(t) {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			var text string
			switch n := n.(type) {
			case *ast.BasicLit:
				text = n.Value
			case *ast.Ident:
				text = n.Name
			default:
				return true
			}
			for _, p := range products {
				if strings.Contains(strings.ToLower(text), p) {
					t.Errorf("%s names the product %s in %s", name, p, text)
				}
			}
			return true
		})
	}
}

// A test that is skipped proves nothing; tests start what they need.
func TestNoTestIsSkipped(t *testing.T) {
	for name, f := range sources(t) {
		if !strings.HasSuffix(name, "_test.go") {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, s.Sel.Name) {
				t.Errorf("%s calls %s", name, s.Sel.Name)
			}
			return true
		})
	}
}

// Every package has a list in .depguard.yaml, so that a new one cannot import
// what it likes.
func TestEveryPackageHasItsDirections(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(root, ".depguard.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var lists map[string]struct{ Files []string }
	if err := yaml.Unmarshal(b, &lists); err != nil {
		t.Fatal(err)
	}
	guarded := map[string]bool{}
	for _, l := range lists {
		for _, f := range l.Files {
			guarded[path.Dir(strings.TrimPrefix(f, "**/"))] = true
		}
	}
	// They are imported by tests alone, which the last test here holds.
	guarded["internal/testenv"], guarded["internal/testenv/check"], guarded["verify/verifytest"] = true, true, true
	seen := map[string]bool{}
	for name := range sources(t) {
		dir := path.Dir(name)
		if strings.HasSuffix(name, "_test.go") || seen[dir] {
			continue
		}
		seen[dir] = true
		if !guarded[dir] {
			t.Errorf("package %s has no list in .depguard.yaml: say there what it may import", dir)
		}
	}
}

// What is for tests does not reach the program.
func TestTestPackagesStayInTests(t *testing.T) {
	forTests := []string{module + "/internal/testenv", module + "/internal/testenv/check", module + "/verify/verifytest"}
	for name, f := range sources(t) {
		if strings.HasSuffix(name, "_test.go") || slices.Contains(forTests, module+"/"+path.Dir(name)) {
			continue
		}
		for _, i := range f.Imports {
			if p, _ := strconv.Unquote(i.Path.Value); slices.Contains(forTests, p) {
				t.Errorf("%s imports %s, which is for tests", name, p)
			}
		}
	}
}

// Every promise names tests that exist, and so does every runbook.
func TestPromisesNameTheirTests(t *testing.T) {
	exist := map[string]bool{}
	for name, f := range sources(t) {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasSuffix(name, "_test.go") {
				exist[path.Dir(name)+" "+fn.Name.Name] = true
			}
		}
	}
	pages, err := filepath.Glob(filepath.Join(root, "docs", "runbooks", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`([a-z/]+\\s+Test[A-Za-z]+)`")
	for _, page := range append(pages, filepath.Join(root, "docs", "guarantees.md")) {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(b), -1) {
			if test := strings.Join(strings.Fields(m[1]), " "); !exist[test] {
				t.Errorf("%s names the test %s, which does not exist", filepath.Base(page), test)
			}
		}
		if filepath.Base(page) != "guarantees.md" {
			continue
		}
		promised, _, _ := strings.Cut(string(b), "## Not promised")
		_, promised, _ = strings.Cut(promised, "## Promised")
		for _, promise := range strings.Split(strings.TrimSpace(promised), "\n\n") {
			if !named.MatchString(promise) {
				t.Errorf("a promise without a test: %s", promise)
			}
		}
	}
}
