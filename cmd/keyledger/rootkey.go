package main

import (
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/events"
)

// rootKeyCommand holds what is done over the API, where root keys are keys of
// the built-in keyspace: only their creation differs. `root-key reset` works on
// the machine itself, without the API.
func (a *app) rootKeyCommand() *cobra.Command {
	return group("root-key", "Look after the keys of those who look after keys",
		a.rootKeyCreateCommand(), a.rootKeyListCommand(), a.rootKeyRotateCommand(), a.rootKeyRevokeCommand(), a.rootKeyResetCommand())
}

func (a *app) rootKeyCreateCommand() *cobra.Command {
	var name, role, keyspace, owner, file string
	var f commandFlags
	cmd := &cobra.Command{
		Use: "create", Short: "Create a root key and print it, once", Args: takes(),
		Long: `Create a root key with a role:
  operator  everything
  manager   the keys of one keyspace and owner
  verifier  verify, uses, limits and forward-auth
  auditor   reading and exporting`,
		Example: `  keyledger root-key create --name gateway-1 --role verifier --secret-file gateway.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body := map[string]any{"name": name, "role": role}
			if keyspace != "" {
				body["keyspace"] = keyspace
			}
			if owner != "" {
				body["owner"] = owner
			}
			return a.secretCommand(cmd, &f, path("root-keys"), body, file, false)
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "what the root key is for")
	cmd.Flags().StringVar(&role, "role", "", "operator, manager, verifier or auditor")
	cmd.Flags().StringVar(&keyspace, "keyspace", "", "of a manager: the keyspace")
	cmd.Flags().StringVar(&owner, "owner", "", "of a manager: the owner")
	cmd.Flags().StringVar(&file, "secret-file", "", "write the root key to this new file (mode 0600) instead of printing it; - prints nothing else")
	f.add(cmd)
	must(cmd, "name", "role")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"operator", "manager", "verifier", "auditor"}, cobra.ShellCompDirectiveNoFileComp))
	a.completeFlags(cmd)
	return cmd
}

func (a *app) rootKeyListCommand() *cobra.Command {
	var rf readFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List the root keys", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			members, _, body, err := a.pages(cmd, path("keys"), "keys", "cursor", url.Values{"keyspace": {events.RootKeyspace}}, rf.header(), true)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			list, err := decodeAll[rootKeyView](members)
			if err != nil {
				return err
			}
			rows := make([][]string, len(list))
			for i, k := range list {
				reach := "-"
				if k.For != nil {
					reach = k.For.Keyspace + "/" + k.For.Owner
				}
				rows[i] = []string{k.ID, orDash(k.Name), orDash(k.Role), k.Status, reach, orDash(k.Display), a.when(k.LastUsedAt), a.when(k.CreatedAt)}
			}
			return a.rows([]string{"Root key", "Name", "Role", "Status", "Reach", "Display", "Last used", "Created"}, rows)
		},
	}
	rf.add(cmd)
	return cmd
}

// rootKeyView is a root key as the API answers it: a key with a role.
type rootKeyView struct {
	keyView
	For *events.Reach `json:"for"` // of a manager
}

func (a *app) rootKeyRotateCommand() *cobra.Command {
	var grace, file string
	var f commandFlags
	cmd := &cobra.Command{
		Use: "rotate ID", Short: "Give a root key a new secret and print it, once", Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			body := map[string]any{}
			if grace != "" {
				body["grace"] = grace
			}
			return a.secretCommand(cmd, &f, path("keys", args[0], "rotate"), body, file, true)
		},
	}
	cmd.Flags().StringVar(&grace, "grace", "", "how long the previous secret works on: 24h, 0s")
	cmd.Flags().StringVar(&file, "secret-file", "", "write the root key to this file (mode 0600, replaced) instead of printing it; - prints nothing else")
	f.add(cmd)
	return cmd
}

func (a *app) rootKeyRevokeCommand() *cobra.Command {
	var reason string
	var f commandFlags
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "Refuse a root key for ever", Args: takes("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.command(cmd, &f, http.MethodPost, path("keys", args[0], "revoke"), because(reason))
			if err != nil {
				return err
			}
			return a.showKey(r, true)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why, for the ledger")
	f.add(cmd)
	return cmd
}
