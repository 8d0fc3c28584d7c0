package sinks

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/keyledger/keyledger/reactors/delivery"
)

// httpSettings are of a sink that sends every message as a POST request.
type httpSettings struct {
	URL       string            `yaml:"url"`        // http or https, to any address
	TokenFile string            `yaml:"token_file"` // of a bearer token; or KEYLEDGER_SINK_NAME_TOKEN
	Headers   map[string]string `yaml:"headers"`    // that every request has
	CA        string            `yaml:"ca"`         // PEM file of who signed the server's certificate
}

// Headers of a request besides the CloudEvents attributes: those that watermill-http's
// subscriber reads.
const (
	headerUUID     = "Message-Uuid"
	headerMetadata = "Message-Metadata" // JSON object
)

var headerName = regexp.MustCompile(`^[A-Za-z0-9-]+$`)

// headersTaken are those that a setting must not change.
var headersTaken = []string{"authorization", "content-length", "content-type", "host", "message-metadata", "message-uuid", "transfer-encoding"}

func openHTTP(b base, s httpSettings) (message.Publisher, string, error) {
	var errs []error
	u, err := url.Parse(s.URL)
	switch {
	case s.URL == "":
		errs = append(errs, wrong("url", "is missing", "write where the server is, such as https://example.com/keyledger"))
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		errs = append(errs, wrong("url", "is no URL of an HTTP server", "write one such as https://example.com/keyledger"))
	case u.User != nil:
		errs = append(errs, wrong("url", "holds a user or a password", "leave them out; a bearer token comes from token_file or "+b.environment("token")))
	}
	fixed := http.Header{"Content-Type": {"application/json"}, "User-Agent": {"keyledger-sink"}}
	for _, name := range slices.Sorted(maps.Keys(s.Headers)) {
		if lower := strings.ToLower(name); slices.Contains(headersTaken, lower) || strings.HasPrefix(lower, attribute) || !headerName.MatchString(name) || strings.ContainsAny(s.Headers[name], "\r\n\x00") {
			errs = append(errs, wrong("headers", fmt.Sprintf("sets %q, which is the sink's own, or no header at all", name), "leave it out; a bearer token comes from token_file"))
			continue
		}
		fixed.Set(name, s.Headers[name])
	}
	token, err := b.secret("token", s.TokenFile)
	if err != nil {
		errs = append(errs, err)
	} else if token != "" {
		fixed.Set("Authorization", "Bearer "+token)
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = 16
	if t.TLSClientConfig, err = trust(s.CA); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, "", errors.Join(errs...)
	}
	return &httpPublisher{fixed: fixed, client: &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, s.URL, nil
}

// trust is the TLS of a client that takes certificates of the named CA alone, or of
// the machine's where none is named.
func trust(file string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if file == "" {
		return c, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, wrong("ca", "cannot be read: "+err.Error(), "name a PEM file")
	}
	c.RootCAs = x509.NewCertPool()
	if !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, wrong("ca", file+" holds no certificate", "name a file with certificates in PEM")
	}
	return c, nil
}

// httpPublisher publishes to a URL, which is the topic; see docs/adr/0033 for why it
// is not watermill-http's. A message is published when the server answered 2xx.
type httpPublisher struct {
	client *http.Client
	fixed  http.Header // of every request
	closed atomic.Bool
}

// answered is as much of an answer as is read, so that its connection is used again.
const answered = 64 << 10

// Publish is message.Publisher's.
func (p *httpPublisher) Publish(topic string, messages ...*message.Message) error {
	for _, m := range messages {
		if err := p.publish(topic, m); err != nil {
			return err
		}
	}
	return nil
}

func (p *httpPublisher) publish(topic string, m *message.Message) error {
	if p.closed.Load() {
		return errors.New("the publisher is closed")
	}
	req, err := http.NewRequestWithContext(m.Context(), http.MethodPost, topic, bytes.NewReader(m.Payload))
	if err != nil {
		return errors.New("the URL cannot be used") // it may hold a secret
	}
	req.Header = p.fixed.Clone()
	for name, value := range m.Metadata {
		if strings.HasPrefix(name, attribute) && name != attribute+"datacontenttype" { // that is Content-Type
			req.Header.Set(name, value)
		}
	}
	metadata, err := json.Marshal(m.Metadata)
	if err != nil {
		return err
	}
	req.Header.Set(headerUUID, m.UUID)
	req.Header.Set(headerMetadata, string(metadata))
	resp, err := p.client.Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL
		}
		return fmt.Errorf("%s cannot be reached: %w", req.URL.Host, err)
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, answered))
	delivery.Answered(m.Context(), resp.StatusCode, nil)
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case resp.StatusCode/100 == 3:
		return fmt.Errorf("%s answered %d: redirects are not followed, name the address it moved to", req.URL.Host, resp.StatusCode)
	}
	return fmt.Errorf("%s answered %d %s", req.URL.Host, resp.StatusCode, cmp.Or(http.StatusText(resp.StatusCode), "?"))
}

// Close is message.Publisher's.
func (p *httpPublisher) Close() error {
	p.closed.Store(true)
	p.client.CloseIdleConnections()
	return nil
}
