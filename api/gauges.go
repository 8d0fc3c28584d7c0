package api

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/verify/applied"
)

// gauges are figures that are asked for when somebody looks. What cannot be
// asked within gaugeTime is left out: an old figure would look like a good one.
type gauges struct{ *API }

const gaugeTime = time.Second

var (
	ringAt   = prometheus.NewDesc("keyledger_keyring_sequence", "Last sequence of LEDGER that this node's memory has applied.", nil, nil)
	heads    = prometheus.NewDesc("keyledger_stream_head", "Last sequence of a stream.", []string{"stream"}, nil)
	doubted  = prometheus.NewDesc("keyledger_stream_in_doubt", "1 where a stream is refused: an operator must look at it.", []string{"stream"}, nil)
	position = prometheus.NewDesc("keyledger_projection_position", "How far a projection is in its stream.", []string{"projection"}, nil)
	lag      = prometheus.NewDesc("keyledger_projection_lag", "Messages that a projection has not applied yet.", []string{"projection"}, nil)
	stopped  = prometheus.NewDesc("keyledger_projection_stopped", "1 where a projection stopped on a record that it cannot apply.", []string{"projection"}, nil)
	lost     = prometheus.NewDesc("keyledger_verifier_lost_seconds", "How long ago this node's state was last known to be complete.", nil, nil)
	walBytes = prometheus.NewDesc("keyledger_recorder_log_bytes", "What the write-ahead log takes on disk.", nil, nil)
	exposed  = prometheus.NewDesc("keyledger_recorder_unprotected", "1 while a killed process or a power cut would lose what this node records.", nil, nil)
	alerting = prometheus.NewDesc("keyledger_alerts_raised", "Alerts that are raised, by what their rule watches.", []string{"when"}, nil)
	held     = prometheus.NewDesc("keyledger_uses_held", "Uses in memory that wait to be written.", nil, nil)

	verifierAt    = prometheus.NewDesc("keyledger_verifier_sequence", "Last sequence of LEDGER that a verifier has told it applied.", []string{"node"}, nil)
	verifierHeard = prometheus.NewDesc("keyledger_verifier_silent_seconds", "How long ago a verifier was last heard; they tell every second.", []string{"node"}, nil)
	unconfirmed   = prometheus.NewDesc("keyledger_revocations_unconfirmed_total", "Revocations that a verifier did not confirm in time, as this node recorded them.", []string{"node"}, nil)
	stops         = prometheus.NewDesc("keyledger_revocation_stopped_seconds", "From the acknowledgement of a revocation to the word of a verifier that it refuses, as this node recorded them.", []string{"node"}, nil)
	unmeasured    = prometheus.NewDesc("keyledger_revocations_unmeasured_total", "Revocations that this node could not record the measurement of.", nil, nil)

	webhookDelivered = prometheus.NewDesc("keyledger_webhook_delivered_total", "Facts that a webhook has taken.", []string{"webhook"}, nil)
	webhookDead      = prometheus.NewDesc("keyledger_webhook_dead_letters_total", "Facts that went to DLQ because a webhook did not take them for a day.", []string{"webhook"}, nil)
	webhookBehind    = prometheus.NewDesc("keyledger_webhook_keys_behind", "Keys of which a fact is being sent to a webhook, or waits for its next attempt.", []string{"webhook"}, nil)
	webhookLag       = prometheus.NewDesc("keyledger_webhook_lag", "Messages of FEED that have not been looked at for a webhook.", []string{"webhook"}, nil)
	webhookFailing   = prometheus.NewDesc("keyledger_webhook_failing_since_timestamp_seconds", "Since when nothing has arrived at a webhook; 0: the last attempt succeeded.", []string{"webhook"}, nil)
	webhookDisabled  = prometheus.NewDesc("keyledger_webhook_disabled", "1 where a webhook answered 410 Gone and is sent nothing.", []string{"webhook"}, nil)

	sinkDelivered = prometheus.NewDesc("keyledger_sink_delivered_total", "Facts that a sink has taken.", []string{"sink"}, nil)
	sinkDead      = prometheus.NewDesc("keyledger_sink_dead_letters_total", "Facts that went to DLQ because a sink did not take them for a day.", []string{"sink"}, nil)
	sinkBehind    = prometheus.NewDesc("keyledger_sink_keys_behind", "Keys whose next fact waits to be delivered to a sink.", []string{"sink"}, nil)
	sinkLag       = prometheus.NewDesc("keyledger_sink_lag", "Messages of FEED that have not been looked at for a sink.", []string{"sink"}, nil)
	sinkFailing   = prometheus.NewDesc("keyledger_sink_failing_since_timestamp_seconds", "Since when nothing has arrived at a sink; 0: the last attempt succeeded.", []string{"sink"}, nil)
	sinkStopped   = prometheus.NewDesc("keyledger_sinks_stopped", "1 where this process cannot deliver to sinks at present: its log says why.", nil, nil)

	scrubAt       = prometheus.NewDesc("keyledger_scrub_position", "Sequence up to which a stream has been read again in the pass on its way; 0 between passes.", []string{"stream"}, nil)
	scrubOf       = prometheus.NewDesc("keyledger_scrub_of", "Sequence up to which that pass reads; 0 between passes.", []string{"stream"}, nil)
	scrubPassed   = prometheus.NewDesc("keyledger_scrub_last_pass_timestamp_seconds", "When the last whole pass over a stream ended; 0: there was none.", []string{"stream"}, nil)
	scrubTook     = prometheus.NewDesc("keyledger_scrub_last_pass_duration_seconds", "How long it took.", []string{"stream"}, nil)
	scrubFindings = prometheus.NewDesc("keyledger_scrub_findings", "What is not as it was signed and not repaired yet: an operator must look at it.", []string{"stream"}, nil)

	signedEvents    = prometheus.NewDesc("keyledger_log_signed_events", "Events in the newest signed checkpoint of a stream.", []string{"stream"}, nil)
	signedAt        = prometheus.NewDesc("keyledger_log_signed_timestamp_seconds", "When that checkpoint was signed; 0: not known.", []string{"stream"}, nil)
	unsignedLeaves  = prometheus.NewDesc("keyledger_log_unsigned_leaves", "Leaves of a stream's tree that are not signed yet.", []string{"stream"}, nil)
	unsignedBehind  = prometheus.NewDesc("keyledger_log_unsigned_messages", "Messages of a stream behind what is signed.", []string{"stream"}, nil)
	unsignable      = prometheus.NewDesc("keyledger_log_in_doubt", "1 where nothing is signed, because what was signed is in doubt: an operator must look at it.", []string{"stream"}, nil)
	signFailures    = prometheus.NewDesc("keyledger_log_sign_failures_total", "Attempts to sign a stream that met an error or a doubt.", []string{"stream"}, nil)
	publishedEvents = prometheus.NewDesc("keyledger_log_published_events", "Events in the checkpoint of the published directory.", []string{"stream"}, nil)
	publishFailures = prometheus.NewDesc("keyledger_log_publish_failures_total", "Attempts to publish a stream's log that met an error.", []string{"stream"}, nil)
	cosignedEvents  = prometheus.NewDesc("keyledger_log_cosigned_events", "Events in the largest checkpoint of a stream that a witness of log_policy, name and hash of its key, has cosigned; 0 before the first.", []string{"stream", "witness"}, nil)
	cosignedAt      = prometheus.NewDesc("keyledger_log_cosigned_timestamp_seconds", "When that witness cosigned it, by its clock; 0 before the first.", []string{"stream", "witness"}, nil)
)

