package api

import (
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// OpenAPI is the document that a running API answers at /openapi.json.
func OpenAPI() ([]byte, error) { return build(Deps{}).openAPI() }

func (a *API) openAPI() ([]byte, error) {
	return json.MarshalIndent(a.huma.OpenAPI(), "", "  ")
}

const secured = "credential"

func (a *API) config() huma.Config {
	registry := huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)
	registry.RegisterTypeAlias(reflect.TypeFor[events.Time](), reflect.TypeFor[wireTime]())
	registry.RegisterTypeAlias(reflect.TypeFor[events.Envelope](), reflect.TypeFor[Event]())
	format := huma.Format{Marshal: huma.DefaultJSONFormat.Marshal, Unmarshal: unmarshal}
	version := a.Version
	if version == "" {
		version = "1"
	}
	c := huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title:       "keyledger",
				Version:     version,
				Description: "Issues, verifies, limits, rotates and revokes API keys, and keeps every one of these facts in a log that can be checked.\n\nEvery error is a problem document (RFC 9457). Every command takes an Idempotency-Key, and answers with Ledger-Sequence; a read with that number in Min-Sequence waits until it can see the command.",
			},
			Servers: []*huma.Server{{URL: "/", Description: "The service that answered this document."}},
			Tags: []*huma.Tag{
				{Name: "Keyspaces", Description: "API products: key format, scopes, plans, limits and answers."},
				{Name: "Owners", Description: "The customers that keys belong to."},
				{Name: "Keys", Description: "Credentials and their lifecycle."},
				{Name: "Claims", Description: "New secrets, handed over by a link that shows them once."},
				{Name: "Root keys", Description: "Keys for keyledger itself."},
				{Name: "Verification", Description: "Decisions about requests, and their outcomes."},
				{Name: "Audit", Description: "The log of everything that happened."},
				{Name: "Retention", Description: "Erasing personal data, pruning old uses, and the legal holds that stop both."},
				{Name: "Feeds", Description: "For other programs that have to know what happened to keys."},
				{Name: "Usage", Description: "What was done with keys, in figures."},
				{Name: "Operation", Description: "How the service is doing."},
			},
			Components: &huma.Components{
				Schemas: registry,
				SecuritySchemes: map[string]*huma.SecurityScheme{secured: {
					Type: "http", Scheme: "bearer",
					Description: "A root key (klr_…), or a key of a keyspace whose scope grants the call, then only inside its own keyspace and owner.",
				}},
			},
		},
		Formats:                      map[string]huma.Format{"application/json": format, "json": format},
		DefaultFormat:                "application/json",
		RejectUnknownQueryParameters: true,
	}
	registry.Schema(reflect.TypeFor[Problem](), true, "Problem")
	return c
}

func hasBody[I any]() bool {
	_, ok := reflect.TypeFor[I]().FieldByName("Body")
	return ok
}

// document adds to an operation what follows from what kind of call it is.
func (a *API) document(op *huma.Operation, rt *route) {
	if rt.action != "" || rt.known {
		op.Security = []map[string][]string{{secured: {}}}
	}
	op.Parameters = slices.Clone(op.Parameters)
	if rt.command {
		op.Parameters = append(op.Parameters, headerParam("Idempotency-Key",
			"Any 1 to 255 printable ASCII characters, new for every command. For 24 hours the same key with the same body gives the same answer without a second effect, and never the secret again.",
			&huma.Schema{Type: "string", MinLength: new(1), MaxLength: new(maxIdempotencyKey)}),
			headerParam(receiptHeader, receiptDoc, &huma.Schema{Type: "string", Enum: []any{"1"}}))
		if op.Tags[0] == "Keys" && op.Path != "/v1/keys" && op.Path != "/v1/keys/import" {
			op.Parameters = append(op.Parameters, headerParam("If-Match",
				`The ETag of the key as it was read; refused with 412 when the key has changed since.`, &huma.Schema{Type: "string", Examples: []any{`"1"`}}))
		}
	}
	if rt.read {
		op.Parameters = append(op.Parameters, headerParam("Min-Sequence",
			"A Ledger-Sequence that the answer must have seen; waits up to 5 s for it.", &huma.Schema{Type: "integer", Minimum: new(0.0)}))
	}
	if op.Responses == nil {
		op.Responses = map[string]*huma.Response{}
	}
	for _, status := range problemsOf(rt) {
		op.Responses[strconv.Itoa(status)] = &huma.Response{
			Description: problemText[status],
			Content:     map[string]*huma.MediaType{problemType: {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}}},
		}
	}
}

