package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
)

// keyView is a key as the API answers it; section 5 of the contract, Shapes.
type keyView struct {
	ID             string            `json:"id"`
	Keyspace       string            `json:"keyspace"`
	Owner          string            `json:"owner"`
	Name           string            `json:"name"`
	Display        string            `json:"display"`
	Environment    string            `json:"environment"`
	Status         string            `json:"status"`
	Plan           string            `json:"plan"`
	Scopes         []string          `json:"scopes"`
	Resources      []string          `json:"resources"`
	Limits         map[string]*int64 `json:"limits"`
	AllowedOrigins []string          `json:"allowed_origins"`
	AllowedIPs     []string          `json:"allowed_ips"`
	Meta           map[string]string `json:"meta"`
	CreatedAt      events.Time       `json:"created_at"`
	CreatedBy      json.RawMessage   `json:"created_by"`
	ExpiresAt      events.Time       `json:"expires_at"`
	RotatedAt      events.Time       `json:"rotated_at"`
	GraceUntil     events.Time       `json:"grace_until"`
	RevokedAt      events.Time       `json:"revoked_at"`
	RevokeReason   string            `json:"revoke_reason"`
	LastUsedAt     events.Time       `json:"last_used_at"`
	UseCount       *int64            `json:"use_count"` // nil: not known, of a past moment
	Version        uint64            `json:"version"`
	Role           string            `json:"role"` // of a root key
}

// keyAnswer is what a command about one key answers.
type keyAnswer struct {
	Key      keyView `json:"key"`
	Secret   *string `json:"secret"`
	Replayed bool    `json:"replayed"`

	Claim *struct {
		Path  string      `json:"path"`
		Until events.Time `json:"until"`
	} `json:"claim"`
}

func (a *app) keysCommand() *cobra.Command {
	return group("keys", "Create, find, change, rotate and revoke keys",
		a.keysCreateCommand(), a.keysListCommand(), a.keysGetCommand(), a.keysUpdateCommand(),
		a.keysRotateCommand(), a.keysEndGraceCommand(), a.keysRevokeCommand(), a.keysDeleteCommand(),
		a.keysImportCommand(), a.keysLookupCommand())
}

// grantFlags are the fields of a key that create and update share.
type grantFlags struct {
	name, plan, expiresAt  string
	scopes, resources      []string
	origins, ips           []string
	limits                 map[string]string
	meta                   map[string]string
	create                 bool
	environment, expiresIn string
}

func (g *grantFlags) add(cmd *cobra.Command) {
	also(cmd, "scope", "scopes", "resource", "resources", "limit", "limits", "allowed-origin", "allowed-origins", "allowed-ip", "allowed-ips")
	f := cmd.Flags()
	f.StringVar(&g.name, "name", "", "what people call the key")
	f.StringVar(&g.plan, "plan", "", "plan of the key, instead of its owner's")
	f.StringSliceVar(&g.scopes, "scopes", nil, "scopes, separated by commas")
	f.StringSliceVar(&g.resources, "resources", nil, "resources that the key is bound to, separated by commas")
	f.StringToStringVar(&g.limits, "limits", nil, "requests per window: minute=100,hour=5000,day=none")
	f.StringSliceVar(&g.origins, "allowed-origins", nil, "origins that may use the key, separated by commas")
	f.StringSliceVar(&g.ips, "allowed-ips", nil, "addresses or networks that may use the key, separated by commas")
	f.StringToStringVar(&g.meta, "meta", nil, "business data: name=value,…")
	if g.create {
		f.StringVar(&g.environment, "environment", "", "environment of the key (else the keyspace's default)")
		f.StringVar(&g.expiresAt, "expires-at", "", "when the key expires: RFC 3339, a date, or never (else the keyspace's default)")
		f.StringVar(&g.expiresIn, "expires-in", "", "after what time the key expires: 30d, 24h")
		cmd.MarkFlagsMutuallyExclusive("expires-at", "expires-in")
		return
	}
	f.StringVar(&g.expiresAt, "expires-at", "", "when the key expires: RFC 3339, a date, or never")
}

