package events

import (
	"bytes"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"
)

// Millions of facts are read at every start, and one is written per verified
// request; encoding/json takes 7 to 20 µs for each. What follows writes and
// reads the same bytes in under 1 µs. It knows exactly the layout that Encode
// writes, and gives up on anything else: then encoding/json decides. Tests and
// the fuzzer hold the two against each other.

// appendEnvelope is false for payloads that it does not know.
func appendEnvelope(b []byte, e Envelope) ([]byte, bool) {
	switch e.Data.(type) {
	case KeyUsed, *KeyUsed, KeyUseReported, KeyRateLimited, KeyDenied, CredentialRejected:
	default:
		return b, false
	}
	b = append(b, `{"id":`...)
	b = appendString(b, e.ID)
	b = append(b, `,"type":`...)
	b = appendString(b, e.Type)
	b = append(b, `,"version":`...)
	b = strconv.AppendInt(b, int64(e.Version), 10)
	b = append(b, `,"time":`...)
	b = e.Time.AppendJSON(b)
	b = append(b, `,"keyspace":`...)
	b = appendString(b, e.Keyspace)
	b = append(b, `,"owner":`...)
	b = appendString(b, e.Owner)
	b = append(b, `,"key":`...)
	b = appendString(b, e.Key)
	b = append(b, `,"key_version":`...)
	b = strconv.AppendUint(b, e.KeyVersion, 10)
	b = append(b, `,"actor":{"type":`...)
	b = appendString(b, e.Actor.Type)
	b = append(b, `,"id":`...)
	b = appendString(b, e.Actor.ID)
	b = append(b, `},"via":`...)
	b = appendString(b, e.Via)
	b = append(b, `,"request_id":`...)
	b = appendString(b, e.RequestID)
	b = append(b, `,"command":`...)
	b = appendString(b, e.Command)
	b = append(b, `,"data":{`...)
	switch d := e.Data.(type) {
	case KeyUsed:
		b = appendUsed(b, &d)
	case *KeyUsed: // of a page that is being written: one fact of many in a row
		b = appendUsed(b, d)
	case KeyUseReported:
		b = append(b, `"decision":`...)
		b = appendString(b, d.Decision)
		b = append(b, `,"status":`...)
		b = strconv.AppendInt(b, int64(d.Status), 10)
		b = append(b, `,"latency_ms":`...)
		b = strconv.AppendInt(b, d.LatencyMS, 10)
		b = append(b, `,"cost_micros":`...)
		if d.CostMicros == nil {
			b = append(b, "null"...)
		} else {
			b = strconv.AppendInt(b, *d.CostMicros, 10)
		}
		b = append(b, `,"endpoint":`...)
		b = appendString(b, d.Endpoint)
	case KeyRateLimited:
		b = append(b, `"window":`...)
		b = appendString(b, d.Window)
		b = append(b, `,"limit":`...)
		b = strconv.AppendInt(b, d.Limit, 10)
		b = append(b, `,"node":`...)
		b = appendString(b, d.Node)
		b = appendFold(b, d.Fold)
	case KeyDenied:
		b = append(b, `"code":`...)
		b = appendString(b, d.Code)
		b = append(b, `,"endpoint":`...)
		b = appendString(b, d.Endpoint)
		b = append(b, `,"node":`...)
		b = appendString(b, d.Node)
		b = appendFold(b, d.Fold)
	case CredentialRejected:
		b = append(b, `"code":`...)
		b = appendString(b, d.Code)
		b = append(b, `,"source_ip":`...)
		b = appendSealed(b, d.SourceIP)
		b = append(b, `,"overflow":`...)
		b = strconv.AppendBool(b, d.Overflow)
		b = append(b, `,"node":`...)
		b = appendString(b, d.Node)
		b = appendFold(b, d.Fold)
	}
	return append(b, "}}"...), true
}

