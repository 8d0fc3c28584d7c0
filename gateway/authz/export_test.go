package authz

import "net/http"

// ReadQuestion is what the short way makes of the head of a request.
func ReadQuestion(head string) (*http.Request, bool) {
	q := question{request: http.Request{Header: http.Header{}}}
	ok := q.read(head)
	return &q.request, ok
}
