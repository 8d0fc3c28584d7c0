package domain

import "strings"

// MaxCredential is the length in bytes beyond which a secret is not looked at.
const MaxCredential = 512

// Credential finds the secret in the values of the keyspace's credential
// header, one string per header line, exactly as they were sent. The code is
// empty when there is one.
//
// No header is MISSING_CREDENTIAL. Anything but one header, with the document's
// scheme, one space and a secret of visible ASCII, is MALFORMED_CREDENTIAL:
// several headers, an empty one, another scheme, more spaces, tabs, line
// breaks, control or non-ASCII characters, a comma (two headers that a proxy
// joined) or more than [MaxCredential] bytes. The scheme may be in any case,
// which RFC 9110 section 11.1 asks for; the secret may not.
func (k *Keyspace) Credential(values []string) (secret string, code Code) {
	if len(values) == 0 {
		return "", CodeMissingCredential
	}
	if len(values) > 1 {
		return "", CodeMalformedCredential
	}
	secret = values[0]
	if scheme := k.Document.Credential.Scheme; scheme != "" {
		if len(secret) <= len(scheme) || secret[len(scheme)] != ' ' || !strings.EqualFold(secret[:len(scheme)], scheme) {
			return "", CodeMalformedCredential
		}
		secret = secret[len(scheme)+1:]
	}
	if secret == "" || len(secret) > MaxCredential {
		return "", CodeMalformedCredential
	}
	for i := range len(secret) {
		if c := secret[i]; c <= ' ' || c >= 0x7f || c == ',' {
			return "", CodeMalformedCredential
		}
	}
	return secret, ""
}
