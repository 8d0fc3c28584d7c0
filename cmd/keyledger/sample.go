package main

import (
	"context"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/keyledger/keyledger/commands"
	"github.com/keyledger/keyledger/domain"
)

// A fresh development server has this owner in every keyspace, and binds keys
// to this resource where they must be bound.
const (
	sampleOwner    = "acme"
	sampleResource = "sample_1"
)

// sample gives every keyspace that has no owner yet one with two keys, and
// sends some requests with them through the gateway, so that lists and figures
// show something at the first look.
func sample(ctx context.Context, n *node, gateway string) error {
	q := commands.Request{Authority: domain.System("dev"), Via: "dev"}
	for _, ks := range n.ring.Keyspaces() {
		id := ks.Document.Keyspace
		if len(n.ring.Owners(id)) > 0 {
			continue
		}
		plan := samplePlan(ks)
		if _, err := n.commands.SetOwner(ctx, q, id, sampleOwner, domain.SetOwner{Name: new("Acme Ltd"), Plan: &plan}); err != nil {
			return err
		}
		for i, name := range []string{"Production server", "CI pipeline"} {
			cmd := domain.CreateKey{Name: name}
			if scopes := sampleScopes(ks); len(scopes) > 0 {
				cmd.Scopes = &scopes
			}
			if ks.Resource.Mode == "required" {
				cmd.Resources = []string{sampleResource}
			}
			r, err := n.commands.CreateKey(ctx, q, id, sampleOwner, cmd)
			if err != nil {
				return err
			}
			for range 5 - 2*i {
				if err := sampleRequest(ctx, ks, gateway, r.Secret); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// samplePlan is the plan of the sample owner: the default one, or where that
// gives no access the first that does and has room for two keys.
func samplePlan(ks *domain.Keyspace) string {
	fits := func(name string) bool {
		p, ok := ks.Plans[name]
		return ok && (p.Access == nil || *p.Access) && (p.MaxKeys == nil || *p.MaxKeys >= 3)
	}
	if fits(ks.DefaultPlan) {
		return ks.DefaultPlan
	}
	for _, name := range slices.Sorted(maps.Keys(ks.Plans)) {
		if fits(name) {
			return name
		}
	}
	return ks.DefaultPlan
}

func sampleScopes(ks *domain.Keyspace) []string {
	if len(ks.FixedScopes) > 0 {
		return nil
	}
	var scopes []string
	for _, name := range slices.Sorted(maps.Keys(ks.Scopes)) {
		if s := ks.Scopes[name]; s.Available == nil || *s.Available {
			scopes = append(scopes, name)
		}
	}
	return scopes
}

func sampleRequest(ctx context.Context, ks *domain.Keyspace, gateway, secret string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, gateway+"/"+ks.Document.Keyspace+samplePath(ks), nil)
	if err != nil {
		return err
	}
	c := ks.Document.Credential
	req.Header.Set(c.Header, strings.TrimSpace(c.Scheme+" "+secret))
	req.Header.Set("X-Forwarded-Proto", "https")
	req.Header.Set("X-Forwarded-For", "203.0.113.7")
	req.Header.Set("User-Agent", "sample/1.0")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Body.Close()
}

// samplePath is a path that a route of the document would match.
func samplePath(ks *domain.Keyspace) string {
	path := "/"
	for _, name := range slices.Sorted(maps.Keys(ks.Scopes)) {
		for _, route := range ks.Scopes[name].Routes {
			if method, p, ok := strings.Cut(route, " "); ok && (method == "*" || strings.Contains(method, "GET")) && path == "/" {
				path = p
			}
		}
	}
	if path == "/" && ks.Resource.Path != "" { // no scope names a path, but keys have a resource that does
		path = ks.Resource.Path
	}
	segments := strings.Split(strings.TrimSuffix(path, "/**"), "/")
	for _, template := range []string{ks.Document.Owner.Path, ks.Resource.Path} {
		for i, t := range strings.Split(template, "/") {
			if strings.HasPrefix(t, "{") && i < len(segments) {
				segments[i] = strings.NewReplacer("{resource}", sampleResource, "{owner}", sampleOwner).Replace(t)
			}
		}
	}
	path = strings.Join(segments, "/")
	if path == "" {
		path = "/"
	}
	return strings.ReplaceAll(path, "*", "1")
}
