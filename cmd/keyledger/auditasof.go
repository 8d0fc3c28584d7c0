package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// pastMoment reads a moment of the past: a sequence of LEDGER as it is, as is now, which
// the service knows better than this machine's clock; else a time, a date or a distance.
func (a *app) pastMoment(name, s string) (string, error) {
	if s == "now" || s != "" && strings.Trim(s, "0123456789") == "" {
		return s, nil
	}
	if s == "" {
		return "", usageError("%s is empty: write a time, a date, a distance such as 24h, now, or a sequence of LEDGER", name)
	}
	return a.past(name, s)
}

// keyID refuses what is no id of a key before it is sent anywhere: it may be a
// secret in the wrong place.
func keyID(s string) error {
	if !strings.HasPrefix(s, "key_") {
		return usageError("KEY is not the id of a key, key_…: of a secret `keyledger audit leaked` finds the key, from stdin")
	}
	return nil
}

// takesUpTo is takes with the last argument left out or not.
func takesUpTo(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return takes(names[:len(names)-1]...)(cmd, args)
		}
		return takes(names...)(cmd, args)
	}
}

func (a *app) auditAsOfCommand() *cobra.Command {
	var keyspace, owner, status, cursor string
	var limit int
	var all bool
	cmd := &cobra.Command{
		Use: "as-of WHEN [KEY]", Short: "Show a key, or list keys, as they were", Args: takesUpTo("WHEN", "KEY"),
		Long: `Show a key as it was, with the plan and the version of the keyspace's document
that were in force, or without KEY list the keys of that moment. WHEN is a time,
a date, a distance such as 24h, now, or a sequence of LEDGER; a time means
everything up to the last fact in the stream that is not later. What LEDGER does not hold,
the uses of a key, is not shown.`,
		Example: `  keyledger audit as-of 2026-01-18T12:00:00Z key_…
  keyledger audit as-of 90d --keyspace parcelbird --status active
  keyledger audit as-of 4711 --json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			when, err := a.pastMoment("WHEN", args[0])
			if err != nil {
				return err
			}
			if len(args) == 2 {
				if keyspace+owner+status+cursor != "" || limit > 0 || all {
					return usageError("`%s` shows one key: leave out the flags that choose keys", cmd.CommandPath())
				}
				return a.keyAsOf(cmd, when, args[1])
			}
			q := set(url.Values{}, "as_of", when, "keyspace", keyspace, "owner", owner, "status", status, "cursor", cursor)
			if limit > 0 {
				q.Set("limit", strconv.Itoa(limit))
			}
			members, next, body, err := a.pages(cmd, path("keys"), "keys", "cursor", q, nil, all)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			keys, err := decodeAll[keyView](members)
			if err != nil {
				return err
			}
			defer a.more("cursor", next)
			return a.printKeys(keys)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyspace, "keyspace", "", "keys of this keyspace")
	f.StringVar(&owner, "owner", "", "keys of this owner")
	f.StringVar(&status, "status", "", "that were active, expired or revoked")
	f.StringVar(&cursor, "cursor", "", "go on where an earlier list ended")
	f.IntVar(&limit, "limit", 0, "at most this many in a page")
	f.BoolVar(&all, "all", false, "all pages")
	_ = cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions([]string{"active", "expired", "revoked"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

// keyAsOf shows a key with what else counted for it.
func (a *app) keyAsOf(cmd *cobra.Command, when, id string) error {
	if err := keyID(id); err != nil {
		return err
	}
	r, err := a.get(cmd, path("keys", id), set(url.Values{}, "as_of", when), nil)
	if err != nil {
		return err
	}
	var k keyView
	if err := r.decode(&k); err != nil {
		return err
	}
	at := set(url.Values{}, "as_of", r.header.Get("Ledger-Sequence"))
	var owner ownerView
	var keyspace keyspaceView
	rest := map[string]json.RawMessage{"key": r.body, "ledger_sequence": json.RawMessage(r.header.Get("Ledger-Sequence"))}
	if k.Keyspace != events.RootKeyspace {
		for name, from := range map[string]struct {
			path string
			into any
		}{"owner": {path("keyspaces", k.Keyspace, "owners", k.Owner), &owner}, "keyspace": {path("keyspaces", k.Keyspace), &keyspace}} {
			r, err := a.get(cmd, from.path, at, nil)
			if p, ok := errors.AsType[*problem](err); ok && (p.Status == http.StatusForbidden || p.Status == http.StatusNotFound) {
				continue // it was not there, or is not for this root key
			}
			if err != nil {
				return err
			}
			if err := r.decode(from.into); err != nil {
				return err
			}
			rest[name] = r.body
		}
	}
	if a.asJSON {
		return a.printValue(rest)
	}
	if err := a.printKey(k, r); err != nil {
		return err
	}
	var more [][2]string
	if owner.Name != "" || owner.Plan != "" {
		more = append(more, [2]string{"owner's name", orDash(owner.Name)}, [2]string{"owner's plan", orDash(owner.Plan)})
	}
	if keyspace.Version > 0 {
		more = append(more, [2]string{"document", keyspace.Keyspace + " version " + strconv.Itoa(keyspace.Version)})
	}
	if len(more) == 0 {
		return nil
	}
	return a.fields(more)
}
