package domain

import (
	"sync"
	"time"

	"github.com/keyledger/keyledger/events"
)

// RootKeyspace is the built-in keyspace of root keys. It is not in the ledger
// and cannot be configured.
var RootKeyspace = sync.OnceValue(func() *Keyspace {
	return Compile(&Document{
		Keyspace:   events.RootKeyspace,
		About:      "Root keys of this service",
		Credential: CredentialRules{Header: "Authorization", Scheme: "Bearer"},
		Format: Format{
			Prefixes:           map[string]string{"live": rootPrefix},
			DefaultEnvironment: "live",
			Alphabet:           "base62",
			Length:             43,
			Checksum:           "crc32",
		},
		Display:     Display{First: 8},
		Resource:    ResourceRules{Mode: "none"},
		Limits:      LimitRules{From: "key", CountBy: "key"},
		Lifecycle:   Lifecycle{Expiry: Expiry{Default: "never"}, Rotation: Rotation{Enabled: true, GraceMax: Duration(48 * time.Hour)}},
		LastUsed:    "any",
		RateHeaders: []string{"retry-after"},
	}, 1)
})

const rootPrefix = "klr_"
