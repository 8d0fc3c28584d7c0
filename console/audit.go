package console

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/audit"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

func (c *Console) auditPages() {
	c.page("GET /audit", (*visit).audit)
	c.page("GET /audit/tail", (*visit).auditTail)
	c.page("GET /audit/export", (*visit).auditExport)
	c.page("POST /audit/export/file", (*visit).auditFile)
	c.page("GET /audit/export/progress", (*visit).auditProgress)
	c.page("GET /audit/{stream}/{sequence}", (*visit).auditEvent)
	c.page("GET /audit/{stream}/{sequence}/proof", (*visit).auditProof)
}

// auditPage is how many events a page shows.
const auditPage = 50

// auditAsk is what of the log is asked for, as its form says it.
type auditAsk struct {
	What, Q                                         string
	Keyspace, Owner, Key, Endpoint, IP, Actor, Code string
	Span, From, To                                  string
	types                                           []string // that words of the search stand for
	Understood                                      []string
}

// auditWhat are groups of types.
var auditWhat = []struct{ Name, Word string }{
	{"", "All but readings of this log"},
	{"changes", "Changes of keys and owners"},
	{"requests", "Requests"},
	{"refused", "Refused requests"},
	{"alerts", "Alerts"},
	{"acts", "Other acts"},
	{"reads", "Readings of this log"},
	{"all", "All, readings too"},
}

var auditSpans = []struct {
	Name, Word string
	length     time.Duration
}{
	{"", "any time", 0},
	{"1h", "the last hour", time.Hour},
	{"24h", "the last 24 hours", 24 * time.Hour},
	{"7d", "the last 7 days", 7 * 24 * time.Hour},
	{"30d", "the last 30 days", 30 * 24 * time.Hour},
	{"custom", "from … to …", 0},
}

func address(s string) bool {
	_, err := netip.ParseAddr(s)
	if err != nil {
		_, err = netip.ParsePrefix(s)
	}
	return err == nil
}

func (v *visit) auditAsk() *auditAsk {
	q := v.r.URL.Query()
	given := func(name string) string { return strings.TrimSpace(q.Get(name)) }
	a := &auditAsk{What: given("what"), Q: given("q"), Keyspace: given("keyspace"), Owner: given("owner"), Key: given("key"), Endpoint: given("endpoint"),
		IP: given("ip"), Actor: given("actor"), Code: given("code"), Span: given("span"), From: given("from"), To: given("to")}
	if (a.From != "" || a.To != "") && a.Span == "" {
		a.Span = "custom"
	}
	return a
}

// moment is a field of a form for a time in UTC, as the API takes it. What is no time
// goes on as it is: the API says what is wrong with it.
func formMoment(s string) string {
	for _, layout := range []string{"2006-01-02T15:04", "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.Format(time.RFC3339)
		}
	}
	return s
}

// query is what the API is asked. Words of the search are understood on the way.
func (a *auditAsk) query(now time.Time) url.Values {
	with := *a
	with.types = nil
	a.Understood = searched(a.Q, &with)
	q := url.Values{}
	put := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	switch a.What {
	case "":
		if len(with.types) == 0 {
			q.Set("except", "audit.read")
		}
	case "all":
	case "changes":
		q.Set("stream", events.Ledger)
	case "requests":
		q.Set("stream", events.Usage)
	case "acts":
		q.Set("stream", events.Ops)
		q.Set("except", "audit.read")
	case "refused":
		q.Set("type", "key.denied,key.rate_limited,credential.rejected")
	case "alerts":
		q.Set("type", "alert.raised,alert.resolved,alert_rules.set")
	case "reads":
		q.Set("type", "audit.read")
	default:
		q.Set("type", a.What)
	}
	if len(with.types) > 0 && a.What == "" {
		q.Set("type", strings.Join(with.types, ","))
	}
	put("keyspace", with.Keyspace)
	put("owner", with.Owner)
	put("key", with.Key)
	put("endpoint", with.Endpoint)
	put("ip", with.IP)
	put("actor", with.Actor)
	put("code", with.Code)
	for _, s := range auditSpans {
		if s.Name == a.Span && s.length > 0 {
			q.Set("from", now.Add(-s.length).UTC().Format(time.RFC3339))
		}
	}
	if a.Span == "custom" {
		put("from", formMoment(a.From))
		put("to", formMoment(a.To))
	}
	return q
}

