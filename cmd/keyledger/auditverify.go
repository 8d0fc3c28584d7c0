package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/audit/inspect"
	"github.com/keyledger/keyledger/events"
)

func (a *app) auditVerifyCommand() *cobra.Command {
	var file, policyFile, config, checkpoint string
	var keys, earlier []string
	var scope bundle.Scope
	var streamsOnly bool
	cmd := &cobra.Command{
		Use: "verify [FILE]", Short: "Check an export or a proof offline, or the installation itself: is the log complete and unaltered", Args: takesUpTo("FILE"),
		Long: `With a bundle, check an export offline. PASS says that the log's key stands by exactly
these events, and that none of the scope is missing. FAIL says which is the first place
that is wrong, and why; the exit code is 7 then. No service and no network is asked.

The key is the one that "keyledger audit key" prints, or a file that holds it. Get it
from somebody you trust: the one in the bundle was put there by whoever made it.
--keyspace, --owner and --key say what the export must be about. --policy also asks
for the signatures of witnesses.

With the proof of one event, as "keyledger audit prove -o" and the console save it (a
C2SP tlog-proof), say whether the log's key signed a tree that has that event, offline
likewise. The SHA-256 is that of the event's stored bytes, as an export has them.
--checkpoint also compares the tree with one of the same size that you have from
elsewhere: two that differ are evidence against the log. --policy then counts its
signatures, since the checkpoint in a proof has the log's own alone.

Without a file, check the installation: NATS, PostgreSQL and the published directory
themselves, beside the running service or where it refuses to start. Every stream is
read and hashed again and compared with every checkpoint that any of them remembers;
every read model is compared with a rebuild, and each row that is not right is named.
It takes the settings of "keyledger serve" (--config), or the state directory of
"keyledger dev". A line says PASS, FAIL and what was done, or UNKNOWN and why it could
not be looked at; exit code 7 is a FAIL.

Whoever has the master key can sign another history. --earlier names what somebody
outside has kept, which shows that: an export, a checkpoint (from a witness too), or a
receipt; it may be given more than once.`,
		Example: `  keyledger audit verify bundle.tar.gz --log-key log.key
  keyledger audit verify --bundle bundle.tar.gz --log-key keyledger-…+1234abcd+…
  keyledger audit verify --bundle bundle.tar.gz --log-key log.key --keyspace parcelbird --owner org_1
  keyledger audit verify ledger-17.proof --log-key log.key
  keyledger audit verify --config serve.yaml --log-key log.key
  keyledger audit verify --config serve.yaml --log-key log.key --policy policy.txt --earlier january.tar.gz --earlier revoke.receipt`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if file != "" {
					return usageError("name one file: with --bundle or without")
				}
				file = args[0]
			}
			var policy *audit.Policy
			if policyFile != "" {
				var err error
				if policy, err = readPolicy(policyFile); err != nil {
					return err
				}
				keys = append(keys, policy.Logs...)
			}
			given, err := logKeys(keys)
			if err != nil {
				return err
			}
			text, isProof := savedProof(file)
			if checkpoint != "" && !isProof {
				return usageError("--checkpoint is for the proof of one event; for the installation --earlier takes one")
			}
			if file == "" {
				if (bundle.Scope{} != scope) {
					return usageError("--keyspace, --owner and --key say what a bundle must be about")
				}
				return a.verifyInstallation(cmd, config, inspect.Options{Keys: given, Policy: policy, WithoutModels: streamsOnly}, earlier)
			}
			if len(given) == 0 {
				return usageError("--log-key is needed with a file: the key in a bundle proves nothing by itself; `keyledger audit key` prints the log's")
			}
			if len(earlier) > 0 || streamsOnly {
				return usageError("--earlier and --streams-only are for the installation, not for a file")
			}
			if isProof {
				if (bundle.Scope{} != scope) {
					return usageError("--keyspace, --owner and --key say what a bundle must be about; FILE is the proof of one event")
				}
				return a.verifyProof(file, text, checkpoint, given, policy)
			}
			o := bundle.Options{Keys: given}
			if policy != nil {
				o.Policy = policy.Text
			}
			if (bundle.Scope{} != scope) {
				if scope.Keyspace == "" || scope.Key != "" && scope.Owner == "" {
					return usageError("--owner needs --keyspace, and --key needs both")
				}
				o.Scope = &scope
			}
			return a.verifyBundle(file, o)
		},
	}
	cmd.Flags().StringVar(&file, "bundle", "", "an export, a tar.gz, or a proof; FILE says the same; without one the installation is checked")
	cmd.Flags().StringArrayVar(&keys, "log-key", nil, "verifier key of the log, or a file of them; may be given more than once")
	cmd.Flags().StringVar(&policyFile, "policy", "", "file that says whose signatures must be there (Sigsum's format)")
	cmd.Flags().StringVar(&checkpoint, "checkpoint", "", "with a proof: compare its tree with this checkpoint")
	cmd.Flags().StringVar(&scope.Keyspace, "keyspace", "", "the export must be about this keyspace")
	cmd.Flags().StringVar(&scope.Owner, "owner", "", "and this owner")
	cmd.Flags().StringVar(&scope.Key, "key", "", "and this key id")
	cmd.Flags().StringArrayVar(&earlier, "earlier", nil, "an export, checkpoint or receipt that somebody has kept; may be given more than once")
	cmd.Flags().BoolVar(&streamsOnly, "streams-only", false, "do not compare the read models")
	addSettings(cmd, &config)
	return cmd
}

