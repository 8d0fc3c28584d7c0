package events

import "encoding/json"

// KeyspaceConfigured says that a keyspace has this document from now on.
type KeyspaceConfigured struct {
	DocumentVersion int             `json:"document_version"` // from 1
	Document        json.RawMessage `json:"document"`         // whole, as JSON
}

// OwnerRegistered says that an owner exists, or has another name.
type OwnerRegistered struct {
	Name string `json:"name"`
	Plan string `json:"plan"`
}

// OwnerPlanChanged says that an owner is on another plan.
type OwnerPlanChanged struct {
	Plan     string `json:"plan"`
	Previous string `json:"previous"`
}

// OwnerKeyAdmitted takes a place under the cap of the plan in force. It stands
// on the owner's subject and is appended in one batch with the fact it admits.
type OwnerKeyAdmitted struct {
	Key        string `json:"key"`
	ActiveKeys int    `json:"active_keys"` // with this one
	MaxKeys    int    `json:"max_keys"`
}

// Limits are requests per window: minute, hour, day. A window without an entry
// is unlimited.
type Limits map[string]int64

// Secret is what is kept of a secret: its hash and the characters that the
// keyspace's document allows to be shown.
type Secret struct {
	SHA256 string `json:"sha256,omitempty"` // of the whole secret, hex; absent in FEED
	First  string `json:"first"`
	Last   string `json:"last"`
}

// KeyCreated says that a key exists.
type KeyCreated struct {
	Name           string            `json:"name"`
	Environment    string            `json:"environment"`
	Plan           string            `json:"plan"` // empty: the owner's counts
	Scopes         []string          `json:"scopes"`
	Resources      []string          `json:"resources"`
	Limits         Limits            `json:"limits"`
	AllowedOrigins []string          `json:"allowed_origins"`
	AllowedIPs     []string          `json:"allowed_ips"`
	ExpiresAt      Time              `json:"expires_at"`
	Meta           map[string]string `json:"meta"`
	Role           string            `json:"role,omitempty"` // of a root key
	For            *Reach            `json:"for,omitempty"`  // what a root key of role manager may reach
	Imported       bool              `json:"imported,omitempty"`
	Secret         Secret            `json:"secret"`
}

// Reach is the one keyspace and owner that a manager's root key may touch.
type Reach struct {
	Keyspace string `json:"keyspace"`
	Owner    string `json:"owner"`
}

// KeyUpdated holds the new value of each field that changed, and no other.
type KeyUpdated struct {
	Name           *string            `json:"name,omitempty"`
	Plan           *string            `json:"plan,omitempty"`
	Scopes         *[]string          `json:"scopes,omitempty"`
	Resources      *[]string          `json:"resources,omitempty"`
	Limits         *Limits            `json:"limits,omitempty"`
	AllowedOrigins *[]string          `json:"allowed_origins,omitempty"`
	AllowedIPs     *[]string          `json:"allowed_ips,omitempty"`
	ExpiresAt      *Expiry            `json:"expires_at,omitempty"`
	Meta           *map[string]string `json:"meta,omitempty"`
}

// Expiry is the new expiry of a key: a moment, or never.
type Expiry struct {
	At Time `json:"at"` // null: never
}

// KeyRotated says that a key has a new secret.
type KeyRotated struct {
	Secret     Secret `json:"secret"`
	GraceUntil Time   `json:"grace_until"` // null: the previous secret ended at once
	EndGrace   bool   `json:"end_grace"`   // the secrets before the previous one ended too
	Reason     string `json:"reason"`
}

// KeyGraceEnded says that the previous secret ended before its time.
type KeyGraceEnded struct {
	Reason string `json:"reason"`
}

// KeyRevoked says that a key is refused for ever.
type KeyRevoked struct {
	Reason string `json:"reason"`
}

// KeyDeleted says that a key is gone from every list. It was revoked before.
type KeyDeleted struct{}

