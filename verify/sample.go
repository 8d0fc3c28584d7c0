package verify

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Sample is a refusal of a request that nobody made, rendered as every true one
// is: so that the author of a document sees what clients would. The request is
// the one that the document suggests: by the first scope's first route, about
// what its templates name, with a key of an owner on the plan that the code is
// about. Where no plan has limits, nothing is left to wait for.
func Sample(k *domain.Keyspace, code domain.Code, now time.Time) domain.Rendered {
	d := Decision{Code: code, Time: now, Keyspace: k}
	req := sampleRequest(k)
	plan, limits := samplePlan(k, code)
	if slices.Index(domain.Codes(), code) > slices.Index(domain.Codes(), domain.CodeUnknownKey) {
		d.Owner = &domain.Owner{Keyspace: k.Document.Keyspace, ID: sampleOwner, Plan: plan}
		d.Key = &domain.Key{ID: "key_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d",
			Grant: &domain.Grant{Keyspace: k.Document.Keyspace, Owner: sampleOwner, Environment: k.Format.DefaultEnvironment, Limits: limits}}
	}
	if code == domain.CodeRateLimited {
		for _, window := range domain.Windows {
			n, ok := limits[window]
			if !ok {
				continue
			}
			l := Limit{Window: window, Limit: n, Remaining: n / 2, Reset: events.At(now.Add(time.Minute))}
			if d.taken.N == 0 {
				d.RetryAfter = map[string]int64{"minute": 45, "hour": 1200, "day": 10800}[window]
				l.Remaining, l.Reset = 0, events.At(now.Add(time.Duration(d.RetryAfter)*time.Second))
			}
			d.taken.Limits[d.taken.N] = l
			d.taken.N++
		}
	}
	return d.Answer(&req, "req_019bd0c5-6a00-7b5c-9d0e-2f6f3a1b4c5d")
}

const sampleOwner = "owner_1"

// sampleRequest is what the document says most about.
func sampleRequest(k *domain.Keyspace) domain.Request {
	req := domain.Request{Keyspace: k.Document.Keyspace, Method: "GET", Path: "/"}
	fill := func(path string) string {
		path = strings.NewReplacer("{owner}", sampleOwner, "{resource}", "res_1", "**", "1").Replace(path)
		return strings.ReplaceAll(path, "*", "1")
	}
	if k.Document.Resource.Path != "" {
		req.Path = fill(k.Document.Resource.Path)
	} else if k.Document.Owner.Path != "" {
		req.Path = fill(k.Document.Owner.Path)
	}
	if len(k.ScopesFor(req.Method, req.Path)) > 0 {
		return req
	}
	for _, name := range slices.Sorted(maps.Keys(k.Document.Scopes)) {
		routes := k.Document.Scopes[name].Routes
		if len(routes) == 0 {
			continue
		}
		methods, path, _ := strings.Cut(routes[0], " ")
		method, _, _ := strings.Cut(methods, ",")
		if method == "*" {
			method = "GET"
		}
		if req.Path == "/" {
			req.Method, req.Path = method, fill(path)
		} else {
			req.Scopes = []string{name} // the path is of the resource
		}
		return req
	}
	return req
}

// samplePlan is the plan that a refusal is most about, with the limits that count.
func samplePlan(k *domain.Keyspace, code domain.Code) (plan string, limits events.Limits) {
	plan = k.DefaultPlan
	names := slices.Sorted(maps.Keys(k.Plans))
	choose := func(fits func(domain.Plan) bool) {
		if fits(k.Plans[plan]) {
			return
		}
		if i := slices.IndexFunc(names, func(name string) bool { return fits(k.Plans[name]) }); i >= 0 {
			plan = names[i]
		}
	}
	switch code {
	case domain.CodePlanDenied:
		choose(func(p domain.Plan) bool { return p.Access != nil && !*p.Access })
	case domain.CodeRateLimited:
		choose(func(p domain.Plan) bool { return len(p.Limits) > 0 && (p.Access == nil || *p.Access) })
	}
	if k.Limits.From == "key" {
		return plan, k.Limits.Default
	}
	return plan, k.Plans[plan].Limits
}
