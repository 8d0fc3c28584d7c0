package verify

import (
	"github.com/keyledger/keyledger/domain"
	"github.com/keyledger/keyledger/events"
)

// MayVerify judges the secret of a root key with which another program asks for
// decisions: VALID where the key lives and its role allows verification (verifier,
// operator), INSUFFICIENT_SCOPE where only its role does not, else why it is no
// credential. ip is the asking program's, for keys that name networks.
func (v *Verifier) MayVerify(secret, ip string) domain.Code {
	root, hash := domain.RootKeyspace(), domain.HashSecret(secret)
	key := v.ring.BySecret(events.RootKeyspace, hash)
	req := domain.Request{Keyspace: events.RootKeyspace, Key: secret, IP: ip}
	code := root.JudgeKey(&req, secret, hash, key, nil, events.At(v.now()))
	if code == domain.CodeValid && !domain.AuthorityOf(key, root).May(domain.Verify) {
		return domain.CodeInsufficientScope
	}
	return code
}
