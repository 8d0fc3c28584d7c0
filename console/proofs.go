package console

import (
	"cmp"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/keyledger/keyledger/api"
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// proofsPages show what is signed, what was read again and compared with that, and
// what to hand an auditor. They answer from /v1/audit/log/…, /v1/audit/scrub,
// /v1/audit/holds and the log itself.
func (c *Console) proofsPages() {
	c.page("GET /proofs", (*visit).proofs)
	c.page("POST /proofs/verify", (*visit).verifyNow)
	c.page("GET /proofs/verify", (*visit).verifying)
	c.page("GET /proofs/kept", (*visit).kept)
	c.page("GET /proofs/log.key", (*visit).logKeyFile)
	c.page("GET /proofs/checkpoint/{stream}", (*visit).checkpointFile)
}

// scrubState is what GET /v1/audit/scrub answers.
type scrubState struct {
	Node    string
	Streams []scrubStream
}

type scrubStream struct {
	Stream, Server string
	Position, Of   uint64
	Began          events.Time
	Last           *struct {
		Began, Ended  events.Time
		Events, Bytes int64
	}
	Servers  []struct{ Server, Skipped string }
	Findings []scrubFinding
	Error    string
}

type scrubFinding struct {
	Stream, Server, What, Problem, Fix, Runbook string
	Sequence                                    uint64
	Found                                       events.Time
}

func (s *scrubState) Findings() (all []scrubFinding) {
	for _, x := range s.Streams {
		for _, f := range x.Findings {
			f.Stream = cmp.Or(f.Stream, x.Stream)
			all = append(all, f)
		}
	}
	return all
}

// streamWords say what a stream holds.
var streamWords = map[string]string{
	events.Ledger: "Every change of a key, owner or keyspace", events.Usage: "What was done with keys", events.Ops: "Acts around it: readings, holds, alerts", events.Feed: "What subscribers were told",
}

// signedTree is the newest checkpoint of a stream.
type signedTree struct {
	Stream, About string
	Size          int64
	Root          string
	Witnesses     []string // that have cosigned it
	Cosigned      int64    // size of the newest that satisfies the policy; 0: none, or no policy
	Problem       string   // why there is none
}

// readCheckpoint reads what people want to know of a signed note (C2SP
// tlog-checkpoint); whether it is true is for verifiers, not for a page.
func readCheckpoint(note []byte, log string) (t signedTree) {
	text, signatures, _ := strings.Cut(string(note), "\n\n")
	lines := strings.Split(text, "\n")
	if len(lines) >= 3 {
		t.Size, _ = strconv.ParseInt(lines[1], 10, 64)
		t.Root = lines[2]
	}
	for line := range strings.Lines(signatures) {
		if words := strings.Fields(line); len(words) == 3 && words[1] != log && !strings.HasPrefix(words[1], log+"/") {
			t.Witnesses = append(t.Witnesses, words[1])
		}
	}
	return t
}

type proofsData struct {
	Key       api.LogKeys
	Trees     []signedTree
	Policy    []string // names of the witnesses that the policy knows
	Scrub     *scrubState
	Problem   *api.Problem
	MayVerify bool
	Keyspaces []string
	Audit     bool // there are pages of the audit log
	Once      string
}

func (v *visit) proofs() error {
	if !v.may(domain.LogRead) {
		return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "This sign-in may not read what proves the log: operators and auditors may."}
	}
	d := proofsData{MayVerify: v.may(domain.Operate), Audit: v.has("/audit"), Once: newToken()}
	if err := v.get("/v1/audit/log/key", nil, &d.Key); err != nil {
		var ok bool
		if d.Problem, ok = errors.AsType[*api.Problem](err); !ok {
			return err
		}
	}
	for line := range strings.Lines(d.Key.Policy) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "witness" {
			d.Policy = append(d.Policy, words[1])
		}
	}
	if d.Problem == nil {
		for _, stream := range []string{events.Ledger, events.Usage, events.Ops, events.Feed} {
			t := signedTree{}
			var note []byte
			err := v.get("/v1/audit/log/"+strings.ToLower(stream)+"/checkpoint", nil, &note)
			if p, ok := errors.AsType[*api.Problem](err); ok {
				t.Problem = p.Detail
			} else if err != nil {
				return err
			} else {
				t = readCheckpoint(note, d.Key.Name)
			}
			if len(d.Policy) > 0 && v.get("/v1/audit/log/"+strings.ToLower(stream)+"/checkpoint", url.Values{"which": {"cosigned"}}, &note) == nil {
				t.Cosigned = readCheckpoint(note, d.Key.Name).Size
			}
			t.Stream, t.About = stream, streamWords[stream]
			d.Trees = append(d.Trees, t)
		}
		var err error
		if d.Scrub, err = v.scrubbed(); err != nil {
			return err
		}
	}
	all, err := v.keyspaces()
	if err != nil {
		return err
	}
	for _, k := range all {
		d.Keyspaces = append(d.Keyspaces, k.ID)
	}
	return v.show("proofs", "Proofs", d)
}