// form are the fields of the form that are not as they are at first.
func (a *auditAsk) form() url.Values {
	q := url.Values{}
	for name, value := range map[string]string{"what": a.What, "q": a.Q, "keyspace": a.Keyspace, "owner": a.Owner, "key": a.Key, "endpoint": a.Endpoint,
		"ip": a.IP, "actor": a.Actor, "code": a.Code, "span": a.Span} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if a.Span == "custom" {
		q.Set("from", a.From)
		q.Set("to", a.To)
	}
	return q
}

// More says whether a field is in use that is not always shown.
func (a *auditAsk) More() bool {
	return a.Key != "" || a.Endpoint != "" || a.IP != "" || a.Actor != "" || a.Code != "" || a.Span == "custom"
}

type auditData struct {
	Ask       *auditAsk
	What      []struct{ Name, Word string }
	Kinds     []eventKind
	Spans     any
	Codes     []domain.Code
	Keyspaces []string
	Rows      []said
	Further   string // where older ones are
	Newest    string // the page without a cursor, where this is not it
	Full      bool   // it holds as many as a page does
	Tail      string // where what comes is told
	Export    string
	Personal  bool // addresses may be seen
	Problem   *api.Problem
}

// personal says whether addresses and user agents are opened for whoever asks.
func (v *visit) personal() bool { return v.me.Role == domain.Operator || v.me.Role == domain.Auditor }

func (v *visit) audit() error {
	ask := v.auditAsk()
	q := ask.query(v.Now())
	d := auditData{Ask: ask, What: auditWhat, Kinds: eventKinds, Spans: auditSpans, Codes: domain.Codes(), Personal: v.personal()}
	all, err := v.keyspaces()
	if err != nil {
		return err
	}
	for _, k := range all {
		d.Keyspaces = append(d.Keyspaces, k.ID)
	}
	form := ask.form()
	d.Export = "/audit/export?" + form.Encode()
	q.Set("order", "desc")
	q.Set("limit", strconv.Itoa(auditPage))
	if after := v.r.URL.Query().Get("after"); after != "" {
		q.Set("after", after)
		d.Newest = "/audit?" + form.Encode()
	}
	var list api.AuditEvents
	err = v.get("/v1/audit/events", q, &list)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status < 500 {
		d.Problem = p
		return v.show("audit", "Audit log", d)
	}
	if err != nil {
		return err
	}
	for i := range list.Events {
		d.Rows = append(d.Rows, v.said(&list.Events[i]))
	}
	d.Full = len(d.Rows) == auditPage
	if list.NextCursor != nil {
		further := cloned(form)
		further.Set("after", *list.NextCursor)
		d.Further = "/audit?" + further.Encode()
	}
	if d.Newest == "" && ask.To == "" {
		tail := cloned(form)
		tail.Set("after", list.EndCursor)
		d.Tail = "/audit/tail?" + tail.Encode()
	}
	return v.show("audit", "Audit log", d)
}

func cloned(q url.Values) url.Values {
	with := url.Values{}
	for name, value := range q {
		with[name] = slices.Clone(value)
	}
	return with
}

// auditTail tells what comes, each event as the list says it.
func (v *visit) auditTail() error {
	q := v.auditAsk().query(v.Now())
	q.Del("from")
	q.Del("to")
	if after := v.r.URL.Query().Get("after"); after != "" {
		q.Set("after", after)
	}
	to := v.w
	v.w = &teller{ResponseWriter: to, v: v}
	return v.through("/v1/audit/tail", q, "text/event-stream")
}

// teller puts the events of a tail in words on their way.
type teller struct {
	http.ResponseWriter
	v    *visit
	rest []byte // of a message that is not whole yet
}