// logKeys reads verifier keys: each itself, or a file with one on each line.
func logKeys(given []string) (keys []note.Verifier, err error) {
	for _, k := range given {
		text := k
		if strings.Count(k, "+") < 2 {
			b, err := os.ReadFile(k)
			if err != nil {
				return nil, usageError("--log-key is neither a verifier key (name+hash+key) nor a file that can be read: %v", errors.Unwrap(err))
			}
			text = string(b)
		}
		found := 0
		for line := range strings.Lines(text) {
			if line = strings.TrimSpace(line); line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			v, err := note.NewVerifier(line)
			if err != nil {
				return nil, usageError("--log-key holds something that is no verifier key of the form name+hash+key")
			}
			keys, found = append(keys, v), found+1
		}
		if found == 0 {
			return nil, usageError("--log-key names a file without a key")
		}
	}
	return keys, nil
}

// verifyBundle checks a bundle and prints the outcome.
func (a *app) verifyBundle(file string, o bundle.Options) error {
	r, err := a.checkBundle(file, o)
	if err != nil {
		return err
	}
	if err := a.printReport(file, r); err != nil {
		return err
	}
	if !r.Pass {
		return quietly(exitProof)
	}
	return nil
}

// longestProof is far more than the proof of one event takes, with all its signatures.
const longestProof = 1 << 20

// savedProof is a file that says it is the proof of one event; of any other file it is false.
func savedProof(file string) (text []byte, ok bool) {
	f, err := os.Open(file)
	if err != nil {
		return nil, false // who reads it next says so
	}
	defer f.Close()
	text, err = io.ReadAll(io.LimitReader(f, longestProof))
	return text, err == nil && bytes.HasPrefix(text, []byte(proofKind+"\n"))
}

// verifiedProof is what is printed of the proof of one event.
type verifiedProof struct {
	Pass   bool   `json:"pass"`
	Reason string `json:"reason,omitempty"` // of a failure
	*provenEvent
	Keyspace  string      `json:"keyspace,omitempty"`
	Owner     string      `json:"owner,omitempty"`
	About     string      `json:"about,omitempty"` // key id
	Time      events.Time `json:"time,omitzero"`
	Witnesses []string    `json:"witnesses,omitempty"` // that the policy names, and that have signed
}

