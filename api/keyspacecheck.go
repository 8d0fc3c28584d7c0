package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/queries"
	"github.com/keyledger/keyledger/verify"
)

// KeyspaceCheck is what would become of a keyspace document.
type KeyspaceCheck struct {
	Valid    bool              `json:"valid" doc:"Whether it would be taken now."`
	Problems []Detail          `json:"problems" nullable:"false" doc:"Everything that is wrong with it, by line."`
	Keyspace string            `json:"keyspace" doc:"Whose document it is; empty where it cannot be read so far."`
	Version  int               `json:"version" doc:"Of the document in force; 0: there is none yet. For If-Match."`
	Changed  bool              `json:"changed" doc:"false: it is in force already."`
	YAML     string            `json:"yaml" doc:"The document with its defaults filled in, as it would be recorded; empty where it is not valid."`
	Before   string            `json:"before" doc:"Likewise, of the document in force."`
	Changes  []queries.Change  `json:"changes" nullable:"false" doc:"By field."`
	Effects  []KeyspaceEffect  `json:"effects" nullable:"false" doc:"What that means for those who have keys, what takes most away first."`
	Answers  []KeyspaceRefusal `json:"answers" nullable:"false" doc:"Every refusal as a client would see it."`
}

// KeyspaceEffect is what a change of a document means to somebody.
type KeyspaceEffect struct {
	Kind   string `json:"kind" enum:"breaks,narrows,widens,changes" doc:"breaks: requests that pass now will not. narrows: less is left to them. widens: more is. changes: neither."`
	Detail string `json:"detail" doc:"In a sentence." example:"3 keys may make fewer requests a minute."`
	Keys   int    `json:"keys" doc:"Active keys that it is about."`
}

// KeyspaceRefusal is how one refusal looks on the wire.
type KeyspaceRefusal struct {
	Code    string          `json:"code" example:"RATE_LIMITED"`
	When    string          `json:"when" doc:"In a sentence."`
	Entry   string          `json:"entry" doc:"The entry of answers that says how it looks: the code, or default; empty: neither, it is a problem document."`
	Status  int             `json:"status" example:"429"`
	Headers []HeaderLine    `json:"headers" nullable:"false"`
	Body    json.RawMessage `json:"body" doc:"JSON, with examples in place of what is known of a true request."`
	Changed bool            `json:"changed" doc:"Whether it would look otherwise than now; of a document in force, false."`
}

// HeaderLine is one line of the header of an answer.
type HeaderLine struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// KeyspaceAnswers are the refusals of the document in force.
type KeyspaceAnswers struct {
	Keyspace string            `json:"keyspace"`
	Version  int               `json:"version"`
	Answers  []KeyspaceRefusal `json:"answers" nullable:"false"`
}

// KeyspaceVersion says when a document came into force, and by whom.
type KeyspaceVersion struct {
	Version  int              `json:"version"`
	Time     events.Time      `json:"time"`
	Sequence uint64           `json:"sequence" doc:"Of LEDGER; as_of with it answers the document."`
	Event    string           `json:"event"`
	Actor    *events.Actor    `json:"actor,omitempty" doc:"Absent: not told to whoever sees one owner."`
	Via      string           `json:"via"`
	Changes  []queries.Change `json:"changes" nullable:"false" doc:"Against the version before; empty for the first."`
}

// KeyspaceVersions are all documents that a keyspace has had.
type KeyspaceVersions struct {
	Versions []KeyspaceVersion `json:"versions" nullable:"false" doc:"The newest first."`
}

func (a *API) keyspaceChecks() {
	a.schema(Detail{})
	a.stream(route{
		Operation: huma.Operation{
			OperationID: "validate-keyspace", Method: http.MethodPost, Path: "/v1/keyspaces/validate", Tags: []string{"Keyspaces"},
			Summary:     "Check a keyspace document",
			Description: "Says what is wrong with a document, or else what would change with it, for whom, and how every refusal would look. Nothing is recorded. A document that is not valid is answered with 200 and its problems.",
			Parameters:  []*huma.Param{queryParam("keyspace", "The keyspace that it has to be of; absent: any.", &huma.Schema{Type: "string"})},
			RequestBody: a.documentBody(),
			Responses:   map[string]*huma.Response{"200": a.answer("What would become of it.", a.schema(KeyspaceCheck{}))},
		},
		action: domain.Configure, accepts: documentTypes,
	}, a.validateKeyspace)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "keyspace-answers", Method: http.MethodGet, Path: "/v1/keyspaces/{ks}/answers", Tags: []string{"Keyspaces"},
			Summary: "Show the refusals of a keyspace", Description: "Every refusal of the document in force as a client sees it, with examples in place of what is known of a true request.",
		},
		action: domain.KeyspacesRead, read: true,
	}, a.keyspaceAnswers)
	serve(a, route{
		Operation: huma.Operation{
			OperationID: "keyspace-versions", Method: http.MethodGet, Path: "/v1/keyspaces/{ks}/versions", Tags: []string{"Keyspaces"},
			Summary: "List the versions of a keyspace", Description: "All documents that it has had, the newest first: when each came into force, by whom, and what it changed. They are read from the ledger.",
		},
		action: domain.KeyspacesRead, read: true,
	}, a.keyspaceVersions)
}