func appendUsed(b []byte, d *KeyUsed) []byte {
	b = append(b, `"decision":`...)
	b = appendString(b, d.Decision)
	b = append(b, `,"method":`...)
	b = appendString(b, d.Method)
	b = append(b, `,"endpoint":`...)
	b = appendString(b, d.Endpoint)
	b = append(b, `,"status":`...)
	if d.Status == nil {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendInt(b, int64(*d.Status), 10)
	}
	b = append(b, `,"source_ip":`...)
	b = appendSealed(b, d.SourceIP)
	b = append(b, `,"user_agent":`...)
	b = appendSealed(b, d.UserAgent)
	b = append(b, `,"origin":`...)
	b = appendString(b, d.Origin)
	b = append(b, `,"latency_ms":`...)
	if d.LatencyMS == nil {
		b = append(b, "null"...)
	} else {
		b = strconv.AppendInt(b, *d.LatencyMS, 10)
	}
	b = append(b, `,"cost_micros":`...)
	b = strconv.AppendInt(b, d.CostMicros, 10)
	b = append(b, `,"environment":`...)
	b = appendString(b, d.Environment)
	b = append(b, `,"secret":`...)
	b = appendString(b, d.Secret)
	b = append(b, `,"node":`...)
	b = appendString(b, d.Node)
	b = append(b, `,"ledger_sequence":`...)
	b = strconv.AppendUint(b, d.LedgerSequence, 10)
	b = append(b, `,"document_version":`...)
	return strconv.AppendInt(b, int64(d.DocumentVersion), 10)
}

func appendFold(b []byte, f Fold) []byte {
	b = append(b, `,"count":`...)
	b = strconv.AppendInt(b, f.Count, 10)
	b = append(b, `,"first":`...)
	b = f.First.AppendJSON(b)
	b = append(b, `,"last":`...)
	return f.Last.AppendJSON(b)
}

func appendSealed(b []byte, s *Sealed) []byte {
	if s == nil {
		return append(b, "null"...)
	}
	b = append(b, `{"key":`...)
	b = appendString(b, s.Key)
	b = append(b, `,"box":`...)
	b = appendString(b, s.Box)
	return append(b, '}')
}

