package verify

import (
	"encoding/binary"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
	"github.com/keyledger/keyledger/events/seal"
	"github.com/keyledger/keyledger/events/wal"
)

// use is a key.used on its way to its page: what the hot path writes down. The
// ids, the JSON and the sealing are made when the page is written.
//
// As bytes, in its page and in the write-ahead log alike, it is a letter that
// tells its layout (see [keptUse]), one byte that is 1 for the previous secret,
// then, little-endian,
//
//	2  stamp, 16 bytes
//	18 time, 26 sequence, 34 latency, 42 cost, 50 status, 58 document version
//	66 the lengths of the texts, two bytes each
//	88 the texts
type use struct {
	stamp    [16]byte
	time     int64 // Unix nanoseconds
	sequence uint64
	latency  time.Duration
	cost     int64
	status   int
	document int
	previous bool
	text     [texts]string
}

// The texts of a use. Those from textRequestID on are the caller's.
const (
	textKey = iota
	textKeyspace
	textOwner
	textEnvironment
	textVia
	textRequestID
	textMethod
	textPath
	textOrigin
	textIP
	textUserAgent
	texts
)

const (
	useLengths = 66
	useHead    = useLengths + 2*texts
	maxText    = 1<<16 - 1
)

func (r *Recorder) use(d *Decision, req *domain.Request, u *Use) *wal.Buffer {
	path := req.Path
	if i := strings.IndexByte(path, '?'); i >= 0 {
		path = path[:i]
	}
	if i := strings.IndexByte(path, '#'); i >= 0 {
		path = path[:i]
	}
	origin := ""
	if req.Origin != nil {
		origin = *req.Origin
	}
	k := use{
		stamp: d.stamp, time: d.Time.UnixNano(), sequence: d.Sequence, latency: u.Latency, cost: u.CostMicros,
		status: u.Status, document: d.Keyspace.DocumentVersion, previous: d.Secret == "previous",
		text: [texts]string{
			textKey: d.Key.ID, textKeyspace: d.Key.Keyspace, textOwner: d.Key.Owner, textEnvironment: d.Key.Environment, textVia: u.Via,
			textRequestID: cut(u.RequestID, 128), textMethod: cut(req.Method, 32), textPath: cut(path, maxEndpoint),
			textOrigin: cut(origin, 256), textIP: cut(req.IP, 64), textUserAgent: cut(u.UserAgent, 512),
		},
	}
	b := r.pages.Buffer()
	b.Plain = k.append(b.Plain)
	return b
}

func cut(s string, most int) string { return s[:min(len(s), most)] }

// append appends the use as bytes.
func (u *use) append(dst []byte) []byte {
	n := useHead
	for i := range u.text {
		n += min(len(u.text[i]), maxText)
	}
	if cap(dst)-len(dst) < n {
		dst = append(make([]byte, 0, len(dst)+n), dst...)
	}
	from := len(dst)
	dst = dst[:from+useHead]
	b := dst[from : from+useHead : from+useHead]
	b[0], b[1] = keptUse, 0
	if u.previous {
		b[1] = 1
	}
	copy(b[2:], u.stamp[:])
	binary.LittleEndian.PutUint64(b[18:], uint64(u.time))
	binary.LittleEndian.PutUint64(b[26:], u.sequence)
	binary.LittleEndian.PutUint64(b[34:], uint64(u.latency))
	binary.LittleEndian.PutUint64(b[42:], uint64(u.cost))
	binary.LittleEndian.PutUint64(b[50:], uint64(u.status))
	binary.LittleEndian.PutUint64(b[58:], uint64(u.document))
	for i := range u.text {
		s := cut(u.text[i], maxText)
		binary.LittleEndian.PutUint16(b[useLengths+2*i:], uint16(len(s)))
		dst = append(dst, s...)
	}
	return dst
}

// read is false for bytes that are no use. The texts share the bytes.
func (u *use) read(b []byte) bool {
	if len(b) < useHead || b[0] != keptUse || b[1] > 1 {
		return false
	}
	u.previous = b[1] == 1
	copy(u.stamp[:], b[2:])
	u.time = int64(binary.LittleEndian.Uint64(b[18:]))
	u.sequence = binary.LittleEndian.Uint64(b[26:])
	u.latency = time.Duration(binary.LittleEndian.Uint64(b[34:]))
	u.cost = int64(binary.LittleEndian.Uint64(b[42:]))
	u.status = int(binary.LittleEndian.Uint64(b[50:]))
	u.document = int(binary.LittleEndian.Uint64(b[58:]))
	rest := unsafe.String(unsafe.SliceData(b), len(b))[useHead:]
	for i := range u.text {
		n := int(binary.LittleEndian.Uint16(b[useLengths+2*i:]))
		if n > len(rest) {
			return false
		}
		u.text[i], rest = rest[:n], rest[n:]
	}
	return rest == ""
}

// told is one of the caller's texts, made valid where cutting or the caller broke it.
func (u *use) told(i int) string {
	if utf8.ValidString(u.text[i]) {
		return u.text[i]
	}
	return strings.ToValidUTF8(u.text[i], "\uFFFD")
}

// personal says whether there is anything to be sealed.
func (u *use) personal() bool { return u.text[textIP] != "" || u.text[textUserAgent] != "" }

func (u *use) which() string {
	if u.previous {
		return "previous"
	}
	return "current"
}

// event is the fact, with its personal data in clear: of a use that a dead process
// left in its log.
func (u *use) event(node string) events.Envelope {
	used := events.KeyUsed{
		Decision: formatDecisionID(u.stamp, u.text[textKey]), Method: u.told(textMethod), Endpoint: u.told(textPath), Origin: u.told(textOrigin),
		CostMicros: u.cost, Environment: u.text[textEnvironment], Secret: u.which(), Node: node,
		LedgerSequence: u.sequence, DocumentVersion: u.document,
	}
	if u.status != 0 {
		used.Status = new(u.status)
	}
	if u.latency > 0 {
		used.LatencyMS = new(u.latency.Round(time.Millisecond).Milliseconds())
	}
	return u.envelope(events.FormatID("evt", u.stamp), seal.Use{KeyUsed: used, ClearIP: u.told(textIP), ClearUserAgent: u.told(textUserAgent)})
}

// envelope is that of the fact. Its id is made of the decision's, so that either
// can be found by the other.
func (u *use) envelope(id string, data events.Payload) events.Envelope {
	name, version := data.Kind()
	key := u.text[textKey]
	return events.Envelope{
		ID: id, Type: name, Version: version, Time: events.At(time.Unix(0, u.time)),
		Keyspace: u.text[textKeyspace], Owner: u.text[textOwner], Key: key,
		Actor: events.Actor{Type: "key", ID: key}, Via: u.text[textVia], RequestID: u.told(textRequestID), Data: data,
	}
}