func (a *API) validateKeyspace(w http.ResponseWriter, r *http.Request, c *call) error {
	out := KeyspaceCheck{Problems: []Detail{}, Changes: []queries.Change{}, Effects: []KeyspaceEffect{}, Answers: []KeyspaceRefusal{}}
	doc, err := domain.ParseDocument(c.body)
	if bad, ok := errors.AsType[*domain.DocumentError](err); ok {
		out.Problems = details(bad.Problems)
	} else if err != nil {
		return err
	}
	asked := r.URL.Query().Get("keyspace")
	out.Keyspace = asked
	if doc != nil {
		out.Keyspace = doc.Keyspace
		if asked != "" && doc.Keyspace != asked {
			out.Problems = append(out.Problems, Detail{Path: "keyspace", Message: "is another keyspace than " + shown(asked), Fix: "write its id, or configure the other one in its own place"})
		}
	}
	now := a.Ring.Keyspace(out.Keyspace)
	if now != nil && out.Keyspace != events.RootKeyspace {
		out.Version, out.Before = now.DocumentVersion, string(now.Document.YAML())
	}
	if doc != nil && len(out.Problems) == 0 {
		q, err := a.request(r.Context())
		if err != nil {
			return err
		}
		res, err := a.Commands.ConfigureKeyspace(r.Context(), q, doc, true)
		if refused, ok := errors.AsType[*domain.Refusal](err); ok && refused.Kind != domain.Forbidden || ok && refused.Code == "KEYSPACE_RESERVED" {
			out.Problems = details(refused.Problems)
			if len(out.Problems) == 0 {
				out.Problems = []Detail{{Path: "keyspace", Message: refused.Detail, Fix: "take another id"}}
			}
			findLines(out.Problems, c.body)
		} else if err != nil {
			return err
		}
		out.Changed = len(res.Facts) > 0
		out.Valid = len(out.Problems) == 0
		then := domain.Compile(doc, out.Version+1)
		out.YAML = string(doc.YAML())
		if now != nil && out.Version > 0 {
			out.Changes = queries.DocumentChanges(now.Document, doc)
			out.Effects = a.effects(now, then)
		}
		out.Answers = refusals(then, now, a.Now())
	}
	writeJSON(w, http.StatusOK, "application/json", out)
	return nil
}

// findLines finds the lines of problems that were found in the state and not in the
// source: of what a document lacks, the line of what it is missing in.
func findLines(problems []Detail, source []byte) {
	for i := range problems {
		if problems[i].Line == 0 {
			problems[i].Line = domain.LineOf(source, problems[i].Path)
		}
	}
}

var when = map[domain.Code]string{
	domain.CodeInsecureTransport:   "The request did not come over TLS.",
	domain.CodeWrongContentType:    "Its Content-Type is not the one that the document requires.",
	domain.CodeMissingCredential:   "It has no credential.",
	domain.CodeMalformedCredential: "The credential header is not well-formed.",
	domain.CodeMalformedKey:        "What was sent is no key of this keyspace by its form.",
	domain.CodeUnknownKey:          "Nobody has this key.",
	domain.CodeRevoked:             "The key was revoked.",
	domain.CodeSuperseded:          "The secret was rotated away, and its grace is over.",
	domain.CodeExpired:             "The key has expired.",
	domain.CodeWrongEnvironment:    "The key is of another environment than the gateway's route.",
	domain.CodePlanDenied:          "The plan has no access, or not to this.",
	domain.CodeWrongOwner:          "The path names another owner.",
	domain.CodeWrongResource:       "The key is bound to another resource.",
	domain.CodeInsufficientScope:   "The key lacks the scope.",
	domain.CodeOriginDenied:        "The key may not be used from this origin.",
	domain.CodeIPDenied:            "The key may not be used from this address.",
	domain.CodeRateLimited:         "A limit is used up.",
	domain.CodeStateTooStale:       "The verifier has lost the ledger for too long.",
	domain.CodeAuditUnavailable:    "Strict audit, and the use could not be recorded.",
}

