package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/witness"
)

// witnessFlags say what is witnessed, and where that is remembered.
type witnessFlags struct {
	log, dir string
	keys     []string
	every    time.Duration
	once     bool
}

// witnessed is what `audit witness` prints of a stream.
type witnessed struct {
	Stream string `json:"stream"`
	Size   int64  `json:"size"`
	Root   string `json:"root"`
	New    bool   `json:"new"`   // cosigned now
	First  bool   `json:"first"` // there was nothing to compare it with
	Given  bool   `json:"given"` // the log shows the cosignature
}

func (a *app) auditWitnessCommand() *cobra.Command {
	var f witnessFlags
	cmd := &cobra.Command{
		Use: "witness", Short: "Watch somebody else's log: that it only grows, and cosign what it shows", Args: takes(),
		Long: `Look at the log's signed checkpoints again and again, check that each contains the
last one seen, and cosign it (C2SP tlog-cosignature). Run it on a machine that those
who run the log cannot reach: it needs no NATS and no PostgreSQL, only the log's HTTP
address with a root key of role auditor, or a directory where the log is published.

What it cosigned is in --state-dir before it is given back to the log. A log that
shows a smaller tree, or one that does not contain the last, is an alarm: nothing is
cosigned, both checkpoints are kept as files, and the exit code is 7. A new key of the
log is followed when the key before it has signed a note that names it.`,
		Example: `  keyledger audit witness key --state-dir /var/lib/witness --name witness.example.com
  keyledger audit witness --state-dir /var/lib/witness --log https://keys.example.com --log-key log.key --token-file auditor.key
  keyledger audit witness --once --state-dir /var/lib/witness --log /mnt/published-log --log-key log.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.dir == "" || f.log == "" || len(f.keys) == 0 {
				return usageError("--state-dir, --log and --log-key are needed: where to remember, what to watch, and the log's key as `keyledger audit key` prints it")
			}
			if f.every < time.Second {
				return usageError("--every is at least a second")
			}
			return a.witness(cmd.Context(), f)
		},
	}
	cmd.Flags().StringVar(&f.log, "log", "", "address of the service (https://…), or a directory where the log is published")
	cmd.Flags().StringVar(&f.dir, "state-dir", "", "directory for the witness's key and what it cosigned")
	cmd.Flags().StringArrayVar(&f.keys, "log-key", nil, "verifier key of the log, or a file of them; may be given more than once")
	cmd.Flags().DurationVar(&f.every, "every", time.Minute, "how often to look")
	cmd.Flags().BoolVar(&f.once, "once", false, "look once and end")
	cmd.AddCommand(a.witnessKeyCommand())
	return cmd
}

func (a *app) witnessKeyCommand() *cobra.Command {
	var dir, name string
	cmd := &cobra.Command{
		Use: "key", Short: "Print the witness's verifier key, made where there is none", Args: takes(),
		Long: `Print the verifier key of the witness, for policies: a line "witness NAME KEY".
The first time --name says what it is called, such as a domain name; without it the
host's name is taken. The secret part stays in --state-dir.`,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" {
				return usageError("--state-dir is needed: where the witness's key is")
			}
			if name == "" {
				name, _ = os.Hostname()
			}
			key, made, err := witness.Key(dir, name)
			if err != nil {
				return err
			}
			if a.asJSON {
				return a.printValue(map[string]any{"key": key, "made": made})
			}
			_, err = fmt.Fprintln(a.stdout, key)
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "state-dir", "", "directory for the witness's key and what it cosigned")
	cmd.Flags().StringVar(&name, "name", "", "name of a witness that is new")
	return cmd
}

// give brings a cosigned checkpoint to the log; nil: there is nobody to give it to.
type give func(ctx context.Context, stream string, note []byte) error