// Unwrap lets the answer be flushed.
func (t *teller) Unwrap() http.ResponseWriter { return t.ResponseWriter }

func (t *teller) Write(b []byte) (int, error) {
	if t.Header().Get("Content-Type") != "text/event-stream" { // a problem
		return t.ResponseWriter.Write(b)
	}
	t.rest = append(t.rest, b...)
	for {
		message, rest, ok := bytes.Cut(t.rest, []byte("\n\n"))
		if !ok {
			return len(b), nil
		}
		if err := t.tell(message); err != nil {
			return 0, err
		}
		t.rest = slices.Clone(rest)
	}
}

func (t *teller) tell(message []byte) error {
	var out []byte
	for line := range bytes.Lines(message) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok {
			var e api.AuditEvent
			if err := json.Unmarshal(data, &e); err != nil {
				return fmt.Errorf("an event of the tail: %w", err)
			}
			told, err := json.Marshal(t.v.said(&e))
			if err != nil {
				return err
			}
			line = append([]byte("data: "), told...)
		}
		out = append(append(out, line...), '\n')
	}
	_, err := t.ResponseWriter.Write(append(out, '\n'))
	return err
}

// eventChange is a field before and after.
type eventChange struct{ Field, Before, After string }

type auditEventData struct {
	said
	Event    api.AuditEvent
	Kind     eventKind
	Details  []eventDetail
	Changes  []eventChange
	Void     bool
	Raw      string
	Previous *neighbour
	Next     *neighbour
	Moment   string // of the time machine
	Moments  bool   // there is one
	Proof    *eventProof
	NoProof  *api.Problem
	MayProve bool
	Decision string
	Root     bool // about a root key, which has no page
}

type eventDetail struct {
	Name, Value string
	Code        bool
	Time        events.Time
}

type neighbour struct {
	Word, To, Place string
	Time            events.Time
}

func neighbourOf(p *api.AuditPlace) *neighbour {
	if p == nil {
		return nil
	}
	return &neighbour{kindOf(p.Type).Word, eventPath(p.Stream, p.Sequence, p.Line), placeWords(p.Stream, p.Sequence, p.Line), p.Time}
}

func (v *visit) auditEvent() error {
	stream, sequence := v.r.PathValue("stream"), v.r.PathValue("sequence")
	line := v.r.URL.Query().Get("line")
	q := url.Values{}
	if line != "" {
		q.Set("line", line)
	}
	path := "/" + url.PathEscape(stream) + "/" + url.PathEscape(sequence)
	var answer []byte
	if err := v.get("/v1/audit/events"+path, q, &answer); err != nil {
		return err
	}
	var record api.AuditRecord
	var stored struct{ Event json.RawMessage }
	if err := errors.Join(json.Unmarshal(answer, &record), json.Unmarshal(answer, &stored)); err != nil {
		return fmt.Errorf("an event: %w", err)
	}
	e := &record.Event
	d := auditEventData{said: v.said(e), Event: *e, Kind: kindOf(e.Type), Void: record.Void, Previous: neighbourOf(record.Previous), Next: neighbourOf(record.Next),
		Details: detailsOf(e), MayProve: v.may(domain.LogRead), Moments: v.has("/time"), Root: e.Keyspace == events.RootKeyspace}
	data, _ := e.Data.(map[string]any)
	d.Decision = facts(data).text("decision")
	switch {
	case e.Stream == events.Ledger:
		d.Moment = strconv.FormatUint(e.Sequence, 10)
	case facts(data).number("ledger_sequence") > 0:
		d.Moment = strconv.FormatInt(facts(data).number("ledger_sequence"), 10)
	default:
		d.Moment = e.Time.String()
	}
	for _, c := range record.Changes {
		d.Changes = append(d.Changes, eventChange{c.Field, shown(c.Before), shown(c.After)})
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, stored.Event, "", "  "); err != nil {
		return err
	}
	d.Raw = indented.String()
	if e.Type == "key.updated" || e.Type == "key.created" || e.Type == "owner.registered" || e.Type == "owner.plan_changed" {
		if len(d.Changes) > 0 {
			d.Details = nil // which say the same
		}
	}
	if d.MayProve {
		proof, err := v.prove(e, stored.Event)
		if p, ok := errors.AsType[*api.Problem](err); ok {
			d.NoProof = p
		} else if err != nil {
			return err
		}
		d.Proof = proof
	}
	return v.show("auditevent", d.Text, d)
}