// Describe is prometheus.Collector's.
func (g *gauges) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{ringAt, heads, doubted, position, lag, stopped, lost, alerting, held, walBytes, exposed,
		verifierAt, verifierHeard, unconfirmed, stops, unmeasured,
		webhookDelivered, webhookDead, webhookBehind, webhookLag, webhookFailing, webhookDisabled,
		sinkDelivered, sinkDead, sinkBehind, sinkLag, sinkFailing, sinkStopped,
		scrubAt, scrubOf, scrubPassed, scrubTook, scrubFindings,
		signedEvents, signedAt, unsignedLeaves, unsignedBehind, unsignable, signFailures, publishedEvents, publishFailures, cosignedEvents, cosignedAt} {
		to <- d
	}
}

// Collect is prometheus.Collector's.
func (g *gauges) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), gaugeTime)
	defer cancel()
	set := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	set(ringAt, float64(g.Ring.Sequence()))
	known := map[string]uint64{}
	for _, stream := range []string{events.Ledger, events.Usage, events.Feed, events.Ops, events.DLQ} {
		set(doubted, flag(g.Ledger.Err(stream) != nil), stream)
		if head, err := g.Ledger.Head(ctx, stream); err == nil {
			set(heads, float64(head), stream)
			known[stream] = head
		}
	}
	if g.Runner != nil {
		if list, err := g.Runner.Status(ctx); err == nil {
			for _, p := range list {
				set(position, float64(p.Position), p.Name)
				set(lag, float64(p.Lag), p.Name)
				set(stopped, flag(p.State == "stopped"), p.Name)
			}
		}
	}
	if g.Webhooks != nil && g.Deliveries != nil {
		if list, err := g.webhookStatus(ctx, known[events.Feed]); err == nil {
			for _, w := range list {
				to <- prometheus.MustNewConstMetric(webhookDelivered, prometheus.CounterValue, float64(w.Delivered), w.Webhook)
				to <- prometheus.MustNewConstMetric(webhookDead, prometheus.CounterValue, float64(w.Dead), w.Webhook)
				set(webhookBehind, float64(w.InFlight), w.Webhook)
				set(webhookLag, float64(w.Lag), w.Webhook)
				set(webhookFailing, float64(w.FailingSince)/1000, w.Webhook)
				set(webhookDisabled, flag(w.Status == "disabled"), w.Webhook)
			}
		}
	}
	if g.Sinks != nil {
		set(sinkStopped, flag(g.Sinks.Err() != nil))
		if list, err := g.sinkStatus(ctx, known[events.Feed]); err == nil {
			for _, s := range list {
				to <- prometheus.MustNewConstMetric(sinkDelivered, prometheus.CounterValue, float64(s.Delivered), s.Name)
				to <- prometheus.MustNewConstMetric(sinkDead, prometheus.CounterValue, float64(s.Dead), s.Name)
				set(sinkBehind, float64(s.Behind), s.Name)
				set(sinkLag, float64(s.Lag), s.Name)
				set(sinkFailing, float64(s.FailingSince)/1000, s.Name)
			}
		}
	}
	if g.Queries != nil {
		if counts, err := g.Queries.RaisedAlerts(ctx); err == nil {
			for _, when := range domain.AlertConditions() {
				set(alerting, float64(counts[when]), when)
			}
		}
	}
	if g.AuditLog != nil {
		g.signing(ctx, to, known)
		for _, s := range g.AuditLog.ScrubState().Streams {
			set(scrubAt, float64(s.Position), s.Stream)
			set(scrubOf, float64(s.Of), s.Stream)
			set(scrubFindings, float64(len(s.Findings)), s.Stream)
			ended, took := 0.0, 0.0
			if s.Last != nil {
				ended, took = float64(s.Last.Ended)/1000, float64(s.Last.Ended-s.Last.Began)/1000
			}
			set(scrubPassed, ended, s.Stream)
			set(scrubTook, took, s.Stream)
		}
	}
	if g.Verifier != nil {
		set(lost, g.Verifier.Lost().Seconds())
	}
	if g.Verifiers != nil {
		g.verifiers(to)
	}
	if g.Recorder != nil {
		set(held, float64(g.Recorder.Held()))
		set(walBytes, float64(g.Recorder.LogBytes()))
		set(exposed, flag(g.Recorder.Unprotected() != nil))
	}
}