func (a *app) witness(ctx context.Context, f witnessFlags) error {
	keys, err := logKeys(f.keys)
	if err != nil {
		return err
	}
	var fetch witness.Fetch
	var to give
	if strings.Contains(f.log, "://") {
		a.urlFlag = f.log
		c, err := a.client()
		if err != nil {
			return err
		}
		fetch, to = c.fetchLog, c.giveCosignature
	} else {
		if _, err := os.Stat(f.log); err != nil {
			return usageError("--log is neither an address (https://…) nor a directory that can be read: %v", errors.Unwrap(err))
		}
		fetch = witness.Directory(f.log)
	}
	w, err := witness.Open(f.dir, keys)
	if errors.Is(err, fs.ErrNotExist) {
		return usageError("there is no key in --state-dir: `keyledger audit witness key --state-dir …` makes one")
	}
	if err != nil {
		return err
	}
	defer w.Close()
	key, _, err := witness.Key(f.dir, "")
	if err != nil {
		return err
	}
	if f.once {
		return a.witnessRound(ctx, w, key, fetch, to)
	}
	tick := time.NewTicker(f.every)
	defer tick.Stop()
	for {
		err := a.witnessRound(ctx, w, key, fetch, to)
		if e, ok := errors.AsType[*exitError](err); ok && e.code == exitProof {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			a.note("%s  %v", a.now().UTC().Format(time.RFC3339), err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// witnessRound looks at every stream once. One that fails keeps no other from being
// looked at; an alarm counts before everything else.
func (a *app) witnessRound(ctx context.Context, w *witness.Witness, key string, fetch witness.Fetch, to give) error {
	var failed []error
	for _, stream := range audit.Streams {
		known := len(w.Keys())
		seen, err := w.Look(ctx, stream, fetch)
		for _, k := range w.Keys()[known:] {
			a.note("%s  the log has a new key, %s+%08x: the one before it has signed that; it is followed from now on", a.now().UTC().Format(time.RFC3339), clean(k.Name()), k.KeyHash())
		}
		if _, ok := errors.AsType[*witness.Alarm](err); ok {
			failed = append([]error{&exitError{exitProof, "LOG_FORKED", err}}, failed...)
			continue
		}
		if errors.Is(err, witness.ErrNotSigned) {
			err = &exitError{exitProof, "NOT_SIGNED", fmt.Errorf("%w; a new key of the log is followed where the old one has signed a note that names it, and there is none: where the log was begun anew, give its key with --log-key", err)}
			failed = append([]error{err}, failed...)
			continue
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		out := witnessed{Stream: stream, Size: seen.Size, Root: seen.Root.String(), New: seen.New, First: seen.First, Given: seen.Known}
		if !seen.Known && to != nil {
			err := to(ctx, stream, seen.Note)
			out.Given = err == nil
			if p, ok := errors.AsType[*problem](err); ok && p.Code == "UNKNOWN_WITNESS" {
				err = &exitError{exitRefused, "UNKNOWN_WITNESS", fmt.Errorf("the log does not know this witness, and keeps none of its signatures: its operator names it in the policy (log_policy) with the line\n  witness %s %s", w.Name(), key)}
			}
			if err != nil {
				failed = append(failed, err)
			}
		}
		if err := a.printWitnessed(out); err != nil {
			return err
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return failed[0]
}

func (a *app) printWitnessed(w witnessed) error {
	if a.asJSON {
		return a.printValue(w)
	}
	said := "as before"
	switch {
	case w.First:
		said = "cosigned, the first that was seen"
	case w.New:
		said = "cosigned, it contains the last"
	}
	if w.Given {
		said += "; the log has the signature"
	}
	return a.rows(nil, [][]string{{w.Stream, fmt.Sprint(w.Size), w.Root, said}})
}

// maxFetched is the most that is read of a checkpoint or a tile.
const maxFetched = 1 << 20

// fetchLog reads a path of the log from the service.
func (c *client) fetchLog(ctx context.Context, at string) ([]byte, error) {
	at, query, _ := strings.Cut(at, "?")
	q, err := url.ParseQuery(query)
	if err != nil {
		return nil, err
	}
	resp, err := c.open(ctx, call{method: http.MethodGet, path: "/v1/audit/log/" + at, query: q, header: http.Header{"Accept": {"*/*"}}})
	if p, ok := errors.AsType[*problem](err); ok && p.Status == http.StatusNotFound {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, p)
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxFetched+1))
	if err == nil && len(b) > maxFetched {
		err = errors.New("it is longer than one of a log can be")
	}
	return b, err
}

func (c *client) giveCosignature(ctx context.Context, stream string, note []byte) error {
	_, err := c.do(ctx, call{method: http.MethodPost, path: path("audit", "log", strings.ToLower(stream), "checkpoint"), body: note, contentType: "text/plain"})
	return err
}