// detailsOf are the data of an event by their names in words.
func detailsOf(e *api.AuditEvent) (list []eventDetail) {
	data, _ := e.Data.(map[string]any)
	d := facts(data)
	words := map[string]string{"source_ip": "Source address", "user_agent": "User agent", "latency_ms": "Latency, ms", "cost_micros": "Cost, millionths",
		"ledger_sequence": "Judged with LEDGER up to", "document_version": "Version of the document", "sha256": "SHA-256 of the secret", "node": "Verifier",
		"secret": "Secret", "grace_until": "Previous secret works until", "end_grace": "Ended the graces before"}
	for _, name := range namesOf(d) {
		word := words[name]
		if word == "" {
			word = strings.ReplaceAll(name, "_", " ")
			word = strings.ToUpper(word[:1]) + word[1:]
		}
		x := eventDetail{Name: word, Code: true}
		switch value := d[name].(type) {
		case nil:
			continue
		case bool:
			x.Value, x.Code = map[bool]string{true: "yes", false: "no"}[value], false
		case float64:
			x.Value, x.Code = strconv.FormatFloat(value, 'f', -1, 64), false
		case map[string]any:
			if name == "source_ip" || name == "user_agent" {
				x.Value, x.Code = d.person(name), false
				break
			}
			if name == "document" || len(value) == 0 {
				continue // what it changed is shown, and the whole below
			}
			var parts []string
			for _, n := range namesOf(value) {
				if s := shown(value[n]); s != "" {
					parts = append(parts, n+" "+s)
				}
			}
			x.Value = strings.Join(parts, ", ")
		default:
			x.Value = shown(value)
			if t, err := time.Parse(time.RFC3339Nano, x.Value); err == nil {
				x.Time = events.At(t)
			}
		}
		if x.Value != "" {
			list = append(list, x)
		}
	}
	return list
}

// eventProof is what was checked of an event's place in the signed log, by this page:
// with what an auditor has, and with the log's word for its key alone.
type eventProof struct {
	Leaf, Digest string
	Index, Size  int64
	Hashes       int
	Origin, Root string
	Checkpoint   string
	Key, KeyHash string
	Signed       bool   // the log's key has signed the tree
	Included     bool   // the leaf is in it
	Bytes        string // yes, no, or why that was not checked
	BytesOK      bool
	Others       []string // whose signatures it bears besides
	Why          string   // it does not hold
	File, Name   string   // where the proof is, and the name that it is saved by
	Command      string
}

// prove asks for an inclusion proof, and checks it here.
func (v *visit) prove(e *api.AuditEvent, shown []byte) (*eventProof, error) {
	q := url.Values{"sequence": {strconv.FormatUint(e.Sequence, 10)}, "line": {strconv.Itoa(e.Line)}}
	stream := strings.ToLower(e.Stream)
	var answer api.LogProof
	if err := v.get("/v1/audit/log/"+stream+"/proof", q, &answer); err != nil {
		return nil, err
	}
	var log api.LogKeys
	if err := v.get("/v1/audit/log/key", nil, &log); err != nil {
		return nil, err
	}
	p := &eventProof{Leaf: answer.Leaf, Index: answer.Index, Size: answer.Size, Hashes: len(answer.Hashes), Checkpoint: answer.Checkpoint, Key: log.Key,
		File: eventPath(e.Stream, e.Sequence, 0) + "/proof"}
	p.Name = proofName(stream, strconv.FormatUint(e.Sequence, 10), strconv.Itoa(e.Line))
	p.Command = fmt.Sprintf("keyledger audit prove %s %d", stream, e.Sequence)
	if e.Stream == events.Usage {
		p.File += "?line=" + strconv.Itoa(e.Line)
		p.Command += "/" + strconv.Itoa(e.Line)
	}
	p.Command += " --log-key log.key"
	if err := p.check(e, shown, &answer, &log); err != nil {
		p.Why = err.Error()
	}
	return p, nil
}

