package domain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// YAML writes the document for people: what [Document.JSON] says, in the same
// order, short lists and objects on one line. ParseDocument reads it back to an
// equal document. Comments that its author wrote are not recorded and not there.
// A document that YAML cannot say is written as JSON, which can be read as well.
func (d *Document) YAML() []byte {
	source := d.JSON()
	if out, err := yamlOf(source); err == nil {
		if back, err := ParseDocument(out); err == nil && bytes.Equal(back.JSON(), source) {
			return out
		}
	}
	var b bytes.Buffer
	if err := json.Indent(&b, source, "", "  "); err != nil {
		return source
	}
	return append(b.Bytes(), '\n')
}

func yamlOf(source []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(source))
	dec.UseNumber()
	root, err := yamlNode(dec)
	if err != nil {
		return nil, err
	}
	for i := 1; i < len(root.Content); i += 2 {
		compact(root.Content[i], len(root.Content[i-1].Value)+2)
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(root); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// yamlNode reads the next value of JSON, in the order in which it is written.
func yamlNode(dec *json.Decoder) (*yaml.Node, error) {
	token, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := token.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		if t == '{' {
			n.Kind = yaml.MappingNode
		}
		for dec.More() {
			if n.Kind == yaml.MappingNode {
				name, err := yamlNode(dec)
				if err != nil {
					return nil, err
				}
				n.Content = append(n.Content, name)
			}
			v, err := yamlNode(dec)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, v)
		}
		if _, err := dec.Token(); err != nil && err != io.EOF {
			return nil, err
		}
		return n, nil
	case string:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: t}, nil
	case json.Number:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: t.String()}, nil
	case nil:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: "null"}, nil
	default:
		return &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(t)}, nil
	}
}

// lineWidth is how much stands on one line of a short list or object.
const lineWidth = 110

// compact writes what has room on one line on one line. at is where it begins.
func compact(n *yaml.Node, at int) {
	if n.Kind == yaml.ScalarNode {
		return
	}
	if w := width(n); w >= 0 && at+w <= lineWidth {
		n.Style = yaml.FlowStyle
		return
	}
	for i, c := range n.Content {
		if n.Kind == yaml.SequenceNode {
			compact(c, at+2)
		} else if i%2 == 1 {
			compact(c, at+2+len(n.Content[i-1].Value)+2)
		}
	}
}

// width is that of a value on one line; negative: it stands better on several.
func width(n *yaml.Node) int {
	if n.Kind == yaml.ScalarNode {
		if strings.Contains(n.Value, "\n") {
			return -1
		}
		return len(n.Value) + 2
	}
	w := 2
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 1 && c.Kind == yaml.MappingNode && len(c.Content) > 0 {
			return -1 // objects within objects are read line by line
		}
		cw := width(c)
		if cw < 0 {
			return -1
		}
		w += cw + 2
	}
	return w
}
