package api

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyledger/keyledger/events"
)

var requestID = regexp.MustCompile(`^req_[A-Za-z0-9_-]{1,100}$`)

// observe is around every request: its id, its line in the log, its place in
// the figures, and an answer where the handler panics.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := a.Now()
		c := &call{requestID: r.Header.Get("X-Request-Id")}
		if !requestID.MatchString(c.requestID) {
			c.requestID = events.NewID("req", began)
		}
		r = r.WithContext(context.WithValue(r.Context(), callKey{}, c))
		answer := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		answer.Header().Set("X-Request-Id", c.requestID)
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
	if a.Ring != nil {
		a.Metrics.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "keyledger_keyring_sequence", Help: "Last sequence of LEDGER that this node's memory has applied.",
		}, func() float64 { return float64(a.Ring.Sequence()) }))
	}
	return m
}
