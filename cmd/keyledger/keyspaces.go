package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/keyledger/keyledger/domain"
)

// keyspaceView is a keyspace as the API answers it.
type keyspaceView struct {
	Keyspace string `json:"keyspace"`
	Version  int    `json:"version"`
	Document struct {
		About string `json:"about"`
	} `json:"document"`
}

func (a *app) keyspacesCommand() *cobra.Command {
	return group("keyspaces", "Configure the API products that keys are for",
		a.keyspacesApplyCommand(), a.keyspacesListCommand(), a.keyspacesGetCommand(), a.keyspacesValidateCommand())
}

// document is a keyspace document in a file.
type document struct {
	name     string // of the file, for messages
	keyspace string
	body     []byte
	kind     string // application/yaml or application/json
}

// readDocuments reads files, the documents in directories, and stdin for -.
func (a *app) readDocuments(files []string) ([]document, error) {
	var docs []document
	for _, name := range files {
		if name == "-" {
			b, err := io.ReadAll(a.stdin)
			if err != nil {
				return nil, err
			}
			docs = append(docs, newDocument("stdin", b))
			continue
		}
		names := []string{name}
		if info, err := os.Stat(name); err != nil {
			return nil, err
		} else if info.IsDir() {
			entries, err := os.ReadDir(name)
			if err != nil {
				return nil, err
			}
			names = nil
			for _, e := range entries {
				if slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
					names = append(names, filepath.Join(name, e.Name()))
				}
			}
			if len(names) == 0 {
				return nil, usageError("directory %s has no .yaml, .yml or .json file", clean(name))
			}
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err != nil {
				return nil, err
			}
			docs = append(docs, newDocument(n, b))
		}
	}
	return docs, nil
}

func newDocument(name string, body []byte) document {
	d := document{name: name, body: body, kind: "application/yaml"}
	if filepath.Ext(name) == ".json" || bytes.HasPrefix(bytes.TrimSpace(body), []byte("{")) {
		d.kind = "application/json"
	}
	var head struct {
		Keyspace string `yaml:"keyspace"`
	}
	// JSON is YAML. What is wrong beyond the id, validation finds and explains.
	_ = yaml.Unmarshal(body, &head)
	d.keyspace = head.Keyspace
	return d
}

