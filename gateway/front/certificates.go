package front

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// lookEvery is how often the files are compared with what was read of them.
const lookEvery = 5 * time.Second

// Certificates are those that a server shows to its clients. They are safe for
// concurrent use.
type Certificates struct {
	log    *slog.Logger
	inUse  atomic.Pointer[[]tls.Certificate]
	mu     sync.Mutex // guards the rest; held while files are read
	states []state
}

// state is one pair's.
type state struct {
	pair      Pair
	cert, key []byte // what was read last, whether it could be used or not
	unusable  error  // why it could not
	err       error  // why what is in the files now is not in use
}

// Certificate is what can be told of one pair.
type Certificate struct {
	File     string    // of the certificate
	NotAfter time.Time // of the one in use
	Err      error     // why what is in the files now is not in use; nil: it is
}

// LoadCertificates reads the files of all pairs. It fails with every pair that
// cannot be used. A nil log is slog.Default().
func LoadCertificates(pairs []Pair, log *slog.Logger) (*Certificates, error) {
	if log == nil {
		log = slog.Default()
	}
	c := &Certificates{log: log, states: make([]state, len(pairs))}
	all := make([]tls.Certificate, len(pairs))
	var problems []error
	for i, p := range pairs {
		s := &c.states[i]
		s.pair = p
		var err error
		if all[i], _, err = s.read(); err != nil {
			problems = append(problems, fmt.Errorf("tls.certificates[%d]: %w", i, err))
			continue
		}
		if left := time.Until(all[i].Leaf.NotAfter); left < 0 {
			log.Warn("a certificate has expired: clients will refuse it", "cert", p.Cert, "not_after", all[i].Leaf.NotAfter)
		}
	}
	c.inUse.Store(&all)
	return c, errors.Join(problems...)
}

// read reads the files. It is not changed where they hold what was read before.
func (s *state) read() (pair tls.Certificate, changed bool, err error) {
	cert, err := os.ReadFile(s.pair.Cert)
	if err != nil {
		return pair, true, err
	}
	key, err := os.ReadFile(s.pair.Key)
	if err != nil {
		return pair, true, err
	}
	if bytes.Equal(cert, s.cert) && bytes.Equal(key, s.key) {
		return pair, false, s.unusable
	}
	s.cert, s.key, s.unusable = cert, key, nil
	if pair, err = tls.X509KeyPair(cert, key); err != nil {
		s.unusable = fmt.Errorf("%s with %s: %w", s.pair.Cert, s.pair.Key, err)
	}
	return pair, true, s.unusable
}

// Reload reads files again that changed. A pair that cannot be used leaves the one
// that was in use in place; [Certificates.State] and the log say so.
func (c *Certificates) Reload() {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := append([]tls.Certificate(nil), *c.inUse.Load()...)
	for i := range c.states {
		s := &c.states[i]
		was := s.err
		pair, changed, err := s.read()
		s.err = err
		switch {
		case err != nil && (was == nil || was.Error() != err.Error()):
			c.log.Error("the new certificate cannot be used: the one before stays in use", "cert", s.pair.Cert, "error", err, "not_after", all[i].Leaf.NotAfter)
		case err == nil && changed:
			all[i] = pair
			// Before it is said that it is in use.
			c.inUse.Store(new(append([]tls.Certificate(nil), all...)))
			c.log.Info("a certificate was read again", "cert", s.pair.Cert, "names", pair.Leaf.DNSNames, "not_after", pair.Leaf.NotAfter)
		}
	}
}

// Watch calls [Certificates.Reload] when files change, and for every value of hup,
// until ctx ends.
func (c *Certificates) Watch(ctx context.Context, hup <-chan os.Signal) {
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		case <-t.C:
		}
		c.Reload()
	}
}

// State is that of every pair.
func (c *Certificates) State() []Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := *c.inUse.Load()
	list := make([]Certificate, len(all))
	for i := range all {
		list[i] = Certificate{File: c.states[i].pair.Cert, NotAfter: all[i].Leaf.NotAfter, Err: c.states[i].err}
	}
	return list
}

// get chooses the certificate for a client.
func (c *Certificates) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	all := *c.inUse.Load()
	for i := range all {
		if hello.SupportsCertificate(&all[i]) == nil {
			return &all[i], nil
		}
	}
	if len(all) == 0 {
		return nil, errors.New("there is no certificate")
	}
	return &all[0], nil
}