// body is the JSON of the flags that were given; an empty list or map is an
// empty one, not an absent one.
func (g *grantFlags) body(cmd *cobra.Command) (map[string]any, error) {
	b := map[string]any{}
	put := func(flag, field string, v any) {
		if cmd.Flags().Changed(flag) {
			b[field] = v
		}
	}
	put("name", "name", g.name)
	put("plan", "plan", g.plan)
	if cmd.Flags().Changed("plan") && g.plan == "" {
		b["plan"] = nil
	}
	put("scopes", "scopes", list(g.scopes))
	put("resources", "resources", list(g.resources))
	limits, err := windows(g.limits)
	if err != nil {
		return nil, err
	}
	put("limits", "limits", limits)
	put("allowed-origins", "allowed_origins", list(g.origins))
	put("allowed-ips", "allowed_ips", list(g.ips))
	put("meta", "meta", dict(g.meta))
	put("environment", "environment", g.environment)
	put("expires-in", "expires_in", g.expiresIn)
	if !cmd.Flags().Changed("expires-at") {
		return b, nil
	}
	if g.expiresAt == "never" {
		b["expires_at"] = nil
		return b, nil
	}
	at, err := moment(g.expiresAt)
	if err != nil {
		return nil, usageError("--expires-at: %w", err)
	}
	b["expires_at"] = at
	return b, nil
}

// windows reads limits; none is no limit, which is null on the wire.
func windows(given map[string]string) (map[string]any, error) {
	limits := make(map[string]any, len(given))
	for window, s := range given {
		if s == "none" {
			limits[window] = nil
			continue
		}
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return nil, usageError("--limits: write a whole number or none for each window, such as minute=100,day=none")
		}
		limits[window] = n
	}
	return limits, nil
}

func list(s []string) []string { return append([]string{}, s...) }

func dict[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return m
}

// moment takes RFC 3339, or a date, which means its first moment in UTC.
func moment(s string) (string, error) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return events.At(t).String(), nil
	}
	if t, err := time.Parse(time.DateOnly, s); err == nil {
		return events.At(t).String(), nil
	}
	return "", fmt.Errorf("write a time such as 2026-01-18T12:00:00Z, a date such as 2026-01-18")
}

// claimFlag asks that the secret is handed over by a link.
type claimFlag struct{ lasts string }

func (c *claimFlag) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.lasts, "claim", "", "print a link in place of the secret, which whoever opens it within this time sees, once: 72h")
	cmd.MarkFlagsMutuallyExclusive("claim", "secret-file")
}

func (c *claimFlag) ask(cmd *cobra.Command, body map[string]any) {
	if cmd.Flags().Changed("claim") {
		body["claim"] = map[string]any{"expires_in": c.lasts}
	}
}

func (a *app) keysCreateCommand() *cobra.Command {
	var claim claimFlag
	var keyspace, owner, file string
	g := grantFlags{create: true}
	var f commandFlags
	cmd := &cobra.Command{
		Use: "create", Short: "Create a key and print its secret, once", Args: takes(),
		Example: `  keyledger keys create --keyspace parcelbird --owner org_1 --name "CI"
  keyledger keys create --keyspace parcelbird --owner org_1 --expires-in 30d --secret-file ci.key
  keyledger keys create --keyspace parcelbird --owner org_1 --name "their CI" --claim 72h`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := g.body(cmd)
			if err != nil {
				return err
			}
			body["keyspace"], body["owner"] = keyspace, owner
			claim.ask(cmd, body)
			return a.secretCommand(cmd, &f, path("keys"), body, file, false)
		},
	}
	cmd.Flags().StringVar(&keyspace, "keyspace", "", "keyspace of the key")
	cmd.Flags().StringVar(&owner, "owner", "", "owner of the key; registered before with `owners set`")
	cmd.Flags().StringVar(&file, "secret-file", "", "write the secret to this new file (mode 0600) instead of printing it; - prints nothing else")
	claim.add(cmd)
	g.add(cmd)
	f.add(cmd)
	must(cmd, "keyspace", "owner", "name")
	a.completeFlags(cmd)
	return cmd
}

// secretCommand sends a command whose answer has a secret, and brings that
// secret to where it belongs.
func (a *app) secretCommand(cmd *cobra.Command, f *commandFlags, path string, body any, file string, replace bool) error {
	return a.secretCommandWaits(cmd, f, &waitFlags{}, path, body, file, replace)
}

