package main

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

// completeFlags lets a shell complete the keyspace and the owner of a command
// by asking the API. A service that is away only means no proposals.
func (a *app) completeFlags(cmd *cobra.Command) {
	if cmd.Flags().Lookup("keyspace") != nil {
		_ = cmd.RegisterFlagCompletionFunc("keyspace", a.completeKeyspace)
	}
	if cmd.Flags().Lookup("owner") != nil && cmd.Flags().Lookup("keyspace") != nil {
		_ = cmd.RegisterFlagCompletionFunc("owner", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return a.completeOwners(cmd)
		})
	}
}

// propose asks for a list with little patience, and picks a name and an
// explanation from each member.
func propose[T any](a *app, cmd *cobra.Command, path, name string, query url.Values, pick func(T) (string, string)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	c, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	r, err := c.do(ctx, call{method: http.MethodGet, path: path, query: query})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var answered map[string][]T
	// Members beside the list are of other types; their error does not matter.
	_ = r.decode(&answered)
	var proposals []string
	for _, m := range answered[name] {
		id, about := pick(m)
		proposals = append(proposals, cobra.CompletionWithDesc(id, clean(about)))
	}
	return proposals, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeKeyspace(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return propose(a, cmd, path("keyspaces"), "keyspaces", nil, func(k keyspaceView) (string, string) { return k.Keyspace, k.Document.About })
}

func (a *app) completeKeyspaceArgument(cmd *cobra.Command, args []string, s string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeKeyspace(cmd, args, s)
}

func (a *app) completeOwners(cmd *cobra.Command) ([]string, cobra.ShellCompDirective) {
	keyspace, _ := cmd.Flags().GetString("keyspace")
	if keyspace == "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return propose(a, cmd, path("keyspaces", keyspace, "owners"), "owners", nil, func(o ownerView) (string, string) { return o.id(), o.Name })
}

func (a *app) completeKey(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return propose(a, cmd, path("keys"), "keys", url.Values{"limit": {"100"}}, func(k keyView) (string, string) { return k.ID, k.Name })
}
