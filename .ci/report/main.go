// Report reads `go test -json` and prints the tests that ran, one line each, and
// of those that failed everything that they said. It fails where one failed or
// was skipped, and where none ran.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// first and last bytes of what one failed test said: what was wrong comes first, what
// servers logged meanwhile after it, and a panic last of all.
const first, last = 6_000, 14_000

func main() {
	said := map[[2]string]*strings.Builder{}
	passed, failed, skipped := 0, 0, 0
	bad := false
	var failures []string // named once more at the end
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			break
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			fmt.Print(string(line))
			continue
		}
		at := [2]string{e.Package + e.ImportPath, e.Test}
		switch e.Action {
		case "output", "build-output":
			if said[at] == nil {
				said[at] = &strings.Builder{}
			}
			said[at].WriteString(e.Output)
			if e.Test == "" && (strings.HasPrefix(e.Output, "ok  \t") || strings.HasPrefix(e.Output, "FAIL\t") || strings.HasPrefix(e.Output, "panic:")) {
				fmt.Print(e.Output)
			}
		case "pass":
			if e.Test != "" {
				passed++
				if !strings.Contains(e.Test, "/") {
					fmt.Printf("--- PASS: %s (%.2fs)\n", e.Test, e.Elapsed)
				}
			}
			delete(said, at)
		case "skip":
			if e.Test != "" { // else a package without tests
				skipped++
				fmt.Printf("--- SKIP: %s %s\n%s", e.Package, e.Test, text(said[at]))
			}
			delete(said, at)
		case "fail", "build-fail":
			bad = true
			if e.Test != "" {
				failed++
				fmt.Printf("--- FAIL: %s (%.2fs)\n", e.Test, e.Elapsed)
			} else { // it may have ended in the middle of tests
				for of, b := range said {
					if of[0] == at[0] && of[1] != "" {
						fmt.Printf("--- NOT FINISHED: %s\n%s", of[1], text(b))
						delete(said, of)
					}
				}
			}
			failures = append(failures, strings.TrimSpace(e.Package+e.ImportPath+" "+e.Test))
			fmt.Print(text(said[at]))
			delete(said, at)
		}
	}
	for _, f := range failures {
		fmt.Println("FAIL:", f)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if bad || failed+skipped > 0 || passed == 0 {
		os.Exit(1)
	}
}

func text(b *strings.Builder) string {
	if b == nil {
		return ""
	}
	s := b.String()
	if len(s) > first+last {
		s = s[:first] + "\n…\n" + s[len(s)-last:]
	}
	return s
}
