package main

import (
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// health answers for a gateway what the API answers for the service: /healthz,
// /readyz and /metrics.
func health(n *node) http.Handler {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "keyledger", Name: name, Help: help}, value)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		gauge("keyring_sequence", "Last LEDGER sequence that this process decides with.", func() float64 { return float64(n.ring.Sequence()) }),
		gauge("verifier_lost_seconds", "How long ago LEDGER was last known to be followed to its end.", func() float64 { return n.verifier.Lost().Seconds() }),
		gauge("recorder_held", "Facts that wait in memory to be written to USAGE.", func() float64 { return float64(n.recorder.Held()) }),
	)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		type check struct {
			OK     bool   `json:"ok"`
			Detail string `json:"detail,omitempty"`
		}
		answer := struct {
			Checks map[string]check `json:"checks"`
			Ready  bool             `json:"ready"`
		}{map[string]check{}, true}
		for name, err := range n.ready(r.Context()) {
			c := check{OK: err == nil}
			if err != nil {
				c.Detail, answer.Ready = err.Error(), false
			}
			answer.Checks[name] = c
		}
		w.Header().Set("Content-Type", "application/json")
		if !answer.Ready {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	return mux
}