func (a *app) secretCommandWaits(cmd *cobra.Command, f *commandFlags, w *waitFlags, path string, body any, file string, replace bool) error {
	place, err := a.openSecretFile(file, replace)
	if err != nil {
		return err
	}
	defer place.discard()
	r, err := a.command(cmd, f, http.MethodPost, path, body)
	if err != nil {
		return err
	}
	var k keyAnswer
	if err := r.decode(&k); err != nil {
		return err
	}
	if k.Secret != nil {
		if err := place.write(a, *k.Secret); err != nil {
			return err
		}
	}
	return a.stopped(cmd, w, r, func() error { return a.printSecret(r, k, place, file) })
}

func (a *app) printSecret(r *answer, k keyAnswer, place *secretFile, file string) (err error) {
	if a.asJSON {
		answer := r.body
		if !place.printed() && k.Secret != nil {
			if answer, err = withoutSecret(r.body, file); err != nil {
				return err
			}
		}
		return a.printJSON(answer)
	}
	if file == "-" {
		if k.Secret == nil {
			return noSecret(k)
		}
		a.note("key %s", clean(k.Key.ID))
		return nil
	}
	if err := a.printKey(k.Key, r); err != nil {
		return err
	}
	switch {
	case k.Claim != nil:
		return a.printClaim(k)
	case k.Secret == nil:
		a.note("%v", noSecret(k))
	case !place.printed():
		a.note("The secret is in %s (mode 0600). It is kept nowhere else and not shown again.", file)
	case a.tty:
		fmt.Fprintf(a.stdout, "\nSecret: %s\n", *k.Secret)
		a.note("Keep it now: it is stored nowhere and not shown again.")
	default:
		fmt.Fprintf(a.stdout, "secret\t%s\n", *k.Secret)
		a.note("Keep the secret now: it is stored nowhere and not shown again.")
	}
	return nil
}

func (a *app) printClaim(k keyAnswer) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	link := strings.TrimSuffix(c.target.URL, "/") + k.Claim.Path
	if a.tty {
		fmt.Fprintf(a.stdout, "\nLink: %s\n", link)
	} else {
		fmt.Fprintf(a.stdout, "link\t%s\n", link)
	}
	a.note("Whoever opens it sees the secret, once, until %s. It is not shown again; `keyledger audit list --key %s` shows when it was opened.", k.Claim.Until, clean(k.Key.ID))
	return nil
}

func noSecret(k keyAnswer) error {
	return fmt.Errorf("this command had happened before under the same idempotency key: a secret is answered only once; "+
		"`keyledger keys rotate %s` makes a new one", clean(k.Key.ID))
}

// withoutSecret is the answer with the name of the file in place of the secret.
func withoutSecret(body []byte, file string) ([]byte, error) {
	var members map[string]json.RawMessage
	if err := (&answer{body: body}).decode(&members); err != nil {
		return nil, err
	}
	members["secret"] = json.RawMessage("null")
	members["secret_file"] = jsonBody(file)
	return json.Marshal(members)
}

// printKey prints one key, and the place of the command that made it so.
func (a *app) printKey(k keyView, r *answer) error {
	f := [][2]string{
		{"id", k.ID},
		{"keyspace", k.Keyspace},
		{"owner", orDash(k.Owner)},
		{"name", orDash(k.Name)},
		{"display", orDash(k.Display)},
		{"environment", orDash(k.Environment)},
		{"status", k.Status},
	}
	add := func(name, value string) {
		if value != "" && value != "-" {
			f = append(f, [2]string{name, value})
		}
	}
	add("role", k.Role)
	add("plan", k.Plan)
	add("scopes", joined(k.Scopes))
	add("resources", joined(k.Resources))
	add("limits", limitsText(k.Limits))
	add("allowed origins", joined(k.AllowedOrigins))
	add("allowed ips", joined(k.AllowedIPs))
	add("meta", metaText(k.Meta))
	add("created", a.when(k.CreatedAt))
	add("created by", actorText(k.CreatedBy))
	add("expires", a.when(k.ExpiresAt))
	add("rotated", a.when(k.RotatedAt))
	add("grace until", a.when(k.GraceUntil))
	add("revoked", a.when(k.RevokedAt))
	add("revoke reason", k.RevokeReason)
	f = append(f, [2]string{"last used", a.when(k.LastUsedAt)}, [2]string{"uses", countText(k.UseCount)})
	add("version", strconv.FormatUint(k.Version, 10))
	if r != nil {
		add("ledger sequence", r.header.Get("Ledger-Sequence"))
	}
	return a.fields(f)
}

