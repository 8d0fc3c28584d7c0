package events

import (
	"encoding/json"
	"strconv"
)

// Public is the form of a fact that subscribers outside may see: the same
// envelope without the hashes of secrets. A fact without a hash is returned as
// it is.
func Public(e Envelope) Envelope {
	switch data := e.Data.(type) {
	case KeyCreated:
		data.Secret.SHA256 = ""
		e.Data = data
	case KeyRotated:
		data.Secret.SHA256 = ""
		e.Data = data
	}
	return e
}

// CloudEvents are the attributes of a fact in CloudEvents 1.0, by the names of the
// headers that carry them.
func CloudEvents(e Envelope) map[string]string {
	return map[string]string{
		"ce-specversion": "1.0", "ce-id": e.ID, "ce-type": e.Type, "ce-time": e.Time.String(),
		"ce-source": "/keyledger/" + e.Keyspace, "ce-subject": ceSubject(e),
		"ce-datacontenttype": "application/json", "ce-dataschema": SchemaID(e.Type, e.Version),
	}
}

// AppendCloudEvent appends an event in the JSON format of CloudEvents 1.0, on one line
// without its end. Its attributes are those of [CloudEvents]; stream, sequence and line are
// an extension each, the sequence as text, which that extension is. Data is the event as it
// is shown, one line of valid JSON: with its place, and personal data opened or left out,
// so that no schema of stored events describes it and dataschema is absent. Of the record
// it reads place, id, type, time, and whom it is about.
func AppendCloudEvent(b []byte, r *Record, data []byte) []byte {
	attributes, err := json.Marshal(struct {
		SpecVersion     string `json:"specversion"`
		ID              string `json:"id"`
		Source          string `json:"source"`
		Type            string `json:"type"`
		Subject         string `json:"subject,omitempty"` // an empty one is none
		Time            Time   `json:"time"`
		DataContentType string `json:"datacontenttype"`
		Stream          string `json:"stream"`
		Sequence        string `json:"sequence"`
		Line            int    `json:"line"`
	}{"1.0", r.Event.ID, "/keyledger/" + r.Event.Keyspace, r.Event.Type, ceSubject(r.Event), r.Event.Time, "application/json",
		r.Stream, strconv.FormatUint(r.Sequence, 10), r.Line})
	if err != nil {
		panic(err) // texts and numbers
	}
	b = append(append(b, attributes[:len(attributes)-1]...), `,"data":`...)
	return append(append(b, data...), '}')
}

// ceSubject names whom a fact is about: <owner>/<key>, <owner>, or the keyspace.
func ceSubject(e Envelope) string {
	switch {
	case e.Key != "" && e.Owner != "":
		return e.Owner + "/" + e.Key
	case e.Key != "":
		return e.Key
	case e.Owner != "":
		return e.Owner
	}
	return e.Keyspace
}