// KeyUsed is one admitted request.
type KeyUsed struct {
	Decision        string  `json:"decision"` // dec_…
	Method          string  `json:"method"`
	Endpoint        string  `json:"endpoint"` // path without its query
	Status          *int    `json:"status"`   // null: not known when it was decided
	SourceIP        *Sealed `json:"source_ip"`
	UserAgent       *Sealed `json:"user_agent"`
	Origin          string  `json:"origin"`
	LatencyMS       *int64  `json:"latency_ms"`
	CostMicros      int64   `json:"cost_micros"`
	Environment     string  `json:"environment"`
	Secret          string  `json:"secret"` // current or previous
	Node            string  `json:"node"`
	LedgerSequence  uint64  `json:"ledger_sequence"`
	DocumentVersion int     `json:"document_version"`
}

// KeyUseReported is the outcome of a use whose status was not known.
type KeyUseReported struct {
	Decision   string `json:"decision"`
	Status     int    `json:"status"`
	LatencyMS  int64  `json:"latency_ms"`
	CostMicros *int64 `json:"cost_micros"` // null: as recorded with the use
	Endpoint   string `json:"endpoint"`    // empty: as recorded with the use
}

// Fold counts equal refusals of one second.
type Fold struct {
	Count int64 `json:"count"`
	First Time  `json:"first"`
	Last  Time  `json:"last"`
}

// KeyRateLimited are requests that a limit refused.
type KeyRateLimited struct {
	Window string `json:"window"`
	Limit  int64  `json:"limit"`
	Node   string `json:"node"`
	Fold
}

// KeyDenied are requests with a known key that were refused for another reason.
type KeyDenied struct {
	Code     string `json:"code"`
	Endpoint string `json:"endpoint"`
	Node     string `json:"node"`
	Fold
}

// CredentialRejected are requests without a known key.
type CredentialRejected struct {
	Code     string  `json:"code"`
	SourceIP *Sealed `json:"source_ip"` // null in the overflow count
	Overflow bool    `json:"overflow"`  // beyond the cap per second
	Node     string  `json:"node"`
	Fold
}

// LimitTaken says that other traffic drew from an owner's pool.
type LimitTaken struct {
	Node string `json:"node"`
	Fold
}

// UsageGap declares uses that could not be recorded.
type UsageGap struct {
	Count  int64  `json:"count"` // 0: nobody knows
	Reason string `json:"reason"`
	From   Time   `json:"from"`
	To     Time   `json:"to"`
	Node   string `json:"node"`
}

// Sealed is a personal datum, encrypted with a data key that can be destroyed.
type Sealed struct {
	Key string `json:"key"` // which data key: <keyspace>.<owner or _>.<yyyy-mm>
	Box string `json:"box"` // base64 of nonce and AES-256-GCM ciphertext; the additional data is Key
}

// AuditRead says that somebody read or exported the audit log.
type AuditRead struct {
	What   string            `json:"what"` // events, export, history, …
	Filter map[string]string `json:"filter"`
	Count  int64             `json:"count"`
}

// AlertRaised says that an alert's condition began to hold for what the envelope
// names: a key, or an owner whose keys draw from one pool.
type AlertRaised struct {
	Alert     string  `json:"alert"` // alr_…; the same when it is resolved
	When      string  `json:"when"`
	Rule      string  `json:"rule"` // such as "denied above 10 over 10m"; empty: version 1 did not say
	From      string  `json:"from"` // whose rule: key, resource, owner, keyspace, document or built-in
	Value     float64 `json:"value"`
	Threshold float64 `json:"threshold"`
	Detail    string  `json:"detail"`
	SourceIP  *Sealed `json:"source_ip"` // the new address, of new_source_ip
}

// AlertResolved says that it holds no more.
type AlertResolved struct {
	Alert  string  `json:"alert"`
	When   string  `json:"when"`
	Rule   string  `json:"rule"`
	Value  float64 `json:"value"`
	Reason string  `json:"reason"` // quiet, over, key_ended or rule_gone; empty: version 1 did not say
}

