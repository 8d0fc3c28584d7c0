package events

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unsafe"
)

// UnknownError says that a fact has a type or a version this program does not
// know. The reader MUST stop: the fact was written by a newer program.
type UnknownError struct {
	Type    string
	Version int
}

func (e *UnknownError) Error() string {
	return fmt.Sprintf("event type %q version %d is not known to this program: it was written by a newer one, run that", e.Type, e.Version)
}

// decoders has one line for every version ever released. A line is never
// changed or removed; a new meaning is a new version whose predecessor's line
// then decodes and raises it.
var decoders = map[string]map[int]func([]byte) (Payload, error){
	"keyspace.configured": {1: as[KeyspaceConfigured]},
	"owner.registered":    {1: as[OwnerRegistered]},
	"owner.plan_changed":  {1: as[OwnerPlanChanged]},
	"owner.key_admitted":  {1: as[OwnerKeyAdmitted]},
	"key.created":         {1: as[KeyCreated]},
	"key.updated":         {1: as[KeyUpdated]},
	"key.rotated":         {1: as[KeyRotated]},
	"key.grace_ended":     {1: as[KeyGraceEnded]},
	"key.revoked":         {1: as[KeyRevoked]},
	"key.deleted":         {1: as[KeyDeleted]},
	"key.used":            {1: as[KeyUsed]},
	"key.use_reported":    {1: as[KeyUseReported]},
	"key.rate_limited":    {1: as[KeyRateLimited]},
	"key.denied":          {1: as[KeyDenied]},
	"credential.rejected": {1: as[CredentialRejected]},
	"limit.taken":         {1: as[LimitTaken]},
	"usage.gap":           {1: as[UsageGap]},
	"audit.read":          {1: as[AuditRead]},
	"alert.raised":        {1: as[AlertRaised], 2: as[AlertRaised]},
	"alert.resolved":      {1: as[AlertResolved], 2: as[AlertResolved]},
	"alert_rules.set":     {1: as[AlertRulesSet]},
	"usage.pruned":        {1: as[UsagePruned], 2: as[UsagePruned]},
	"privacy.erased":      {1: as[PrivacyErased]},
	"hold.set":            {1: as[HoldSet]},
	"service.started":     {1: as[ServiceStarted]},
	"log.key_rotated":     {1: as[LogKeyRotated]},
	"signin.failed":       {1: as[SigninFailed]},
	"root_key.reset":      {1: as[RootKeyReset]},
	"backup.restored":     {1: as[BackupRestored]},
	"loss.accepted":       {1: as[LossAccepted]},
	"revocation.measured": {1: as[RevocationMeasured]},
	"subscriber.added":    {1: as[SubscriberAdded]},
	"subscriber.removed":  {1: as[SubscriberRemoved]},
	"claim.made":          {1: as[ClaimMade]},
	"claim.opened":        {1: as[ClaimOpened]},
	"claim.withdrawn":     {1: as[ClaimWithdrawn]},

	"webhook.registered":     {1: as[WebhookRegistered]},
	"webhook.removed":        {1: as[WebhookRemoved]},
	"webhook.secret_rotated": {1: as[WebhookSecretRotated]},
	"webhook.disabled":       {1: as[WebhookDisabled]},
	"webhook.enabled":        {1: as[WebhookEnabled]},
}

func as[T Payload](b []byte) (Payload, error) {
	var v T
	err := json.Unmarshal(b, &v)
	return v, err
}

// Types lists the types of all facts and their newest version.
func Types() map[string]int {
	newest := make(map[string]int, len(decoders))
	for name, versions := range decoders {
		for v := range versions {
			newest[name] = max(newest[name], v)
		}
	}
	return newest
}

