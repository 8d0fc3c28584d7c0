package domain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/keyledger/keyledger/events"
)

// Step is one check of section 3 of the contract, judged again later.
type Step struct {
	Code    Code   `json:"code"`
	Verdict string `json:"verdict"` // see below
	Why     string `json:"why"`
}

// The verdicts of a [Step].
const (
	Passed      = "passed"
	Failed      = "failed"
	NotRecorded = "not recorded" // what it depends on is not in the log
	NotReached  = "not reached"  // an earlier one failed
)

// Explain judges a request to a known key again, step by step, by what the log
// kept of it: secret is current, previous, or empty where that is not recorded;
// what of req is nil or empty is not recorded either. Where all is known, the
// first step that failed is what [Keyspace.JudgeKey] says, and VALID where none
// did. The last step is RATE_LIMITED, which depends on requests that are not
// judged here.
func (k *Keyspace) Explain(req *Request, secret string, key *Key, owner *Owner, now events.Time) []Step {
	var steps []Step
	failed := false
	add := func(code Code, verdict, why string, args ...any) {
		if failed {
			verdict, why, args = NotReached, "", nil
		}
		failed = failed || verdict == Failed
		steps = append(steps, Step{code, verdict, fmt.Sprintf(why, args...)})
	}
	check := func(code Code, wrong bool, right, otherwise string) {
		if wrong {
			add(code, Failed, "%s", otherwise)
		} else {
			add(code, Passed, "%s", right)
		}
	}
	rules := &k.Document.Credential
	switch {
	case !rules.RequireTLS:
		add(CodeInsecureTransport, Passed, "the document does not require TLS")
	case req.TLS == nil:
		add(CodeInsecureTransport, NotRecorded, "the document requires TLS; whether it was used is not recorded")
	default:
		check(CodeInsecureTransport, !*req.TLS, "it came over TLS", "it did not come over TLS, which the document requires")
	}
	switch {
	case rules.RequireContentType == "":
		add(CodeWrongContentType, Passed, "the document requires no content type")
	case req.Method != "" && !writes(req.Method):
		add(CodeWrongContentType, Passed, "%s needs no content type", req.Method)
	default:
		add(CodeWrongContentType, NotRecorded, "the document requires %s; the content type is not recorded", rules.RequireContentType)
	}
	add(CodeMissingCredential, Passed, "a credential was sent")
	add(CodeMalformedCredential, Passed, "it was read")
	add(CodeMalformedKey, Passed, "it is a known key's")
	add(CodeUnknownKey, Passed, "it is a secret of %s", key.ID)
	check(CodeRevoked, key.Revoked(), "the key was not revoked", "the key was revoked")
	k.explainSecret(add, secret, key, now)
	switch {
	case key.ExpiresAt == 0:
		add(CodeExpired, Passed, "the key never expires")
	default:
		check(CodeExpired, key.Expired(now), "the key expires at "+key.ExpiresAt.String(), "the key expired at "+key.ExpiresAt.String())
	}
	if len(req.Environments) == 0 {
		add(CodeWrongEnvironment, NotRecorded, "the key is of %s; which environments the route admits is not recorded", key.Environment)
	} else {
		check(CodeWrongEnvironment, !slices.Contains(req.Environments, key.Environment), "the route admits "+key.Environment, "the route does not admit "+key.Environment)
	}
	k.explainPlanAndPath(add, check, req, key, owner)
	switch {
	case len(key.AllowedOrigins) == 0:
		add(CodeOriginDenied, Passed, "the key may be used from all origins")
	case req.Origin == nil:
		add(CodeOriginDenied, NotRecorded, "the key is bound to %s; the origin is not recorded", strings.Join(key.AllowedOrigins, ", "))
	default:
		check(CodeOriginDenied, !slices.Contains(key.AllowedOrigins, *req.Origin), "the key may be used from "+*req.Origin,
			fmt.Sprintf("the origin is %q; the key is bound to %s", *req.Origin, strings.Join(key.AllowedOrigins, ", ")))
	}
	switch {
	case len(key.AllowedIPs) == 0:
		add(CodeIPDenied, Passed, "the key may be used from all addresses")
	case req.IP == "":
		add(CodeIPDenied, NotRecorded, "the key is bound to %s; the address is not known, or not shown to you", strings.Join(key.AllowedIPs, ", "))
	default:
		check(CodeIPDenied, !ipAllowed(key.AllowedIPs, req.IP), req.IP+" is one of the key's addresses",
			req.IP+" is none of the key's addresses: "+strings.Join(key.AllowedIPs, ", "))
	}
	limits, pool := k.LimitsFor(key, owner)
	if len(limits) == 0 {
		add(CodeRateLimited, Passed, "no limit applies")
	} else {
		whose := "the key"
		if pool.Key == "" {
			whose = "all keys of " + pool.Owner
		}
		var list []string
		for _, window := range Windows {
			if n, ok := limits[window]; ok {
				list = append(list, fmt.Sprintf("%d a %s", n, window))
			}
		}
		add(CodeRateLimited, NotRecorded, "%s for %s; what had been counted is not recorded", strings.Join(list, ", "), whose)
	}
	return steps
}

