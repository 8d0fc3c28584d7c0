package domain

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyledger/keyledger/events"
)

// A document is refused with problems, or says the same when it is written and
// read again; and one that was taken makes secrets, judges requests and renders
// every answer. So does, without a promise about its meaning, anything that is
// shaped like a document, since an older program may have taken it.
func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(small))
	f.Add([]byte(example))
	f.Add([]byte(strict))
	f.Add(file(f, "bad.yaml"))
	f.Add(file(f, "commands.yaml"))
	f.Add(file(f, "contract.json"))
	products, err := filepath.Glob("../keyspaces/*.yaml")
	if err != nil || len(products) == 0 {
		f.Fatalf("no documents of products: %v", err)
	}
	for _, path := range products {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	asJSON := `{"keyspace":"a","format":{"prefixes":{"live":"a_"},"length":30}`
	for _, more := range []string{
		`}`, `,"keyspace":"b"}`, `} {}`, `,"colour":1}`, `,"plans":{"p":{"limits":{"minute":0}}},"default_plan":"p"}`,
		`,"plans":{"p":{"limits":{"minute":-1}}},"default_plan":"p"}`, `,"plans":{"p":{"limits":{"minute":9223372036854775808}}},"default_plan":"p"}`,
		`,"plans":{"p":{"limits":{"minute":"100"}}},"default_plan":"p"}`, `,"plans":{"p":{"limits":{"minute":1.5}}},"default_plan":"p"}`,
		`,"scopes":{"s":{"routes":["GET /a","GET /a"]}},"fixed_scopes":["s","s"]}`, `,"fixed_scopes":["unknown"]}`,
		`,"scopes":{"s":{"available":false}},"fixed_scopes":["s"]}`, `,"answers":{"default":{"body":{"a":"${limit.day}","b":"x ${plan.details.d}"}}}}`,
		`,"answers":{"REVOKED":{"headers":{"X-A":"a\r\nb"}}}}`, `,"public_routes":[{"route":"GET /**","body":null}]}`,
	} {
		f.Add([]byte(asJSON + more))
	}
	for _, s := range badTexts {
		f.Add([]byte(s))
		q := string(quote(s))
		f.Add([]byte(asJSON + `,"about":` + q + `,"scopes":{` + q + `:{"routes":[` + q + `]}},"answers":{"default":{"message":` + q + `,"body":[` + q + `,{` + q + `:1}]}}}`))
		f.Add([]byte("keyspace: " + s + "\nformat: {prefixes: {live: " + s + "}, length: 40}\nconsole: {statuses: {active: " + s + "}}\n"))
	}
	for _, s := range []string{
		"a: &a [*a]", "? [a]\n: b", "{a, b: , c}", "--- a\n--- b\n", "!!binary a", "a: !!float .nan", "<<: {a: b}", "a:\n\t- b", "%YAML 9.9\n---\na: b",
		strings.Repeat("[", 10_000), strings.Repeat("{a: ", 10_000), strings.Repeat(`{"a":`, 10_000) + "1" + strings.Repeat("}", 10_000),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, source []byte) {
		var any Document
		if json.Unmarshal(source, &any) == nil {
			exercise(t, Compile(&any, 1))
		}
		d, err := ParseDocument(source)
		if err != nil {
			if bad, ok := errors.AsType[*DocumentError](err); !ok || len(bad.Problems) == 0 {
				t.Fatalf("refused without a problem: %v", err)
			}
			return
		}
		again, err := ParseDocument(d.JSON())
		if err != nil {
			t.Fatalf("%s: %v", d.JSON(), err)
		}
		if !bytes.Equal(d.JSON(), again.JSON()) {
			t.Fatalf("%s became %s", d.JSON(), again.JSON())
		}
		var stored Document
		if err := json.Unmarshal(d.JSON(), &stored); err != nil {
			t.Fatalf("%s cannot be read from the ledger: %v", d.JSON(), err)
		}
		if !bytes.Equal(stored.JSON(), d.JSON()) {
			t.Fatalf("%s is read from the ledger as %s", d.JSON(), stored.JSON())
		}
		k := Compile(d, 1)
		exercise(t, k)
		for environment := range d.Format.Prefixes {
			plain, _, err := k.NewSecret(strings.NewReader(strings.Repeat("not random at all ", 200)), environment)
			if err != nil {
				t.Fatal(err)
			}
			if in, ok := k.CheckFormat(plain); !ok || in != environment {
				t.Fatalf("%s makes %q for %s and takes it for %q %v", d.JSON(), plain, environment, in, ok)
			}
			if code := k.Judge(Request{Key: plain}, nil, nil, time.Now()); code != CodeUnknownKey {
				t.Fatalf("an unknown secret of %s is %s", environment, code)
			}
		}
	})
}