var problemText = map[int]string{
	http.StatusBadRequest:            "The input cannot be read.",
	http.StatusUnauthorized:          "No credential, or one that does not work.",
	http.StatusForbidden:             "More than the credential or the plan allows.",
	http.StatusNotFound:              "Absent, or not the caller's to see: both look the same.",
	http.StatusConflict:              "The state does not allow it, or the Idempotency-Key was used for another command.",
	http.StatusGone:                  "The key was deleted, or the claim opens nothing any more.",
	http.StatusPreconditionFailed:    "It has changed since it was read.",
	http.StatusRequestEntityTooLarge: "The body is too large.",
	http.StatusUnsupportedMediaType:  "The body is of a type that this call does not take.",
	http.StatusUnprocessableEntity:   "The input is not valid; errors says what, where, and what to write instead.",
	http.StatusInternalServerError:   "Something went wrong inside.",
	http.StatusServiceUnavailable:    "Something that this call needs is away; Retry-After says when to ask again.",
}

func problemsOf(rt *route) []int {
	list := []int{http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusInternalServerError, http.StatusServiceUnavailable}
	if rt.action != "" || rt.known || len(rt.Security) > 0 {
		list = append(list, http.StatusUnauthorized, http.StatusForbidden)
	}
	if rt.command || rt.absent || rt.action == domain.KeysRead || rt.action == domain.OwnersRead || rt.action == domain.KeyspacesRead {
		list = append(list, http.StatusNotFound)
	}
	if rt.command {
		list = append(list, http.StatusConflict)
	}
	if op := rt.Operation; len(op.Tags) > 0 && op.Tags[0] == "Keys" && slices.Contains([]string{"/v1/keys/{id}"}, op.Path[:min(len(op.Path), len("/v1/keys/{id}"))]) {
		list = append(list, http.StatusGone)
		if rt.command {
			list = append(list, http.StatusPreconditionFailed)
		}
	}
	if len(rt.Tags) > 0 && rt.Tags[0] == "Claims" {
		list = append(list, http.StatusGone)
	}
	if rt.OperationID == "configure-keyspace" {
		list = append(list, http.StatusPreconditionFailed)
	}
	if rt.Method != http.MethodGet && rt.Method != http.MethodDelete {
		list = append(list, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType)
	}
	return list
}

func headerParam(name, doc string, s *huma.Schema) *huma.Param {
	return &huma.Param{Name: name, In: "header", Description: doc, Schema: s}
}

func queryParam(name, doc string, s *huma.Schema) *huma.Param {
	return &huma.Param{Name: name, In: "query", Description: doc, Schema: s}
}

func pathParam(name, doc, example string) *huma.Param {
	return &huma.Param{Name: name, In: "path", Required: true, Description: doc, Schema: &huma.Schema{Type: "string", Examples: []any{example}}}
}

// schema is the schema of a Go type that no registered input or output has.
func (a *API) schema(v any) *huma.Schema {
	t := reflect.TypeOf(v)
	return a.huma.OpenAPI().Components.Schemas.Schema(t, true, t.Name())
}

func (a *API) answer(doc string, s *huma.Schema) *huma.Response {
	return &huma.Response{Description: doc, Content: map[string]*huma.MediaType{"application/json": {Schema: s}},
		Headers: map[string]*huma.Param{}}
}
