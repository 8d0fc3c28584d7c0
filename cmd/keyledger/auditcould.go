package main

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// couldView is what a page of the answer says besides its keys.
type couldView struct {
	At struct {
		Sequence uint64      `json:"sequence"`
		Time     events.Time `json:"time"`
	} `json:"at"`
	Keyspace        string   `json:"keyspace"`
	DocumentVersion int      `json:"document_version"`
	Needs           []string `json:"needs"`
	Public          bool     `json:"public"`
	Count           *struct {
		Could int            `json:"could"`
		Not   int            `json:"not"`
		Codes map[string]int `json:"codes"`
	} `json:"count"`
}

// possibleView is whether a key could make the request.
type possibleView struct {
	Key        keyView `json:"key"`
	Could      bool    `json:"could"`
	Code       string  `json:"code"`
	Why        string  `json:"why"`
	Conditions []struct {
		Says string `json:"says"`
	} `json:"conditions"`
}

func (a *app) auditWhoCouldCommand() *cobra.Command {
	var keyspace, owner, key, method, where, resource, environment, origin, ip, could, cursor string
	var scopes []string
	var limit int
	var all, count bool
	cmd := &cobra.Command{
		Use: "who-could [WHEN]", Short: "List the keys that could have made a request, and why", Args: takesUpTo("WHEN"),
		Long: `List the keys that could have made a request at a moment, newest first, with what
admits each and on what condition. Every key is judged as verifiers judge, with the
keys, owners and document of that moment. WHEN is a time, a date, a distance such as
24h, now, or a sequence of LEDGER; left out: now.

The request is named by --method and --path, or by the --scope that it needs. What of
it is not told may be anything, and is a condition then, as limits are: what had been
counted against them is not known. --could no lists the others, with the first check
that fails.`,
		Example: `  keyledger audit who-could --keyspace parcelbird --method DELETE --path /v1/parcels/17
  keyledger audit who-could 2026-01-18T12:00:00Z --keyspace parcelbird --scope parcels:write --ip 203.0.113.7
  keyledger audit who-could 90d --key key_… --method GET --path /v1/parcels/17 --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			q := set(url.Values{}, "keyspace", keyspace, "owner", owner, "key", key, "method", strings.ToUpper(method), "path", where, "scope", strings.Join(scopes, ","),
				"resource", resource, "environment", environment, "origin", origin, "ip", ip, "could", could, "cursor", cursor)
			if len(args) == 1 {
				when, err := a.pastMoment("WHEN", args[0])
				if err != nil {
					return err
				}
				q.Set("as_of", when)
			}
			switch {
			case (method == "") != (where == ""):
				return usageError("--method and --path belong together: the document's routes say which scopes the request needs")
			case where == "" && len(scopes) == 0:
				return usageError("which request? Name it by --method and --path, or by the --scope that it needs")
			case could != "yes" && could != "no" && could != "any":
				return usageError("--could is yes, no or any")
			case count && all:
				return usageError("--count counts all of them on any page: leave out --all")
			}
			if key != "" {
				if err := keyID(key); err != nil {
					return err
				}
			}
			if count {
				q.Set("count", "true")
			}
			if limit > 0 {
				q.Set("limit", strconv.Itoa(limit))
			}
			members, next, body, err := a.pages(cmd, path("audit", "who-could"), "keys", "cursor", q, nil, all)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			list, err := decodeAll[possibleView](members)
			if err != nil {
				return err
			}
			var v couldView
			if err := (&answer{body: body}).decode(&v); err != nil {
				return err
			}
			defer a.more("cursor", next)
			return a.printPossible(v, list)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyspace, "keyspace", "", "of this keyspace (needed, but with --key)")
	f.StringVar(&owner, "owner", "", "keys of this owner")
	f.StringVar(&key, "key", "", "this key id alone, a deleted one, too")
	f.StringVar(&method, "method", "", "of the request, with --path")
	f.StringVar(&where, "path", "", "of the request, with --method")
	f.StringSliceVar(&scopes, "scope", nil, "that the request needs; several: each of them")
	f.StringVar(&resource, "resource", "", "that the request is about")
	f.StringVar(&environment, "environment", "", "that is admitted")
	f.StringVar(&origin, "origin", "", "that the request comes from, as browsers send it")
	f.StringVar(&ip, "ip", "", "address that the request comes from")
	f.StringVar(&could, "could", "yes", "yes: the keys that could; no: the others; any: both")
	f.BoolVar(&count, "count", false, "count all of them, too, which reads all")
	f.StringVar(&cursor, "cursor", "", "go on where an earlier list ended")
	f.IntVar(&limit, "limit", 0, "at most this many in a page")
	f.BoolVar(&all, "all", false, "all pages")
	_ = cmd.RegisterFlagCompletionFunc("could", cobra.FixedCompletions([]string{"yes", "no", "any"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

func (a *app) printPossible(v couldView, list []possibleView) error {
	needs := "no scope"
	if len(v.Needs) > 0 {
		needs = strings.Join(v.Needs, ", ")
	}
	a.note("as of LEDGER %d, %s: %s version %d, the request needs %s", v.At.Sequence, v.At.Time, clean(v.Keyspace), v.DocumentVersion, clean(needs))
	if v.Public {
		a.note("this route needs no key: anybody could do it")
	}
	rows := make([][]string, len(list))
	for i, p := range list {
		says := make([]string, len(p.Conditions))
		for i, c := range p.Conditions {
			says[i] = c.Says
		}
		rows[i] = []string{p.Key.ID, orDash(p.Key.Name), p.Key.Owner, p.Key.Status, p.Code, p.Why, orDash(strings.Join(says, "; "))}
	}
	if err := a.rows([]string{"Key", "Name", "Owner", "Status then", "Decision", "Why", "On condition"}, rows); err != nil {
		return err
	}
	if c := v.Count; c != nil {
		var codes []string
		for _, code := range slices.Sorted(maps.Keys(c.Codes)) {
			codes = append(codes, fmt.Sprintf("%d %s", c.Codes[code], code))
		}
		others := ""
		if len(codes) > 0 {
			others = ": " + strings.Join(codes, ", ")
		}
		a.note("%d could, %d could not%s", c.Could, c.Not, clean(others))
	}
	return nil
}
