package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify"
)

// explanationView says why a request was decided as it was.
type explanationView struct {
	DecisionID string      `json:"decision_id"`
	Time       events.Time `json:"time"`
	Admitted   bool        `json:"admitted"`
	At         struct {
		Sequence uint64 `json:"sequence"`
	} `json:"at"`
	Key             *keyView        `json:"key"`
	Owner           string          `json:"owner"`
	OwnerPlan       string          `json:"owner_plan"`
	Plan            string          `json:"plan"`
	DocumentVersion int             `json:"document_version"`
	Judgements      []judgementView `json:"judgements"`
	Note            string          `json:"note"`
}

type judgementView struct {
	Code      string      `json:"code"`
	Stream    string      `json:"stream"`
	Sequence  uint64      `json:"sequence"`
	Line      int         `json:"line"`
	Count     int64       `json:"count"`
	First     events.Time `json:"first"`
	Last      events.Time `json:"last"`
	Node      string      `json:"node"`
	Keyspace  string      `json:"keyspace"`
	Method    string      `json:"method"`
	Endpoint  string      `json:"endpoint"`
	Origin    string      `json:"origin"`
	SourceIP  string      `json:"source_ip"`
	UserAgent string      `json:"user_agent"`
	Secret    string      `json:"secret"`
	Status    *int        `json:"status"`
	Window    string      `json:"window"`
	Limit     int64       `json:"limit"`
	Steps     []struct {
		Code    string `json:"code"`
		Verdict string `json:"verdict"`
		Why     string `json:"why"`
	} `json:"steps"`
	Agrees bool `json:"agrees"`
}

func (a *app) auditExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "explain DECISION", Short: "Say why a request was allowed or refused", Args: takes("DECISION"),
		Long: `Find what the log holds of a decision, fold LEDGER to the sequence that it was
made with, and judge it again with the key, the owner and the document that were
in force: each check in its order, with its verdict. Refusals are counted by
second: of one, the counts that it can stand in are shown.`,
		Example: `  keyledger audit explain dec_…`,
		RunE: func(cmd *cobra.Command, args []string) error {
			// Before it is sent anywhere: it may be a secret in the wrong place.
			if _, err := verify.ParseDecisionID(args[0]); err != nil {
				return usageError("DECISION is %w", err)
			}
			r, err := a.get(cmd, path("audit", "decisions", args[0]), nil, nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var x explanationView
			if err := r.decode(&x); err != nil {
				return err
			}
			return a.printExplanation(x)
		},
	}
}

func (a *app) printExplanation(x explanationView) error {
	decided := "refused"
	if x.Admitted {
		decided = "admitted"
	}
	f := [][2]string{{"decision", x.DecisionID}, {"time", x.Time.String()}, {"decided", decided}}
	add := func(name, value string) {
		if value != "" {
			f = append(f, [2]string{name, value})
		}
	}
	if k := x.Key; k != nil {
		add("key", k.ID)
		add("name", k.Name)
		add("status then", k.Status)
		add("keyspace", k.Keyspace)
		add("owner", x.Owner)
		add("plan then", x.Plan)
		add("document", "version "+strconv.Itoa(x.DocumentVersion))
		add("judged with", "LEDGER "+strconv.FormatUint(x.At.Sequence, 10))
	}
	if err := a.fields(f); err != nil {
		return err
	}
	for _, j := range x.Judgements {
		if err := a.printJudgement(j); err != nil {
			return err
		}
	}
	if x.Note != "" {
		a.note("%s", clean(x.Note))
	}
	return nil
}

func (a *app) printJudgement(j judgementView) error {
	f := [][2]string{{"recorded", j.Code}, {"place", fmt.Sprintf("%s %d/%d", j.Stream, j.Sequence, j.Line)}}
	add := func(name, value string) {
		if value != "" {
			f = append(f, [2]string{name, value})
		}
	}
	add("request", strings.TrimSpace(j.Method+" "+j.Endpoint))
	add("origin", j.Origin)
	add("source ip", j.SourceIP)
	add("user agent", j.UserAgent)
	add("secret", j.Secret)
	if j.Status != nil {
		add("answered", strconv.Itoa(*j.Status))
	}
	if j.Window != "" {
		add("limit", fmt.Sprintf("%d/%s", j.Limit, j.Window))
	}
	add("node", j.Node)
	if j.Code != "VALID" {
		add("counted", fmt.Sprintf("%d from %s to %s", j.Count, j.First, j.Last))
	}
	agrees := "as recorded"
	if !j.Agrees {
		agrees = "otherwise than recorded"
	}
	add("judged again", agrees)
	if err := a.fields(f); err != nil {
		return err
	}
	rows := make([][]string, len(j.Steps))
	for i, s := range j.Steps {
		rows[i] = []string{s.Code, s.Verdict, orDash(s.Why)}
	}
	return a.rows([]string{"Check", "Verdict", "Why"}, rows)
}