// verifiers are the figures of those that this node hears.
func (g *gauges) verifiers(to chan<- prometheus.Metric) {
	now := time.Now()
	for _, v := range g.Verifiers.Verifiers(now) {
		to <- prometheus.MustNewConstMetric(verifierAt, prometheus.GaugeValue, float64(v.Sequence), v.Node)
		to <- prometheus.MustNewConstMetric(verifierHeard, prometheus.GaugeValue, max(now.Sub(v.Heard), 0).Seconds(), v.Node)
		to <- prometheus.MustNewConstMetric(unconfirmed, prometheus.CounterValue, float64(v.Unconfirmed), v.Node)
		classes := make(map[float64]uint64, len(applied.Buckets))
		for i, bound := range applied.Buckets {
			classes[bound] = v.Delays.Classes[i]
		}
		to <- prometheus.MustNewConstHistogram(stops, v.Delays.Count, v.Delays.Sum, classes, v.Node)
	}
	to <- prometheus.MustNewConstMetric(unmeasured, prometheus.CounterValue, float64(g.Verifiers.Summary().Dropped))
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// signing are the figures of the audit log; heads are those of the streams.
func (g *gauges) signing(ctx context.Context, to chan<- prometheus.Metric, heads map[string]uint64) {
	set := func(d *prometheus.Desc, kind prometheus.ValueType, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, kind, v, labels...)
	}
	for _, s := range g.AuditLog.State() {
		set(unsignable, prometheus.GaugeValue, flag(s.Doubt != nil), s.Stream)
		set(signFailures, prometheus.CounterValue, float64(s.Failures), s.Stream)
		set(publishFailures, prometheus.CounterValue, float64(s.PublishFailures), s.Stream)
		if head, ok := heads[s.Stream]; ok {
			set(unsignedBehind, prometheus.GaugeValue, float64(max(head, s.Sequence)-s.Sequence), s.Stream)
		}
		if s.Published >= 0 {
			set(publishedEvents, prometheus.GaugeValue, float64(s.Published), s.Stream)
		}
		if s.Size >= 0 {
			set(signedEvents, prometheus.GaugeValue, float64(s.Size), s.Stream)
			set(signedAt, prometheus.GaugeValue, float64(s.SignedAt)/1000, s.Stream)
			set(unsignedLeaves, prometheus.GaugeValue, float64(s.Unsigned), s.Stream)
		}
	}
	cosigners, err := g.AuditLog.Cosigners(ctx)
	if err != nil {
		return
	}
	for _, c := range cosigners {
		at := 0.0
		if c.Size >= 0 {
			at = float64(c.Time.Unix())
		}
		name := fmt.Sprintf("%s+%08x", c.Name, c.Hash) // two keys may have one name
		set(cosignedEvents, prometheus.GaugeValue, float64(max(c.Size, 0)), c.Stream, name)
		set(cosignedAt, prometheus.GaugeValue, at, c.Stream, name)
	}
}
