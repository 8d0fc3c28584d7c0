package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/reactors/delivery"
)

func (a *app) webhooksCommand() *cobra.Command {
	return group("webhooks", "Send what happens to other services, signed, and see what they took",
		a.webhooksAddCommand(), a.webhooksListCommand(), a.webhooksShowCommand(), a.webhooksRemoveCommand(), a.webhooksTestCommand(), a.webhooksRotateCommand(),
		a.webhooksEnableCommand(), a.webhooksDeliveriesCommand(), a.webhooksDeadCommand(), a.webhooksReplayCommand())
}

// webhookShown is a webhook as the API answers it.
type webhookShown struct {
	ID                  string      `json:"id"`
	URL                 string      `json:"url"`
	Keyspace            string      `json:"keyspace"`
	Owner               string      `json:"owner"`
	Types               []string    `json:"types"`
	Keys                []string    `json:"keys"`
	Description         string      `json:"description"`
	Status              string      `json:"status"`
	DisabledReason      string      `json:"disabled_reason"`
	CreatedAt           events.Time `json:"created_at"`
	PreviousSecretUntil events.Time `json:"previous_secret_until"`
	Delivery            struct {
		Position     uint64      `json:"position"`
		InFlight     int         `json:"in_flight"`
		Delivered    uint64      `json:"delivered"`
		DeadLetters  uint64      `json:"dead_letters"`
		FailingSince events.Time `json:"failing_since"`
		LastSuccess  events.Time `json:"last_success_at"`
		LastError    string      `json:"last_error"`
	} `json:"delivery"`
}

func (a *app) showWebhook(w webhookShown) error {
	all := func(list []string) string {
		if len(list) == 0 {
			return "all"
		}
		return strings.Join(list, ", ")
	}
	return a.fields([][2]string{
		{"webhook", w.ID}, {"url", w.URL}, {"keyspace", orDash(w.Keyspace)}, {"owner", orDash(w.Owner)}, {"types", all(w.Types)}, {"keys", all(w.Keys)},
		{"description", orDash(w.Description)}, {"status", w.Status}, {"disabled because", orDash(w.DisabledReason)}, {"created", a.when(w.CreatedAt)},
		{"previous secret until", a.when(w.PreviousSecretUntil)}, {"position", strconv.FormatUint(w.Delivery.Position, 10)}, {"in flight", strconv.Itoa(w.Delivery.InFlight)},
		{"delivered", strconv.FormatUint(w.Delivery.Delivered, 10)}, {"dead letters", strconv.FormatUint(w.Delivery.DeadLetters, 10)},
		{"failing since", a.when(w.Delivery.FailingSince)}, {"last success", a.when(w.Delivery.LastSuccess)}, {"last error", orDash(w.Delivery.LastError)},
	})
}

// webhookSecret prints an answer with a secret, which goes to a file where one was named.
func (a *app) webhookSecret(r *answer, place *secretFile, file string) error {
	var v struct {
		Webhook  webhookShown `json:"webhook"`
		Secret   *string      `json:"secret"`
		Replayed bool         `json:"replayed"`
	}
	if err := r.decode(&v); err != nil {
		return err
	}
	if v.Secret != nil {
		if err := place.write(a, *v.Secret); err != nil {
			return err
		}
	}
	if file == "-" {
		return nil
	}
	if a.asJSON {
		var members map[string]json.RawMessage
		if err := json.Unmarshal(r.body, &members); err != nil {
			return err
		}
		if !place.printed() {
			members["secret"] = json.RawMessage("null")
		}
		return a.printValue(members)
	}
	if err := a.showWebhook(v.Webhook); err != nil {
		return err
	}
	switch {
	case v.Secret == nil:
		a.note("This was done before: the secret is not told again.")
	case place.printed():
		if err := a.fields([][2]string{{"secret", *v.Secret}}); err != nil {
			return err
		}
		a.note("Keep the secret now: it is not shown again. docs/webhooks.md shows how to check signatures with it.")
	}
	return nil
}

