package events_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keyledger/keyledger/events"
)

// comments are what the source says about structs and their fields: "Fold" and
// "Fold.Count".
func comments(t *testing.T) map[string]string {
	t.Helper()
	said := map[string]string{}
	for _, name := range []string{"types.go", "events.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			decl, ok := n.(*ast.GenDecl)
			if !ok {
				return true
			}
			for _, spec := range decl.Specs {
				typ, ok := spec.(*ast.TypeSpec)
				if !ok {
					continue
				}
				said[typ.Name.Name] = plain(decl.Doc.Text())
				if s, ok := typ.Type.(*ast.StructType); ok {
					for _, f := range s.Fields.List {
						for _, n := range f.Names {
							said[typ.Name.Name+"."+n.Name] = plain(f.Doc.Text() + f.Comment.Text())
						}
					}
				}
			}
			return true
		})
	}
	return said
}

func plain(s string) string { return strings.Join(strings.Fields(s), " ") }

type object = map[string]any

// schemaOf is the schema of what encoding/json makes of a type.
func schemaOf(typ reflect.Type, said map[string]string) object {
	switch typ {
	case reflect.TypeFor[events.Time]():
		return object{"type": []string{"string", "null"}, "format": "date-time"}
	case reflect.TypeFor[json.RawMessage]():
		return object{} // any JSON
	case reflect.TypeFor[[]byte]():
		return object{"type": []string{"string", "null"}, "contentEncoding": "base64"}
	}
	nullable := func(s object) object {
		if kind, ok := s["type"].(string); ok {
			s["type"] = []string{kind, "null"}
		}
		return s
	}
	if typ == reflect.TypeFor[[]byte]() {
		return object{"type": []string{"string", "null"}, "contentEncoding": "base64"}
	}
	switch typ.Kind() {
	case reflect.String:
		return object{"type": "string"}
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.Float64:
		return object{"type": "number"}
	case reflect.Int, reflect.Int64:
		return object{"type": "integer"}
	case reflect.Uint64:
		return object{"type": "integer", "minimum": 0}
	case reflect.Pointer:
		return nullable(schemaOf(typ.Elem(), said))
	case reflect.Slice:
		return object{"type": []string{"array", "null"}, "items": schemaOf(typ.Elem(), said)}
	case reflect.Map:
		return object{"type": []string{"object", "null"}, "additionalProperties": schemaOf(typ.Elem(), said)}
	case reflect.Struct:
		properties, required := object{}, []string{}
		for _, f := range reflect.VisibleFields(typ) {
			if f.Anonymous {
				continue
			}
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			s := schemaOf(f.Type, said)
			if options == "omitempty" {
				if kinds, ok := s["type"].([]string); ok && f.Type != reflect.TypeFor[events.Time]() {
					s["type"] = kinds[0] // what is not there is not null
				}
			} else {
				required = append(required, name)
			}
			of := typ.Name()
			if len(f.Index) > 1 {
				of = typ.Field(f.Index[0]).Type.Name()
			}
			if text := said[of+"."+f.Name]; text != "" {
				s["description"] = text
			}
			properties[name] = s
		}
		slices.Sort(required)
		return object{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
	}
	panic("no schema for " + typ.String())
}

// eventSchema is the schema of an event of a type in its newest version.
func eventSchema(data events.Payload, said map[string]string) object {
	kind, version := data.Kind()
	typ := reflect.TypeOf(data)
	payload := schemaOf(typ, said)
	text := said[typ.Name()]
	payload["description"] = kind + strings.TrimPrefix(text, typ.Name())
	return object{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": events.SchemaID(kind, version),
		"title": kind, "description": payload["description"],
		"type": "object", "additionalProperties": false,
		"required": []string{"actor", "command", "data", "id", "key", "key_version", "keyspace", "owner", "request_id", "time", "type", "version", "via"},
		"properties": object{
			"id":          object{"type": "string", "pattern": "^evt_[0-9a-f-]{36}$", "description": said["Envelope.ID"]},
			"type":        object{"const": kind},
			"version":     object{"const": version},
			"time":        object{"type": "string", "format": "date-time", "description": said["Envelope.Time"]},
			"keyspace":    object{"type": "string", "pattern": "^([a-z0-9][a-z0-9-]{0,62})?$"},
			"owner":       object{"type": "string", "pattern": "^([A-Za-z0-9][A-Za-z0-9_-]{0,63})?$"},
			"key":         object{"type": "string"},
			"key_version": object{"type": "integer", "minimum": 0, "description": said["Envelope.KeyVersion"]},
			"actor":       schemaOf(reflect.TypeFor[events.Actor](), said),
			"via":         object{"type": "string", "description": said["Envelope.Via"]},
			"request_id":  object{"type": "string"},
			"command":     object{"type": "string"},
			"data":        payload,
		},
	}
}

// Every type and version has a schema, which is what the struct says; a file is added with
// -update, and never changed.
func TestSchemas(t *testing.T) {
	said := comments(t)
	have := map[string]bool{}
	for _, data := range samples {
		kind, version := data.Kind()
		name := fmt.Sprintf("%s.v%d.json", kind, version)
		have[name] = true
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		if err := enc.Encode(eventSchema(data, said)); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("schemas", name)
		was, err := os.ReadFile(path)
		if os.IsNotExist(err) && *update {
			err = os.WriteFile(path, b.Bytes(), 0o644)
			was = b.Bytes()
		}
		if err != nil {
			t.Errorf("%v (a new type or version needs a schema: go test ./events -update)", err)
		} else if !bytes.Equal(was, b.Bytes()) && !sameMeaning(was, b.Bytes()) {
			t.Errorf("%s is not what the struct says (never released: remove it, then go test ./events -update; else it needs a new version):\n%s", path, b.Bytes())
		}
	}
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if _, err := os.Stat(filepath.Join("schemas", filepath.Base(path))); err != nil {
			t.Errorf("%s has no schema", path)
		}
	}
}

