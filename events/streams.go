package events

import (
	"maps"
	"slices"
	"strings"
)

// StreamOf is the stream that facts of a type stand in: LEDGER, USAGE, or OPS. Those of
// LEDGER stand in FEED as well, in their public form.
func StreamOf(kind string) string {
	switch kind {
	case "key.used", "key.use_reported", "key.rate_limited", "key.denied", "credential.rejected", "limit.taken", "usage.gap":
		return Usage
	}
	switch family, _, _ := strings.Cut(kind, "."); family {
	case "key", "owner", "keyspace":
		return Ledger
	}
	return Ops
}

// FedTypes are the types of the facts in FEED, sorted.
func FedTypes() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(Types())), func(kind string) bool { return StreamOf(kind) != Ledger })
}
