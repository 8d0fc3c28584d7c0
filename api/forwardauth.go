package api

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

const (
	authzRoute   = "/v1/authz/{keyspace}"
	answersRoute = "/v1/authz-answers/{decision_id}"
)

// hotAuthz is forward-auth's short way: it has its own credential, takes any method
// and writes its own answers. It is false for every other path.
func (a *API) hotAuthz(w http.ResponseWriter, r *http.Request, path string) bool {
	route := authzRoute
	switch {
	case a.Authz == nil:
		return false
	case strings.HasPrefix(path, "/v1/authz/"):
	case strings.HasPrefix(path, "/v1/authz-answers/"):
		route = answersRoute
	default:
		return false
	}
	began := time.Now()
	answer := &statusOf{ResponseWriter: w}
	a.Authz.ServeHTTP(answer, r)
	method := r.Method
	if !methods[method] {
		method = "other"
	}
	a.meter.requests.WithLabelValues(method, route, strconv.Itoa(answer.status)).Inc()
	a.meter.took.WithLabelValues(method, route).Observe(time.Since(began).Seconds())
	return true
}

// statusOf remembers the status of an answer.
type statusOf struct {
	http.ResponseWriter
	status int
}

func (s *statusOf) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}

const proxySecured = "proxy"

// forwardAuth documents what hotAuthz answers.
func (a *API) forwardAuth() {
	if a.Authz == nil && a.Ring != nil {
		return
	}
	doc := a.huma.OpenAPI()
	doc.Components.SecuritySchemes[proxySecured] = &huma.SecurityScheme{
		Type: "apiKey", In: "header", Name: "X-Authz-Token",
		Description: "A root key of role verifier, sent by a proxy in a header of its own. On the Unix socket none is needed.",
	}
	security := []map[string][]string{{proxySecured: {}}}
	text := &huma.Schema{Type: "string"}
	problems := func(statuses ...int) map[string]*huma.Response {
		m := map[string]*huma.Response{}
		for _, status := range statuses {
			m[strconv.Itoa(status)] = &huma.Response{
				Description: problemText[status],
				Content:     map[string]*huma.MediaType{problemType: {Schema: &huma.Schema{Ref: "#/components/schemas/Problem"}}},
			}
		}
		return m
	}
	refusal := &huma.Response{
		Description: "Refused: status, headers and body as the keyspace's document says, to be relayed.",
		Content:     map[string]*huma.MediaType{"application/json": {Schema: &huma.Schema{}}, problemType: {Schema: &huma.Schema{}}},
	}

	authorize := problems(400, 401, 403, 404)
	authorize["200"] = &huma.Response{Description: "Admitted. Copy the headers to the upstream. A CORS preflight is admitted without a credential.", Headers: map[string]*huma.Param{
		"X-Key-Id":          {Description: "The key; a hyphen where none was needed.", Schema: text},
		"X-Key-Owner":       {Description: "Its owner.", Schema: text},
		"X-Key-Scopes":      {Description: "Its scopes, joined by commas.", Schema: text},
		"X-Key-Environment": {Description: "Its environment.", Schema: text},
		"X-Request-Id":      {Description: "Of this request, as recorded.", Schema: text},
		"X-Decision-Id":     {Description: "For POST /v1/uses.", Schema: text},
	}}
	authorize["default"] = refusal
	doc.AddOperation(&huma.Operation{
		OperationID: "authorize", Method: http.MethodGet, Path: authzRoute, Tags: []string{"Verification"}, Security: security,
		Summary: "Forward-auth, for nginx, Traefik, Caddy and Envoy",
		Description: "Takes any method. The request that the proxy asks about is in X-Original-Method and X-Original-URI (nginx) or in X-Forwarded-Method and X-Forwarded-Uri (Traefik, Caddy); its other headers are the client's. " +
			"Envoy's path_prefix is this path, the original path follows, and the method is the original one. The client's address and whether it used TLS are X-Forwarded-For, of which the last entry counts, and X-Forwarded-Proto.",
		Parameters: []*huma.Param{
			pathParam("keyspace", "Whose document judges.", "parcelbird"),
			queryParam("for", "The proxy that asks. For nginx every refusal is 403 without a body, with X-Decision-Status, X-Decision-Id and X-Decision-Answer.", &huma.Schema{Type: "string", Enum: []any{"nginx", "traefik", "caddy"}}),
			queryParam("environments", "Of keys that are admitted, joined by commas; absent: all.", text),
			headerParam("X-Original-Method", "nginx: $request_method.", text),
			headerParam("X-Original-URI", "nginx: $request_uri.", text),
			headerParam("X-Forwarded-Method", "Traefik and Caddy send it.", text),
			headerParam("X-Forwarded-Uri", "Likewise.", text),
			headerParam("X-Forwarded-For", "The client's address, last.", text),
			headerParam("X-Forwarded-Proto", "https where the client used TLS.", text),
		},
		Responses: authorize,
	})

	answers := problems(401, 403)
	answers["default"] = refusal
	doc.AddOperation(&huma.Operation{
		OperationID: "relay-refusal", Method: http.MethodGet, Path: answersRoute, Tags: []string{"Verification"}, Security: security,
		Summary:     "The answer that nginx was told of",
		Description: "Answers with the status, headers and body of a refusal that for=nginx answered with 403. Decides nothing and counts nothing.",
		Parameters: []*huma.Param{
			pathParam("decision_id", "X-Decision-Id of the 403.", "dec_0pg3n0fl01r5tg00000000000000000000000000000000000000"),
			headerParam("X-Decision-Answer", "That of the 403: with it, any node can answer.", text),
			headerParam("X-Decision-Status", "Likewise.", text),
		},
		Responses: answers,
	})
}
