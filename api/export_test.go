package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
)

var documented = sync.OnceValue(func() *API { return build(Deps{}) })

// Conforms says where an answer is not as the OpenAPI document says.
func Conforms(method, path string, status int, header http.Header, body []byte) (wrong []string) {
	a := documented()
	path, _, _ = strings.Cut(path, "?")
	match := chi.NewRouteContext()
	if !strings.HasPrefix(path, "/v1/") || !a.router.Match(match, method, path) {
		return nil
	}
	item := a.huma.OpenAPI().Paths[strings.Replace(match.RoutePattern(), "/tile/*", "/tile/{level}/{number}", 1)]
	op := map[string]*huma.Operation{"GET": item.Get, "PUT": item.Put, "POST": item.Post, "PATCH": item.Patch, "DELETE": item.Delete}[method]
	response := op.Responses[strconv.Itoa(status)]
	if response == nil {
		return []string{fmt.Sprintf("%s is not documented to answer %d", op.OperationID, status)}
	}
	kind, _, _ := strings.Cut(header.Get("Content-Type"), ";")
	content := response.Content[kind]
	if content == nil {
		return []string{fmt.Sprintf("%s is not documented to answer %s with %d", op.OperationID, kind, status)}
	}
	if kind != "application/json" && kind != problemType {
		return nil
	}
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return []string{err.Error()}
	}
	var found huma.ValidateResult
	huma.Validate(a.huma.OpenAPI().Components.Schemas, content.Schema, huma.NewPathBuffer(nil, 0), huma.ModeReadFromServer, v, &found)
	for _, err := range found.Errors {
		wrong = append(wrong, fmt.Sprintf("%s %d: %v", op.OperationID, status, err))
	}
	for name, doc := range response.Headers {
		if header.Get(name) == "" && !(doc.Schema != nil && strings.HasPrefix(doc.Schema.Description, "Only ")) {
			wrong = append(wrong, fmt.Sprintf("%s %d has no %s", op.OperationID, status, name))
		}
	}
	return wrong
}