func appendString(b []byte, s string) []byte {
	if !allPlain(s) {
		var buf bytes.Buffer
		enc := json.NewEncoder(&buf)
		enc.SetEscapeHTML(false)
		_ = enc.Encode(s) // of a string: cannot fail
		return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// allPlain looks at eight characters at a time: a use has half a kilobyte of them.
func allPlain(s string) bool {
	const (
		ones  = 0x0101010101010101
		highs = 0x80 * ones
	)
	for ; len(s) >= 8; s = s[8:] {
		w := uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
			uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		quote, escape, del := w^'"'*ones, w^'\\'*ones, w^0x7f*ones
		// The high bit of a byte is set where it is not ASCII, below a blank, or 0
		// after the exclusive or.
		if (w|(w-' '*ones)&^w|(quote-ones)&^quote|(escape-ones)&^escape|(del-ones)&^del)&highs != 0 {
			return false
		}
	}
	for i := range len(s) {
		if !plain[s[i]] {
			return false
		}
	}
	return true
}

// plain are the characters that stand for themselves in a JSON string.
var plain = func() (p [256]bool) {
	for c := ' '; c < 0x7f; c++ {
		p[c] = c != '"' && c != '\\'
	}
	return p
}()

// known are strings that most facts repeat, so that they are kept once.
var known = func() map[string]string {
	m := map[string]string{}
	for name := range decoders {
		m[name] = name
	}
	for _, s := range []string{"live", "test", "current", "previous", "root_key", "key", "system", "api", "cli", "console", "gateway", "authz", "verifier", "dev",
		"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "minute", "hour", "day"} {
		m[s] = s
	}
	return m
}()

// scan reads b from i on. What it cannot read makes it bad, for good. The
// strings that it gives are parts of b: one allocation instead of twenty.
type scan struct {
	b   string
	i   int
	bad bool
}

// lit takes exactly s.
func (s *scan) lit(l string) {
	if s.bad || len(s.b)-s.i < len(l) || s.b[s.i:s.i+len(l)] != l {
		s.bad = true
		return
	}
	s.i += len(l)
}

// is takes l if it comes next.
func (s *scan) is(l string) bool {
	if s.bad || len(s.b)-s.i < len(l) || s.b[s.i:s.i+len(l)] != l {
		return false
	}
	s.i += len(l)
	return true
}

func (s *scan) string() string {
	s.lit(`"`)
	if s.bad {
		return ""
	}
	begin, ascii := s.i, true
	for ; s.i < len(s.b); s.i++ {
		c := s.b[s.i]
		if plain[c] {
			continue
		}
		if c == '"' {
			v := s.b[begin:s.i]
			s.i++
			if !ascii && !utf8.ValidString(v) {
				break
			}
			return v
		}
		if c < 0x80 && c != 0x7f {
			break // escaped, or a control character
		}
		ascii = false
	}
	s.bad = true
	return ""
}

func (s *scan) known() string {
	v := s.string()
	if k, ok := known[v]; ok {
		return k
	}
	return v
}

func (s *scan) uint() uint64 {
	begin := s.i
	var n uint64
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		n = n*10 + uint64(s.b[s.i]-'0')
		s.i++
	}
	if digits := s.i - begin; digits == 0 || digits > 18 || digits > 1 && s.b[begin] == '0' {
		s.bad = true
	}
	return n
}

func (s *scan) int() int64 { return int64(s.uint()) }

func (s *scan) bool() bool {
	if s.is("true") {
		return true
	}
	s.lit("false")
	return false
}

// time takes null, or the form that Time writes, from 1970 on.
func (s *scan) time() Time {
	if s.is("null") {
		return 0
	}
	const form = `"0000-00-00T00:00:00.000Z"`
	if s.bad || len(s.b)-s.i < len(form) {
		s.bad = true
		return 0
	}
	t := s.b[s.i : s.i+len(form)]
	s.i += len(form)
	for i, c := range []byte(form) {
		if c == '0' && (t[i] < '0' || t[i] > '9') || c != '0' && t[i] != c {
			s.bad = true
			return 0
		}
	}
	n := func(from, to int) (n int) {
		for _, c := range t[from:to] {
			n = n*10 + int(c-'0')
		}
		return n
	}
	y, m, d := n(1, 5), n(6, 8), n(9, 11)
	hour, minute, second := n(12, 14), n(15, 17), n(18, 20)
	if y < 1970 || m < 1 || m > 12 || d < 1 || d > 28 && d > daysIn(y, m) || hour > 23 || minute > 59 || second > 59 {
		s.bad = true
		return 0
	}
	// Days since 1970, with years that begin in March.
	if m <= 2 {
		y--
		m += 12
	}
	days := 365*y + y/4 - y/100 + y/400 + (153*(m-3)+2)/5 + d - 1 - 719468
	return Time(int64(days)*86400000 + int64(hour*3600000+minute*60000+second*1000+n(21, 24)))
}

func daysIn(year, month int) int {
	return time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
}

func (s *scan) strings() []string {
	if s.is("null") {
		return nil
	}
	s.lit("[")
	if s.is("]") {
		return []string{}
	}
	var room [8]string // most lists are short
	list := room[:0]
	for !s.bad {
		list = append(list, s.string())
		if s.is("]") {
			break
		}
		s.lit(",")
	}
	return append([]string(nil), list...) // slices.Clone would let room escape
}

// object takes null or an object whose values the function takes.
func (s *scan) object(value func(name string)) (null bool) {
	if s.is("null") {
		return true
	}
	s.lit("{")
	if s.is("}") {
		return false
	}
	for !s.bad {
		name := s.known()
		s.lit(":")
		value(name)
		if s.is("}") {
			break
		}
		s.lit(",")
	}
	return false
}

func (s *scan) sealed() *Sealed {
	if s.is("null") {
		return nil
	}
	v := new(Sealed)
	s.lit(`{"key":`)
	v.Key = s.string()
	s.lit(`,"box":`)
	v.Box = s.string()
	s.lit("}")
	return v
}

func (s *scan) fold() (f Fold) {
	s.lit(`,"count":`)
	f.Count = s.int()
	s.lit(`,"first":`)
	f.First = s.time()
	s.lit(`,"last":`)
	f.Last = s.time()
	return f
}

// scanEnvelope is false for what it does not know, whether or not it is a fact. Text
// is body as a string, of which the strings of the fact are parts.
func scanEnvelope(body []byte, text string) (e Envelope, ok bool) {
	s := &scan{b: text}
	s.lit(`{"id":`)
	e.ID = s.string()
	s.lit(`,"type":`)
	e.Type = s.known()
	s.lit(`,"version":`)
	e.Version = int(s.uint())
	s.lit(`,"time":`)
	e.Time = s.time()
	s.lit(`,"keyspace":`)
	e.Keyspace = s.string()
	s.lit(`,"owner":`)
	e.Owner = s.string()
	s.lit(`,"key":`)
	e.Key = s.string()
	s.lit(`,"key_version":`)
	e.KeyVersion = s.uint()
	s.lit(`,"actor":{"type":`)
	e.Actor.Type = s.known()
	s.lit(`,"id":`)
	e.Actor.ID = s.string()
	s.lit(`},"via":`)
	e.Via = s.known()
	s.lit(`,"request_id":`)
	e.RequestID = s.string()
	s.lit(`,"command":`)
	e.Command = s.string()
	s.lit(`,"data":`)
	if s.bad {
		return e, false
	}
	rest := s.i
	s.lit("{")
	known := e.Type
	if e.Version != 1 {
		known = "" // what is read by hand below is version 1
	}
	switch known {
	case "key.used":
		e.Data = s.keyUsed()
	case "key.created":
		e.Data = s.keyCreated()
	case "key.revoked":
		s.lit(`"reason":`)
		e.Data = KeyRevoked{s.string()}
	case "key.deleted":
		e.Data = KeyDeleted{}
	case "owner.key_admitted":
		var d OwnerKeyAdmitted
		s.lit(`"key":`)
		d.Key = s.string()
		s.lit(`,"active_keys":`)
		d.ActiveKeys = int(s.int())
		s.lit(`,"max_keys":`)
		d.MaxKeys = int(s.int())
		e.Data = d
	case "key.rotated":
		var d KeyRotated
		s.lit(`"secret":`)
		d.Secret = s.secret()
		s.lit(`,"grace_until":`)
		d.GraceUntil = s.time()
		s.lit(`,"end_grace":`)
		d.EndGrace = s.bool()
		s.lit(`,"reason":`)
		d.Reason = s.string()
		e.Data = d
	case "key.use_reported":
		var d KeyUseReported
		s.lit(`"decision":`)
		d.Decision = s.string()
		s.lit(`,"status":`)
		d.Status = int(s.int())
		s.lit(`,"latency_ms":`)
		d.LatencyMS = s.int()
		s.lit(`,"cost_micros":`)
		if !s.is("null") {
			d.CostMicros = new(s.int())
		}
		s.lit(`,"endpoint":`)
		d.Endpoint = s.string()
		e.Data = d
	case "key.rate_limited":
		var d KeyRateLimited
		s.lit(`"window":`)
		d.Window = s.known()
		s.lit(`,"limit":`)
		d.Limit = s.int()
		s.lit(`,"node":`)
		d.Node = s.string()
		d.Fold = s.fold()
		e.Data = d
	case "key.denied":
		var d KeyDenied
		s.lit(`"code":`)
		d.Code = s.string()
		s.lit(`,"endpoint":`)
		d.Endpoint = s.string()
		s.lit(`,"node":`)
		d.Node = s.string()
		d.Fold = s.fold()
		e.Data = d
	case "credential.rejected":
		var d CredentialRejected
		s.lit(`"code":`)
		d.Code = s.string()
		s.lit(`,"source_ip":`)
		d.SourceIP = s.sealed()
		s.lit(`,"overflow":`)
		d.Overflow = s.bool()
		s.lit(`,"node":`)
		d.Node = s.string()
		d.Fold = s.fold()
		e.Data = d
	default:
		// The envelope is read; its data is the rest, without the last brace.
		decode := decoders[e.Type][e.Version]
		if decode == nil || body[len(body)-1] != '}' {
			return e, false
		}
		var err error
		if e.Data, err = decode(body[rest : len(body)-1]); err != nil {
			return e, false
		}
		_, e.Version = e.Data.Kind()
		return e, true
	}
	s.lit("}}")
	return e, !s.bad && s.i == len(body)
}

func (s *scan) keyUsed() (d KeyUsed) {
	s.lit(`"decision":`)
	d.Decision = s.string()
	s.lit(`,"method":`)
	d.Method = s.known()
	s.lit(`,"endpoint":`)
	d.Endpoint = s.string()
	s.lit(`,"status":`)
	if !s.is("null") {
		d.Status = new(int(s.int()))
	}
	s.lit(`,"source_ip":`)
	d.SourceIP = s.sealed()
	s.lit(`,"user_agent":`)
	d.UserAgent = s.sealed()
	s.lit(`,"origin":`)
	d.Origin = s.string()
	s.lit(`,"latency_ms":`)
	if !s.is("null") {
		d.LatencyMS = new(s.int())
	}
	s.lit(`,"cost_micros":`)
	d.CostMicros = s.int()
	s.lit(`,"environment":`)
	d.Environment = s.known()
	s.lit(`,"secret":`)
	d.Secret = s.known()
	s.lit(`,"node":`)
	d.Node = s.string()
	s.lit(`,"ledger_sequence":`)
	d.LedgerSequence = s.uint()
	s.lit(`,"document_version":`)
	d.DocumentVersion = int(s.int())
	return d
}

func (s *scan) secret() (v Secret) {
	s.lit("{")
	if s.is(`"sha256":`) {
		v.SHA256 = s.string()
		s.lit(",")
	}
	s.lit(`"first":`)
	v.First = s.string()
	s.lit(`,"last":`)
	v.Last = s.string()
	s.lit("}")
	return v
}

func (s *scan) keyCreated() (d KeyCreated) {
	s.lit(`"name":`)
	d.Name = s.string()
	s.lit(`,"environment":`)
	d.Environment = s.known()
	s.lit(`,"plan":`)
	d.Plan = s.string()
	s.lit(`,"scopes":`)
	d.Scopes = s.strings()
	s.lit(`,"resources":`)
	d.Resources = s.strings()
	s.lit(`,"limits":`)
	limits := Limits{}
	if !s.object(func(name string) { limits[name] = s.int() }) {
		d.Limits = limits
	}
	s.lit(`,"allowed_origins":`)
	d.AllowedOrigins = s.strings()
	s.lit(`,"allowed_ips":`)
	d.AllowedIPs = s.strings()
	s.lit(`,"expires_at":`)
	d.ExpiresAt = s.time()
	s.lit(`,"meta":`)
	meta := map[string]string{}
	if !s.object(func(name string) { meta[name] = s.string() }) {
		d.Meta = meta
	}
	if s.is(`,"role":`) {
		d.Role = s.string()
	}
	if s.is(`,"for":{"keyspace":`) {
		d.For = new(Reach)
		d.For.Keyspace = s.string()
		s.lit(`,"owner":`)
		d.For.Owner = s.string()
		s.lit("}")
	}
	if s.is(`,"imported":`) {
		d.Imported = s.bool()
	}
	s.lit(`,"secret":`)
	d.Secret = s.secret()
	return d
}
