package main

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// leakView is what a leaked secret could do, and did.
type leakView struct {
	Key       keyView           `json:"key"`
	OwnerName string            `json:"owner_name"`
	Plan      string            `json:"plan"`
	Limits    map[string]*int64 `json:"limits"`
	Secret    struct {
		Which  string      `json:"which"`
		Works  bool        `json:"works"`
		MadeAt events.Time `json:"made_at"`
		EndsAt events.Time `json:"ends_at"`
	} `json:"secret"`
	Uses struct {
		Count     int64          `json:"count"`
		Possible  int64          `json:"possible"`
		First     events.Time    `json:"first"`
		Last      events.Time    `json:"last"`
		Endpoints []endpointView `json:"endpoints"`
		Others    int            `json:"others"`
		IPs       []struct {
			IP    string      `json:"ip"`
			Count int64       `json:"count"`
			First events.Time `json:"first"`
			Last  events.Time `json:"last"`
		} `json:"ips"`
		OtherIPs int   `json:"other_ips"`
		Unknown  int64 `json:"unknown_ips"`
	} `json:"uses"`
	Refused []struct {
		Code  string      `json:"code"`
		Count int64       `json:"count"`
		First events.Time `json:"first"`
		Last  events.Time `json:"last"`
	} `json:"refused"`
	Revoke string `json:"revoke"`
}

func (a *app) auditLeakedCommand() *cobra.Command {
	var keyspace, file string
	cmd := &cobra.Command{
		Use: "leaked", Short: "Say what a leaked secret, read from stdin, was used for", Args: takes(),
		Long: `Read a leaked secret from stdin, or from a file, and say which key's it is or was,
whether it still works, what was done with it, from where and since when, and the
command that refuses the key for ever. The secret is sent in the body of a
request, hashed, compared and forgotten. A secret of no key: exit code 3.`,
		Example: `  keyledger audit leaked < leaked.txt
  keyledger audit leaked --keyspace parcelbird --json < leaked.txt`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			secret, err := a.readSecret(file, "secret")
			if err != nil {
				return err
			}
			body := map[string]any{"secret": secret}
			if keyspace != "" {
				body["keyspace"] = keyspace
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.do(cmd.Context(), call{method: http.MethodPost, path: path("audit", "leaked"), body: jsonBody(body)})
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var found struct {
				Leaks []leakView `json:"leaks"`
			}
			if err := r.decode(&found); err != nil {
				return err
			}
			for _, l := range found.Leaks {
				if err := a.printLeak(l); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&keyspace, "keyspace", "", "keyspace of the key (else all are looked through)")
	cmd.Flags().StringVar(&file, "secret-file", "", "file that holds the secret (else stdin)")
	a.completeFlags(cmd)
	return cmd
}

func (a *app) printLeak(l leakView) error {
	k, u := l.Key, l.Uses
	works := "no"
	if l.Secret.Works {
		works = "yes"
	}
	f := [][2]string{
		{"key", k.ID}, {"name", orDash(k.Name)}, {"keyspace", k.Keyspace}, {"owner", orDash(k.Owner)}, {"owner's name", orDash(l.OwnerName)},
		{"status", k.Status}, {"secret", l.Secret.Which}, {"it works", works}, {"made", a.when(l.Secret.MadeAt)}, {"ends", a.when(l.Secret.EndsAt)},
		{"plan", orDash(l.Plan)}, {"scopes", joined(k.Scopes)}, {"resources", joined(k.Resources)}, {"limits", orDash(limitsText(l.Limits))},
		{"allowed ips", joined(k.AllowedIPs)}, {"allowed origins", joined(k.AllowedOrigins)},
		{"uses", strconv.FormatInt(u.Count, 10)}, {"first use", a.when(u.First)}, {"last use", a.when(u.Last)},
	}
	if u.Possible > 0 {
		f = append(f, [2]string{"perhaps also", fmt.Sprintf("%d uses of one of several previous secrets", u.Possible)})
	}
	if err := a.fields(f); err != nil {
		return err
	}
	var rows [][]string
	for _, e := range u.Endpoints {
		rows = append(rows, []string{"endpoint", e.Method + " " + e.Endpoint, strconv.FormatInt(e.Count, 10), "-", "-"})
	}
	if u.Others > 0 {
		rows = append(rows, []string{"endpoint", fmt.Sprintf("%d others", u.Others), "-", "-", "-"})
	}
	for _, ip := range u.IPs {
		rows = append(rows, []string{"from", ip.IP, strconv.FormatInt(ip.Count, 10), a.when(ip.First), a.when(ip.Last)})
	}
	if u.OtherIPs > 0 {
		rows = append(rows, []string{"from", fmt.Sprintf("%d others", u.OtherIPs), "-", "-", "-"})
	}
	if u.Unknown > 0 {
		rows = append(rows, []string{"from", "not known, erased, or not shown to you", strconv.FormatInt(u.Unknown, 10), "-", "-"})
	}
	for _, r := range l.Refused {
		rows = append(rows, []string{"refused (any secret)", r.Code, strconv.FormatInt(r.Count, 10), a.when(r.First), a.when(r.Last)})
	}
	if len(rows) > 0 {
		if err := a.rows([]string{"What", "Which", "Count", "First", "Last"}, rows); err != nil {
			return err
		}
	}
	if k.Status == "revoked" {
		return nil
	}
	return a.fields([][2]string{{"revoke it", l.Revoke}})
}
