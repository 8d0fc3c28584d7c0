package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commandFlags are what every command to the API accepts.
type commandFlags struct {
	idem    string
	ifMatch uint64
}

func (f *commandFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.idem, "idempotency-key", "", "repeat an earlier command under its key, without a second effect (else random)")
	cmd.Flags().String("receipt", "", "write the log's signed receipt for what is recorded to this file")
}

func (f *commandFlags) addIfMatch(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&f.ifMatch, "if-match", 0, "do it only while the key has this version")
}

// command sends a change. The body may be nil.
func (a *app) command(cmd *cobra.Command, f *commandFlags, method, path string, body any) (*answer, error) {
	q := call{method: method, path: path, idem: f.idem}
	if body != nil {
		q.body = jsonBody(body)
	}
	if f.ifMatch > 0 {
		q.header = http.Header{"If-Match": {`"` + strconv.FormatUint(f.ifMatch, 10) + `"`}}
	}
	return a.send(cmd, q)
}

// send sends a change that is ready but for its idempotency key.
func (a *app) send(cmd *cobra.Command, q call) (*answer, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	if q.idem == "" {
		q.idem = newIdempotencyKey()
	}
	receipt, _ := cmd.Flags().GetString("receipt")
	if receipt != "" {
		if q.header == nil {
			q.header = http.Header{}
		}
		q.header.Set("Receipt", "1")
	}
	r, err := c.do(cmd.Context(), q)
	if err != nil {
		return r, err
	}
	c.remember(r, a.now())
	if receipt != "" {
		if err := a.keepReceipts(receipt, a.receipts > 0, r); err != nil {
			a.note("keyledger: %v", err) // the answer may hold a secret, which must not be lost
		}
		a.receipts++
	}
	return r, nil
}

// readFlags are what every reading of a projection accepts.
type readFlags struct{ minSequence uint64 }

func (f *readFlags) add(cmd *cobra.Command) {
	cmd.Flags().Uint64Var(&f.minSequence, "min-sequence", 0, "wait until the list has reached this LEDGER sequence")
}

func (f *readFlags) header() http.Header {
	if f.minSequence == 0 {
		return nil
	}
	return http.Header{"Min-Sequence": {strconv.FormatUint(f.minSequence, 10)}}
}

func (a *app) get(cmd *cobra.Command, path string, query url.Values, header http.Header) (*answer, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	q := call{method: http.MethodGet, path: path, query: query, header: header}
	// Figures and the projections' own state follow other streams than LEDGER,
	// and the audit log is read from the streams themselves.
	own := strings.HasPrefix(path, "/v1/keys") && c.recall(&q, a.now()) // keys and keyspaces
	r, err := c.do(cmd.Context(), q)
	if p, ok := errors.AsType[*problem](err); ok && own && p.Status == http.StatusServiceUnavailable {
		// The ledger at this address may be another one by now, with lower sequences.
		q.header.Del("Min-Sequence")
		return c.do(cmd.Context(), q)
	}
	return r, err
}

// pages reads a list that is answered as {<name>: […], next_cursor}: one page,
// or with all every page. It returns the members and, as JSON, the answer: the
// API's own bytes for one page, and one document of the same shape for several, with the
// last page's word on what is said of all.
func (a *app) pages(cmd *cobra.Command, path, name, cursorName string, query url.Values, header http.Header, all bool) (members []json.RawMessage, next string, body []byte, err error) {
	rest := map[string]any{}
	for first := true; ; first = false {
		r, err := a.get(cmd, path, query, header)
		if err != nil {
			return nil, "", nil, err
		}
		var page map[string]json.RawMessage
		if err := r.decode(&page); err != nil {
			return nil, "", nil, err
		}
		var some []json.RawMessage
		raw, ok := page[name]
		if !ok {
			return nil, "", nil, fmt.Errorf("the answer has no %s: is the address that of a keyledger API, and of the same version?", name)
		}
		if err := (&answer{body: raw}).decode(&some); err != nil {
			return nil, "", nil, err
		}
		next = ""
		if raw, ok := page["next_cursor"]; ok {
			_ = json.Unmarshal(raw, &next) // null: the end
		}
		members = append(members, some...)
		for name, raw := range page {
			rest[name] = raw
		}
		if !all || next == "" {
			if first {
				return members, next, r.body, nil
			}
			if members == nil {
				members = []json.RawMessage{}
			}
			rest[name], rest["next_cursor"] = members, nil
			return members, "", jsonBody(rest), nil
		}
		query.Set(cursorName, next)
	}
}

// decodeAll decodes the members of a list.
func decodeAll[T any](members []json.RawMessage) ([]T, error) {
	list := make([]T, len(members))
	for i, m := range members {
		if err := (&answer{body: m}).decode(&list[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// set adds the query parameters that have a value.
func set(query url.Values, pairs ...string) url.Values {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			query.Set(pairs[i], pairs[i+1])
		}
	}
	return query
}

// more tells a person that a list goes on.
func (a *app) more(flag, next string) {
	if next != "" {
		a.note("there are more: --all, or --%s %s", flag, clean(strings.TrimSpace(next)))
	}
}

// also lets a flag be written in another way.
func also(cmd *cobra.Command, pairs ...string) {
	cmd.Flags().SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		for i := 0; i < len(pairs); i += 2 {
			if name == pairs[i] {
				name = pairs[i+1]
			}
		}
		return pflag.NormalizedName(name)
	})
}