func (k *Keyspace) explainSecret(add func(Code, string, string, ...any), secret string, key *Key, now events.Time) {
	var ended, running events.Time // of earlier secrets
	if key.More != nil {
		for _, e := range key.Earlier {
			if now < e.Until {
				running = max(running, e.Until)
			} else {
				ended = max(ended, e.Until)
			}
		}
	}
	switch {
	case secret == "current" || secret == "" && ended == 0 && running == 0:
		add(CodeSuperseded, Passed, "it is the current secret, of %s", key.SecretSince())
	case secret == "" && ended == 0:
		add(CodeSuperseded, Passed, "every secret of the key works")
	case secret == "":
		add(CodeSuperseded, NotRecorded, "a previous secret ended at %s; which one was sent is not recorded", ended)
	case running != 0:
		add(CodeSuperseded, Passed, "it is a previous secret, which works until %s", running)
	default:
		add(CodeSuperseded, Failed, "it is a previous secret, which ended at %s", ended)
	}
}

func (k *Keyspace) explainPlanAndPath(add func(Code, string, string, ...any), check func(Code, bool, string, string), req *Request, key *Key, owner *Owner) {
	var at paths
	if req.Path != "" {
		at = readPath(req.Path)
	}
	name, plan, ok := k.PlanInForce(key, owner)
	supported, held := k.judgeScopes(req, &at, key, plan.Scopes)
	pathKnown := len(req.Scopes) > 0 || req.Method != "" && req.Path != "" || len(k.scopes) == 0
	var needs []string
	if req.Method != "" && req.Path != "" {
		needs = k.ScopesFor(req.Method, req.Path)
	}
	for _, s := range req.Scopes {
		needs = appendNew(needs, s)
	}
	needed := "no scope"
	if len(needs) > 0 {
		needed = strings.Join(needs, " or ")
	}
	switch {
	case len(k.Plans) == 0:
		add(CodePlanDenied, Passed, "the keyspace has no plans")
	case !ok:
		add(CodePlanDenied, Failed, "the keyspace has no plan %q", name)
	case plan.Access != nil && !*plan.Access:
		add(CodePlanDenied, Failed, "the plan %s has no access", name)
	case !supported:
		add(CodePlanDenied, Failed, "the plan %s does not support what the request needs: %s", name, needed)
	case !pathKnown && plan.Scopes != nil:
		add(CodePlanDenied, NotRecorded, "the plan %s has access; what the request needed is not recorded", name)
	default:
		add(CodePlanDenied, Passed, "the plan %s has access", name)
	}
	switch {
	case k.ownerPath == nil:
		add(CodeWrongOwner, Passed, "paths name no owner")
	case req.Path == "":
		add(CodeWrongOwner, NotRecorded, "the path is not recorded")
	default:
		check(CodeWrongOwner, k.wrongOwner(&at, key), "the path names nobody but "+key.Owner, "the path names another owner than "+key.Owner)
	}
	bound := "the key is bound to " + strings.Join(key.Resources, ", ")
	switch {
	case len(key.Resources) == 0:
		check(CodeWrongResource, k.wrongResource(req, &at, key), "the key is bound to no resource", "the key is bound to no resource, which the document requires")
	case req.Resource == nil && (k.resourcePath == nil || req.Path == ""):
		add(CodeWrongResource, NotRecorded, "%s; the resource is not recorded", bound)
	default:
		check(CodeWrongResource, k.wrongResource(req, &at, key), bound, bound+"; the path names another, or none")
	}
	has := "none"
	if scopes := k.ScopesOf(key); len(scopes) > 0 {
		has = strings.Join(scopes, ", ")
	}
	switch {
	case !held:
		add(CodeInsufficientScope, Failed, "the request needs %s; the key has %s", needed, has)
	case !pathKnown:
		add(CodeInsufficientScope, NotRecorded, "the key has %s; what the request needed is not recorded", has)
	default:
		add(CodeInsufficientScope, Passed, "the request needs %s; the key has %s", needed, has)
	}
}
