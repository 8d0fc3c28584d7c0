package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keyledger/keyledger/events"
)

// operational registers what machines ask: no credential, and nothing in the
// answers that one would need a credential for.
func (a *API) operational() {
	a.router.Get("/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(a.spec)
	})
	a.router.Get("/asyncapi.yaml", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/yaml")
		_, _ = w.Write(events.AsyncAPI())
	})
	a.router.Get("/schemas", func(w http.ResponseWriter, _ *http.Request) {
		type listed struct {
			events.SchemaFile
			URL string `json:"url"`
		}
		list := []listed{}
		for _, f := range events.Schemas() {
			list = append(list, listed{f, "/schemas/" + f.Name})
		}
		writeJSON(w, http.StatusOK, "application/json", map[string]any{"schemas": list})
	})
	a.router.Get("/schemas/{name}", func(w http.ResponseWriter, r *http.Request) {
		schema := events.Schema(chi.URLParam(r, "name"))
		if schema == nil {
			a.fail(w, r, problem(http.StatusNotFound, "NOT_FOUND", "There is no schema of this name: see /schemas."))
			return
		}
		w.Header().Set("Content-Type", "application/schema+json")
		_, _ = w.Write(schema)
	})
	a.router.Get("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, "application/json", map[string]string{"status": "ok", "version": a.Version})
	})
	a.router.Get("/readyz", a.readiness)
	a.router.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(a.Metrics, promhttp.HandlerOpts{}))
}

type check struct {
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

// Note is an error that operators should know of and that keeps nobody from
// relying on this node: its check is ok, with a detail.
type Note struct{ Err error }

func (n Note) Error() string { return n.Err.Error() }

// Commands is an error that keeps commands from being carried out, and nobody from
// verifying: /readyz fails with it, and /readyz?for=verify does not.
type Commands struct{ Err error }

func (c Commands) Error() string { return c.Err.Error() }

var errFolding = errors.New("the ledger is still being read")

// caughtUp says whether this node's memory has all that the ledger has. A ledger
// that cannot be asked proves nothing against it: verification goes on, by its
// own window, and commands say themselves that they cannot be carried out.
func (a *API) caughtUp(ctx context.Context) error {
	select {
	case <-a.Ring.Ready():
	default:
		return errFolding
	}
	head, err := a.Ledger.Head(ctx, events.Ledger)
	if err == nil && a.Ring.Wait(ctx, head) != nil {
		return errFolding
	}
	return nil
}

// readiness is 200 only when the fold has caught up and everything else that
// the program knows of is well. With for=verify it is 200 as well while only commands
// are refused.
func (a *API) readiness(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	found := map[string]error{"keyring": a.caughtUp(ctx), "ledger": nil}
	for _, doubt := range a.Ledger.Doubts() {
		found["ledger"] = Commands{doubt}
	}
	if a.Ready != nil {
		for name, err := range a.Ready(ctx) {
			found[name] = err
		}
	}
	verifies := r.URL.Query().Get("for") == "verify"
	status, checks := http.StatusOK, map[string]check{}
	for name, err := range found {
		c := check{OK: err == nil}
		if err != nil {
			c.Detail = err.Error()
			switch err.(type) {
			case Note:
				c.OK = true
			case Commands:
				c.OK = verifies
			}
			if !c.OK {
				status = http.StatusServiceUnavailable
			}
		}
		checks[name] = c
	}
	w.Header().Set("Cache-Control", "no-store")
	writeJSON(w, status, "application/json", map[string]any{"ready": status == http.StatusOK, "checks": checks})
}