// countText is a count, - where it is not known.
func countText(n *int64) string {
	if n == nil {
		return "-"
	}
	return strconv.FormatInt(*n, 10)
}

// actorText reads an actor: an id, or {type, id}.
func actorText(raw json.RawMessage) string {
	var id string
	if json.Unmarshal(raw, &id) == nil {
		return id
	}
	var actor events.Actor
	if json.Unmarshal(raw, &actor) != nil || actor.ID == "" {
		return actor.Type
	}
	return actor.Type + " " + actor.ID
}

func limitsText(limits map[string]*int64) string {
	var parts []string
	for _, window := range []string{"minute", "hour", "day"} {
		if n := limits[window]; n != nil {
			parts = append(parts, fmt.Sprintf("%d/%s", *n, window))
		}
	}
	return strings.Join(parts, ", ")
}

func metaText(meta map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		parts = append(parts, k+"="+meta[k])
	}
	return strings.Join(parts, ", ")
}

// printKeys prints a list of keys.
func (a *app) printKeys(keys []keyView) error {
	rows := make([][]string, len(keys))
	for i, k := range keys {
		rows[i] = []string{
			k.ID, orDash(k.Name), k.Status, a.when(k.LastUsedAt), countText(k.UseCount), orDash(k.Keyspace), orDash(k.Owner),
			orDash(k.Environment), orDash(k.Display), a.when(k.ExpiresAt), a.when(k.CreatedAt),
		}
	}
	return a.rows([]string{"Key", "Name", "Status", "Last used", "Uses", "Keyspace", "Owner", "Env", "Display", "Expires", "Created"}, rows)
}

func (a *app) keysListCommand() *cobra.Command {
	var keyspace, owner, status, scope, resource, environment, search, unused, expires, sort, cursor string
	var limit int
	var all bool
	var r readFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List keys", Args: takes(),
		Example: `  keyledger keys list --keyspace parcelbird --owner org_1
  keyledger keys list --unused-since 90d --all --json
  keyledger keys list --keyspace parcelbird --sort -last_used_at --limit 20`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if unused, err = a.past("--unused-since", unused); err != nil {
				return err
			}
			if expires, err = a.future("--expires-before", expires); err != nil {
				return err
			}
			q := set(url.Values{}, "keyspace", keyspace, "owner", owner, "status", status, "scope", scope, "resource", resource,
				"environment", environment, "q", search, "unused_since", unused, "expires_before", expires, "sort", sort, "cursor", cursor)
			if limit > 0 {
				q.Set("limit", strconv.Itoa(limit))
			}
			members, next, body, err := a.pages(cmd, path("keys"), "keys", "cursor", q, r.header(), all)
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
			if a.tty {
				// What was asked for need not be said again in each line.
				for i := range keys {
					if keyspace != "" {
						keys[i].Keyspace = "-"
					}
					if owner != "" {
						keys[i].Owner = "-"
					}
				}
			}
			defer a.more("cursor", next)
			return a.printKeys(keys)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyspace, "keyspace", "", "of this keyspace")
	f.StringVar(&owner, "owner", "", "of this owner")
	f.StringVar(&status, "status", "", "active, expired, revoked or rate_limited")
	f.StringVar(&scope, "scope", "", "that have this scope")
	f.StringVar(&resource, "resource", "", "that are bound to this resource")
	f.StringVar(&environment, "environment", "", "of this environment")
	f.StringVar(&search, "q", "", "whose name, id or shown characters have this in them")
	f.StringVar(&unused, "unused-since", "", "not used since this time, date or distance (90d)")
	f.StringVar(&expires, "expires-before", "", "that expire before this time, date or distance (14d)")
	f.StringVar(&sort, "sort", "", "by created_at, name, expires_at, last_used_at or use_count; with a minus before it turned round (else -created_at: newest first)")
	f.StringVar(&cursor, "cursor", "", "go on where an earlier list ended")
	f.IntVar(&limit, "limit", 0, "at most this many in a page")
	f.BoolVar(&all, "all", false, "all pages")
	r.add(cmd)
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(queries.Sorts, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions([]string{"active", "expired", "revoked", "rate_limited"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

// past and future read a moment that may also be a distance from now.
func (a *app) past(flag, s string) (string, error)   { return a.at(flag, s, -1) }
func (a *app) future(flag, s string) (string, error) { return a.at(flag, s, 1) }

func (a *app) at(flag, s string, sign time.Duration) (string, error) {
	if s == "" {
		return "", nil
	}
	if s == "now" {
		return events.At(a.now()).String(), nil
	}
	if d, err := domain.ParseDuration(s); err == nil {
		return events.At(a.now().Add(sign * time.Duration(d))).String(), nil
	}
	at, err := moment(s)
	if err != nil {
		return "", usageError("%s: %w, a distance from now such as 30d or 24h, or now", flag, err)
	}
	return at, nil
}

func (a *app) keysGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get ID", Short: "Show one key", Args: takes("ID"),
		ValidArgsFunction: a.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.get(cmd, path("keys", args[0]), nil, nil)
			if err != nil {
				return err
			}
			return a.showKey(r, false)
		},
	}
}