// verifyProof checks the proof of one event, and prints the outcome.
func (a *app) verifyProof(file string, text []byte, checkpoint string, keys []note.Verifier, policy *audit.Policy) error {
	var v verifiedProof
	p, err := checkProof(text, audit.Place{}, keys)
	_, signed, _ := bytes.Cut(text, []byte("\n\n"))
	if err == nil && checkpoint != "" {
		if signed, err = os.ReadFile(checkpoint); err != nil {
			return usageError("--checkpoint cannot be read: %v", errors.Unwrap(err))
		}
		var c audit.Checkpoint
		c, _, err = audit.Open(signed, audit.Origin(keys[0].Name(), p.Stream), keys...)
		switch {
		case err != nil:
			err = fmt.Errorf("the checkpoint is not one of this stream that a key of the log has signed: %w", err)
		case c.Size != p.Size:
			return fmt.Errorf("the checkpoint is of %d events, and the proof leads to a tree of %d: one says nothing about the other. Without --checkpoint the proof is checked by itself", c.Size, p.Size)
		case c.Root.String() != p.Root:
			err = fmt.Errorf("the log's key signed two trees of %d events with different roots: this proof and the checkpoint together are evidence of it. Keep both", c.Size)
		}
	}
	if err == nil && policy != nil {
		if v.Witnesses, _ = policy.Signers(signed); !policy.Satisfied(signed) {
			err = errors.New(policy.Lacking(signed))
		}
	}
	if err != nil {
		v = verifiedProof{Reason: err.Error()}
	} else {
		v.Pass, v.provenEvent = true, &p
		v.Keyspace, v.Owner, v.About, v.Time = p.leaf.Keyspace, p.leaf.Owner, p.leaf.Key, p.leaf.Time
	}
	switch {
	case a.asJSON:
		err = a.printValue(v)
	case !v.Pass:
		if _, err = fmt.Fprintf(a.stdout, "FAIL  %s\n", clean(file)); err == nil {
			err = a.fields([][2]string{{"why", v.Reason}})
		}
	default:
		if _, err = fmt.Fprintf(a.stdout, "PASS  %s\n", clean(file)); err == nil {
			fields := [][2]string{{"event", p.leaf.Place.String()}, {"keyspace", orDash(v.Keyspace)}, {"owner", orDash(v.Owner)}, {"key", orDash(v.About)},
				{"time", v.Time.String()}, {"sha-256", p.SHA256}, {"stands as", fmt.Sprintf("leaf %d of %d", p.Index, p.Size)}, {"root", p.Root}, {"signed by", p.Key}}
			if policy != nil {
				fields = append(fields, [2]string{"witnessed by", joined(v.Witnesses)})
			}
			err = a.fields(fields)
		}
	}
	if err == nil && !v.Pass {
		return quietly(exitProof)
	}
	return err
}

// checkBundle checks a bundle with a progress bar.
func (a *app) checkBundle(file string, o bundle.Options) (bundle.Report, error) {
	f, err := os.Open(file)
	if err != nil {
		return bundle.Report{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return bundle.Report{}, err
	}
	bar := a.progress("checking")
	r, err := bundle.Verify(&counted{r: f, told: func(n int64) { bar.set(n, info.Size()) }}, o)
	bar.end(err == nil && r.Pass)
	return r, err
}

// counted says how far a reader is.
type counted struct {
	r    io.Reader
	n    int64
	told func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	c.told(c.n)
	return n, err
}

func (a *app) printReport(file string, r bundle.Report) error {
	if a.asJSON {
		return a.printValue(r)
	}
	if !r.Pass {
		if _, err := fmt.Fprintf(a.stdout, "FAIL  %s\n", clean(file)); err != nil {
			return err
		}
		fields := [][2]string{{"why", r.Reason}}
		if r.Place != nil {
			fields = append(fields, [2]string{"first at", fmt.Sprintf("%s sequence %d line %d", r.Place.Stream, r.Place.Sequence, r.Place.Line)})
		}
		if r.Member != "" {
			fields = append(fields, [2]string{"member", r.Member})
		}
		if r.Exported != nil {
			fields = append(fields, [2]string{"it says", "about " + about(r.Scope)})
		}
		return a.fields(fields)
	}
	if _, err := fmt.Fprintf(a.stdout, "PASS  %s\n", clean(file)); err != nil {
		return err
	}
	fields := [][2]string{
		{"log", r.Log}, {"about", about(r.Scope)}, {"from", orDash(r.From.String())}, {"to", orDash(r.To.String())},
		{"exported", fmt.Sprintf("%s by %s %s, recorded as OPS %d", r.Exported.Time, r.Exported.Actor.Type, r.Exported.Actor.ID, r.Exported.Sequence)},
	}
	for _, s := range r.Streams {
		said := fmt.Sprintf("%d events", s.Leaves)
		if s.Leaves != s.Size {
			said = fmt.Sprintf("%d of the stream's %d events", s.Leaves, s.Size)
		}
		if s.Events != s.Leaves {
			said += fmt.Sprintf(", %d of them within the times", s.Events)
		}
		if len(s.Witnesses) > 0 {
			said += ", witnessed by " + strings.Join(s.Witnesses, ", ")
		}
		if s.Later > 0 {
			said += fmt.Sprintf("; %d later ones are not in it", s.Later)
		}
		fields = append(fields, [2]string{s.Stream, said})
	}
	for _, n := range r.Notes {
		fields = append(fields, [2]string{"note", n})
	}
	return a.fields(fields)
}

func about(s bundle.Scope) string {
	switch {
	case s.Key != "":
		return fmt.Sprintf("key %s of owner %s in keyspace %s", s.Key, orDash(s.Owner), s.Keyspace)
	case s.Owner != "":
		return fmt.Sprintf("owner %s in keyspace %s", s.Owner, s.Keyspace)
	case s.Keyspace != "":
		return "keyspace " + s.Keyspace
	}
	return "everything"
}
