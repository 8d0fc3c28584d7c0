package sinks

import (
	"errors"
	"net"

	"github.com/ThreeDotsLabs/watermill-redisstream/pkg/redisstream"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/redis/go-redis/v9"
)

// redisSettings are of a sink that adds every message to a Redis stream, as
// watermill-redisstream's subscriber reads it.
type redisSettings struct {
	Address      string `yaml:"address"` // host:port
	Stream       string `yaml:"stream"`
	Database     int    `yaml:"database"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"` // or KEYLEDGER_SINK_NAME_PASSWORD
	TLS          bool   `yaml:"tls"`
	CA           string `yaml:"ca"` // PEM file of who signed the server's certificate; turns TLS on

	// MaxLength is about how many messages the stream keeps; older ones go, read or
	// not. Default: all, until whoever reads them trims it.
	MaxLength int64 `yaml:"max_length"`
}

func openRedis(b base, s redisSettings) (message.Publisher, string, error) {
	var errs []error
	if _, port, err := net.SplitHostPort(s.Address); s.Address == "" {
		errs = append(errs, wrong("address", "is missing", "write where Redis is, such as 127.0.0.1:6379"))
	} else if err != nil || port == "" {
		errs = append(errs, wrong("address", "is no host and port", "write them such as 127.0.0.1:6379"))
	}
	if s.Stream == "" {
		errs = append(errs, wrong("stream", "is missing", "write the key of the stream, such as keyledger"))
	}
	if s.MaxLength < 0 {
		errs = append(errs, wrong("max_length", "is negative", "write how many messages the stream keeps, or leave it out for all"))
	}
	if s.Database < 0 {
		errs = append(errs, wrong("database", "is negative", "write its number, or leave it out for 0"))
	}
	password, err := b.secret("password", s.PasswordFile)
	errs = append(errs, err)
	security, err := trust(s.CA)
	if errs = append(errs, err); errors.Join(errs...) != nil {
		return nil, "", errors.Join(errs...)
	}
	o := &redis.Options{
		Addr: s.Address, DB: s.Database, Username: s.Username, Password: password,
		// Who delivers repeats, and knows for how long.
		MaxRetries: -1, ContextTimeoutEnabled: true, DisableIdentity: true,
		DialTimeout: b.Timeout, ReadTimeout: b.Timeout, WriteTimeout: b.Timeout,
	}
	if s.TLS || s.CA != "" {
		o.TLSConfig = security
	}
	p, err := redisstream.NewPublisher(redisstream.PublisherConfig{Client: redis.NewClient(o), DefaultMaxlen: s.MaxLength}, nil)
	return p, s.Stream, err
}