// showKey prints an answer that is a key, or has one under key.
func (a *app) showKey(r *answer, wrapped bool) error {
	if a.asJSON {
		return a.printJSON(r.body)
	}
	if !wrapped {
		var k keyView
		if err := r.decode(&k); err != nil {
			return err
		}
		return a.printKey(k, nil)
	}
	var k keyAnswer
	if err := r.decode(&k); err != nil {
		return err
	}
	return a.printKey(k.Key, r)
}

func (a *app) keysUpdateCommand() *cobra.Command {
	var g grantFlags
	var f commandFlags
	cmd := &cobra.Command{
		Use: "update ID", Short: "Change what a key may do", Args: takes("ID"),
		Long: `Change the fields that are named and no others. A list is replaced as a whole;
an empty one (--allowed-ips "") takes it away. Windows that --limits does not
name stay as they are. An empty --plan lets the owner's count again.`,
		ValidArgsFunction: a.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := g.body(cmd)
			if err != nil {
				return err
			}
			if len(body) == 0 {
				return usageError("`%s` needs at least one field to change", cmd.CommandPath())
			}
			r, err := a.command(cmd, &f, http.MethodPatch, path("keys", args[0]), body)
			if err != nil {
				return err
			}
			return a.showKey(r, true)
		},
	}
	g.add(cmd)
	f.add(cmd)
	f.addIfMatch(cmd)
	return cmd
}

func (a *app) keysRotateCommand() *cobra.Command {
	var grace, reason, file string
	var claim claimFlag
	var endGrace bool
	var f commandFlags
	var w waitFlags
	cmd := &cobra.Command{
		Use: "rotate ID", Short: "Give a key a new secret and print it, once", Args: takes("ID"),
		Long: `Give a key a new secret. The previous one works on for the grace time: the
keyspace's default unless --grace says otherwise; --grace 0s ends it at once.`,
		ValidArgsFunction: a.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			if w.wait && file == "-" {
				return usageError("--secret-file - prints nothing but the secret, --wait prints the verifiers: choose another file")
			}
			body := map[string]any{}
			if cmd.Flags().Changed("grace") {
				body["grace"] = grace
			}
			if reason != "" {
				body["reason"] = reason
			}
			if endGrace {
				body["end_grace"] = true
			}
			claim.ask(cmd, body)
			return a.secretCommandWaits(cmd, &f, &w, path("keys", args[0], "rotate"), body, file, true)
		},
	}
	cmd.Flags().StringVar(&grace, "grace", "", "how long the previous secret works on: 24h, 0s")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the ledger")
	cmd.Flags().BoolVar(&endGrace, "end-grace", false, "end a grace time that is still running")
	cmd.Flags().StringVar(&file, "secret-file", "", "write the secret to this file (mode 0600, replaced) instead of printing it; - prints nothing else")
	claim.add(cmd)
	f.add(cmd)
	w.add(cmd)
	return cmd
}