// refusals are those of a document, marked where they differ from another's.
func refusals(k, before *domain.Keyspace, now time.Time) []KeyspaceRefusal {
	list := make([]KeyspaceRefusal, 0, len(domain.Codes())-1)
	for _, code := range domain.Codes() {
		if code == domain.CodeValid {
			continue
		}
		rendered := verify.Sample(k, code, now)
		x := KeyspaceRefusal{Code: string(code), When: when[code], Status: rendered.Status, Headers: []HeaderLine{}, Body: rendered.Body}
		for _, h := range rendered.Headers {
			x.Headers = append(x.Headers, HeaderLine(h))
		}
		if _, own := k.Answers[string(code)]; own {
			x.Entry = string(code)
		} else if _, is := k.Answers["default"]; is {
			x.Entry = "default"
		}
		if before != nil {
			was := verify.Sample(before, code, now)
			x.Changed = was.Status != rendered.Status || !slices.Equal(was.Headers, rendered.Headers) || !bytes.Equal(was.Body, rendered.Body)
		}
		list = append(list, x)
	}
	return list
}

func (a *API) effects(now, then *domain.Keyspace) []KeyspaceEffect {
	list := []KeyspaceEffect{}
	add := func(kind string, keys int, format string, args ...any) {
		list = append(list, KeyspaceEffect{Kind: kind, Keys: keys, Detail: fmt.Sprintf(format, args...)})
	}
	id, at := now.Document.Keyspace, a.Now()
	var active, loses, gains int
	var shrinks, grows [3]int
	var over []string
	for _, o := range a.Ring.Owners(id) {
		_, planNow, okNow := now.PlanInForce(nil, o)
		_, planThen, okThen := then.PlanInForce(nil, o)
		if okNow && okThen && planThen.MaxKeys != nil && (planNow.MaxKeys == nil || *planThen.MaxKeys < *planNow.MaxKeys) &&
			a.Ring.ActiveKeys(id, o.ID, at) > *planThen.MaxKeys {
			over = append(over, o.ID)
		}
		for k := range a.Ring.Keys(id, o.ID) {
			if !k.Active(events.At(at)) {
				continue
			}
			active++
			switch was, is := admits(now, k, o), admits(then, k, o); {
			case was && !is:
				loses++
			case !was && is:
				gains++
			}
			before, after := now.Quota(k, o), then.Quota(k, o)
			for i := range domain.Windows {
				b, n := before[i], after[i]
				switch {
				case n != 0 && (b == 0 || n < b):
					shrinks[i]++
				case n == 0 && b != 0 || n > b && b != 0:
					grows[i]++
				}
			}
		}
	}
	was, is := now.Document.Credential, then.Document.Credential
	switch {
	case was.Header != is.Header || was.Scheme != is.Scheme:
		add("breaks", active, "The credential moves from %q to %q: every client has to send it there.", sent(was), sent(is))
	case is.RequireTLS && !was.RequireTLS:
		add("breaks", active, "Requests that do not come over TLS are refused.")
	}
	if is.RequireContentType != "" && is.RequireContentType != was.RequireContentType {
		add("breaks", active, "POST, PUT and PATCH are refused unless they are %s.", is.RequireContentType)
	}
	if loses > 0 {
		add("breaks", loses, "%s on a plan that has no access any more.", are(loses, "active key"))
	}
	if now.Document.Owner.Path != then.Document.Owner.Path && then.Document.Owner.Path != "" {
		add("breaks", active, "Paths of %s are refused to the keys of other owners.", then.Document.Owner.Path)
	}
	if !slices.Equal([]string{now.Resource.Mode, now.Resource.Path}, []string{then.Resource.Mode, then.Resource.Path}) {
		add("breaks", active, "What keys are bound to is judged otherwise: %s, by %s.", then.Resource.Mode, said(then.Resource.Path, "no path"))
	}
	if !equalRoutes(now.Document, then.Document) {
		add("breaks", active, "Routes of scopes change: the same request may need another scope.")
	}
	for i, window := range domain.Windows {
		if shrinks[i] > 0 {
			add("narrows", shrinks[i], "%s may make fewer requests a %s, at once.", count(shrinks[i], "active key"), window)
		}
	}
	if len(over) > 0 {
		add("narrows", 0, "%s more keys than the plan will allow. Those keep working; no other can be made.", have(len(over), "owner"))
	}
	if then.Limits.CountBy == "owner" && now.Limits.CountBy != "owner" {
		add("narrows", active, "All keys of an owner draw from one pool.")
	}
	if now.Lifecycle.Rotation.Enabled && !then.Lifecycle.Rotation.Enabled {
		add("narrows", active, "Keys can no longer be rotated.")
	}
	if gains > 0 {
		add("widens", gains, "%s on a plan that has access now.", are(gains, "active key"))
	}
	for i, window := range domain.Windows {
		if grows[i] > 0 {
			add("widens", grows[i], "%s may make more requests a %s.", count(grows[i], "active key"), window)
		}
	}
	if then.Limits.From == "key" && !maps.Equal(now.Limits.Default, then.Limits.Default) {
		add("changes", 0, "Keys made from now on have other limits by default. Keys that exist keep theirs.")
	}
	if !maps.Equal(now.Format.Prefixes, then.Format.Prefixes) || now.Format.Length != then.Format.Length || now.Format.Alphabet != then.Format.Alphabet || now.Format.Checksum != then.Format.Checksum {
		add("changes", 0, "New secrets look otherwise. Keys that exist go on working.")
	}
	if now.Display != then.Display {
		add("changes", 0, "Of secrets made from now on, the first %d and the last %d characters are kept.", then.Display.First, then.Display.Last)
	}
	differ := 0
	for _, x := range refusals(then, now, at) {
		if x.Changed {
			differ++
		}
	}
	if differ > 0 {
		look := "look"
		if differ == 1 {
			look = "looks"
		}
		add("changes", 0, "%s %s otherwise to clients.", count(differ, "refusal"), look)
	}
	return list
}

