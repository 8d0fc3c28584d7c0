package queries

import (
	"context"
	"slices"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// DecisionRef is what the id of a decision says.
type DecisionRef struct {
	ID       string
	Key      string // empty: no key was known
	Admitted bool
	Time     events.Time
}

// Explanation says why a request was decided as it was.
type Explanation struct {
	DecisionID      string      `json:"decision_id"`
	Time            events.Time `json:"time"`
	Admitted        bool        `json:"admitted"`
	At              Moment      `json:"at"` // the state that it was judged with
	Key             *KeyView    `json:"key,omitempty"`
	Owner           string      `json:"owner"`
	OwnerPlan       string      `json:"owner_plan"`
	Plan            string      `json:"plan"` // in force: the key's own, or the owner's
	DocumentVersion int         `json:"document_version"`

	// One where the decision itself is recorded. Refusals are recorded folded by
	// second, so of one there may be several that it can have been counted in.
	Judgements []Judgement `json:"judgements"`
	Note       string      `json:"note,omitempty"`
}

// Judgement is what the log says was decided, and the same judged again.
type Judgement struct {
	Code     string      `json:"code"` // as recorded
	Event    string      `json:"event"`
	Stream   string      `json:"stream"`
	Sequence uint64      `json:"sequence"`
	Line     int         `json:"line"`
	Count    int64       `json:"count"` // of a fold: requests that it counts
	First    events.Time `json:"first"`
	Last     events.Time `json:"last"`
	Node     string      `json:"node"`

	Keyspace  string `json:"keyspace"`
	Method    string `json:"method"` // empty: not recorded
	Endpoint  string `json:"endpoint"`
	Origin    string `json:"origin"`
	SourceIP  string `json:"source_ip"`  // opened for whoever may see it
	UserAgent string `json:"user_agent"` // likewise
	Secret    string `json:"secret"`     // current, previous; empty: not recorded
	Status    *int   `json:"status"`     // that the caller was answered with; null: not known
	Window    string `json:"window,omitempty"`
	Limit     int64  `json:"limit,omitempty"`

	Steps  []domain.Step `json:"steps"`
	Agrees bool          `json:"agrees"` // no step says otherwise than what is recorded

	document int // the version that a use was judged with
}

const (
	// foldedFor is how long after a refusal its fold is looked for: it is written
	// when its second is over.
	foldedFor = 2 * time.Minute

	// reportedFor likewise for the outcome of a use.
	reportedFor = 10 * time.Minute
)

// Explain finds what the log holds of a decision and judges it again, with the
// document and the state that were in force. It refuses with DECISION_NOT_FOUND
// what the log holds nothing of.
func (p *Past) Explain(ctx context.Context, ref DecisionRef, keyspace, owner string, o Opener, now time.Time) (*Explanation, error) {
	x := &Explanation{DecisionID: ref.ID, Time: ref.Time, Admitted: ref.Admitted, Judgements: []Judgement{}}
	audit := p.audit()
	f := AuditFilter{Keyspace: keyspace, Owner: owner, Key: ref.Key, From: ref.Time}
	var err error
	if ref.Admitted {
		f.Types, f.To = []string{"key.used"}, ref.Time+1
		err = p.findUse(ctx, audit, f, o, ref, x)
	}
	if err == nil && len(x.Judgements) == 0 {
		f.Types = []string{"key.denied", "key.rate_limited"}
		if ref.Key == "" {
			f.Types = []string{"credential.rejected"}
		}
		f.To = ref.Time + events.Time(foldedFor.Milliseconds())
		err = findFolds(ctx, audit, f, o, ref, x)
	}
	if err != nil {
		return nil, err
	}
	if len(x.Judgements) == 0 {
		return nil, notRecorded(ref, now)
	}
	if ref.Key == "" {
		x.Note = "No key was known, so that nothing can be judged again: the log keeps no credential. These are the refusals of that moment."
		for i := range x.Judgements {
			x.Judgements[i].Steps, x.Judgements[i].Agrees = rejectedSteps(domain.Code(x.Judgements[i].Code)), true
		}
		return x, nil
	}
	return x, p.judge(ctx, x, ref, keyspace, owner, now)
}

func notRecorded(ref DecisionRef, now time.Time) *domain.Refusal {
	r := &domain.Refusal{Kind: domain.NotFound, Code: "DECISION_NOT_FOUND"}
	switch {
	case ref.Time.Time().After(now):
		r.Detail = "The id is of a decision in the future: no service has made it."
	case ref.Admitted && ref.Key == "":
		r.Detail = "The id is of a request that was admitted without a key, to a public route, or of a draw from an owner's pool: the log holds nothing of single ones."
	case ref.Admitted:
		r.Detail = "The log holds no use with this decision id: it is not written yet, was pruned, was declared as a gap, or was never decided."
	default:
		r.Detail = "The log holds no refusal of that moment: it is not written yet, was pruned, or was never decided."
	}
	return r
}

// findUse finds the one key.used of an admitted request.
func (p *Past) findUse(ctx context.Context, audit *Audit, f AuditFilter, o Opener, ref DecisionRef, x *Explanation) error {
	for e, err := range audit.All(ctx, f, o) {
		if err != nil {
			return err
		}
		d, ok := e.Event.Data.(events.KeyUsed)
		if !ok || d.Decision != ref.ID {
			continue
		}
		j := judgementOf(&e, string(domain.CodeValid))
		j.Count, j.First, j.Last, j.Node = 1, ref.Time, ref.Time, d.Node
		j.Method, j.Endpoint, j.Origin, j.Secret, j.Status = d.Method, d.Endpoint, d.Origin, d.Secret, d.Status
		j.document = d.DocumentVersion
		x.At = Moment{d.LedgerSequence, ref.Time}
		x.Judgements = append(x.Judgements, j)
		break
	}
	if len(x.Judgements) == 0 || x.Judgements[0].Status != nil {
		return nil
	}
	f.Types, f.To = []string{"key.use_reported"}, ref.Time+events.Time(reportedFor.Milliseconds())
	for e, err := range audit.All(ctx, f, nil) {
		if err != nil {
			return err
		}
		if d, ok := e.Event.Data.(events.KeyUseReported); ok && d.Decision == ref.ID {
			x.Judgements[0].Status = &d.Status
			break
		}
	}
	return nil
}

func judgementOf(e *AuditEvent, code string) Judgement {
	return Judgement{Code: code, Event: e.Event.ID, Stream: e.Stream, Sequence: e.Sequence, Line: e.Line, Keyspace: e.Event.Keyspace,
		SourceIP: e.SourceIP, UserAgent: e.UserAgent}
}

// findFolds finds the folds that a refusal can have been counted in.
func findFolds(ctx context.Context, audit *Audit, f AuditFilter, o Opener, ref DecisionRef, x *Explanation) error {
	for e, err := range audit.All(ctx, f, o) {
		if err != nil {
			return err
		}
		var j Judgement
		var fold events.Fold
		switch d := e.Event.Data.(type) {
		case events.KeyDenied:
			j, fold = judgementOf(&e, d.Code), d.Fold
			j.Endpoint, j.Node = d.Endpoint, d.Node
		case events.KeyRateLimited:
			j, fold = judgementOf(&e, string(domain.CodeRateLimited)), d.Fold
			j.Window, j.Limit, j.Node = d.Window, d.Limit, d.Node
		case events.CredentialRejected:
			j, fold = judgementOf(&e, d.Code), d.Fold
			j.Node = d.Node
		}
		if fold.First > ref.Time || fold.Last < ref.Time || fold.Count == 0 {
			continue
		}
		j.Count, j.First, j.Last = fold.Count, fold.First, fold.Last
		x.Judgements = append(x.Judgements, j)
	}
	return nil
}

// A verifier learns of a fact a moment after its time, and may have applied one
// that it had not announced as its sequence yet. Where the state that is recorded
// does not explain a decision, those that it may have had are tried.
const (
	behind      = events.Time(100) // milliseconds
	mostGuesses = 32
)

// judge folds the state that was in force, and judges again.
func (p *Past) judge(ctx context.Context, x *Explanation, ref DecisionRef, keyspace, owner string, now time.Time) error {
	recorded := x.At.Sequence != 0
	if !recorded {
		at, err := p.At(ctx, "decision_id", ref.Time.String(), now)
		if err != nil {
			return err
		}
		x.At = at
	}
	first, guesses := x.At, []Moment{x.At}
	for i := 0; i < len(guesses); i++ {
		x.At = guesses[i]
		agree, err := p.judgeAt(ctx, x, ref.Key, keyspace, owner)
		if err != nil {
			return err
		}
		if agree {
			break
		}
		if len(guesses) == 1 {
			if guesses, err = p.guesses(ctx, first, recorded); err != nil {
				return err
			}
			guesses = append(guesses, first) // nothing explains it: say what is recorded
		}
	}
	switch {
	case x.Key == nil:
		x.Note = "LEDGER holds no key or no document as of the sequence that it was judged with: it cannot be judged again."
	case recorded && x.At != first:
		x.Note = "The verifier had applied a fact that it had not announced yet: the state is that of a later sequence than is recorded with the use."
	case !recorded:
		x.Note = "Refusals are counted by second: what the sequence was that it was judged with, and which secret was sent, is not recorded. The state is that of its time."
		if len(x.Judgements) > 1 {
			x.Note += " Several were being counted at that moment; it is one of them."
		}
	}
	return nil
}

// guesses are the moment itself and those shortly after the sequence that was
// recorded, or shortly before a time.
func (p *Past) guesses(ctx context.Context, at Moment, recorded bool) ([]Moment, error) {
	list := []Moment{at}
	from, to := at.Sequence+1, at.Sequence+mostGuesses
	if !recorded {
		from, to = max(at.Sequence, mostGuesses)-mostGuesses+1, at.Sequence
	}
	if from > p.ring.Sequence() {
		return list, nil
	}
	var facts []events.Record
	for r, err := range p.ledger.Read(ctx, events.Ledger, from, to) {
		if err != nil {
			return nil, err
		}
		facts = append(facts, r)
	}
	if recorded {
		for _, r := range facts {
			if r.Event.Time > at.Time+behind {
				break
			}
			list = append(list, Moment{r.Sequence, at.Time})
		}
		return list, nil
	}
	for _, r := range slices.Backward(facts) {
		if r.Event.Time < at.Time-behind || r.Sequence == 1 {
			break
		}
		list = append(list, Moment{r.Sequence - 1, at.Time}) // before that fact
	}
	return list, nil
}

// judgeAt judges with the state as of x.At, and says whether that explains it.
func (p *Past) judgeAt(ctx context.Context, x *Explanation, key, keyspace, owner string) (bool, error) {
	k, err := p.Key(ctx, key, x.At)
	if err != nil {
		return false, err
	}
	ks, err := p.Keyspace(ctx, keyspace, x.At)
	if err != nil {
		return false, err
	}
	who, err := p.Owner(ctx, keyspace, owner, x.At)
	if err != nil || k == nil || ks == nil {
		return false, err
	}
	v := ViewAt(k, x.At)
	x.Key, x.Owner, x.OwnerPlan = &v, owner, ""
	x.Plan, _, _ = ks.PlanInForce(k, who)
	if who != nil {
		x.OwnerPlan = who.Plan
	}
	// A use says which document it was judged with.
	agree := !x.Admitted || len(x.Judgements) != 1 || x.Judgements[0].document == 0 || x.Judgements[0].document == ks.DocumentVersion
	x.DocumentVersion = ks.DocumentVersion
	for i := range x.Judgements {
		j := &x.Judgements[i]
		req := domain.Request{Keyspace: keyspace, Method: j.Method, Path: j.Endpoint, IP: j.SourceIP}
		if j.Origin != "" {
			req.Origin = &j.Origin
		}
		j.Steps = ks.Explain(&req, j.Secret, k, who, x.At.Time)
		j.Agrees = agrees(domain.Code(j.Code), j.Steps)
		agree = agree && j.Agrees
		if j.Window != "" && j.Agrees {
			// What it depends on was counted, and is recorded as the refusal itself.
			j.Steps[len(j.Steps)-1].Verdict = domain.Failed
		}
	}
	return agree, nil
}

// agrees says whether the steps leave room for what is recorded: no earlier one
// failed, and its own did not pass.
func agrees(code domain.Code, steps []domain.Step) bool {
	if code == domain.CodeStateTooStale || code == domain.CodeAuditUnavailable {
		return true // they are not about the key
	}
	for _, s := range steps {
		if s.Code == code {
			return s.Verdict == domain.Failed || s.Verdict == domain.NotRecorded
		}
		if s.Verdict == domain.Failed {
			return false
		}
	}
	return !slices.ContainsFunc(steps, func(s domain.Step) bool { return s.Verdict == domain.Failed })
}

// rejectedSteps are those of a request without a known key: what the order of
// section 3 says of the ones before its code.
func rejectedSteps(code domain.Code) []domain.Step {
	var steps []domain.Step
	for _, c := range domain.Codes() {
		if c == domain.CodeRevoked {
			break
		}
		if c == code {
			return append(steps, domain.Step{Code: c, Verdict: domain.Failed, Why: c.Message()})
		}
		steps = append(steps, domain.Step{Code: c, Verdict: domain.Passed, Why: "it comes before in the order of checks"})
	}
	return []domain.Step{{Code: code, Verdict: domain.Failed, Why: code.Message()}}
}