// AlertRulesSet says which alert rules count from now on for what the envelope
// names, in place of a more general one's of the same condition.
type AlertRulesSet struct {
	Resource string          `json:"resource"` // of keys of the envelope's keyspace that are bound to it; empty: no resource is meant
	Rules    json.RawMessage `json:"rules"`    // whole, as in a keyspace document; []: the more general ones count again
}

// UsagePruned records that USAGE was purged from the front.
type UsagePruned struct {
	Stream  string `json:"stream"`
	Through uint64 `json:"through"` // last sequence that is gone
	Before  Time   `json:"before"`  // nothing stored at or after this time is gone; null: version 1 did not say

	// The tree over the stream up to Through: how many leaves, the root, and the
	// roots of the complete subtrees that it consists of, largest first, from which
	// it can be continued without what is gone. Base64.
	TreeSize uint64   `json:"tree_size"`
	RootHash string   `json:"root_hash"`
	Frontier []string `json:"frontier"` // null: version 1 did not say

	Reason string `json:"reason"`
}

// PrivacyErased records that data keys are destroyed as of the envelope's time.
type PrivacyErased struct {
	DataKeys []string `json:"data_keys"`
	Reason   string   `json:"reason"`
}

// HoldSet says that pruning and erasing what the envelope names (a keyspace, an
// owner or a key) are stopped, or allowed again.
type HoldSet struct {
	Active bool   `json:"active"`
	Reason string `json:"reason"`
}

// ServiceStarted says that a process opened the ledger.
type ServiceStarted struct {
	Program string `json:"program"`
	Build   string `json:"build"` // the program's version
	Node    string `json:"node"`
	Head    uint64 `json:"head"` // of LEDGER
}

// LogKeyRotated says that the audit log is signed with another key from now on.
type LogKeyRotated struct {
	Previous  string `json:"previous"`  // verifier key
	Key       string `json:"key"`       // verifier key
	Statement string `json:"statement"` // signed note in which the previous key names this one
}

// SigninFailed says that somebody could not sign in.
type SigninFailed struct {
	Reason   string  `json:"reason"`
	SourceIP *Sealed `json:"source_ip"`
	Fold
}

// WebhookRegistered says that facts are sent to an endpoint from now on: those of the
// envelope's keyspace and owner; of all where they are empty.
type WebhookRegistered struct {
	Webhook     string   `json:"webhook"` // whk_…
	URL         string   `json:"url"`
	Types       []string `json:"types"` // such as key.revoked or key.*; empty: all
	Keys        []string `json:"keys"`  // empty: all
	Description string   `json:"description"`
	Secret      []byte   `json:"secret"` // of the signatures, sealed by the master key together with the address and what is sent there
	After       uint64   `json:"after"`  // sequence of FEED after which it begins; of OPS: this fact
}

// WebhookRemoved says that nothing is sent to it any more.
type WebhookRemoved struct {
	Webhook string `json:"webhook"`
}

// WebhookSecretRotated says that what is sent to it is signed with another secret, and
// until the end of the grace with the one before as well.
type WebhookSecretRotated struct {
	Webhook    string `json:"webhook"`
	Secret     []byte `json:"secret"`      // sealed as that of [WebhookRegistered]
	GraceUntil Time   `json:"grace_until"` // null: the one before ended at once
}

// WebhookDisabled says that nothing is sent to it until it is enabled.
type WebhookDisabled struct {
	Webhook string `json:"webhook"`
	Reason  string `json:"reason"`
}

// WebhookEnabled says that it is sent what it has missed, and what follows.
type WebhookEnabled struct {
	Webhook string `json:"webhook"`
}

// RootKeyReset records that lost root keys were replaced on the machine.
type RootKeyReset struct {
	Key     string   `json:"key"`
	Revoked []string `json:"revoked"`
}