func admits(k *domain.Keyspace, key *domain.Key, o *domain.Owner) bool {
	_, plan, ok := k.PlanInForce(key, o)
	return ok && (plan.Access == nil || *plan.Access)
}

func equalRoutes(a, b *domain.Document) bool {
	routes := func(d *domain.Document) map[string][]string {
		m := map[string][]string{}
		for name, s := range d.Scopes {
			m[name] = s.Routes
		}
		return m
	}
	return maps.EqualFunc(routes(a), routes(b), slices.Equal)
}

func sent(c domain.CredentialRules) string {
	if c.Scheme == "" {
		return c.Header + ": …"
	}
	return c.Header + ": " + c.Scheme + " …"
}

func said(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.Itoa(n) + " " + what + "s"
}

func are(n int, what string) string {
	if n == 1 {
		return count(n, what) + " is"
	}
	return count(n, what) + " are"
}

func have(n int, what string) string {
	if n == 1 {
		return count(n, what) + " has"
	}
	return count(n, what) + " have"
}

type keyspaceAnswersOutput struct{ Body KeyspaceAnswers }

func (a *API) keyspaceAnswers(ctx context.Context, in *KeyspacePath) (*keyspaceAnswersOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	k, err := a.keyspace(ctx, in.Keyspace)
	if err != nil {
		return nil, err
	}
	return &keyspaceAnswersOutput{KeyspaceAnswers{in.Keyspace, k.DocumentVersion, refusals(k, nil, a.Now())}}, nil
}

type keyspaceVersionsOutput struct{ Body KeyspaceVersions }

func (a *API) keyspaceVersions(ctx context.Context, in *KeyspacePath) (*keyspaceVersionsOutput, error) {
	if err := a.await(ctx, a.Ring.Wait); err != nil {
		return nil, err
	}
	k, err := a.keyspace(ctx, in.Keyspace)
	if err != nil {
		return nil, err
	}
	out := &keyspaceVersionsOutput{KeyspaceVersions{[]KeyspaceVersion{}}}
	err = a.inPast(ctx, func(ctx context.Context, p *queries.Past) error {
		versions, err := p.KeyspaceVersions(ctx, in.Keyspace, k.Sequence)
		for _, v := range versions {
			x := KeyspaceVersion{v.Version, v.Act.Time, v.Act.Sequence, v.Act.Event, &v.Act.Actor, v.Act.Via, v.Act.Changes}
			if callOf(ctx).authority.Reach != nil {
				x.Actor = nil // of another owner's house
			}
			out.Body.Versions = append(out.Body.Versions, x)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
