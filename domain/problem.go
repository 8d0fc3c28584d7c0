package domain

import (
	"fmt"
	"strings"
)

// Problem is one thing that is wrong with an input, where, and what to write
// instead.
type Problem struct {
	Path    string `json:"path"`           // such as answers.RATE_LIMITED.body.wait; empty: the whole input
	Line    int    `json:"line,omitempty"` // from 1; 0 where the input has no lines
	Message string `json:"message"`
	Fix     string `json:"fix"`
}

func (p Problem) String() string {
	var b strings.Builder
	if p.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", p.Line)
	}
	if p.Path != "" {
		b.WriteString(p.Path + " ")
	}
	b.WriteString(p.Message)
	if p.Fix != "" {
		b.WriteString(": " + p.Fix)
	}
	return b.String()
}

// DocumentError lists everything that is wrong with a keyspace document, in
// the order of its lines.
type DocumentError struct {
	Problems []Problem

	// Unreadable: the source is no document at all, neither YAML nor JSON, so
	// that nothing in it could be checked.
	Unreadable bool
}

func (e *DocumentError) Error() string {
	if len(e.Problems) == 1 {
		return "keyspace document: " + e.Problems[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "keyspace document: %d problems", len(e.Problems))
	for _, p := range e.Problems {
		b.WriteString("\n  " + p.String())
	}
	return b.String()
}
