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
	w := tabwriter.NewWriter(a.stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintf(w, "keyledger is running (started in %.1f s)\n\n", time.Since(p.started).Seconds())
	fmt.Fprintf(w, "  API\t%s\troot key in %s\n", p.API, p.RootKey)
	fmt.Fprintf(w, "  Gateway\t%s/{keyspace}/…\tto a demo upstream that echoes the request\n", p.Gateway)
	fmt.Fprintf(w, "  NATS\t%s\tLEDGER, USAGE, FEED; live.> for subscribers\n", p.NATS)
	if p.private {
		fmt.Fprintf(w, "  PostgreSQL\tpsql %q\tschema analytics\n", p.Postgres)
	}
	kept := "kept when this ends"
	if p.ephemeral {
		kept = "removed when this ends"
	}
	fmt.Fprintf(w, "  Data\t%s\t%s\n", p.State, kept)
	if p.configured > 0 {
		fmt.Fprintf(w, "  Keyspaces\t%d configured\tkeyledger keyspaces list shows them\n", p.configured)
	}
	_ = w.Flush()
	me, ks := invocation(), "parcelbird"
	path := "/v1/parcels/1"
	owner := "acme"
	fmt.Fprintf(a.stdout, `
Try it in another terminal:

  %[1]s keys create --keyspace %[2]s --owner %[3]s --name "My first key" --scope parcels:read --secret-file my.key
  curl -H "Authorization: Bearer $(cat my.key)" %[4]s/%[2]s%[5]s
  %[1]s keys list --keyspace %[2]s

Ctrl-C stops it.
`, me, ks, owner, p.Gateway, path)
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