func (a *app) keyspacesApplyCommand() *cobra.Command {
	var files []string
	var dry bool
	var f commandFlags
	cmd := &cobra.Command{
		Use: "apply -f FILE…", Short: "Configure keyspaces from documents", Args: cobra.ArbitraryArgs,
		Long: `Configure a keyspace from each document: a YAML or JSON file, all of them in a
directory, or stdin (-). A document that is already in force changes nothing.
Of several documents none is applied unless the service would accept each.

With --dry-run nothing is recorded, and the events that would be are printed.`,
		Example: `  keyledger keyspaces apply -f parcelbird.yaml
  keyledger keyspaces apply -f keyspaces/ --dry-run`,
		RunE: func(cmd *cobra.Command, args []string) error {
			// `-f a.yaml b.yaml` is what a shell makes of -f *.yaml.
			docs, err := a.readDocuments(append(files, args...))
			if err != nil {
				return err
			}
			for _, d := range docs {
				if d.keyspace == "" {
					return fmt.Errorf("%s: the document names no keyspace: begin it with `keyspace: <id>`", clean(d.name))
				}
			}
			if f.idem != "" && len(docs) > 1 {
				return usageError("--idempotency-key is for one document: there are %d", len(docs))
			}
			if len(docs) > 1 && !dry {
				for _, d := range docs {
					if _, err := a.rehearse(cmd, d); err != nil {
						return fmt.Errorf("nothing was applied: %s: %w", clean(d.name), err)
					}
				}
			}
			for _, d := range docs {
				if err := a.apply(cmd, &f, d, dry); err != nil {
					return fmt.Errorf("%s: %w", clean(d.name), err)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "file, directory, or - for stdin")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "record nothing; print the events that would be appended")
	f.add(cmd)
	must(cmd, "file")
	return cmd
}

// dryRun is what PUT with ?dry_run=true answers. DryRun MUST be true in it: a
// service that does not know the parameter would have applied the document.
type dryRun struct {
	DryRun bool              `json:"dry_run"`
	Events []json.RawMessage `json:"events"`
}

// rehearse asks what applying a document would record.
func (a *app) rehearse(cmd *cobra.Command, d document) (*answer, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	q := d.call()
	q.query = url.Values{"dry_run": {"true"}}
	r, err := c.do(cmd.Context(), q)
	if err != nil {
		return nil, err
	}
	var answered dryRun
	if err := r.decode(&answered); err != nil {
		return nil, err
	}
	if !answered.DryRun {
		return nil, fmt.Errorf("the service does not know dry runs and has applied the document: it is older than this program")
	}
	return r, nil
}

func (d document) call() call {
	return call{method: http.MethodPut, path: path("keyspaces", d.keyspace), body: d.body, contentType: d.kind}
}

func (a *app) apply(cmd *cobra.Command, f *commandFlags, d document, dry bool) error {
	if dry {
		r, err := a.rehearse(cmd, d)
		if err != nil {
			return err
		}
		return a.printDryRun(d, r)
	}
	q := d.call()
	q.idem = f.idem
	r, err := a.send(cmd, q)
	if err != nil {
		return err
	}
	if a.asJSON {
		return a.printJSON(r.body)
	}
	var k struct {
		keyspaceView
		Changed bool `json:"changed"`
	}
	if err := r.decode(&k); err != nil {
		return err
	}
	what := "is in force already"
	if k.Changed {
		what = "configured"
	}
	_, err = fmt.Fprintf(a.stdout, "keyspace %s: version %d %s\n", clean(k.Keyspace), k.Version, what)
	return err
}

func (a *app) printDryRun(d document, r *answer) error {
	if a.asJSON {
		return a.printJSON(r.body)
	}
	var answered dryRun
	if err := r.decode(&answered); err != nil {
		return err
	}
	if len(answered.Events) == 0 {
		_, err := fmt.Fprintf(a.stdout, "keyspace %s: no change, no event\n", clean(d.keyspace))
		return err
	}
	for _, e := range answered.Events {
		if _, err := fmt.Fprintf(a.stdout, "%s\n", e); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) keyspacesListCommand() *cobra.Command {
	var r readFlags
	cmd := &cobra.Command{
		Use: "list", Short: "List the keyspaces", Args: takes(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			members, _, body, err := a.pages(cmd, path("keyspaces"), "keyspaces", "cursor", url.Values{}, r.header(), true)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(body)
			}
			list, err := decodeAll[keyspaceView](members)
			if err != nil {
				return err
			}
			rows := make([][]string, len(list))
			for i, k := range list {
				rows[i] = []string{k.Keyspace, strconv.Itoa(k.Version), orDash(k.Document.About)}
			}
			return a.rows([]string{"Keyspace", "Version", "About"}, rows)
		},
	}
	r.add(cmd)
	return cmd
}

func (a *app) keyspacesGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get KEYSPACE", Short: "Show a keyspace's document as YAML", Args: takes("KEYSPACE"),
		ValidArgsFunction: a.completeKeyspaceArgument,
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := a.get(cmd, path("keyspaces", args[0]), nil, nil)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printJSON(r.body)
			}
			var k struct {
				Document json.RawMessage `json:"document"`
			}
			if err := r.decode(&k); err != nil {
				return err
			}
			// A YAML node keeps the order of the document's fields.
			var n yaml.Node
			if err := yaml.Unmarshal(k.Document, &n); err != nil {
				return (&answer{body: k.Document}).decode(&n)
			}
			plainStyle(&n)
			b, err := yaml.Marshal(&n)
			if err != nil {
				return err
			}
			_, err = a.stdout.Write(b)
			return err
		},
	}
}

// plainStyle takes the braces and quotes of JSON away.
func plainStyle(n *yaml.Node) {
	n.Style = 0
	for _, c := range n.Content {
		plainStyle(c)
	}
}

func (a *app) keyspacesValidateCommand() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use: "validate -f FILE…", Short: "Check documents, without a service", Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			docs, err := a.readDocuments(append(files, args...))
			if err != nil {
				return err
			}
			type result struct {
				File     string           `json:"file"`
				Keyspace string           `json:"keyspace"`
				Valid    bool             `json:"valid"`
				Errors   []domain.Problem `json:"errors"`
			}
			results, valid := make([]result, len(docs)), true
			for i, d := range docs {
				found := []domain.Problem{}
				if _, err := domain.ParseDocument(d.body); err != nil {
					wrong, ok := errors.AsType[*domain.DocumentError](err)
					if !ok {
						return err
					}
					found = wrong.Problems
				}
				results[i] = result{d.name, d.keyspace, len(found) == 0, found}
				valid = valid && results[i].Valid
			}
			if a.asJSON {
				if err := a.printValue(map[string]any{"valid": valid, "documents": results}); err != nil {
					return err
				}
			}
			for _, r := range results {
				if a.asJSON {
					break
				}
				if r.Valid {
					fmt.Fprintf(a.stdout, "%s: keyspace %s is valid\n", clean(r.File), clean(r.Keyspace))
				}
				for _, p := range r.Errors {
					fmt.Fprintf(a.stdout, "%s: %s\n", clean(r.File), clean(p.String()))
				}
			}
			if !valid {
				return quietly(exitFailed)
			}
			return nil
		},
	}
	cmd.Flags().StringSliceVarP(&files, "file", "f", nil, "file, directory, or - for stdin")
	must(cmd, "file")
	return cmd
}