// sameMeaning compares two schemas without what they say for people.
func sameMeaning(a, b []byte) bool {
	var x, y any
	if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
		return false
	}
	return reflect.DeepEqual(withoutText(x), withoutText(y))
}

func withoutText(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if text, ok := member.(string); ok && name == "description" && text != "" {
				delete(v, name)
			} else {
				v[name] = withoutText(member)
			}
		}
	case []any:
		for i := range v {
			v[i] = withoutText(v[i])
		}
	}
	return v
}

// Every golden event is what its schema says, by a validator that is not ours; one that
// lacks a member, has one too many, or is of another type is not.
func TestGoldenEventsAreOfTheirSchema(t *testing.T) {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	schemas := map[string]*jsonschema.Schema{}
	for _, f := range events.Schemas() {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(events.Schema(f.Name)))
		if err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		if err := c.AddResource(f.ID, doc); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		if schemas[f.Name], err = c.Compile(f.ID); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
	}
	files, err := filepath.Glob("testdata/golden/*.json")
	if err != nil || len(files) < len(samples) {
		t.Fatalf("%d golden files: %v", len(files), err)
	}
	for _, path := range files {
		body, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		schema := schemas[filepath.Base(path)]
		if schema == nil {
			t.Errorf("%s has no schema", path)
			continue
		}
		check := func(change func(event, data map[string]any)) error {
			t.Helper()
			v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			event := v.(map[string]any)
			change(event, event["data"].(map[string]any))
			return schema.Validate(v)
		}
		if err := check(func(event, data map[string]any) {}); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		for what, change := range map[string]func(event, data map[string]any){
			"with another type":       func(event, _ map[string]any) { event["type"] = "key.forgotten" },
			"with another version":    func(event, _ map[string]any) { event["version"] = 99 },
			"without a time":          func(event, _ map[string]any) { delete(event, "time") },
			"with a time that is not": func(event, _ map[string]any) { event["time"] = "yesterday" },
			"with one more":           func(event, _ map[string]any) { event["more"] = 1 },
			"with one more in data":   func(_, data map[string]any) { data["more"] = 1 },
			"with its data as text":   func(event, _ map[string]any) { event["data"] = "{}" },
		} {
			if check(change) == nil {
				t.Errorf("%s %s is of its schema", path, what)
			}
		}
	}
}
