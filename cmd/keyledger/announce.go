package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// announce says what was started, where it is, and what to try first.
func (a *app) announce(p devPlaces) {
	if a.asJSON {
		_ = a.printValue(p)
		return
	}
	kept := "kept when this ends"
	if p.ephemeral {
		kept = "removed when this ends"
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "keyledger is running (started in %.1f s)\n\n", time.Since(p.started).Seconds())
	fmt.Fprintf(w, "  API\t%s\n", p.API)
	fmt.Fprintf(w, "  Console\t%s\n", p.Console)
	fmt.Fprintf(w, "  \tsigns you in, once and for ten minutes; `keyledger console` prints another link\n")
	fmt.Fprintf(w, "  Gateway\t%s/{keyspace}/… to a demo upstream that echoes the request\n", p.Gateway)
	fmt.Fprintf(w, "  NATS\t%s\n", p.NATS)
	if p.private {
		fmt.Fprintf(w, "  PostgreSQL\tpsql %q\n", p.Postgres)
	}
	fmt.Fprintf(w, "  Root key\t%s\n", p.RootKey)
	fmt.Fprintf(w, "  Data\t%s (%s)\n", p.State, kept)
	fmt.Fprintf(w, "  Audit log\t%s (published; signed by the key below)\n", p.LogDir)
	fmt.Fprintf(w, "  Log key\t%s\n", p.LogKey)
	if p.configured > 0 {
		fmt.Fprintf(w, "  Keyspaces\t%d configured\n", p.configured)
	}
	_ = w.Flush()
	me, ks := invocation(), "parcelbird"
	path := "/v1/parcels/1"
	owner := "acme"
	first := ""
	if !p.sample {
		first = fmt.Sprintf("  %s owners set %s --keyspace %s --name \"Acme Ltd\" --plan large\n", me, owner, ks)
	}
	fmt.Fprintf(a.stdout, `
Try it in another terminal:

%[6]s  %[1]s keys create --keyspace %[2]s --owner %[3]s --name "My first key" --scopes parcels:read --secret-file my.key
  curl -H "Authorization: Bearer $(cat my.key)" %[4]s/%[2]s%[5]s
  %[1]s keys list --keyspace %[2]s

Ctrl-C stops it.
`, me, ks, owner, p.Gateway, path, first)
}

// invocation is how this program was called, so that what it suggests to type
// works where it was typed.
func invocation() string {
	exe, err := os.Executable()
	if err == nil && strings.Contains(filepath.ToSlash(exe), "/go-build") {
		return "go run ./cmd/keyledger"
	}
	return os.Args[0]
}