func (p *eventProof) check(e *api.AuditEvent, shown []byte, answer *api.LogProof, log *api.LogKeys) error {
	leaf, err := audit.ParseLeaf([]byte(answer.Leaf))
	if err != nil {
		return fmt.Errorf("its leaf cannot be read: %w", err)
	}
	p.Digest = hex.EncodeToString(leaf.Digest[:])
	if leaf.Place != (audit.Place{Stream: e.Stream, Sequence: e.Sequence, Line: e.Line}) || leaf.Keyspace != e.Keyspace || leaf.Owner != e.Owner || leaf.Key != e.Key || leaf.Time != e.Time {
		return errors.New("its leaf is of another event")
	}
	var keys []note.Verifier
	for _, k := range log.Keys {
		key, err := note.NewVerifier(k.Key)
		if err != nil {
			return fmt.Errorf("a key of the log: %w", err)
		}
		keys = append(keys, key)
	}
	c, signed, err := audit.Open([]byte(answer.Checkpoint), audit.Origin(log.Name, e.Stream), keys...)
	if err != nil {
		return fmt.Errorf("the log's key has not signed this tree: %w", err)
	}
	p.Signed, p.Origin, p.Root = true, c.Origin, c.Root.String()
	for _, s := range signed.UnverifiedSigs {
		if !slices.Contains(p.Others, s.Name) {
			p.Others = append(p.Others, s.Name)
		}
	}
	var proof tlog.RecordProof
	for _, text := range answer.Hashes {
		b, err := base64.StdEncoding.DecodeString(text)
		if err != nil || len(b) != tlog.HashSize {
			return errors.New("its hashes cannot be read")
		}
		proof = append(proof, tlog.Hash(b))
	}
	if err := tlog.CheckRecord(proof, c.Size, c.Root, answer.Index, leaf.Hash()); err != nil {
		return fmt.Errorf("the leaf is not in the signed tree: %w", err)
	}
	p.Included = true
	// What is shown is what is stored, with its place behind, but where sealed data were
	// opened or hashes of secrets left out.
	stored := append(bytes.TrimSuffix(slices.Clone(shown), fmt.Appendf(nil, `,"stream":%q,"sequence":%d,"line":%d}`, e.Stream, e.Sequence, e.Line)), '}')
	data, _ := e.Data.(map[string]any)
	switch {
	case sha256.Sum256(stored) == leaf.Digest:
		p.BytesOK, p.Bytes = true, "The event on this page is, byte for byte, the one that was signed."
	case data["source_ip"] != nil || data["user_agent"] != nil:
		p.Bytes = "The stored bytes hold personal data sealed, which this page shows opened: compare the SHA-256 with an export, which has the stored bytes."
	default:
		return errors.New("the bytes of the event are not those that were signed")
	}
	return nil
}

func (v *visit) auditProof() error {
	stream, sequence := strings.ToLower(v.r.PathValue("stream")), v.r.PathValue("sequence")
	line := cmp.Or(v.r.URL.Query().Get("line"), "0")
	var proof []byte
	if _, err := v.call(http.MethodGet, "/v1/audit/log/"+url.PathEscape(stream)+"/proof", url.Values{"sequence": {sequence}, "line": {line}, "format": {"tlog-proof"}}, nil, nil, &proof); err != nil {
		return err
	}
	v.attachment("text/plain; charset=utf-8", proofName(stream, sequence, line))
	_, err := v.w.Write(proof)
	return err
}

func proofName(stream, sequence, line string) string {
	name := stream + "-" + sequence
	if stream == strings.ToLower(events.Usage) {
		name += "-" + line
	}
	return name + ".proof"
}

func (v *visit) attachment(kind, name string) {
	h := v.w.Header()
	h.Set("Content-Type", kind)
	h.Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", name))
}
