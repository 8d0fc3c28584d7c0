package api

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyledger/keyledger/events"
)

// requestIDOf is the id that came with a request, where it looks like one of
// ours, else a new one.
func requestIDOf(r *http.Request, now time.Time) string {
	values := r.Header["X-Request-Id"]
	if len(values) == 1 && len(values[0]) <= 100 && strings.HasPrefix(values[0], "req_") {
		rest := values[0][len("req_"):]
		if rest != "" && strings.IndexFunc(rest, notInID) < 0 {
			return values[0]
		}
	}
	// It needs to be unique, not secret, which spares the system's generator.
	var u [16]byte
	binary.BigEndian.PutUint64(u[:8], uint64(now.UnixMilli())<<16|uint64(rand.Uint32()&0xffff))
	binary.BigEndian.PutUint64(u[8:], rand.Uint64())
	return events.FormatID("req", u)
}

func notInID(r rune) bool {
	return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
}

// observe is around every request: its id, its line in the log, its place in
// the figures, and an answer where the handler panics.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := a.Now()
		c := &call{requestID: requestIDOf(r, began)}
		_, c.console = r.Context().Value(callerKey{}).(Caller)
		r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
		answer := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		h := answer.Header()
		h.Set("X-Request-Id", c.requestID)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store") // what is behind a credential is no one else's to keep
		a.meter.inFlight.Inc()
		defer func() {
			a.meter.inFlight.Dec()
			if cause := recover(); cause != nil {
				if err, ok := cause.(error); ok && errors.Is(err, http.ErrAbortHandler) {
					panic(cause) // the server's own way to cut a connection off
				}
				a.Log.LogAttrs(r.Context(), slog.LevelError, "panic", slog.String("request_id", c.requestID),
					slog.Any("cause", cause), slog.String("stack", string(debug.Stack())))
				if answer.Status() == 0 {
					problemOf(errors.New("panic")).write(answer, c.requestID)
				}
			}
			a.record(r, c, answer, a.Now().Sub(began))
		}()
		next.ServeHTTP(answer, r)
	})
}

// record writes the line of a request. Paths and queries stay out of it: people
// paste secrets into both. The route says which call it was.
func (a *API) record(r *http.Request, c *call, answer middleware.WrapResponseWriter, took time.Duration) {
	route := chi.RouteContext(r.Context()).RoutePattern()
	if route == "" {
		route = "unmatched"
	}
	method := r.Method
	if !methods[method] {
		method = "other"
	}
	status := answer.Status()
	if status == 0 {
		status = http.StatusOK
	}
	a.meter.requests.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	a.meter.took.WithLabelValues(method, route).Observe(took.Seconds())
	level := slog.LevelInfo
	if quiet[route] {
		level = slog.LevelDebug
	}
	if !a.Log.Enabled(r.Context(), level) {
		return
	}
	a.Log.LogAttrs(r.Context(), level, "request",
		slog.String("request_id", c.requestID), slog.String("method", method), slog.String("route", route),
		slog.Int("status", status), slog.Int("bytes", answer.BytesWritten()),
		slog.Duration("took", took), slog.String("actor", c.authority.Actor.ID))
}

var methods = map[string]bool{"GET": true, "HEAD": true, "POST": true, "PUT": true, "PATCH": true, "DELETE": true, "OPTIONS": true}

// quiet are routes that machines call again and again.
var quiet = map[string]bool{"/healthz": true, "/readyz": true, "/metrics": true, "/v1/verify": true, "/v1/uses": true}

// meter holds the figures of the API.
type meter struct {
	requests *prometheus.CounterVec
	took     *prometheus.HistogramVec
	inFlight prometheus.Gauge

	verified     prometheus.Counter // of requests, POST /v1/verify 200
	verifiedTook prometheus.Observer
}

func newMeter(a *API) *meter {
	m := &meter{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "keyledger_http_requests_total", Help: "Requests answered by the management API.",
		}, []string{"method", "route", "status"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "keyledger_http_request_duration_seconds", Help: "Time from a request's headers to the end of its answer.",
			Buckets: []float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"method", "route"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "keyledger_http_requests_in_flight", Help: "Requests being answered.",
		}),
	}
	a.Metrics.MustRegister(m.requests, m.took, m.inFlight)
	m.verified = m.requests.WithLabelValues("POST", "/v1/verify", "200")
	m.verifiedTook = m.took.WithLabelValues("POST", "/v1/verify")
	if a.Ring != nil {
		a.Metrics.MustRegister(&gauges{a})
	}
	return m
}