type wire struct {
	ID         string          `json:"id"`
	Type       string          `json:"type"`
	Version    int             `json:"version"`
	Time       Time            `json:"time"`
	Keyspace   string          `json:"keyspace"`
	Owner      string          `json:"owner"`
	Key        string          `json:"key"`
	KeyVersion uint64          `json:"key_version"`
	Actor      Actor           `json:"actor"`
	Via        string          `json:"via"`
	RequestID  string          `json:"request_id"`
	Command    string          `json:"command"`
	Data       json.RawMessage `json:"data"`
}

// Encode makes the bytes of a fact: one JSON object on one line. It fails only
// for an envelope whose type and payload do not belong together.
func Encode(e Envelope) ([]byte, error) { return AppendEncode(make([]byte, 0, 1024), e) }

// AppendEncode is [Encode] into a buffer of the caller's. After an error dst is
// returned as it was.
func AppendEncode(dst []byte, e Envelope) ([]byte, error) {
	if e.Data == nil {
		return dst, errors.New("event without data")
	}
	if name, version := e.Data.Kind(); name != e.Type || version != e.Version {
		return dst, fmt.Errorf("event says %s version %d, its data is %s version %d", e.Type, e.Version, name, version)
	}
	if b, ok := appendEnvelope(dst, e); ok {
		return b, nil
	}
	b, err := encode(e)
	return append(dst, b...), err
}

func encode(e Envelope) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(e.Data); err != nil {
		return nil, fmt.Errorf("encode %s: %w", e.Type, err)
	}
	data := bytes.Clone(bytes.TrimSuffix(b.Bytes(), []byte("\n")))
	b.Reset()
	w := wire{e.ID, e.Type, e.Version, e.Time, e.Keyspace, e.Owner, e.Key, e.KeyVersion, e.Actor, e.Via, e.RequestID, e.Command, data}
	if err := enc.Encode(w); err != nil {
		return nil, fmt.Errorf("encode %s: %w", e.Type, err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Decode reads a fact of any released version. It fails with an
// [*UnknownError] for a type or version from the future, and with another
// error for bytes that are no fact at all. The strings of a fact may be parts of
// one copy of its body: who keeps one of them for long clones it.
func Decode(body []byte) (Envelope, error) {
	if e, ok := scanEnvelope(body, string(body)); ok {
		return e, nil
	}
	return decode(body)
}

// DecodeInPlace is [Decode] without the copy, which is half of its cost: the strings
// of the fact are parts of body. Body MUST NOT be changed from then on, and it stays in
// memory, with the page that it is a line of, as long as one of the strings does.
func DecodeInPlace(body []byte) (Envelope, error) {
	if e, ok := scanEnvelope(body, unsafe.String(unsafe.SliceData(body), len(body))); ok {
		return e, nil
	}
	return decode(body)
}

func decode(body []byte) (Envelope, error) {
	var w wire
	if err := json.Unmarshal(body, &w); err != nil {
		return Envelope{}, fmt.Errorf("not an event: %w", err)
	}
	e := Envelope{w.ID, w.Type, w.Version, w.Time, w.Keyspace, w.Owner, w.Key, w.KeyVersion, w.Actor, w.Via, w.RequestID, w.Command, nil}
	payload := decoders[w.Type][w.Version]
	if payload == nil {
		return e, &UnknownError{w.Type, w.Version}
	}
	data, err := payload(w.Data)
	if err != nil {
		return e, fmt.Errorf("event %s of type %s: %w", w.ID, w.Type, err)
	}
	e.Data = data
	_, e.Version = data.Kind()
	return e, nil
}

// MarshalJSON writes the envelope as [Encode] does.
func (e Envelope) MarshalJSON() ([]byte, error) { return Encode(e) }

// UnmarshalJSON reads it as [Decode] does.
func (e *Envelope) UnmarshalJSON(b []byte) (err error) {
	*e, err = Decode(b)
	return err
}

// Page packs bodies into one message: one JSON object per line.
func Page(bodies [][]byte) []byte { return bytes.Join(bodies, []byte("\n")) }

// Lines are the bodies of a page.
func Lines(page []byte) [][]byte { return bytes.Split(page, []byte("\n")) }
