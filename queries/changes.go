package queries

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Change is one field of a key, an owner or a keyspace document, before and
// after: as its JSON is, null where there was none.
type Change struct {
	Field  string `json:"field"` // with the way to it: limits.minute
	Before any    `json:"before"`
	After  any    `json:"after"`
}

// Act is a fact as a timeline shows it: who did what, from where, and what it
// changed.
type Act struct {
	Time       events.Time  `json:"time"`
	Type       string       `json:"type"`
	Event      string       `json:"event"`
	Stream     string       `json:"stream"`
	Sequence   uint64       `json:"sequence"`
	KeyVersion uint64       `json:"key_version"`
	Actor      events.Actor `json:"actor"`
	Via        string       `json:"via"`
	RequestID  string       `json:"request_id"`
	Command    string       `json:"command"`
	Void       bool         `json:"void"` // another fact had come first: it changed nothing
	Changes    []Change     `json:"changes"`
}

func actOf(r *events.Record) Act {
	e := &r.Event
	return Act{e.Time, e.Type, e.ID, r.Stream, r.Sequence, e.KeyVersion, e.Actor, e.Via, e.RequestID, e.Command, false, []Change{}}
}

// document is a value as its JSON is: what may have changed in it.
func document(v any) map[string]any {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // of views and documents, which are always JSON
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		panic(err)
	}
	return m
}

// keyDocument is what can change of a key, at a moment by which it expires.
func keyDocument(k *domain.Key, at events.Time) map[string]any {
	if k == nil {
		return nil
	}
	m := document(ViewAt(k, Moment{Time: at}))
	for _, name := range []string{"id", "keyspace", "owner", "created_at", "created_by", "last_used_at", "use_count", "version"} {
		delete(m, name)
	}
	m["deleted_at"] = nil
	if k.Deleted() {
		m["deleted_at"] = k.DeletedAt.String()
	}
	return m
}

func ownerDocument(o *domain.Owner) map[string]any {
	if o == nil {
		return nil
	}
	return map[string]any{"name": o.Name, "plan": o.Plan}
}

// keyspaceDocument is the whole document. Of a new keyspace all of it is new,
// which the version says shorter.
func keyspaceDocument(k *domain.Keyspace, isNew bool) map[string]any {
	if k == nil {
		return nil
	}
	m := map[string]any{}
	if !isNew {
		m = document(json.RawMessage(k.Document.JSON()))
	}
	m["document_version"] = float64(k.DocumentVersion)
	return m
}

// differences are the fields that differ, by name. Of what is new or gone, empty
// fields are left out.
func differences(before, after map[string]any) []Change {
	list := []Change{}
	collect(&list, "", before, after)
	return list
}

func collect(list *[]Change, path string, before, after any) {
	b, wasMap := before.(map[string]any)
	a, isMap := after.(map[string]any)
	if (wasMap || before == nil) && (isMap || after == nil) && (wasMap || isMap) {
		names := slices.Collect(maps.Keys(b))
		for name := range a {
			if _, ok := b[name]; !ok {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			field := name
			if path != "" {
				field = path + "." + name
			}
			collect(list, field, b[name], a[name])
		}
		return
	}
	if reflect.DeepEqual(before, after) || empty(before) && empty(after) {
		return
	}
	*list = append(*list, Change{path, before, after})
}

func empty(v any) bool {
	switch v := v.(type) {
	case nil:
		return true
	case string:
		return v == ""
	case []any:
		return len(v) == 0
	}
	return false
}
