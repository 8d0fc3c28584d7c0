package main

import (
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

func (a *app) alertsCommand() *cobra.Command {
	return group("alerts", "List what looks wrong, and say what should be told",
		a.alertsListCommand(), a.alertsRulesCommand(), a.alertsSetCommand(), a.alertsMuteCommand(true), a.alertsMuteCommand(false), a.alertsResetCommand())
}

// alertView is an alert as the API answers it.
type alertView struct {
	Keyspace   string      `json:"keyspace"`
	Owner      string      `json:"owner"`
	Key        string      `json:"key"`
	Rule       string      `json:"rule"`
	State      string      `json:"state"`
	Detail     string      `json:"detail"`
	RaisedAt   events.Time `json:"raised_at"`
	ResolvedAt events.Time `json:"resolved_at"`
}

func (v alertView) about() string {
	if v.Key != "" {
		return v.Key
	}
	return v.Keyspace + "/" + v.Owner
}

func (a *app) alertsListCommand() *cobra.Command {
	var keyspace, owner, key, when, state, from, to, cursor string
	var limit int
	var all, past bool
	cmd := &cobra.Command{
		Use: "list", Short: "List the alerts that are raised, or all there were", Args: takes(),
		Example: `  keyledger alerts list
  keyledger alerts list --past --from 7d --when error_rate`,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if from, err = a.past("--from", from); err != nil {
				return err
			}
			if to, err = a.past("--to", to); err != nil {
				return err
			}
			if state == "" && !past {
				state = "raised"
			}
			q := set(url.Values{}, "keyspace", keyspace, "owner", owner, "key", key, "when", when, "state", state, "from", from, "to", to, "cursor", cursor)
			if limit > 0 {
				q.Set("limit", strconv.Itoa(limit))
			}
			members, next, body, err := a.pages(cmd, path("alerts"), "alerts", "cursor", q, nil, all)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			list, err := decodeAll[alertView](members)
			if err != nil {
				return err
			}
			rows := make([][]string, len(list))
			for i, v := range list {
				rows[i] = []string{a.when(v.RaisedAt), v.State, v.about(), v.Rule, v.Detail}
			}
			defer a.more("cursor", next)
			return a.rows([]string{"Raised", "State", "About", "Rule", "Detail"}, rows)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyspace, "keyspace", "", "of this keyspace")
	f.StringVar(&owner, "owner", "", "of this owner")
	f.StringVar(&key, "key", "", "about this key id")
	f.StringVar(&when, "when", "", "of rules with this condition, such as error_rate")
	f.StringVar(&state, "state", "", "raised or resolved (default: raised)")
	f.BoolVar(&past, "past", false, "resolved ones too")
	f.StringVar(&from, "from", "", "raised at this time, date or distance (24h), or later")
	f.StringVar(&to, "to", "", "raised before this time, date or distance")
	f.StringVar(&cursor, "cursor", "", "go on where an earlier list ended")
	f.IntVar(&limit, "limit", 0, "at most this many in a page")
	f.BoolVar(&all, "all", false, "all pages")
	_ = cmd.RegisterFlagCompletionFunc("when", cobra.FixedCompletions(domain.AlertConditions(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions([]string{"raised", "resolved"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

// ruleScope are the flags that say what rules are about.
type ruleScope struct{ keyspace, owner, resource, key string }

func (s *ruleScope) add(a *app, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.keyspace, "keyspace", "", "for the keys of this keyspace")
	f.StringVar(&s.owner, "owner", "", "for the keys of this owner of it")
	f.StringVar(&s.resource, "resource", "", "for the keys of it that are bound to this resource")
	f.StringVar(&s.key, "key", "", "for this key id")
	a.completeFlags(cmd)
}

func (s *ruleScope) path() (string, error) {
	switch {
	case s.key != "" && s.keyspace+s.owner+s.resource == "":
		return path("alert-rules", "keys", s.key), nil
	case s.key != "" || s.keyspace == "" || s.owner != "" && s.resource != "":
		return "", usageError("say what the rules are about: --key; or --keyspace, and --owner or --resource in it")
	case s.owner != "":
		return path("alert-rules", "keyspaces", s.keyspace, "owners", s.owner), nil
	case s.resource != "":
		return path("alert-rules", "keyspaces", s.keyspace, "resources", s.resource), nil
	}
	return path("alert-rules", "keyspaces", s.keyspace), nil
}

// ruleView is a rule as the API answers it.
type ruleView struct {
	When        string   `json:"when"`
	Above       *float64 `json:"above,omitempty"`
	Over        string   `json:"over,omitempty"`
	Within      string   `json:"within,omitempty"`
	For         string   `json:"for,omitempty"`
	MinRequests int64    `json:"min_requests,omitempty"`
	Off         bool     `json:"off,omitempty"`
	From        string   `json:"from,omitempty"`
}

// String is the rule in the words that [parseRule] reads.
func (r ruleView) String() string {
	words := []string{r.When}
	if r.Above != nil {
		words = append(words, "above", strconv.FormatFloat(*r.Above, 'f', -1, 64))
	}
	for _, p := range [][2]string{{"over", r.Over}, {"within", r.Within}, {"for", r.For}} {
		if p[1] != "" {
			words = append(words, p[0], p[1])
		}
	}
	if r.MinRequests > 0 {
		words = append(words, "of at least", strconv.FormatInt(r.MinRequests, 10))
	}
	if r.Off {
		words = append(words, "off")
	}
	return strings.Join(words, " ")
}

// parseRule reads a rule in words: denied above 10 over 10m.
func parseRule(text string) (r ruleView, err error) {
	words := strings.Fields(strings.ReplaceAll(text, "of at least", "min_requests"))
	if len(words) == 0 {
		return r, usageError("a rule is empty: such as 'denied above 10 over 10m'")
	}
	r.When = words[0]
	for words = words[1:]; len(words) > 0; {
		if words[0] == "off" {
			r.Off, words = true, words[1:]
			continue
		}
		if len(words) == 1 {
			return r, usageError("%q ends with %s: a value is missing", text, words[0])
		}
		switch value := words[1]; words[0] {
		case "above":
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return r, usageError("%q: %s is no number", text, value)
			}
			r.Above = &n
		case "over":
			r.Over = value
		case "within":
			r.Within = value
		case "for":
			r.For = value
		case "min_requests":
			if r.MinRequests, err = strconv.ParseInt(value, 10, 64); err != nil {
				return r, usageError("%q: %s is no number", text, value)
			}
		default:
			return r, usageError("%q: %s is not understood; rules are such as 'error_rate above 0.05 over 5m of at least 20', 'expiring within 14d', 'unused off'", text, words[0])
		}
		words = words[2:]
	}
	return r, nil
}

// settingView is what is set for one place.
type settingView struct {
	Keyspace string      `json:"keyspace"`
	Owner    string      `json:"owner"`
	Key      string      `json:"key"`
	Resource string      `json:"resource"`
	Rules    []ruleView  `json:"rules"`
	SetAt    events.Time `json:"set_at"`
	InForce  []ruleView  `json:"in_force"`
	Changed  *bool       `json:"changed"`
}

func (v settingView) about() string {
	switch {
	case v.Key != "":
		return v.Key
	case v.Owner != "":
		return v.Keyspace + "/" + v.Owner
	case v.Resource != "":
		return v.Keyspace + " resource " + v.Resource
	}
	return v.Keyspace
}

func (a *app) alertsRulesCommand() *cobra.Command {
	var s ruleScope
	cmd := &cobra.Command{
		Use: "rules", Short: "Show which alert rules count, and what is set", Args: takes(),
		Long: `Shows the rules that count for a keyspace, an owner, a resource or a key, and where
each comes from: the most specific place that says anything about a condition
decides. Without flags it lists everything that is set in place of the documents.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if s == (ruleScope{}) {
				members, _, body, err := a.pages(cmd, path("alert-rules"), "settings", "cursor", url.Values{}, nil, false)
				if err != nil {
					return err
				}
				if a.asJSON {
					return a.printJSON(body)
				}
				list, err := decodeAll[settingView](members)
				if err != nil {
					return err
				}
				var rows [][]string
				for _, v := range list {
					for _, r := range v.Rules {
						rows = append(rows, []string{v.about(), r.String(), a.when(v.SetAt)})
					}
				}
				return a.rows([]string{"About", "Rule", "Set"}, rows)
			}
			to, err := s.path()
			if err != nil {
				return err
			}
			r, err := a.get(cmd, to, nil, nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var v settingView
			if err := r.decode(&v); err != nil {
				return err
			}
			var rows [][]string
			for _, r := range v.InForce {
				rows = append(rows, []string{r.String(), r.From})
			}
			return a.rows([]string{"Rule", "From"}, rows)
		},
	}
	s.add(a, cmd)
	return cmd
}

func (a *app) alertsSetCommand() *cobra.Command {
	var s ruleScope
	var rules []string
	cmd := &cobra.Command{
		Use: "set", Short: "Set alert rules for a keyspace, an owner, a resource or a key", Args: takes(),
		Long: `Puts rules in place of all that were set there before. Of each condition that one
of them names, no more general rule counts any more; the others count as before.`,
		Example: `  keyledger alerts set --keyspace parcelbird --owner org_1 --rule 'denied above 10 over 10m' --rule 'unused off'
  keyledger alerts set --key key_… --rule 'error_rate above 0.05 over 5m of at least 20'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list := []ruleView{}
			for _, text := range rules {
				r, err := parseRule(text)
				if err != nil {
					return err
				}
				list = append(list, r)
			}
			return a.setRules(cmd, &s, list)
		},
	}
	s.add(a, cmd)
	cmd.Flags().StringArrayVar(&rules, "rule", nil, "a rule in words; several times for several")
	must(cmd, "rule")
	return cmd
}

func (a *app) setRules(cmd *cobra.Command, s *ruleScope, list []ruleView) error {
	to, err := s.path()
	if err != nil {
		return err
	}
	r, err := a.send(cmd, call{method: http.MethodPut, path: to, body: jsonBody(map[string]any{"rules": list})})
	if err != nil {
		return err
	}
	return a.showRules(r)
}

func (a *app) showRules(r *answer) error {
	if a.asJSON {
		return a.printJSON(r.body)
	}
	var v settingView
	if err := r.decode(&v); err != nil {
		return err
	}
	changed := "no"
	if v.Changed != nil && *v.Changed {
		changed = "yes"
	}
	fields := [][2]string{{"about", v.about()}, {"changed", changed}}
	for _, r := range v.Rules {
		fields = append(fields, [2]string{"rule", r.String()})
	}
	return a.fields(fields)
}

func (a *app) alertsMuteCommand(mute bool) *cobra.Command {
	var s ruleScope
	cmd := &cobra.Command{
		Use: "mute CONDITION", Short: "Hear no more of a condition, such as unused", Args: takes("CONDITION"),
		Long:              "Switches off all rules of a condition there; what else is set stays. What is raised by them is resolved.",
		ValidArgsFunction: cobra.FixedCompletions(domain.AlertConditions(), cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			to, err := s.path()
			if err != nil {
				return err
			}
			r, err := a.get(cmd, to, nil, nil)
			if err != nil {
				return err
			}
			var v settingView
			if err := r.decode(&v); err != nil {
				return err
			}
			list := slices.DeleteFunc(v.Rules, func(r ruleView) bool { return r.When == args[0] })
			if mute {
				list = append(list, ruleView{When: args[0], Off: true})
			}
			return a.setRules(cmd, &s, list)
		},
	}
	if !mute {
		cmd.Use, cmd.Short = "unmute CONDITION", "Hear of a condition again, as the more general rules say"
		cmd.Long = "Takes back all that was set about a condition there; the more general rules count again."
	}
	s.add(a, cmd)
	return cmd
}

func (a *app) alertsResetCommand() *cobra.Command {
	var s ruleScope
	cmd := &cobra.Command{
		Use: "reset", Short: "Take back all alert rules that were set somewhere", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			to, err := s.path()
			if err != nil {
				return err
			}
			r, err := a.send(cmd, call{method: http.MethodDelete, path: to})
			if err != nil {
				return err
			}
			return a.showRules(r)
		},
	}
	s.add(a, cmd)
	return cmd
}