func (a *app) keysEndGraceCommand() *cobra.Command {
	var reason string
	var f commandFlags
	var w waitFlags
	cmd := &cobra.Command{
		Use: "end-grace ID", Short: "End the previous secret before its time", Args: takes("ID"),
		ValidArgsFunction: a.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.command(cmd, &f, http.MethodPost, path("keys", args[0], "end-grace"), because(reason))
			if err != nil {
				return err
			}
			return a.stopped(cmd, &w, r, func() error { return a.printEndedGrace(r) })
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the ledger")
	f.add(cmd)
	w.add(cmd)
	return cmd
}

// because is the body of a command that may have a reason.
func because(reason string) map[string]any {
	if reason == "" {
		return map[string]any{}
	}
	return map[string]any{"reason": reason}
}

func (a *app) printEndedGrace(r *answer) error {
	if a.asJSON {
		return a.printJSON(r.body)
	}
	var k struct {
		Key              keyView     `json:"key"`
		PreviousLastUsed events.Time `json:"previous_secret_last_used_at"`
	}
	if err := r.decode(&k); err != nil {
		return err
	}
	if err := a.printKey(k.Key, r); err != nil {
		return err
	}
	if k.PreviousLastUsed == 0 {
		a.note("No use of the previous secret is known.")
	} else {
		a.note("The previous secret was last used at %s.", k.PreviousLastUsed)
	}
	return nil
}

func (a *app) keysRevokeCommand() *cobra.Command {
	var reason string
	var f commandFlags
	var w waitFlags
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "Refuse a key for ever", Args: takes("ID"),
		ValidArgsFunction: a.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.command(cmd, &f, http.MethodPost, path("keys", args[0], "revoke"), because(reason))
			if err != nil {
				return err
			}
			return a.stopped(cmd, &w, r, func() error { return a.showKey(r, true) })
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the ledger")
	f.add(cmd)
	w.add(cmd)
	return cmd
}

func (a *app) keysDeleteCommand() *cobra.Command {
	var f commandFlags
	var w waitFlags
	cmd := &cobra.Command{
		Use: "delete ID", Short: "Delete a key; a live one is revoked too", Args: takes("ID"),
		ValidArgsFunction: a.completeKey,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.command(cmd, &f, http.MethodDelete, path("keys", args[0]), nil)
			if err != nil {
				return err
			}
			if len(trimNewline(r.body)) == 0 {
				r.body = jsonBody(map[string]any{"id": args[0], "deleted": true})
			}
			return a.stopped(cmd, &w, r, func() error {
				if a.asJSON {
					return a.printJSON(r.body)
				}
				return a.fields([][2]string{{"deleted", args[0]}, {"ledger sequence", orDash(r.header.Get("Ledger-Sequence"))}})
			})
		},
	}
	f.add(cmd)
	w.add(cmd)
	return cmd
}

func (a *app) keysLookupCommand() *cobra.Command {
	var keyspace, first, last, file string
	cmd := &cobra.Command{
		Use: "lookup", Short: "Find a key by its first or last characters, or by a leaked secret", Args: takes(),
		Example: `  keyledger keys lookup --keyspace parcelbird --last 9f3x
  keyledger keys lookup --keyspace parcelbird --secret-file - < leaked.txt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body := map[string]any{"keyspace": keyspace}
			if first != "" {
				body["first"] = first
			}
			if last != "" {
				body["last"] = last
			}
			if file != "" {
				secret, err := a.readSecret(file, "secret")
				if err != nil {
					return err
				}
				body["secret"] = secret
			}
			if len(body) == 1 {
				return usageError("`%s` needs --first, --last or --secret-file", cmd.CommandPath())
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.do(cmd.Context(), call{method: http.MethodPost, path: path("keys", "lookup"), body: jsonBody(body)})
			if err != nil {
				return err
			}
			var found struct {
				Keys []keyView `json:"keys"`
			}
			if err := r.decode(&found); err != nil {
				return err
			}
			if a.asJSON {
				err = a.printJSON(r.body)
			} else if len(found.Keys) > 0 {
				err = a.printKeys(found.Keys)
			}
			if err != nil {
				return err
			}
			if len(found.Keys) == 0 {
				a.note("no key of keyspace %s has it", clean(keyspace))
				return quietly(exitNotFound)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&keyspace, "keyspace", "", "keyspace of the key")
	cmd.Flags().StringVar(&first, "first", "", "first characters of the secret, as many as were kept")
	cmd.Flags().StringVar(&last, "last", "", "last characters of the secret, as many as were kept")
	cmd.Flags().StringVar(&file, "secret-file", "", "file that holds the whole secret; - reads it from stdin")
	must(cmd, "keyspace")
	a.completeFlags(cmd)
	return cmd
}
