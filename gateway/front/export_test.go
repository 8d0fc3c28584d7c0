package front

import "net/http"

// ReadPlain is what the short way makes of the head of a request.
func ReadPlain(head string) (*http.Request, bool) {
	var q request
	q.init("")
	ok := q.read(head)
	return &q.Request, ok
}
