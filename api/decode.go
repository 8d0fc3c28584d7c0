package api

import (
	"bytes"
	"encoding/json"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

// decode makes a reader of bodies that were found readable: it checks one by the
// schema that the OpenAPI document publishes, and finds everything that is
// wrong at once.
func (a *API) decode(schema *huma.Schema) func(body []byte, v any) error {
	registry := a.huma.OpenAPI().Components.Schemas
	return func(body []byte, v any) error {
		var parsed any
		if err := json.Unmarshal(body, &parsed); err != nil {
			return unreadable("it is no JSON")
		}
		var found huma.ValidateResult
		huma.Validate(registry, schema, huma.NewPathBuffer(make([]byte, 0, 64), 0), huma.ModeWriteToServer, parsed, &found)
		if len(found.Errors) > 0 {
			return humaProblem(http.StatusUnprocessableEntity, "", found.Errors)
		}
		if err := unmarshal(body, v); err != nil {
			return unprocessable(Detail{Message: err.Error(), Fix: "see /openapi.json"})
		}
		return nil
	}
}

// marshal is json.Marshal without the escapes that only HTML needs.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
}
