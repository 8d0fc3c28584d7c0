package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/audit/bundle"
	"github.com/keyledger/keyledger/events"
)

const (
	witnessTime = 5 * time.Minute // in which several witnesses that look once a minute meet
	witnessLook = time.Second     // between two questions
	nobody      = "no"
)

// witnessWait reads --witnessed; negative: nobody is waited for.
func witnessWait(flag string) (time.Duration, error) {
	switch flag {
	case "":
		return witnessTime, nil
	case nobody:
		return -1, nil
	}
	d, err := time.ParseDuration(flag)
	if err != nil || d < 0 {
		return 0, usageError("--witnessed is a time such as 5m, 0s for what is there already, or no")
	}
	return d, nil
}

// witnessedExport is what witnesses have signed of an export, as the API answers it.
type witnessedExport struct {
	Complete bool `json:"complete"`
	Streams  []struct {
		Stream      string `json:"stream"`
		Size        int64  `json:"size"`
		Checkpoint  string `json:"checkpoint"`
		Consistency string `json:"consistency"`
	} `json:"streams"`
	Witnesses []struct {
		Name   string      `json:"name"`
		Stream string      `json:"stream"`
		Size   *int64      `json:"size"`
		Time   events.Time `json:"time"`
	} `json:"witnesses"`
}

// done counts the streams that have all signatures.
func (w *witnessedExport) done() (n int64) {
	for _, s := range w.Streams {
		if s.Checkpoint != "" {
			n++
		}
	}
	return n
}

// behind names the witnesses that lack a stream of an export, and what they signed last.
func (w *witnessedExport) behind() string {
	var names []string
	last := map[string]events.Time{}
	for _, s := range w.Streams {
		for _, x := range w.Witnesses {
			if x.Stream != s.Stream {
				continue
			}
			if s.Checkpoint == "" && (x.Size == nil || *x.Size < s.Size) && !slices.Contains(names, x.Name) {
				names = append(names, x.Name)
			}
			last[x.Name] = max(last[x.Name], x.Time)
		}
	}
	for i, name := range names {
		names[i] = clean(name) + " (never seen)"
		if at := last[name]; at != 0 {
			names[i] = fmt.Sprintf("%s (last seen %s)", clean(name), at)
		}
	}
	return strings.Join(names, ", ")
}

// witnessExport waits until witnesses have signed trees that contain an export's, and
// puts what they signed into its head. Where they do not come in time and the export is
// of everything, the head becomes another one, that ends where their signatures end.
func (a *app) witnessExport(ctx context.Context, c *client, head *bundle.Head, policy *audit.Policy, body map[string]any, wait time.Duration) error {
	q := url.Values{}
	for _, s := range head.Manifest.Streams {
		q.Set(strings.ToLower(s.Stream), strconv.FormatInt(s.Size, 10))
	}
	at := path("audit", "exports", strconv.FormatUint(head.Manifest.Exported.Sequence, 10), "checkpoints")
	bar := a.progress("witnessed streams")
	seen, err := func() (w witnessedExport, err error) {
		defer func() { bar.end(err == nil && w.Complete) }()
		for end := a.now().Add(wait); ; {
			r, err := c.do(ctx, call{method: http.MethodGet, path: at, query: q})
			if err != nil {
				return w, err
			}
			w = witnessedExport{}
			if err := r.decode(&w); err != nil {
				return w, err
			}
			bar.set(w.done(), int64(len(w.Streams)))
			left := end.Sub(a.now())
			if w.Complete || left <= 0 {
				return w, nil
			}
			select {
			case <-ctx.Done():
				return w, ctx.Err()
			case <-time.After(min(witnessLook, left)):
			}
		}
	}()
	if err != nil {
		return err
	}
	if seen.Complete && len(seen.Streams) == len(head.Proofs) {
		for i, s := range seen.Streams {
			if !policy.Satisfied([]byte(s.Checkpoint)) {
				return &exitError{exitProof, "NOT_COSIGNED", fmt.Errorf("the service says that witnesses have signed %s; %s", s.Stream, policy.Lacking([]byte(s.Checkpoint)))}
			}
			head.Proofs[i].Checkpoint, head.Proofs[i].Consistency = s.Checkpoint, s.Consistency
		}
		return nil
	}
	late := fmt.Sprintf("the witnesses have not signed this export in %s; late: %s", wait, seen.behind())
	notCosigned := func(fix string) error {
		return &exitError{exitProof, "NOT_COSIGNED", errors.New(late + ". " + fix)}
	}
	if (head.Manifest.Scope != bundle.Scope{}) {
		return notCosigned("Give them more time (--witnessed=30m), export everything, or do without them (--witnessed=no)")
	}
	body = maps.Clone(body)
	body["witnessed"] = true
	short, err := c.beginExport(ctx, body)
	if p, ok := errors.AsType[*problem](err); ok && p.Code == "NOT_COSIGNED" {
		return notCosigned("Nothing that they signed earlier is enough for the policy either: give them more time (--witnessed=30m), or do without them (--witnessed=no)")
	}
	if err != nil {
		return err
	}
	a.note("keyledger: %s; the export ends where their signatures end", late)
	*head = short
	return nil
}
