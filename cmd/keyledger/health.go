package main

import (
	"encoding/json"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/gateway/front"
)

// health answers for a gateway what the API answers for the service: /healthz,
// /readyz and /metrics.
func health(n *node) http.Handler {
	gauge := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "keyledger", Name: name, Help: help}, value)
	}
	registry := registry(n)
	registry.MustRegister(
		gauge("keyring_sequence", "Last LEDGER sequence that this process decides with.", func() float64 { return float64(n.ring.Sequence()) }),
		gauge("verifier_lost_seconds", "How long ago LEDGER was last known to be followed to its end.", func() float64 { return n.verifier.Lost().Seconds() }),
		gauge("recorder_unprotected", "1 while a killed process or a power cut would lose what it records.", func() float64 {
			if n.recorder.Unprotected() != nil {
				return 1
			}
			return 0
		}),
		gauge("recorder_log_bytes", "What the write-ahead log takes on disk.", func() float64 { return float64(n.recorder.LogBytes()) }),
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
				c.Detail = err.Error()
				switch err.(type) {
				case api.Note, api.Commands: // it carries out no commands
					c.OK = true
				}
			}
			answer.Ready = answer.Ready && c.OK
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

// registry is where a process counts: what every process says of itself, and its
// certificates.
func registry(n *node) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if n.certificates != nil {
		r.MustRegister(certificates{n.certificates})
	}
	return r
}

// certificates are the gauges of the certificates in use.
type certificates struct{ *front.Certificates }

var (
	notAfter = prometheus.NewDesc("keyledger_tls_certificate_not_after_seconds", "Unix time at which the certificate in use expires.", []string{"cert"}, nil)
	refused  = prometheus.NewDesc("keyledger_tls_certificate_refused", "1 where what is in the files now cannot be used, so that what was there before still is.", []string{"cert"}, nil)
)

// Describe is prometheus.Collector's.
func (certificates) Describe(to chan<- *prometheus.Desc) { to <- notAfter; to <- refused }

// Collect is prometheus.Collector's.
func (c certificates) Collect(to chan<- prometheus.Metric) {
	for _, s := range c.State() {
		broken := 0.0
		if s.Err != nil {
			broken = 1
		}
		to <- prometheus.MustNewConstMetric(notAfter, prometheus.GaugeValue, float64(s.NotAfter.Unix()), s.File)
		to <- prometheus.MustNewConstMetric(refused, prometheus.GaugeValue, broken, s.File)
	}
}
