package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// decisionView is what POST /v1/verify answers.
type decisionView struct {
	Valid      bool    `json:"valid"`
	Code       string  `json:"code"`
	DecisionID string  `json:"decision_id"`
	Key        *keyRef `json:"key"`
	Limits     []struct {
		Window    string          `json:"window"`
		Limit     int64           `json:"limit"`
		Remaining int64           `json:"remaining"`
		Reset     json.RawMessage `json:"reset"`
	} `json:"limits"`
	RetryAfter json.RawMessage `json:"retry_after"`
	Skipped    []string        `json:"skipped"`
	Sequence   uint64          `json:"sequence"`
	Answer     struct {
		Status int             `json:"status"`
		Body   json.RawMessage `json:"body"`
	} `json:"answer"`
}

// keyRef is a key in a decision: its id, or the whole of it.
type keyRef struct{ keyView }

func (k *keyRef) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		return json.Unmarshal(b, &k.ID)
	}
	return json.Unmarshal(b, &k.keyView)
}

func (a *app) verifyCommand() *cobra.Command {
	var keyspace, file, method, route, origin, ip, resource string
	var scopes []string
	var cost int64
	var tls, whole, report bool
	cmd := &cobra.Command{
		Use: "verify", Short: "Ask for the decision about one request; the secret is read from stdin", Args: takes(),
		Long: `Ask for the decision about one request, and record the use. The secret is read
from stdin or --secret-file, never from an argument. What is not given is not
checked, and is listed as skipped. A request that is refused ends with exit code 6.`,
		Example: `  keyledger verify --keyspace parcelbird < ci.key
  keyledger verify --keyspace parcelbird --method POST --path /v1/parcels --secret-file ci.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			secret, err := a.readSecret(file, "secret")
			if err != nil {
				return err
			}
			body := map[string]any{"keyspace": keyspace}
			if whole {
				body["authorization"] = secret
			} else {
				body["key"] = secret
			}
			for field, v := range map[string]string{"method": method, "path": route, "origin": origin, "ip": ip, "resource": resource} {
				if v != "" {
					body[field] = v
				}
			}
			if len(scopes) > 0 {
				body["scopes"] = scopes
			}
			if cmd.Flags().Changed("tls") {
				body["tls"] = tls
			}
			if cmd.Flags().Changed("cost") {
				body["cost"] = cost
			}
			if report {
				body["report"] = true
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.do(cmd.Context(), call{method: http.MethodPost, path: path("verify"), body: jsonBody(body)})
			if err != nil {
				return err
			}
			return a.printDecision(r)
		},
	}
	f := cmd.Flags()
	f.StringVar(&keyspace, "keyspace", "", "keyspace to verify in")
	f.StringVar(&file, "secret-file", "", "file that holds the secret; - or nothing reads it from stdin")
	f.BoolVar(&whole, "authorization", false, "what is read is the whole value of the credential header, such as Bearer …")
	f.StringVar(&method, "method", "", "method of the request")
	f.StringVar(&route, "path", "", "path of the request")
	f.StringVar(&origin, "origin", "", "Origin of the request")
	f.StringVar(&ip, "ip", "", "address that the request came from")
	f.BoolVar(&tls, "tls", false, "whether the request arrived over TLS")
	f.StringSliceVar(&scopes, "scopes", nil, "scopes that the request needs, separated by commas")
	f.StringVar(&resource, "resource", "", "resource that the request is for")
	f.Int64Var(&cost, "cost", 0, "cost of the request in micros")
	f.BoolVar(&report, "report", false, "the outcome will be reported later")
	must(cmd, "keyspace")
	also(cmd, "scope", "scopes")
	a.completeFlags(cmd)
	return cmd
}

func (a *app) printDecision(r *answer) error {
	var d decisionView
	if err := r.decode(&d); err != nil {
		return err
	}
	if a.asJSON {
		if err := a.printJSON(r.body); err != nil {
			return err
		}
	} else if err := a.printDecisionFields(d); err != nil {
		return err
	}
	if !d.Valid {
		return quietly(exitRefused)
	}
	return nil
}

func (a *app) printDecisionFields(d decisionView) error {
	f := [][2]string{{"code", d.Code}, {"decision", orDash(d.DecisionID)}}
	if d.Key != nil {
		f = append(f, [2]string{"key", d.Key.ID})
		if d.Key.Owner != "" {
			f = append(f, [2]string{"owner", d.Key.Owner})
		}
	}
	for _, l := range d.Limits {
		f = append(f, [2]string{"limit " + l.Window, fmt.Sprintf("%d of %d left, until %s", l.Remaining, l.Limit, a.momentText(l.Reset))})
	}
	if s := string(d.RetryAfter); s != "" && s != "null" && s != "0" {
		f = append(f, [2]string{"retry after", s + " s"})
	}
	if !d.Valid {
		f = append(f, [2]string{"answer", strconv.Itoa(d.Answer.Status) + " " + string(d.Answer.Body)})
	}
	if len(d.Skipped) > 0 {
		f = append(f, [2]string{"skipped", strings.Join(d.Skipped, ", ")})
	}
	f = append(f, [2]string{"ledger sequence", strconv.FormatUint(d.Sequence, 10)})
	return a.fields(f)
}

// momentText prints a time, or whatever else was answered in its place.
func (a *app) momentText(raw json.RawMessage) string {
	var t events.Time
	if json.Unmarshal(raw, &t) == nil {
		return a.when(t)
	}
	return orDash(string(raw))
}
