package front

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"
)

// ErrBodyStalled is the error of reading a body whose client paused for longer
// than the body timeout.
var ErrBodyStalled = errors.New("the client paused for too long while sending the body")

// patient lets a client pause for so long, and no longer, while it sends a body.
func patient(h http.Handler, pause time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body != nil && r.Body != http.NoBody {
			r.Body = &patientBody{ReadCloser: r.Body, control: http.NewResponseController(w), pause: pause}
		}
		h.ServeHTTP(w, r)
	})
}

type patientBody struct {
	io.ReadCloser
	control *http.ResponseController
	pause   time.Duration
}

func (b *patientBody) Read(p []byte) (int, error) {
	if b.control.SetReadDeadline(time.Now().Add(b.pause)) != nil {
		return b.ReadCloser.Read(p) // an upgraded connection, whose deadlines are its handler's
	}
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return n, ErrBodyStalled
	}
	// What follows the body, a next request for one, has time limits of its own.
	_ = b.control.SetReadDeadline(time.Time{})
	return n, err
}
