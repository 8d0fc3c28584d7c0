package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// holdView is a legal hold in force.
type holdView struct {
	Keyspace string       `json:"keyspace"`
	Owner    string       `json:"owner"`
	Key      string       `json:"key"`
	Reason   string       `json:"reason"`
	Since    events.Time  `json:"since"`
	Actor    events.Actor `json:"actor"`
	Sequence uint64       `json:"sequence"` // in OPS
}

// prunedView is what a pruning has done, or would do.
type prunedView struct {
	Before   events.Time `json:"before"`
	First    uint64      `json:"first"`
	Through  uint64      `json:"through"`
	Messages uint64      `json:"messages"`
	Events   uint64      `json:"events"`
	TreeSize uint64      `json:"tree_size"`
	RootHash string      `json:"root_hash"`
	Act      uint64      `json:"act"`
	HeldBy   []holdView  `json:"held_by"`
}

func (a *app) auditPruneCommand() *cobra.Command {
	var before, older, reason string
	var dryRun, upToHolds, yes bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Purge old uses from the front of USAGE", Args: takes(),
		Long: `Purge uses from the front of USAGE. Before that a baseline of every read model is
kept, so that figures of those days stay and can be rebuilt, and the size and root
of the tree are recorded, as usage.pruned on OPS, so that proofs stay valid and the
next start knows that nothing was lost. The events themselves are gone: export them
first if they are to be kept.

A legal hold stops it before the first event that it covers (exit code 6).
Interrupted, it is finished by the next start of the service, or by repeating it.`,
		Example: `  keyledger audit prune --older-than 400d --dry-run
  keyledger audit prune --before 2026-01-01 --reason 'retention of uses'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (before == "") == (older == "") {
				return usageError("`keyledger audit prune` needs --before or --older-than")
			}
			flag, value := "--before", before
			if older != "" {
				flag, value = "--older-than", older
			}
			if value == "now" {
				return usageError("%s now would purge everything: write a time, a date or a distance such as 400d", flag)
			}
			at, err := a.past(flag, value)
			if err != nil {
				return err
			}
			body := map[string]any{"before": at}
			if reason != "" {
				body["reason"] = reason
			}
			if upToHolds {
				body["up_to_holds"] = true
			}
			if a.asks(yes) && !dryRun {
				body["dry_run"] = true
				v, _, err := a.prune(cmd, body)
				if err != nil {
					return err
				}
				if v.Messages == 0 {
					a.note("There is nothing to prune.")
					return nil
				}
				if err := a.confirm(fmt.Sprintf("This purges %d events from USAGE. Nobody can undo it.", v.Events)); err != nil {
					return err
				}
				delete(body, "dry_run")
			}
			if dryRun {
				body["dry_run"] = true
			}
			v, line, err := a.prune(cmd, body)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(line)
			}
			held := "-"
			if len(v.HeldBy) > 0 {
				held = v.HeldBy[0].scope()
			}
			return a.fields([][2]string{
				{"before", a.when(v.Before)}, {"events", strconv.FormatUint(v.Events, 10)}, {"messages", strconv.FormatUint(v.Messages, 10)},
				{"through", strconv.FormatUint(v.Through, 10)}, {"tree size", strconv.FormatUint(v.TreeSize, 10)}, {"root", orDash(v.RootHash)},
				{"held by", held}, {"recorded", recordedAt(v.Act)},
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&before, "before", "", "what was recorded before this time or date")
	fl.StringVar(&older, "older-than", "", "what was recorded longer ago than this, such as 400d")
	fl.StringVar(&reason, "reason", "", "kept for ever")
	fl.BoolVar(&upToHolds, "up-to-holds", false, "prune what legal holds leave, instead of refusing")
	addActFlags(cmd, &dryRun, &yes)
	return cmd
}

func (a *app) prune(cmd *cobra.Command, body map[string]any) (v prunedView, result []byte, err error) {
	result, err = a.work(cmd, path("audit", "prunings"), body, "prune")
	if err == nil {
		err = (&answer{body: result}).decode(&v)
	}
	return v, result, err
}

func (h holdView) scope() string {
	s := h.Keyspace
	for _, part := range []string{h.Owner, h.Key} {
		if part != "" {
			s += "/" + part
		}
	}
	return s
}

func (a *app) auditHoldCommand() *cobra.Command {
	return group("hold", "Legal holds: stop erasing and pruning of what they cover",
		a.auditHoldSetCommand(true), a.auditHoldSetCommand(false), a.auditHoldListCommand())
}

func (a *app) auditHoldSetCommand(active bool) *cobra.Command {
	var f commandFlags
	var keyspace, owner, key, reason string
	use, short, at := "lift", "Allow erasing and pruning again", path("audit", "holds", "lift")
	if active {
		use, short, at = "set", "Stop erasing and pruning of what a keyspace, an owner or a key has in the log", path("audit", "holds")
	}
	cmd := &cobra.Command{
		Use: use, Short: short, Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if keyspace == "" && key == "" {
				return usageError("`keyledger audit hold %s` needs --keyspace, --keyspace and --owner, or --key", use)
			}
			if active && reason == "" {
				return usageError("`keyledger audit hold set` needs --reason: a case number, no person's name")
			}
			body := map[string]string{}
			for name, value := range map[string]string{"keyspace": keyspace, "owner": owner, "key": key, "reason": reason} {
				if value != "" {
					body[name] = value
				}
			}
			r, err := a.command(cmd, &f, http.MethodPost, at, body)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var v struct {
				Hold    holdView `json:"hold"`
				Changed bool     `json:"changed"`
			}
			if err := r.decode(&v); err != nil {
				return err
			}
			state := map[bool]string{true: "held", false: "not held"}[active]
			if !v.Changed {
				state += " already"
			}
			return a.fields([][2]string{{"scope", v.Hold.scope()}, {"state", state}, {"reason", orDash(v.Hold.Reason)}})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&keyspace, "keyspace", "", "a whole keyspace, or that of the owner")
	fl.StringVar(&owner, "owner", "", "an owner of it")
	fl.StringVar(&key, "key", "", "or one key")
	fl.StringVar(&reason, "reason", "", "kept for ever, and told to whoever is refused")
	a.completeFlags(cmd)
	return cmd
}

func (a *app) auditHoldListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the legal holds in force", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.get(cmd, path("audit", "holds"), url.Values{}, nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var page struct {
				Holds []json.RawMessage `json:"holds"`
			}
			if err := r.decode(&page); err != nil {
				return err
			}
			list, err := decodeAll[holdView](page.Holds)
			if err != nil {
				return err
			}
			rows := make([][]string, len(list))
			for i, h := range list {
				rows[i] = []string{h.scope(), h.Reason, a.when(h.Since), orDash(h.Actor.ID), recordedAt(h.Sequence)}
			}
			return a.rows([]string{"Scope", "Reason", "Since", "Set by", "Recorded"}, rows)
		},
	}
}
