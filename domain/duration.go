package domain

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a length of time, written Go-style with d for days of 24 hours:
// 30d, 24h, 1d12h, 90s.
type Duration time.Duration

// ParseDuration reads a Duration. Only a leading part may be in days.
func ParseDuration(s string) (Duration, error) {
	rest := s
	var days time.Duration
	if n, after, ok := strings.Cut(s, "d"); ok {
		d, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return 0, badDuration(s)
		}
		days, rest = time.Duration(d)*24*time.Hour, after
		if rest == "" {
			return Duration(days), nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || days+d < 0 {
		return 0, badDuration(s)
	}
	return Duration(days + d), nil
}

func badDuration(s string) error {
	return fmt.Errorf("%q is not a duration: write 30d, 24h or 90s", s)
}

// String writes the duration so that ParseDuration reads it back: from three
// whole days on in days, else without its zero parts.
func (d Duration) String() string {
	t := time.Duration(d)
	if t >= 3*24*time.Hour && t%(24*time.Hour) == 0 {
		return strconv.FormatInt(int64(t/(24*time.Hour)), 10) + "d"
	}
	s := t.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalJSON writes the duration as a string.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads it from a string.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("a duration is a string such as \"24h\"")
	}
	p, err := ParseDuration(s)
	*d = p
	return err
}
