package main

import (
	"net/http"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"
)

// ownerView is an owner as the API answers it.
type ownerView struct {
	Owner      string `json:"owner"`
	ID         string `json:"id"`
	Keyspace   string `json:"keyspace"`
	Name       string `json:"name"`
	Plan       string `json:"plan"`
	ActiveKeys int    `json:"active_keys"`
	MaxKeys    *int   `json:"max_keys"` // null: no cap
}

func (o ownerView) id() string {
	if o.Owner != "" {
		return o.Owner
	}
	return o.ID
}

func (o ownerView) cap() string {
	if o.MaxKeys == nil {
		return "no cap"
	}
	return strconv.Itoa(*o.MaxKeys)
}

func (a *app) ownersCommand() *cobra.Command {
	return group("owners", "Register the customers that keys belong to",
		a.ownersSetCommand(), a.ownersListCommand(), a.ownersGetCommand())
}

func (a *app) ownersSetCommand() *cobra.Command {
	var keyspace, name, plan string
	var f commandFlags
	cmd := &cobra.Command{
		Use: "set OWNER", Short: "Register an owner, or change its name or plan", Args: takes("OWNER"),
		Example: `  keyledger owners set org_1 --keyspace parcelbird --name "Organization one" --plan basic`,
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{}
			if cmd.Flags().Changed("name") {
				body["name"] = name
			}
			if cmd.Flags().Changed("plan") {
				body["plan"] = plan
			}
			r, err := a.command(cmd, &f, http.MethodPut, path("keyspaces", keyspace, "owners", args[0]), body)
			if err != nil {
				return err
			}
			return a.showOwner(r)
		},
	}
	cmd.Flags().StringVar(&keyspace, "keyspace", "", "keyspace of the owner")
	cmd.Flags().StringVar(&name, "name", "", "what people call the owner")
	cmd.Flags().StringVar(&plan, "plan", "", "plan of the owner (else the keyspace's default)")
	f.add(cmd)
	must(cmd, "keyspace")
	a.completeFlags(cmd)
	return cmd
}

func (a *app) showOwner(r *answer) error {
	if a.asJSON {
		return a.printJSON(r.body)
	}
	var o ownerView
	if err := r.decode(&o); err != nil {
		return err
	}
	f := [][2]string{
		{"owner", o.id()}, {"keyspace", o.Keyspace}, {"name", orDash(o.Name)}, {"plan", orDash(o.Plan)},
		{"active keys", strconv.Itoa(o.ActiveKeys)}, {"max keys", o.cap()},
	}
	if s := r.header.Get("Ledger-Sequence"); s != "" {
		f = append(f, [2]string{"ledger sequence", s})
	}
	return a.fields(f)
}

func (a *app) ownersListCommand() *cobra.Command {
	var keyspace, cursor string
	var limit int
	var all bool
	var rf readFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List the owners of a keyspace", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := set(url.Values{}, "cursor", cursor)
			if limit > 0 {
				q.Set("limit", strconv.Itoa(limit))
			}
			members, next, body, err := a.pages(cmd, path("keyspaces", keyspace, "owners"), "owners", "cursor", q, rf.header(), all)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			list, err := decodeAll[ownerView](members)
			if err != nil {
				return err
			}
			rows := make([][]string, len(list))
			for i, o := range list {
				rows[i] = []string{o.id(), orDash(o.Name), orDash(o.Plan), strconv.Itoa(o.ActiveKeys), o.cap()}
			}
			defer a.more("cursor", next)
			return a.rows([]string{"Owner", "Name", "Plan", "Active keys", "Max keys"}, rows)
		},
	}
	cmd.Flags().StringVar(&keyspace, "keyspace", "", "keyspace of the owners")
	cmd.Flags().StringVar(&cursor, "cursor", "", "go on where an earlier list ended")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most this many in a page")
	cmd.Flags().BoolVar(&all, "all", false, "all pages")
	rf.add(cmd)
	must(cmd, "keyspace")
	a.completeFlags(cmd)
	return cmd
}

func (a *app) ownersGetCommand() *cobra.Command {
	var keyspace string
	cmd := &cobra.Command{
		Use: "get OWNER", Short: "Show one owner with its plan and its active keys", Args: takes("OWNER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.get(cmd, path("keyspaces", keyspace, "owners", args[0]), nil, nil)
			if err != nil {
				return err
			}
			return a.showOwner(r)
		},
	}
	cmd.Flags().StringVar(&keyspace, "keyspace", "", "keyspace of the owner")
	must(cmd, "keyspace")
	a.completeFlags(cmd)
	return cmd
}
