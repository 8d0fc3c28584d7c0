package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
)

// provenEvent is what `audit prove` prints.
type provenEvent struct {
	Stream   string `json:"stream"`
	Sequence uint64 `json:"sequence"`
	Line     int    `json:"line"`
	Index    int64  `json:"index"`
	Size     int64  `json:"size"`
	Root     string `json:"root"`
	SHA256   string `json:"sha256"` // of the stored bytes
	Key      string `json:"key"`    // that signed
	File     string `json:"file,omitempty"`

	leaf audit.Leaf
}

func (a *app) auditProveCommand() *cobra.Command {
	var file string
	var keys []string
	cmd := &cobra.Command{
		Use: "prove STREAM SEQUENCE [LINE]", Short: "Prove that an event stands in the signed log, and check it here",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 3 {
				return nil
			}
			return takes("STREAM", "SEQUENCE")(cmd, args)
		},
		Long: `Fetch the proof that an event stands in the signed log, check it on this machine,
and with -o keep it as a C2SP tlog-proof, which other people's tools read too. A
proof that does not hold ends with exit code 7. "keyledger audit verify FILE" checks a
kept one again, offline.

Without --log-key the key is asked from the service that is to be checked: give
the one that you were given by another way.`,
		Example: `  keyledger audit prove ledger 17
  keyledger audit prove usage 4711/3 -o use.proof --log-key log.key`,
		RunE: func(cmd *cobra.Command, args []string) error {
			stream, err := streamName(args[0])
			if err != nil {
				return err
			}
			at := audit.Place{Stream: stream}
			// As `audit list` prints it: sequence/line.
			if sequence, line, ok := strings.Cut(args[1], "/"); ok && len(args) == 2 {
				args = []string{args[0], sequence, line}
			}
			if at.Sequence, err = strconv.ParseUint(args[1], 10, 63); err != nil || at.Sequence == 0 {
				return usageError("SEQUENCE is a number from 1")
			}
			if len(args) == 3 {
				if at.Line, err = strconv.Atoi(args[2]); err != nil || at.Line < 0 {
					return usageError("LINE is a number from 0")
				}
			}
			return a.auditProve(cmd, at, keys, file)
		},
	}
	cmd.Flags().StringVarP(&file, "output", "o", "", "keep the proof in this file")
	cmd.Flags().StringArrayVar(&keys, "log-key", nil, "verifier key of the log, or a file of them; may be given more than once")
	cmd.ValidArgsFunction = cobra.FixedCompletions([]string{"ledger", "usage", "ops", "feed"}, cobra.ShellCompDirectiveNoFileComp)
	return cmd
}

// streamName is that of a stream over which a tree stands.
func streamName(s string) (string, error) {
	if s = strings.ToUpper(s); !slices.Contains(audit.Streams[:], s) {
		return "", usageError("STREAM is ledger, usage, ops or feed")
	}
	return s, nil
}

func (a *app) auditProve(cmd *cobra.Command, at audit.Place, given []string, file string) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	keys, err := a.keysOrAsked(cmd, c, given)
	if err != nil {
		return err
	}
	q := url.Values{"sequence": {strconv.FormatUint(at.Sequence, 10)}, "format": {"tlog-proof"}}
	if at.Line > 0 {
		q.Set("line", strconv.Itoa(at.Line))
	}
	r, err := c.do(cmd.Context(), call{method: http.MethodGet, path: path("audit", "log", at.Stream, "proof"), query: q})
	if err != nil {
		return err
	}
	proven, err := checkProof(r.body, at, keys)
	if err != nil {
		return &exitError{code: exitProof, name: "PROOF_FAILED", err: fmt.Errorf("the proof of %s does not hold: %w", at, err)}
	}
	if file != "" {
		if err := replaceFile(file, r.body); err != nil {
			return err
		}
		proven.File = file
	}
	if a.asJSON {
		return a.printValue(proven)
	}
	_, err = fmt.Fprintf(a.stdout, "PASS  %s is leaf %d of the %d that were signed, by %s\nThe SHA-256 of its stored bytes is %s\n", at, proven.Index, proven.Size, proven.Key, proven.SHA256)
	return err
}

// proofKind is the first line of a C2SP tlog-proof.
const proofKind = "c2sp.org/tlog-proof@v1"

// checkProof checks a C2SP tlog-proof of an event against keys of its log. Without a place
// it is of whatever event its leaf says. One that is written otherwise than the log writes
// it is refused, so that nothing of a file that passes can be changed, but signatures that
// are not looked at.
func checkProof(b []byte, at audit.Place, keys []note.Verifier) (p provenEvent, err error) {
	head, checkpoint, ok := strings.Cut(string(b), "\n\n")
	lines := strings.Split(head, "\n")
	if !ok || len(lines) < 3 || lines[0] != proofKind {
		return p, errors.New("it is not a C2SP tlog-proof")
	}
	extra, ok1 := strings.CutPrefix(lines[1], "extra ")
	index, ok2 := strings.CutPrefix(lines[2], "index ")
	text, err := base64.StdEncoding.DecodeString(extra)
	if err != nil || !ok1 || !ok2 || base64.StdEncoding.EncodeToString(text) != extra {
		return p, errors.New("it has no leaf, or no index")
	}
	leaf, err := audit.ParseLeaf(text)
	if err != nil {
		return p, err
	}
	if at == (audit.Place{}) {
		at = leaf.Place
	}
	if leaf.Place != at {
		return p, fmt.Errorf("it is one of %s", leaf.Place)
	}
	if p.Index, err = strconv.ParseInt(index, 10, 64); err != nil || strconv.FormatInt(p.Index, 10) != index {
		return p, errors.New("its index is no number")
	}
	var hashes tlog.RecordProof
	for _, line := range lines[3:] {
		h, err := tlog.ParseHash(line)
		if err != nil || h.String() != line {
			return p, errors.New("one of its hashes is none")
		}
		hashes = append(hashes, h)
	}
	c, signed, err := audit.Open([]byte(checkpoint), audit.Origin(keys[0].Name(), at.Stream), keys...)
	if err != nil {
		return p, err
	}
	if c.Of != nil {
		return p, errors.New("its checkpoint is not of the tree of a stream")
	}
	if p.Index < 0 || p.Index >= c.Size {
		return p, fmt.Errorf("leaf %d is not in a tree of %d", p.Index, c.Size)
	}
	if err := tlog.CheckRecord(hashes, c.Size, c.Root, p.Index, leaf.Hash()); err != nil {
		return p, err
	}
	p.Stream, p.Sequence, p.Line, p.Size, p.Root = at.Stream, at.Sequence, at.Line, c.Size, c.Root.String()
	p.leaf = leaf
	p.SHA256 = fmt.Sprintf("%x", leaf.Digest)
	p.Key = fmt.Sprintf("%s+%08x", signed.Sigs[0].Name, signed.Sigs[0].Hash)
	return p, nil
}