func (a *app) webhooksAddCommand() *cobra.Command {
	var keyspace, owner, description, file string
	var types, keys []string
	var from int64
	var f commandFlags
	cmd := &cobra.Command{
		Use: "add URL", Short: "Register an address that facts are sent to", Args: takes("URL"),
		Long: `What happens from now on is sent to an address: at least once, under the event's id,
in order for each key, tried again for a day, signed as Standard Webhooks says. The
secret that receivers check signatures with is printed once, or written to
--secret-file.`,
		Example: `  keyledger webhooks add https://example.com/hooks --keyspace parcelbird --type key.revoked --secret-file hook.secret`,
		RunE: func(cmd *cobra.Command, args []string) error {
			place, err := a.openSecretFile(file, false)
			if err != nil {
				return err
			}
			defer place.discard()
			body := map[string]any{"url": args[0], "description": description, "types": types, "keys": keys}
			for name, value := range map[string]string{"keyspace": keyspace, "owner": owner} {
				if value != "" {
					body[name] = value
				}
			}
			for _, name := range []string{"types", "keys"} {
				if len(body[name].([]string)) == 0 {
					delete(body, name)
				}
			}
			if from >= 0 {
				body["from"] = from
			}
			r, err := a.command(cmd, &f, http.MethodPost, path("webhooks"), body)
			if err != nil {
				return err
			}
			return a.webhookSecret(r, place, file)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&keyspace, "keyspace", "", "what happens in this keyspace (default: in all)")
	fl.StringVar(&owner, "owner", "", "what happens to this owner (default: to all)")
	fl.StringSliceVar(&types, "type", nil, "facts of this type, such as key.revoked, or of a family such as key.* (default: all); may be repeated")
	fl.StringSliceVar(&keys, "key", nil, "facts about this key (default: all); may be repeated")
	fl.StringVar(&description, "description", "", "for people: what it is, no person's name")
	fl.Int64Var(&from, "from", -1, "begin after this sequence of FEED, 0: with everything (default: with what comes next)")
	fl.StringVar(&file, "secret-file", "", "write the secret to this new file (mode 0600) instead of printing it; - prints nothing else")
	f.add(cmd)
	a.completeFlags(cmd)
	return cmd
}

func (a *app) webhooksListCommand() *cobra.Command {
	var keyspace, owner string
	cmd := &cobra.Command{
		Use: "list", Short: "List the webhooks", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.get(cmd, path("webhooks"), set(url.Values{}, "keyspace", keyspace, "owner", owner), nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var v struct{ Webhooks []webhookShown }
			if err := r.decode(&v); err != nil {
				return err
			}
			rows := make([][]string, len(v.Webhooks))
			for i, w := range v.Webhooks {
				rows[i] = []string{w.ID, w.Status, orDash(w.Keyspace), orDash(w.Owner), strconv.FormatUint(w.Delivery.Delivered, 10), strconv.FormatUint(w.Delivery.DeadLetters, 10), w.URL}
			}
			return a.rows([]string{"Webhook", "Status", "Keyspace", "Owner", "Delivered", "Dead", "URL"}, rows)
		},
	}
	cmd.Flags().StringVar(&keyspace, "keyspace", "", "of this keyspace")
	cmd.Flags().StringVar(&owner, "owner", "", "of this owner")
	a.completeFlags(cmd)
	return cmd
}

func (a *app) webhooksShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show WEBHOOK", Short: "Show a webhook, and how the deliveries to it are", Args: takes("WEBHOOK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.get(cmd, path("webhooks", args[0]), nil, nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var w webhookShown
			if err := r.decode(&w); err != nil {
				return err
			}
			return a.showWebhook(w)
		},
	}
}

func (a *app) webhookChanged(cmd *cobra.Command, f *commandFlags, method, at string, state string) error {
	r, err := a.command(cmd, f, method, at, nil)
	if err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(r.body)
	}
	var v struct{ Webhook webhookShown }
	if err := r.decode(&v); err != nil {
		return err
	}
	return a.fields([][2]string{{"webhook", v.Webhook.ID}, {"state", state}, {"url", v.Webhook.URL}})
}

