package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit"
)

// checkedTree is what `audit checkpoint` prints.
type checkedTree struct {
	Stream     string   `json:"stream"`
	Size       int64    `json:"size"`
	Root       string   `json:"root"`
	Newest     int64    `json:"newest"` // size of the newest one
	Signatures []string `json:"signatures"`
	Note       string   `json:"note"`
}

func (a *app) auditCheckpointCommand() *cobra.Command {
	var keys []string
	var policyFile, file string
	cmd := &cobra.Command{
		Use: "checkpoint STREAM", Short: "Fetch and check the newest signed tree of a stream", Args: takes("STREAM"),
		Long: `Fetch the newest checkpoint of a stream and check the log's signature. With --policy
it is the newest that has every cosignature the policy asks for; where there is none
the exit code is 7.

Without --log-key or a line "log" in the policy the key is asked from the service that
is to be checked.`,
		Example: `  keyledger audit checkpoint ledger
  keyledger audit checkpoint usage --policy policy.txt -o usage.checkpoint`,
		RunE: func(cmd *cobra.Command, args []string) error {
			stream, err := streamName(args[0])
			if err != nil {
				return err
			}
			var policy *audit.Policy
			if policyFile != "" {
				if policy, err = readPolicy(policyFile); err != nil {
					return err
				}
				keys = append(keys, policy.Logs...)
			}
			return a.auditCheckpoint(cmd, stream, keys, policy, file)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "log-key", nil, "verifier key of the log, or a file of them; may be given more than once")
	cmd.Flags().StringVar(&policyFile, "policy", "", "file that says whose signatures must be there (Sigsum's format)")
	cmd.Flags().StringVarP(&file, "output", "o", "", "keep the checkpoint in this file")
	cmd.ValidArgsFunction = cobra.FixedCompletions([]string{"ledger", "usage", "ops", "feed"}, cobra.ShellCompDirectiveNoFileComp)
	return cmd
}

// readPolicy reads the file that says whose signatures count.
func readPolicy(file string) (*audit.Policy, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, usageError("--policy cannot be read: %v", err)
	}
	p, err := audit.ParsePolicy(text)
	if err != nil {
		return nil, usageError("--policy: %v", err)
	}
	return p, nil
}

// keysOrAsked are the given keys of the log, or where none are given those that the
// service itself names.
func (a *app) keysOrAsked(cmd *cobra.Command, c *client, given []string) ([]note.Verifier, error) {
	if len(given) == 0 {
		r, err := c.do(cmd.Context(), call{method: http.MethodGet, path: path("audit", "log", "key")})
		if err != nil {
			return nil, err
		}
		var k listedKeys
		if err := r.decode(&k); err != nil {
			return nil, err
		}
		for _, one := range k.Keys {
			given = append(given, one.Key)
		}
		a.note("the key was asked from the service itself; check with one that you were given: --log-key")
	}
	return logKeys(given)
}

func (a *app) auditCheckpoint(cmd *cobra.Command, stream string, given []string, policy *audit.Policy, file string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	keys, err := a.keysOrAsked(cmd, c, given)
	if err != nil {
		return err
	}
	read := func(which string) ([]byte, audit.Checkpoint, *note.Note, error) {
		b, err := c.fetchLog(cmd.Context(), strings.ToLower(stream)+"/checkpoint"+which)
		if err != nil {
			return nil, audit.Checkpoint{}, nil, err
		}
		all := keys
		if policy != nil {
			all = append(all, policy.Witnesses...)
		}
		x, n, err := audit.Open(b, audit.Origin(keys[0].Name(), stream), keys...)
		if err == nil {
			n, err = note.Open(b, note.VerifierList(all...))
		}
		if err != nil {
			return nil, x, nil, &exitError{exitProof, "NOT_SIGNED", fmt.Errorf("the checkpoint of %s: %w", stream, err)}
		}
		return b, x, n, nil
	}
	b, tree, n, err := read("")
	if err != nil {
		return err
	}
	out := checkedTree{Stream: stream, Newest: tree.Size}
	if policy != nil && !policy.Satisfied(b) {
		b, tree, n, err = read("?which=cosigned")
		if p, ok := errors.AsType[*problem](err); ok && p.Code == "NOT_SEALED" || err == nil && !policy.Satisfied(b) {
			return &exitError{exitProof, "NOT_COSIGNED", fmt.Errorf("%s has no checkpoint with the signatures that the policy asks for; the newest, of %d events, has the log's own", stream, out.Newest)}
		}
		if err != nil {
			return err
		}
	}
	out.Size, out.Root, out.Note = tree.Size, tree.Root.String(), string(b)
	for _, s := range n.Sigs {
		out.Signatures = append(out.Signatures, fmt.Sprintf("%s+%08x", s.Name, s.Hash))
	}
	if file != "" {
		if err := replaceFile(file, b); err != nil {
			return err
		}
	}
	if a.asJSON {
		return a.printValue(out)
	}
	fields := [][2]string{{"stream", stream}, {"events", fmt.Sprint(out.Size)}, {"root", out.Root}, {"signed by", strings.Join(out.Signatures, ", ")}}
	if out.Newest != out.Size {
		fields = append(fields, [2]string{"newest", fmt.Sprintf("%d events, not cosigned yet", out.Newest)})
	}
	return a.fields(fields)
}
