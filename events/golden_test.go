package events_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyledger/keyledger/events"
)

var update = flag.Bool("update", false, "write golden files of types that have none; existing ones are never changed")

// sealed stands for a personal datum.
var sealed = &events.Sealed{Key: "parcelbird.org_1.2026-01", Box: "3q2+7w=="}

var fold = events.Fold{Count: 3, First: moment - 900, Last: moment}

const moment = events.Time(1768737600123) // 2026-01-18T12:00:00.123Z

// samples has one fact of every type, with every field set.
var samples = []events.Payload{
	events.KeyspaceConfigured{DocumentVersion: 1, Document: json.RawMessage(`{"keyspace":"parcelbird","about":"<Parcels> & more"}`)},
	events.OwnerRegistered{Name: "Owner GmbH", Plan: "basic"},
	events.OwnerPlanChanged{Plan: "large", Previous: "basic"},
	events.OwnerKeyAdmitted{Key: "key_019b-1", ActiveKeys: 1, MaxKeys: 2},
	events.KeyCreated{
		Name: "Überwachung \"eins\"", Environment: "live", Plan: "basic", Scopes: []string{"parcels:read"}, Resources: []string{"depot_1"},
		Limits: events.Limits{"minute": 20, "day": 1000}, AllowedOrigins: []string{"https://example.com"}, AllowedIPs: []string{"192.0.2.0/24"},
		ExpiresAt: moment, Meta: map[string]string{"team": "blue"}, Role: "manager", For: &events.Reach{Keyspace: "parcelbird", Owner: "org_1"}, Imported: true,
		Secret: events.Secret{SHA256: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", First: "pb_live_3fA9", Last: "x7Qz"},
	},
	events.KeyUpdated{
		Name: new("two"), Plan: new(""), Scopes: &[]string{}, Resources: &[]string{"depot_2"}, Limits: &events.Limits{"hour": 5}, AllowedOrigins: &[]string{},
		AllowedIPs: &[]string{}, ExpiresAt: &events.Expiry{}, Meta: &map[string]string{},
	},
	events.KeyRotated{Secret: events.Secret{SHA256: "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752", First: "pb_live_9zz1", Last: "a0b1"}, GraceUntil: moment + 86400000, EndGrace: true, Reason: "leaked"},
	events.KeyGraceEnded{Reason: "done"},
	events.KeyRevoked{Reason: "leaked"},
	events.KeyDeleted{},
	events.KeyUsed{
		Decision: "dec_1", Method: "GET", Endpoint: "/v1/parcels/17", Status: new(200), SourceIP: sealed, UserAgent: sealed, Origin: "https://example.com",
		LatencyMS: new(int64(12)), CostMicros: 150, Environment: "live", Secret: "current", Node: "node_1", LedgerSequence: 17, DocumentVersion: 1,
	},
	events.KeyUseReported{Decision: "dec_1", Status: 502, LatencyMS: 31, CostMicros: new(int64(7)), Endpoint: "/v1/parcels"},
	events.KeyRateLimited{Window: "minute", Limit: 20, Node: "node_1", Fold: fold},
	events.KeyDenied{Code: "WRONG_RESOURCE", Endpoint: "/v1/parcels", Node: "node_1", Fold: fold},
	events.CredentialRejected{Code: "UNKNOWN_KEY", SourceIP: sealed, Node: "node_1", Fold: fold},
	events.LimitTaken{Node: "node_1", Fold: fold},
	events.UsageGap{Count: 4, Reason: "the event store was away and memory was full", From: moment - 5000, To: moment, Node: "node_1"},
	events.AuditRead{What: "events", Filter: map[string]string{"key": "key_019b-1"}, Count: 20},
	events.AlertRaised{Alert: "alr_1", When: "error_rate", Rule: "error_rate above 0.05 over 5m", From: "document", Value: 0.07, Threshold: 0.05, Detail: "7 of 100 calls failed", SourceIP: sealed},
	events.AlertResolved{Alert: "alr_1", When: "error_rate", Rule: "error_rate above 0.05 over 5m", Value: 0.01, Reason: "quiet"},
	events.AlertRulesSet{Resource: "depot_2", Rules: json.RawMessage(`[{"when":"denied","above":10,"over":"10m"}]`)},
	events.UsagePruned{Stream: "USAGE", Through: 1000, Before: moment - 7776000000, TreeSize: 1000, RootHash: "q83vEjRWeJCrze8SNFZ4kA==", Frontier: []string{"q83vEjRWeJCrze8SNFZ4kA=="}, Reason: "retention of 90 days"},
	events.PrivacyErased{DataKeys: []string{"parcelbird.org_1.2026-01"}, Reason: "request of the owner"},
	events.HoldSet{Active: true, Reason: "litigation"},
	events.ServiceStarted{Program: "serve", Build: "v0.1.0", Node: "node_1", Head: 17},
	events.LogKeyRotated{Previous: "keyledger-0a1b+00000001+AQ==", Key: "keyledger-0a1b+00000002+AQ==", Statement: "keyledger log key v1\nkeyledger-0a1b+00000002+AQ==\n\n\u2014 keyledger-0a1b AAAAAQ==\n"},
	events.SigninFailed{Reason: "unknown key", SourceIP: sealed, Fold: fold},
	events.RootKeyReset{Key: "key_019b-2", Revoked: []string{"key_019b-1"}},
	events.BackupRestored{Began: moment - 5000, Ended: moment, Program: "v0.1.0", Streams: []events.StreamRange{{Stream: "LEDGER", From: 1, To: 17}}, Buckets: true},
	events.LossAccepted{
		Backup: moment - 5000, Missing: []events.StreamRange{{Stream: "LEDGER", From: 18, To: 20}}, Since: moment, Facts: 3, Count: 1, Returned: []string{"key_019b-1"},
		Revoked: 1, Unknown: 2, NewLog: true, Export: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", Reason: "the disk was lost",
	},
	events.WebhookRegistered{Webhook: "whk_1", URL: "https://example.com/hook?a=1&b=2", Types: []string{"key.revoked", "alert.*"}, Keys: []string{"key_019b-1"}, Description: "the <console>", Secret: []byte{0xde, 0xad, 0xbe, 0xef}, After: 17},
	events.WebhookRemoved{Webhook: "whk_1"},
	events.WebhookSecretRotated{Webhook: "whk_1", Secret: []byte{0xde, 0xad}, GraceUntil: moment + 86400000},
	events.WebhookDisabled{Webhook: "whk_1", Reason: "it answered 410 Gone"},
	events.WebhookEnabled{Webhook: "whk_1"},
	events.RevocationMeasured{
		Sequence: 17, Fact: "key.revoked", Decided: moment, Node: "node_1", Basis: "acknowledged", AppendUS: 1850,
		Stopped:     []events.VerifierStopped{{Node: "node_1", DelayUS: 310, ClockUS: new(int64(-120))}, {Node: "node_2", DelayUS: 1240}},
		Unconfirmed: []events.VerifierUnconfirmed{{Node: "node_3", StaleMS: 300000}}, WaitedMS: 60000,
	},
	events.SubscriberAdded{Name: "billing", PublicKey: "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", After: 17},
	events.SubscriberRemoved{Name: "billing"},
	events.ClaimMade{Claim: "clm_019b-1", Until: moment + 259200000},
	events.ClaimOpened{Claim: "clm_019b-1", SourceIP: sealed},
	events.ClaimWithdrawn{Claim: "clm_019b-1"},
}

func sample(data events.Payload) events.Envelope {
	e := events.New(data, moment.Time())
	e.ID = "evt_019bd0f4-8c7b-7000-8000-000000000001"
	e.Keyspace, e.Owner, e.Key, e.KeyVersion = "parcelbird", "org_1", "key_019b-1", 3
	e.Actor = events.Actor{Type: "root_key", ID: "key_019b-0"}
	e.Via, e.RequestID, e.Command = "api", "req_1", "cmd_1"
	return e
}

// Every version ever released is read as it was written, for ever: decoding a
// golden file and encoding it again gives the same bytes. (A version that is
// raised on read will have to compare with the golden file of its successor.)
func TestGolden(t *testing.T) {
	seen := map[string]bool{}
	for _, data := range samples {
		name, version := data.Kind()
		seen[name] = true
		path := filepath.Join("testdata", "golden", fmt.Sprintf("%s.v%d.json", name, version))
		want, err := os.ReadFile(path)
		if os.IsNotExist(err) && *update {
			if want, err = events.Encode(sample(data)); err == nil {
				err = os.WriteFile(path, append(want, '\n'), 0o644)
			}
		}
		if err != nil {
			t.Errorf("%v (a new type needs a golden file: go test ./events -update)", err)
			continue
		}
		want = bytes.TrimSuffix(want, []byte("\n"))
		e, err := events.Decode(want)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if got, err := events.Encode(e); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is written today as\n%s\ninstead of\n%s\n%v", path, got, want, err)
		}
		if diff := cmp.Diff(sample(data), e); diff != "" {
			t.Errorf("%s is read differently: -written +read\n%s", path, diff)
		}
	}
	for name := range events.Types() {
		if !seen[name] {
			t.Errorf("%s has no sample", name)
		}
	}
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil || len(files) < len(samples) {
		t.Fatalf("%d golden files: %v", len(files), err)
	}
	for _, path := range files {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := events.Decode(bytes.TrimSuffix(body, []byte("\n"))); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A version that was followed by another one is read as that one.
func TestRaised(t *testing.T) {
	body, err := os.ReadFile(filepath.Join("testdata", "golden", "usage.pruned.v1.json"))
	if err != nil {
		t.Fatal(err)
	}
	e, err := events.Decode(bytes.TrimSuffix(body, []byte("\n")))
	if err != nil {
		t.Fatal(err)
	}
	want := sample(events.UsagePruned{Stream: "USAGE", Through: 1000, TreeSize: 1000, RootHash: "q83vEjRWeJCrze8SNFZ4kA==", Reason: "retention of 90 days"})
	if diff := cmp.Diff(want, e); diff != "" {
		t.Error(diff)
	}
	if _, err := events.Encode(e); err != nil {
		t.Error(err)
	}
	for file, want := range map[string]events.Payload{
		"alert.raised.v1.json":   events.AlertRaised{Alert: "alr_1", When: "error_rate", Value: 0.07, Threshold: 0.05, Detail: "7 of 100 calls failed"},
		"alert.resolved.v1.json": events.AlertResolved{Alert: "alr_1", When: "error_rate"},
	} {
		body, err := os.ReadFile(filepath.Join("testdata", "golden", file))
		if err != nil {
			t.Fatal(err)
		}
		e, err := events.Decode(bytes.TrimSuffix(body, []byte("\n")))
		if diff := cmp.Diff(sample(want), e); diff != "" || err != nil {
			t.Error(file, err, diff)
		}
	}
}

// A fact from the future stops its reader.
func TestUnknown(t *testing.T) {
	for _, body := range []string{
		`{"id":"evt_1","type":"key.forgotten","version":1,"data":{}}`,
		`{"id":"evt_1","type":"key.created","version":2,"data":{}}`,
		`{"id":"evt_1","type":"key.created","version":0,"data":{}}`,
	} {
		e, err := events.Decode([]byte(body))
		if _, ok := err.(*events.UnknownError); !ok || e.ID != "evt_1" {
			t.Errorf("%s: %+v %v", body, e, err)
		}
	}
}

// The public form has no hash of a secret, and is otherwise the same.
func TestPublic(t *testing.T) {
	for _, data := range samples {
		e := sample(data)
		body, err := events.Encode(events.Public(e))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(body, []byte("sha256")) {
			t.Errorf("a hash is public: %s", body)
		}
		whole, _ := events.Encode(e)
		if !bytes.Contains(whole, []byte("sha256")) && !bytes.Equal(body, whole) {
			t.Errorf("the public form differs: %s", body)
		}
	}
}

// Whatever bytes are given, Decode answers, and what it accepts survives being
// written and read again.
func FuzzDecode(f *testing.F) {
	for _, data := range samples {
		body, err := events.Encode(sample(data))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Add([]byte(`{"type":"key.deleted","version":1,"data":null}`))
	f.Add([]byte(`{"type":"key.created","version":1,"data":{"name":"\ud800","expires_at":"2026-01-18T12:00:00+02:00"},"data":{"limits":{"a":1,"a":2}}} `))
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := events.Decode(body)
		if err != nil {
			return
		}
		again, err := events.Encode(e)
		if err != nil {
			t.Fatalf("%q was read and cannot be written: %v", body, err)
		}
		e2, err := events.Decode(again)
		if err != nil {
			t.Fatalf("%q was written and cannot be read: %v", again, err)
		}
		twice, err := events.Encode(e2)
		if err != nil || !bytes.Equal(again, twice) {
			t.Fatalf("written as %q, then as %q: %v", again, twice, err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, data := range []events.Payload{samples[4], samples[10]} {
		if created, ok := data.(events.KeyCreated); ok {
			created.Name = "a plain name"
			data = created
		}
		body, err := events.Encode(sample(data))
		if err != nil {
			b.Fatal(err)
		}
		name, _ := data.Kind()
		for way, decode := range map[string]func([]byte) (events.Envelope, error){"": events.Decode, "/in place": events.DecodeInPlace} {
			b.Run(name+way, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := decode(body); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, data := range []events.Payload{samples[4], samples[10]} {
		e := sample(data)
		name, _ := data.Kind()
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := events.Encode(e); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkNewID(b *testing.B) {
	for b.Loop() {
		events.NewID("evt", time.Time{})
	}
}
