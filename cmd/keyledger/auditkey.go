package main

import (
	"fmt"
	"net/http"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// listedKeys are the keys of the audit log as the API answers them.
type listedKeys struct {
	Name string `json:"name"`
	Key  string `json:"key"`
	Keys []struct {
		Key   string      `json:"key"`
		Since events.Time `json:"since"`
		Until events.Time `json:"until"`
	} `json:"keys"`
}

func (a *app) auditKeyCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "key", Short: "Print the key that the audit log is signed with", Args: takes(),
		Long: `Print the verifier key of the audit log. Give it to auditors by another way than
the log itself: ` + "`keyledger audit verify`" + ` takes it as --log-key.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.do(cmd.Context(), call{method: http.MethodGet, path: path("audit", "log", "key")})
			if err != nil {
				return err
			}
			return a.printLogKeys(r)
		},
	}
	var flags commandFlags
	rotate := &cobra.Command{
		Use: "rotate", Short: "Sign the audit log with a new key from now on; it is recorded", Args: takes(),
		Long: `Make a new key for the audit log. The old one signs an event on OPS that names
it, so that whoever trusts the old key can trust the new one: witnesses follow by
themselves. Give the new key to auditors before they need it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := a.command(cmd, &flags, http.MethodPost, path("audit", "log", "key", "rotate"), nil)
			if err != nil {
				return err
			}
			return a.printLogKeys(r)
		},
	}
	flags.add(rotate)
	c.AddCommand(rotate)
	return c
}

func (a *app) printLogKeys(r *answer) error {
	if a.asJSON {
		return a.printJSON(r.body)
	}
	var k listedKeys
	if err := r.decode(&k); err != nil {
		return err
	}
	_, err := fmt.Fprintln(a.stdout, clean(k.Key))
	for _, old := range k.Keys {
		if old.Until != 0 {
			a.note("until %s: %s", a.when(old.Until), clean(old.Key))
		}
	}
	return err
}