func (a *app) webhooksRemoveCommand() *cobra.Command {
	var f commandFlags
	cmd := &cobra.Command{
		Use: "remove WEBHOOK", Short: "Send nothing more to an address", Args: takes("WEBHOOK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.webhookChanged(cmd, &f, http.MethodDelete, path("webhooks", args[0]), "removed")
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) webhooksEnableCommand() *cobra.Command {
	var f commandFlags
	cmd := &cobra.Command{
		Use: "enable WEBHOOK", Short: "Send again to one that answered 410 Gone, what it has missed as well", Args: takes("WEBHOOK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.webhookChanged(cmd, &f, http.MethodPost, path("webhooks", args[0], "enable"), "enabled")
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) webhooksRotateCommand() *cobra.Command {
	var grace, file string
	var f commandFlags
	cmd := &cobra.Command{
		Use: "rotate-secret WEBHOOK", Short: "Give a webhook another secret; for a while both sign", Args: takes("WEBHOOK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			place, err := a.openSecretFile(file, false)
			if err != nil {
				return err
			}
			defer place.discard()
			r, err := a.command(cmd, &f, http.MethodPost, path("webhooks", args[0], "rotate-secret"), map[string]string{"grace": grace})
			if err != nil {
				return err
			}
			return a.webhookSecret(r, place, file)
		},
	}
	cmd.Flags().StringVar(&grace, "grace", "24h", "for how long the secret before signs as well, 0s to 7d")
	cmd.Flags().StringVar(&file, "secret-file", "", "write the secret to this new file (mode 0600) instead of printing it; - prints nothing else")
	f.add(cmd)
	return cmd
}

func outcome(d delivery.Attempt) string {
	if d.Status > 0 {
		return fmt.Sprintf("%s %d", d.Outcome, d.Status)
	}
	return d.Outcome
}

func (a *app) webhooksTestCommand() *cobra.Command {
	return &cobra.Command{
		Use: "test WEBHOOK", Short: "Send a test now, and show what came of it", Args: takes("WEBHOOK"),
		Long: "Sends an event of type webhook.test, which stands in no stream, once. Exit code 1: it did not arrive.",
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.command(cmd, &commandFlags{}, http.MethodPost, path("webhooks", args[0], "test"), nil)
			if err != nil {
				return err
			}
			var v struct {
				Delivered bool
				Delivery  delivery.Attempt
			}
			if err := r.decode(&v); err != nil {
				return err
			}
			if a.asJSON {
				err = a.printJSON(r.body)
			} else {
				err = a.fields([][2]string{{"outcome", outcome(v.Delivery)}, {"took", fmt.Sprintf("%d ms", v.Delivery.MS)}, {"error", orDash(v.Delivery.Error)}, {"answer", orDash(v.Delivery.Response)}})
			}
			if err == nil && !v.Delivered {
				return fmt.Errorf("the test did not arrive: %s", v.Delivery.Error)
			}
			return err
		},
	}
}

func (a *app) webhooksDeliveriesCommand() *cobra.Command {
	var limit int
	var before string
	cmd := &cobra.Command{
		Use: "deliveries WEBHOOK", Short: "List the attempts of the last 30 days, newest first", Args: takes("WEBHOOK"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.get(cmd, path("webhooks", args[0], "deliveries"), set(url.Values{}, "limit", strconv.Itoa(limit), "before", before), nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var v struct{ Deliveries []delivery.Attempt }
			if err := r.decode(&v); err != nil {
				return err
			}
			rows := make([][]string, len(v.Deliveries))
			for i, d := range v.Deliveries {
				rows[i] = []string{a.when(d.Time), outcome(d), fmt.Sprintf("%d ms", d.MS), strconv.Itoa(d.Attempt), d.Type, orDash(d.Key), d.ID, orDash(d.Error)}
			}
			return a.rows([]string{"When", "Outcome", "Took", "Attempt", "Type", "Key", "Event", "Error"}, rows)
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 50, "at most this many, up to 1000")
	cmd.Flags().StringVar(&before, "before", "", "before this time, RFC 3339 (default: the newest)")
	return cmd
}

func (a *app) webhooksDeadCommand() *cobra.Command {
	var reactor, target, state string
	var after uint64
	var limit int
	cmd := &cobra.Command{
		Use: "dead [SEQUENCE]", Short: "List what could not be delivered, or show one with its fact", Args: cobra.MaximumNArgs(1),
		Long: `Facts that a webhook, or a sink with --reactor sinks, did not take for a day. They
stay in the stream DLQ; "keyledger webhooks replay" delivers them again.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				r, err := a.get(cmd, path("dead-letters", args[0]), nil, nil)
				if err != nil {
					return err
				}
				return a.printJSON(r.body)
			}
			q := set(url.Values{}, "reactor", reactor, "target", target, "state", state, "limit", strconv.Itoa(limit))
			if after > 0 {
				q.Set("after", strconv.FormatUint(after, 10))
			}
			r, err := a.get(cmd, path("dead-letters"), q, nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var v struct {
				DeadLetters []delivery.DeadLetter `json:"dead_letters"`
				Next        *uint64
			}
			if err := r.decode(&v); err != nil {
				return err
			}
			rows := make([][]string, len(v.DeadLetters))
			for i, d := range v.DeadLetters {
				rows[i] = []string{strconv.FormatUint(d.Sequence, 10), d.State, a.when(d.DeadAt), d.Target, d.Type, orDash(d.Key), d.ID, d.Reason}
			}
			if err := a.rows([]string{"Sequence", "State", "Dead since", "Target", "Type", "Key", "Event", "Reason"}, rows); err != nil {
				return err
			}
			if v.Next != nil {
				a.note("There are more: --after %d", *v.Next)
			}
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&reactor, "reactor", "webhooks", "webhooks or sinks")
	fl.StringVar(&target, "target", "", "of this webhook, or sink (default: of all)")
	fl.StringVar(&state, "state", "dead", "dead, replaying or replayed; empty: all")
	fl.Uint64Var(&after, "after", 0, "after this sequence")
	fl.IntVar(&limit, "limit", 100, "at most this many, up to 1000")
	_ = cmd.RegisterFlagCompletionFunc("reactor", cobra.FixedCompletions([]string{"webhooks", "sinks"}, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{"dead", "replaying", "replayed"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) webhooksReplayCommand() *cobra.Command {
	var reactor, target string
	cmd := &cobra.Command{
		Use: "replay [SEQUENCE…]", Short: "Deliver dead letters again: some, or all of a webhook", Args: cobra.ArbitraryArgs,
		Example: `  keyledger webhooks replay 17 18
  keyledger webhooks replay --target whk_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d`,
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{"reactor": reactor}
			if target != "" {
				body["target"] = target
			}
			var sequences []uint64
			for _, s := range args {
				n, err := strconv.ParseUint(s, 10, 64)
				if err != nil {
					return usageError("%q is no sequence: as `keyledger webhooks dead` lists them", s)
				}
				sequences = append(sequences, n)
			}
			if len(sequences) > 0 {
				body["sequences"] = sequences
			} else if target == "" {
				return usageError("say which: sequences as `keyledger webhooks dead` lists them, or --target for all of a webhook or sink")
			}
			r, err := a.command(cmd, &commandFlags{}, http.MethodPost, path("dead-letters", "replay"), body)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var v struct{ Replaying, Skipped []uint64 }
			if err := r.decode(&v); err != nil {
				return err
			}
			return a.fields([][2]string{{"replaying", strconv.Itoa(len(v.Replaying))}, {"skipped", strconv.Itoa(len(v.Skipped))}})
		},
	}
	cmd.Flags().StringVar(&reactor, "reactor", "webhooks", "webhooks or sinks")
	cmd.Flags().StringVar(&target, "target", "", "all that are dead of this webhook or sink")
	_ = cmd.RegisterFlagCompletionFunc("reactor", cobra.FixedCompletions([]string{"webhooks", "sinks"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
