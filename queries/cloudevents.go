package queries

import (
	"io"
	"iter"

	"github.com/keyledger/keyledger/events"
)

// WriteCloudEvents writes events in the JSON batch format of CloudEvents 1.0: an array,
// each event on a line of its own, so that it can be read without holding all of it. One
// that was cut off is not JSON. It ends with the first error of the events or the writer.
func WriteCloudEvents(w io.Writer, list iter.Seq2[AuditEvent, error]) error {
	line := []byte("[\n")
	for e, err := range list {
		if err != nil {
			return err
		}
		shown, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		line = events.AppendCloudEvent(line, &e.Record, shown)
		if _, err := w.Write(line); err != nil {
			return err
		}
		line = append(line[:0], ",\n"...)
	}
	if line[0] == ',' {
		line = line[1:]
	}
	_, err := w.Write(append(line, "]\n"...))
	return err
}
