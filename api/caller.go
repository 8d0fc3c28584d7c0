package api

import (
	"context"
	"crypto/sha256"
	"net/http"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// Caller is who asks, where the request comes from a part of this program that
// knows that by its own means: the console, by its session. It takes the place of
// a credential and is judged anew with every request, so that a session ends with
// the root key that it was begun with.
type Caller struct {
	// RootKey is the SHA-256 of the secret of a root key.
	RootKey [sha256.Size]byte

	// Person is somebody who signed in without a root key; RootKey is not looked at.
	Person *domain.Person
}

type callerKey struct{}

// As returns a context for requests of a caller. It is for [http.Request]s that
// this program makes itself: nothing of a request from outside leads here.
func As(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// callerOf judges the caller that a context names; false: it names none.
func (a *API) callerOf(r *http.Request) (domain.Authority, error, bool) {
	c, ok := r.Context().Value(callerKey{}).(Caller)
	if !ok {
		return domain.Authority{}, nil, false
	}
	if c.Person != nil {
		return c.Person.Authority(), nil, true
	}
	key := a.Ring.BySecret(events.RootKeyspace, c.RootKey)
	if key == nil {
		return domain.Authority{}, unauthorized(domain.CodeUnknownKey), true
	}
	authority, err := a.judge(r, domain.RootKeyspace(), "", c.RootKey, key)
	return authority, err, true
}
