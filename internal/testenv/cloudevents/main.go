// Cloudevents reads messages, one JSON object {"header": {name: [value]}, "body": base64} a
// line, as the SDK of CloudEvents reads messages of NATS in binary mode, and prints each
// event in the JSON format of CloudEvents, or fails. With the argument lines it reads events
// in that format, one after another, with batch an array of them, one at a time. It is a
// module of its own, so that nothing of it is a dependency of the program.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/binding/spec"
	"github.com/cloudevents/sdk-go/v2/event"
)

const prefix = "ce-" // of attributes, in the binding for NATS

var versions = spec.WithPrefix(prefix)

type message struct {
	Header map[string][]string
	Body   []byte
}

func (m *message) ReadEncoding() binding.Encoding { return binding.EncodingBinary }

func (m *message) ReadStructured(context.Context, binding.StructuredWriter) error {
	return binding.ErrNotStructured
}

func (m *message) ReadBinary(_ context.Context, w binding.BinaryWriter) error {
	given := m.Header[versions.PrefixedSpecVersionName()]
	if len(given) != 1 || versions.Version(given[0]) == nil {
		return errors.New("no version of CloudEvents")
	}
	version := versions.Version(given[0])
	for name, values := range m.Header {
		if len(values) != 1 {
			return fmt.Errorf("header %s has %d values", name, len(values))
		}
		short, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		var err error
		if a := version.Attribute(name); a != nil {
			err = w.SetAttribute(a, values[0])
		} else {
			err = w.SetExtension(short, values[0])
		}
		if err != nil {
			return fmt.Errorf("header %s: %w", name, err)
		}
	}
	return w.SetData(bytes.NewReader(m.Body))
}

func (m *message) GetAttribute(kind spec.Kind) (spec.Attribute, any) {
	version := versions.Version(m.first(versions.PrefixedSpecVersionName()))
	if version == nil {
		return nil, nil
	}
	a := version.AttributeFromKind(kind)
	if value := m.first(a.PrefixedName()); value != "" {
		return a, value
	}
	return a, nil
}

func (m *message) GetExtension(name string) any {
	if value := m.first(prefix + name); value != "" {
		return value
	}
	return nil
}

func (m *message) first(name string) string {
	if values := m.Header[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}

func (m *message) Finish(error) error { return nil }

// written reads events in the JSON format, in an array or not.
func written(batch bool) error {
	in := json.NewDecoder(os.Stdin)
	if batch {
		if begin, err := in.Token(); err != nil || begin != json.Delim('[') {
			return fmt.Errorf("no array: %v %v", begin, err)
		}
	}
	for in.More() {
		var e event.Event
		err := in.Decode(&e)
		if err == nil {
			err = e.Validate()
		}
		if err != nil {
			return err
		}
		out, err := e.MarshalJSON()
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", out)
	}
	if batch {
		if _, err := in.Token(); err != nil {
			return fmt.Errorf("the end: %w", err)
		}
	}
	if more, err := in.Token(); err != io.EOF {
		return fmt.Errorf("behind the end: %v %v", more, err)
	}
	return nil
}

func main() {
	log.SetFlags(0)
	if len(os.Args) > 1 {
		if err := written(os.Args[1] == "batch"); err != nil {
			log.Fatal(err)
		}
		return
	}
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var m message
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			log.Fatal(err)
		}
		e, err := binding.ToEvent(context.Background(), &m)
		if err == nil {
			err = e.Validate()
		}
		if err != nil {
			log.Fatalf("%v: %v", m.Header, err)
		}
		out, err := e.MarshalJSON()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s\n", out)
	}
	if err := in.Err(); err != nil {
		log.Fatal(err)
	}
}
