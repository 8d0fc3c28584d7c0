package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
)

// checkedReceipt is what `audit receipt check` prints of a receipt.
type checkedReceipt struct {
	Stream   string `json:"stream"`
	Sequence uint64 `json:"sequence"`
	Line     int    `json:"line"`
	SHA256   string `json:"sha256"` // of the event's stored bytes
	Pass     bool   `json:"pass"`
	Reason   string `json:"reason,omitempty"` // of a failure
	Size     int64  `json:"size,omitempty"`   // of the signed tree that has it
}

func (a *app) auditReceiptCommand() *cobra.Command {
	return group("receipt", "Check receipts of commands against the log", a.receiptCheckCommand())
}

func (a *app) receiptCheckCommand() *cobra.Command {
	var keys []string
	var bundleFile string
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "check FILE", Short: "Say whether the event of a receipt stands in the log", Args: takes("FILE"),
		Long: `Check the receipts in a file, as --receipt of a command wrote it: that the log's key
signed them, and that the events stand in the signed tree, which is proven by the
service, or with --bundle offline by an export.

A receipt whose event the log does not have is evidence that it was lost or taken
away after it was answered: the exit code is 7, and FILE.checkpoint keeps the signed
tree without it.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			notes := audit.SplitNotes(text)
			if len(notes) == 0 {
				return usageError("FILE holds no receipt")
			}
			if bundleFile != "" {
				return a.checkReceiptsOffline(notes, keys, bundleFile)
			}
			return a.checkReceipts(cmd, args[0], notes, keys, wait)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "log-key", nil, "verifier key of the log, or a file of them; may be given more than once")
	cmd.Flags().StringVar(&bundleFile, "bundle", "", "look into this export, offline")
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Second, "how long an event that is new may take to be sealed")
	return cmd
}

// openReceipts reads receipts that a key of the log must have signed.
func openReceipts(notes [][]byte, keys []note.Verifier) (leaves []audit.Leaf, err error) {
	for i, n := range notes {
		l, _, err := audit.OpenReceipt(n, keys...)
		if err != nil {
			return nil, &exitError{exitProof, "NO_RECEIPT", fmt.Errorf("number %d in the file is not a receipt that a key of this log has signed: %w", i+1, err)}
		}
		leaves = append(leaves, l)
	}
	return leaves, nil
}

func (a *app) checkReceipts(cmd *cobra.Command, file string, notes [][]byte, given []string, wait time.Duration) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	keys, err := a.keysOrAsked(cmd, c, given)
	if err != nil {
		return err
	}
	leaves, err := openReceipts(notes, keys)
	if err != nil {
		return err
	}
	var results []checkedReceipt
	for _, leaf := range leaves {
		out := checked(leaf)
		q := url.Values{"sequence": {strconv.FormatUint(leaf.Sequence, 10)}, "format": {"tlog-proof"}}
		if leaf.Line > 0 {
			q.Set("line", strconv.Itoa(leaf.Line))
		}
		var r *answer
		for until := time.Now().Add(wait); ; {
			r, err = c.do(cmd.Context(), call{method: http.MethodGet, path: path("audit", "log", leaf.Stream, "proof"), query: q})
			p, ok := errors.AsType[*problem](err)
			if !ok || p.Code != "NOT_SEALED" || time.Now().After(until) {
				break
			}
			select {
			case <-time.After(200 * time.Millisecond):
			case <-cmd.Context().Done():
				return cmd.Context().Err()
			}
		}
		if p, ok := errors.AsType[*problem](err); ok && p.Code == "NOT_FOUND" {
			out.Reason = "the log has no event at that place"
		} else if ok && p.Code == "NOT_SEALED" {
			p.hint = fmt.Sprintf("%s is in no signed tree yet. If that stays so, the receipt is evidence: keep it", leaf.Place)
			return p
		} else if err != nil {
			return err
		} else if proven, err := checkProof(r.body, leaf.Place, keys); err != nil {
			out.Reason = fmt.Sprintf("the proof that the log gives for that place does not hold: %v", err)
		} else if proven.leaf != leaf {
			out.Reason = "the log has another event at that place"
		} else {
			out.Pass, out.Size = true, proven.Size
		}
		if !out.Pass {
			if b, err := c.fetchLog(cmd.Context(), strings.ToLower(leaf.Stream)+"/checkpoint"); err == nil {
				if err := replaceFile(file+".checkpoint", b); err != nil {
					return err
				}
			}
		}
		results = append(results, out)
	}
	return a.printReceipts(results)
}

func checked(l audit.Leaf) checkedReceipt {
	return checkedReceipt{Stream: l.Stream, Sequence: l.Sequence, Line: l.Line, SHA256: fmt.Sprintf("%x", l.Digest)}
}

func (a *app) checkReceiptsOffline(notes [][]byte, given []string, file string) error {
	if len(given) == 0 {
		return usageError("--log-key is needed with --bundle: the key in a bundle proves nothing by itself")
	}
	keys, err := logKeys(given)
	if err != nil {
		return err
	}
	leaves, err := openReceipts(notes, keys)
	if err != nil {
		return err
	}
	found := map[tlog.Hash]bool{}
	for _, l := range leaves {
		found[l.Hash()] = false
	}
	r, err := a.checkBundle(file, bundle.Options{Keys: keys, Found: found})
	if err != nil {
		return err
	}
	if !r.Pass {
		if err := a.printReport(file, r); err != nil {
			return err
		}
		return quietly(exitProof)
	}
	var results []checkedReceipt
	for _, l := range leaves {
		out := checked(l)
		for _, s := range r.Streams {
			if s.Stream != l.Stream {
				continue
			}
			part, isPart := r.Scope.Part()
			switch {
			case found[l.Hash()]:
				out.Pass, out.Size = true, s.Size
			case isPart && !part.Holds(&l):
				return fmt.Errorf("the export is about %s, and the receipt's event is not: it says nothing about %s", about(r.Scope), l.Place)
			case s.Last < l.Sequence:
				return fmt.Errorf("the export was made before %s, and ends at %d: it says nothing about it", l.Place, s.Last)
			default:
				out.Reason = "the export is complete up to beyond that place, and does not have the event"
			}
		}
		results = append(results, out)
	}
	return a.printReceipts(results)
}

func (a *app) printReceipts(results []checkedReceipt) error {
	failed := false
	for _, r := range results {
		failed = failed || !r.Pass
		at := audit.Place{Stream: r.Stream, Sequence: r.Sequence, Line: r.Line}
		var err error
		switch {
		case a.asJSON:
			err = a.printValue(r)
		case r.Pass:
			_, err = fmt.Fprintf(a.stdout, "PASS  %s stands in the signed tree of %d events, as the receipt says\n", at, r.Size)
		default:
			_, err = fmt.Fprintf(a.stdout, "FAIL  %s: %s.\n"+
				"The log's key signed a receipt for it, so it was recorded and answered, and is gone. This receipt is\n"+
				"evidence: nobody without the log's key can have made it. Keep the file, and show it to those who rely on the log.\n", at, r.Reason)
		}
		if err != nil {
			return err
		}
	}
	if failed {
		return quietly(exitProof)
	}
	return nil
}

// keepReceipts writes the receipts of an answer to a file, behind those that an
// earlier answer of the same command brought.
func (a *app) keepReceipts(file string, more bool, r *answer) error {
	given := r.header.Values("Receipt")
	var imported struct {
		Results []struct {
			Receipts []string `json:"receipts"`
		} `json:"results"`
	}
	if len(given) == 0 && json.Unmarshal(r.body, &imported) == nil {
		for _, line := range imported.Results {
			given = append(given, line.Receipts...)
		}
	}
	if missing := r.header.Get("Receipt-Missing"); missing != "" {
		a.note("no receipt came: %s", clean(missing))
	}
	var text bytes.Buffer
	if more {
		if b, err := os.ReadFile(file); err == nil {
			text.Write(b)
		}
	}
	for _, g := range given {
		b, err := base64.StdEncoding.DecodeString(g)
		if err != nil {
			return fmt.Errorf("the command took effect, but its receipt cannot be read: %w", err)
		}
		text.Write(b)
	}
	if len(given) == 0 {
		return nil // nothing was recorded
	}
	if err := replaceFile(file, text.Bytes()); err != nil {
		return fmt.Errorf("the command took effect, but its receipt could not be written: %w", err)
	}
	return nil
}
