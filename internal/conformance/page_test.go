package conformance

import (
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var pages = flag.String("pages", "", "with -update: the directory that holds the products' pages, one text file each")

// pageSums holds the hash of every sentence of every page, in order. The pages
// themselves are their products' and not part of this repository.
const pageSums = "testdata/pages.sums"

var sentenceEnd = regexp.MustCompile(`([A-Za-z)”][.!?])\s+([A-Z])`)

// sentencesOf cuts a page up: lines, and sentences in a line. Blank lines and
// blanks around do not count.
func sentencesOf(text string) []string {
	var all []string
	for line := range strings.Lines(text) {
		for _, s := range strings.Split(sentenceEnd.ReplaceAllString(line, "$1\x00$2"), "\x00") {
			if s = strings.Join(strings.Fields(s), " "); s != "" {
				all = append(all, s)
			}
		}
	}
	return all
}

func sumOf(sentence string) string {
	h := sha256.Sum256([]byte(sentence))
	return hex.EncodeToString(h[:8])
}

// Every sentence of every page is quoted word for word, or passed over with a
// reason, in the order of the page.
func TestEverySentenceIsCovered(t *testing.T) {
	all, tests := suites(t), testsOfTheRepository(t)
	if *pages != "" && *update {
		writeSums(t, all)
	}
	b, err := os.ReadFile(pageSums)
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string][]string{}
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] != "#" {
			sums[fields[0]] = append(sums[fields[0]], fields[1:]...)
		}
	}
	for _, s := range all {
		page := sums[s.Keyspace]
		if len(page) == 0 {
			t.Errorf("%s holds no page for %s", pageSums, s.Keyspace)
		}
		at := 0
		for i, c := range s.Sentences {
			if (c.Says == "") == (c.Pass == 0) || c.Pass > 0 && (c.Why == "" || len(c.Do) > 0) || c.Says != "" && len(c.Do) == 0 && c.By == "" {
				t.Errorf("%s: sentences[%d] needs words with a script or with what carries them, or a number of passed sentences with the reason", s.Keyspace, i)
			}
			at += c.Pass
			for _, words := range sentencesOf(c.Says) {
				if at >= len(page) {
					t.Fatalf("%s: sentences[%d]: the page ends before %q", s.Keyspace, i, words)
				}
				if sumOf(words) != page[at] {
					where := slices.Index(page, sumOf(words))
					t.Fatalf("%s: sentences[%d]: %q is not sentence %d of the page (found at %d; -1: nowhere)", s.Keyspace, i, words, at, where)
				}
				at++
			}
		}
		if at != len(page) {
			t.Errorf("%s: %d of the page's %d sentences are covered", s.Keyspace, at, len(page))
		}
		for i, c := range slices.Concat(s.Sentences, s.Beside) {
			if c.By == "" && slices.ContainsFunc(c.Do, func(st step) bool { return st.Only != "" }) {
				t.Errorf("%s: sentences[%d] has a step for one way in only and does not say why", s.Keyspace, i)
			}
			for _, name := range testName.FindAllString(c.By, -1) {
				if !tests[name] {
					t.Errorf("%s: sentences[%d] is carried by %s, which does not exist", s.Keyspace, i, name)
				}
			}
		}
		for i, c := range s.Beside {
			if c.Says != "" || c.Means == "" || len(c.Do) == 0 {
				t.Errorf("%s: beside[%d] quotes nothing, says what it means and has a script", s.Keyspace, i)
			}
		}
	}
}

// writeSums reads the pages; a page is a suite's that names its product.
func writeSums(t *testing.T, all []*suite) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(*pages, "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no pages in %s: %v", *pages, err)
	}
	var out strings.Builder
	out.WriteString("# SHA-256, its first 8 bytes, of each sentence of each page: see sentencesOf.\n")
	for _, s := range all {
		for _, file := range files {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(b), s.Product) {
				continue
			}
			list := sentencesOf(string(b))
			for part := range slices.Chunk(list, 6) {
				fmt.Fprint(&out, s.Keyspace)
				for _, words := range part {
					fmt.Fprint(&out, " ", sumOf(words))
				}
				out.WriteString("\n")
			}
		}
	}
	if err := os.WriteFile(pageSums, []byte(out.String()), 0o644); err != nil {
		t.Fatal(err)
	}
}

var testName = regexp.MustCompile(`\bTest[A-Z]\w+`)

func testsOfTheRepository(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	files, err := filepath.Glob("../../*/*_test.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no tests: %v", err)
	}
	deeper, err := filepath.Glob("../../*/*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, deeper...) {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)`).FindAllStringSubmatch(string(b), -1) {
			found[m[1]] = true
		}
	}
	return found
}
