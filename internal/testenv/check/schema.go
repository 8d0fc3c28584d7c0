package check

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/keyledger/keyledger/events"
)

// ofEachType is how many events of a type are held against its schema: as many as find
// every member that may be absent, without a long run taking longer.
const ofEachType = 200

// schemas are the published ones, as a validator that is not ours reads them.
var schemas = sync.OnceValues(func() (map[string]*jsonschema.Schema, error) {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	compiled := map[string]*jsonschema.Schema{}
	for _, f := range events.Schemas() {
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(events.Schema(f.Name)))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		if err := c.AddResource(f.ID, doc); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
		if compiled[f.ID], err = c.Compile(f.ID); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return compiled, nil
})

// ofSchema says what keeps a stored event from being what its schema says.
func ofSchema(r events.Record, seen map[string]int) error {
	id := events.SchemaID(r.Event.Type, r.Event.Version)
	if seen[id]++; seen[id] > ofEachType {
		return nil
	}
	all, err := schemas()
	if err != nil {
		return err
	}
	schema := all[id]
	if schema == nil {
		return fmt.Errorf("%s version %d has no schema", r.Event.Type, r.Event.Version)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(r.Body))
	if err != nil {
		return err
	}
	return schema.Validate(v)
}