// exercise does with a keyspace what a verifier does, for requests of every kind.
func exercise(t *testing.T, k *Keyspace) {
	t.Helper()
	const secret = "a-secret-that-nobody-may-see"
	hash := HashSecret(secret)
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	plans := append(slices.Sorted(maps.Keys(k.Plans)), "", "none")
	paths := []string{"", "/", "/health", "/v1/orgs/acme/depots/d1", "/v1/../x;y/%2e%2e", "*"}
	for _, rules := range k.Document.Scopes {
		for _, s := range rules.Routes {
			if _, path, ok := strings.Cut(s, " "); ok {
				paths = append(paths, strings.ReplaceAll(path, "*", "x"))
			}
		}
	}
	for i, plan := range plans[:min(len(plans), 4)] {
		owner := &Owner{Keyspace: k.Document.Keyspace, ID: "acme", Plan: plan}
		key := &Key{ID: "key_1", Name: "CI", Hash: hash, Version: 1, Grant: &Grant{
			Keyspace: k.Document.Keyspace, Owner: "acme", Environment: k.Document.Format.DefaultEnvironment, Scopes: slices.Sorted(maps.Keys(k.Document.Scopes)),
		}, More: &More{}}
		if i%2 == 1 {
			key.Resources = []string{"d1"}
		}
		for j, path := range paths[:min(len(paths), 12)] {
			method := []string{http.MethodGet, http.MethodPost, "", "BREW"}[j%4]
			for _, key := range []*Key{key, nil} {
				req := Request{Keyspace: k.Document.Keyspace, Method: method, Path: path, TLS: new(true), ContentType: &k.Document.Credential.RequireContentType, IP: "192.0.2.1"}
				if value := k.Document.Credential.Scheme + " " + secret; j%3 > 0 {
					req.Credential = []string{strings.TrimPrefix(value, " ")}
				}
				code := k.Judge(req, key, owner, now)
				if code != CodeValid && !slices.Contains(Codes(), code) {
					t.Fatalf("judged %q", code)
				}
				if code == CodeValid && len(req.Credential) > 0 && key == nil {
					t.Fatalf("an unknown key is admitted to %s %q", method, path)
				}
				if code == CodeValid && key == nil && k.PublicRoute(method, path) == nil {
					t.Fatalf("nobody is admitted to %s %q, which is not public", method, path)
				}
				_ = req.Skipped(k)
			}
			_, _ = k.ResourceIn(path)
			_, _ = k.OwnerIn(path)
		}
		name, _, _ := k.PlanInForce(key, owner)
		limits, _ := k.LimitsFor(key, owner)
		for _, code := range Codes() {
			a := k.Answer(code, AnswerContext{RequestID: "req_1", Time: events.At(now), RetryAfter: 3, Limits: limits, Remaining: limits, Plan: name, KeyID: key.ID, Owner: "acme"})
			if code == CodeValid {
				continue
			}
			if !json.Valid(a.Body) || bytes.Contains(a.Body, []byte(secret)) {
				t.Fatalf("the answer to %s is %s", code, a.Body)
			}
			for _, h := range a.Headers {
				if strings.ContainsAny(h.Value, "\r\n\x00") {
					t.Fatalf("header %s of %s is %q", h.Name, code, h.Value)
				}
			}
		}
	}
}