// scrubbed is how the reading again is; nil where this sign-in may not know.
func (v *visit) scrubbed() (*scrubState, error) {
	s := &scrubState{}
	err := v.get("/v1/audit/scrub", nil, s)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Status == http.StatusForbidden {
		return nil, nil
	}
	return s, err
}

func (v *visit) verifyNow() error {
	var asked api.ScrubAsked
	if _, err := v.call(http.MethodPost, "/v1/audit/scrub", nil, nil, nil, &asked); err != nil {
		return err
	}
	return v.redirect("/proofs/verify?since="+strconv.FormatInt(int64(asked.Asked), 10), "")
}

// verifyData is how far a verification is.
type verifyData struct {
	Since    events.Time
	Node     string
	Percent  int
	Running  bool
	Streams  []verifyStream
	Findings []scrubFinding
	Events   int64
	Bytes    int64
	Path     string
}

type verifyStream struct {
	scrubStream
	About string
	Done  bool
	Now   bool // it is being read
}

func (v *visit) verifying() error {
	s, err := v.scrubbed()
	if err != nil {
		return err
	}
	if s == nil {
		return &api.Problem{Status: http.StatusForbidden, Title: "Forbidden", Detail: "This sign-in may not read how the streams compare with what was signed."}
	}
	since, err := strconv.ParseInt(v.r.URL.Query().Get("since"), 10, 64)
	if err != nil {
		return v.redirect("/proofs", "")
	}
	d := verifyData{Since: events.Time(since), Node: s.Node, Findings: s.Findings(), Path: "/proofs/verify?since=" + strconv.FormatInt(since, 10)}
	var done, total uint64
	for _, x := range s.Streams {
		share := max(uint64(len(x.Servers)), 1)
		total += 100 * share
		w := verifyStream{scrubStream: x, About: streamWords[x.Stream]}
		switch {
		case x.Last != nil && x.Last.Began >= d.Since, len(x.Findings) > 0 && x.Began == 0:
			w.Done = true
			done += 100 * share
			if x.Last != nil {
				d.Events, d.Bytes = d.Events+x.Last.Events, d.Bytes+x.Last.Bytes
			}
		case x.Began >= d.Since && x.Of > 0:
			w.Now = true
			done += 100 * x.Position / x.Of
		}
		d.Running = d.Running || !w.Done
		d.Streams = append(d.Streams, w)
	}
	if total > 0 {
		d.Percent = int(100 * done / total)
	}
	title := "Verified"
	switch {
	case d.Running:
		title = "Verifying the log"
	case len(d.Findings) > 0:
		title = "The log is not as it was signed"
	}
	return v.part("proofsverify", "content", title, d)
}

type keptHold struct {
	Keyspace, Owner, Key, Reason string
	Since                        events.Time
	Actor                        events.Actor
	Sequence                     uint64
}

type keptAct struct {
	api.AuditEvent
	Fields struct {
		Stream   string
		Through  uint64
		Before   events.Time
		Reason   string
		DataKeys []string `json:"data_keys"`
	}
}

// kept tells what may not be taken away, and what was. Acts are looked for among all
// of OPS, which takes longer than a page may.
func (v *visit) kept() error {
	const title = "Holds and what was taken away"
	if later, err := v.later("proofskept", title); later {
		return err
	}
	d := struct {
		Holds   []keptHold
		Acts    []keptAct
		More    bool
		Problem *api.Problem
	}{}
	var holds struct{ Holds []keptHold }
	if err := v.get("/v1/audit/holds", nil, &holds); err != nil {
		if d.Problem, _ = errors.AsType[*api.Problem](err); d.Problem == nil {
			return err
		}
	}
	d.Holds = holds.Holds
	ask := url.Values{"type": {"usage.pruned,privacy.erased"}, "limit": {"100"}}
	for range 5 {
		var page struct {
			Events     []json.RawMessage
			NextCursor *string `json:"next_cursor"`
		}
		if err := v.get("/v1/audit/events", ask, &page); err != nil {
			return err
		}
		for _, raw := range page.Events {
			var a keptAct
			err := json.Unmarshal(raw, &a.AuditEvent)
			if err == nil {
				err = json.Unmarshal(raw, &struct{ Data any }{&a.Fields})
			}
			if err != nil {
				return err
			}
			d.Acts = append(d.Acts, a)
		}
		if d.More = page.NextCursor != nil; !d.More {
			break
		}
		ask.Set("after", *page.NextCursor)
	}
	return v.part("proofskept", "content", title, d)
}

// textFile answers text to be kept as a file.
func (v *visit) textFile(name, text string) error {
	h := v.w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Disposition", `attachment; filename="`+name+`"`)
	_, err := v.w.Write([]byte(text))
	return err
}

func (v *visit) logKeyFile() error {
	var k api.LogKeys
	if err := v.get("/v1/audit/log/key", nil, &k); err != nil {
		return err
	}
	return v.textFile("log.key", k.Key+"\n")
}

func (v *visit) checkpointFile() error {
	stream := v.r.PathValue("stream")
	var note []byte
	if err := v.get("/v1/audit/log/"+url.PathEscape(stream)+"/checkpoint", nil, &note); err != nil {
		return err
	}
	return v.textFile(strings.ToLower(stream)+".checkpoint", string(note))
}