// BackupRestored says that the streams were made of a backup: what was recorded
// after it began, and is not in it, is missing.
type BackupRestored struct {
	Began   Time          `json:"began"`   // the backup; all that was acknowledged before is in it
	Ended   Time          `json:"ended"`   // the backup
	Program string        `json:"program"` // version that made it
	Streams []StreamRange `json:"streams"` // that it held
	Buckets bool          `json:"buckets"` // with the data keys and the key of the audit log
}

// LossAccepted says that somebody told the service to go on although history that
// was acknowledged is missing.
type LossAccepted struct {
	Backup   Time          `json:"backup"`   // when the backup began that was restored; null: none was
	Missing  []StreamRange `json:"missing"`  // of each stream what somebody remembers and it lacks
	Since    Time          `json:"since"`    // of the first missing fact that is known; null: none is
	Facts    int64         `json:"facts"`    // missing facts of LEDGER that PostgreSQL still had
	Count    int64         `json:"count"`    // of keys that came back to life
	Returned []string      `json:"returned"` // the first thousand of them
	Revoked  int64         `json:"revoked"`  // of them, in the same act
	Unknown  int64         `json:"unknown"`  // keys that are not known any more
	NewLog   bool          `json:"new_log"`  // the audit log begins anew, with another key
	Export   string        `json:"export"`   // SHA-256 of the file that the missing facts were saved in; empty: none
	Reason   string        `json:"reason"`
}

// RevocationMeasured says how long each verifier still accepted a key, or a secret of
// it, that a fact in LEDGER had ended. There is one for each such fact.
type RevocationMeasured struct {
	Sequence uint64 `json:"sequence"` // of the fact in LEDGER
	Fact     string `json:"fact"`     // its type
	Decided  Time   `json:"decided"`  // its time
	Node     string `json:"node"`     // that measured

	// Basis is acknowledged where the node that measured is the one that appended the
	// fact: delays count from the moment the server acknowledged it. Otherwise it is
	// clocks: they count from Decided, another machine's clock.
	Basis    string `json:"basis"`
	AppendUS int64  `json:"append_us"` // from the begin of the append to its acknowledgement; 0: not known

	Stopped     []VerifierStopped     `json:"stopped"`
	Unconfirmed []VerifierUnconfirmed `json:"unconfirmed"`
	WaitedMS    int64                 `json:"waited_ms"` // for those that did not confirm
}

// VerifierStopped is a verifier that confirmed that it refuses.
type VerifierStopped struct {
	Node string `json:"node"`

	// DelayUS is from the basis to the arrival of the confirmation, by one clock: the
	// verifier had stopped by then. ClockUS is to the moment it stopped, by its own
	// clock, against the fact's time; null: it did not tell.
	DelayUS int64  `json:"delay_us"`
	ClockUS *int64 `json:"clock_us"`
}

// VerifierUnconfirmed is one that did not confirm in time. If it runs on, it answers
// STATE_TOO_STALE from StaleMS after the basis on.
type VerifierUnconfirmed struct {
	Node    string `json:"node"`
	StaleMS int64  `json:"stale_ms"` // 0: not known
}

// StreamRange is a part of a stream, both ends included.
type StreamRange struct {
	Stream string `json:"stream"`
	From   uint64 `json:"from"`
	To     uint64 `json:"to"`
}

// SubscriberAdded says that another service may follow FEED over NATS from now on: all of
// it, or what the envelope names, a keyspace or an owner in it.
type SubscriberAdded struct {
	Name      string `json:"name"`
	PublicKey string `json:"public_key"` // of the NATS user, an nkey
	After     uint64 `json:"after"`      // sequence of FEED that its consumer begins behind
}

// SubscriberRemoved says that it may no longer.
type SubscriberRemoved struct {
	Name string `json:"name"`
}

// ClaimMade says that a new secret of the envelope's key waits for whoever has the link.
type ClaimMade struct {
	Claim string `json:"claim"` // clm_…
	Until Time   `json:"until"` // it can be opened
}

// ClaimOpened says that the secret of a claim was shown to whoever had its link, once.
type ClaimOpened struct {
	Claim    string  `json:"claim"`
	SourceIP *Sealed `json:"source_ip"`
}

// ClaimWithdrawn says that a claim opens nothing any more.
type ClaimWithdrawn struct {
	Claim string `json:"claim"`
}

func (KeyspaceConfigured) Kind() (string, int) { return "keyspace.configured", 1 }
func (OwnerRegistered) Kind() (string, int)    { return "owner.registered", 1 }
func (OwnerPlanChanged) Kind() (string, int)   { return "owner.plan_changed", 1 }
func (OwnerKeyAdmitted) Kind() (string, int)   { return "owner.key_admitted", 1 }
func (KeyCreated) Kind() (string, int)         { return "key.created", 1 }
func (KeyUpdated) Kind() (string, int)         { return "key.updated", 1 }
func (KeyRotated) Kind() (string, int)         { return "key.rotated", 1 }
func (KeyGraceEnded) Kind() (string, int)      { return "key.grace_ended", 1 }
func (KeyRevoked) Kind() (string, int)         { return "key.revoked", 1 }
func (KeyDeleted) Kind() (string, int)         { return "key.deleted", 1 }
func (KeyUsed) Kind() (string, int)            { return "key.used", 1 }
func (KeyUseReported) Kind() (string, int)     { return "key.use_reported", 1 }
func (KeyRateLimited) Kind() (string, int)     { return "key.rate_limited", 1 }
func (KeyDenied) Kind() (string, int)          { return "key.denied", 1 }
func (CredentialRejected) Kind() (string, int) { return "credential.rejected", 1 }
func (LimitTaken) Kind() (string, int)         { return "limit.taken", 1 }
func (UsageGap) Kind() (string, int)           { return "usage.gap", 1 }
func (AuditRead) Kind() (string, int)          { return "audit.read", 1 }
func (AlertRaised) Kind() (string, int)        { return "alert.raised", 2 }
func (AlertResolved) Kind() (string, int)      { return "alert.resolved", 2 }
func (AlertRulesSet) Kind() (string, int)      { return "alert_rules.set", 1 }
func (UsagePruned) Kind() (string, int)        { return "usage.pruned", 2 }
func (PrivacyErased) Kind() (string, int)      { return "privacy.erased", 1 }
func (HoldSet) Kind() (string, int)            { return "hold.set", 1 }
func (ServiceStarted) Kind() (string, int)     { return "service.started", 1 }
func (SigninFailed) Kind() (string, int)       { return "signin.failed", 1 }
func (RootKeyReset) Kind() (string, int)       { return "root_key.reset", 1 }
func (LogKeyRotated) Kind() (string, int)      { return "log.key_rotated", 1 }
func (BackupRestored) Kind() (string, int)     { return "backup.restored", 1 }
func (LossAccepted) Kind() (string, int)       { return "loss.accepted", 1 }
func (RevocationMeasured) Kind() (string, int) { return "revocation.measured", 1 }
func (SubscriberAdded) Kind() (string, int)    { return "subscriber.added", 1 }
func (SubscriberRemoved) Kind() (string, int)  { return "subscriber.removed", 1 }
func (ClaimMade) Kind() (string, int)          { return "claim.made", 1 }
func (ClaimOpened) Kind() (string, int)        { return "claim.opened", 1 }
func (ClaimWithdrawn) Kind() (string, int)     { return "claim.withdrawn", 1 }

func (WebhookRegistered) Kind() (string, int)    { return "webhook.registered", 1 }
func (WebhookRemoved) Kind() (string, int)       { return "webhook.removed", 1 }
func (WebhookSecretRotated) Kind() (string, int) { return "webhook.secret_rotated", 1 }
func (WebhookDisabled) Kind() (string, int)      { return "webhook.disabled", 1 }
func (WebhookEnabled) Kind() (string, int)       { return "webhook.enabled", 1 }
