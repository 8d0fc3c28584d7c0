package domain

import (
	"strings"
	"testing"
)

func withScheme(scheme string) *Keyspace {
	return Compile(&Document{Credential: CredentialRules{Header: "Authorization", Scheme: scheme}, Format: Format{Prefixes: map[string]string{"live": "a_"}}}, 1)
}

func TestCredential(t *testing.T) {
	for _, test := range []struct {
		name, scheme string
		values       []string
		secret       string
		code         Code
	}{
		{"no header", "Bearer", nil, "", CodeMissingCredential},
		{"as it should be", "Bearer", []string{"Bearer a_1"}, "a_1", ""},
		{"the scheme in another case, which RFC 9110 allows", "Bearer", []string{"bEARER a_1"}, "a_1", ""},
		{"another scheme token", "Api-Key", []string{"Api-Key a_1"}, "a_1", ""},
		{"a bare value", "", []string{"a_1"}, "a_1", ""},
		{"a secret with what base64 has", "", []string{"a+/=_-.~"}, "a+/=_-.~", ""},
		{"the longest secret", "", []string{strings.Repeat("a", MaxCredential)}, strings.Repeat("a", MaxCredential), ""},
		{"a longer one", "", []string{strings.Repeat("a", MaxCredential+1)}, "", CodeMalformedCredential},
		{"a megabyte", "Bearer", []string{"Bearer " + strings.Repeat("a", 1<<20)}, "", CodeMalformedCredential},
		{"two headers", "Bearer", []string{"Bearer a_1", "Bearer a_1"}, "", CodeMalformedCredential},
		{"two headers, one empty", "Bearer", []string{"Bearer a_1", ""}, "", CodeMalformedCredential},
		{"two headers that a proxy joined", "Bearer", []string{"Bearer a_1, Bearer a_1"}, "", CodeMalformedCredential},
		{"joined without a blank", "", []string{"a_1,a_1"}, "", CodeMalformedCredential},
		{"an empty header", "Bearer", []string{""}, "", CodeMalformedCredential},
		{"an empty bare header", "", []string{""}, "", CodeMalformedCredential},
		{"the scheme alone", "Bearer", []string{"Bearer"}, "", CodeMalformedCredential},
		{"the scheme and a blank", "Bearer", []string{"Bearer "}, "", CodeMalformedCredential},
		{"no scheme", "Bearer", []string{"a_1"}, "", CodeMalformedCredential},
		{"another scheme", "Bearer", []string{"Basic a_1"}, "", CodeMalformedCredential},
		{"a scheme that goes on", "Bearer", []string{"Bearerx a_1"}, "", CodeMalformedCredential},
		{"a scheme where none belongs", "", []string{"Bearer a_1"}, "", CodeMalformedCredential},
		{"two blanks", "Bearer", []string{"Bearer  a_1"}, "", CodeMalformedCredential},
		{"a tab", "Bearer", []string{"Bearer\ta_1"}, "", CodeMalformedCredential},
		{"a blank in front", "Bearer", []string{" Bearer a_1"}, "", CodeMalformedCredential},
		{"a blank behind", "Bearer", []string{"Bearer a_1 "}, "", CodeMalformedCredential},
		{"a line break", "Bearer", []string{"Bearer a_1\r\n"}, "", CodeMalformedCredential},
		{"NUL", "Bearer", []string{"Bearer a_\x001"}, "", CodeMalformedCredential},
		{"DEL", "Bearer", []string{"Bearer a_\x7f"}, "", CodeMalformedCredential},
		{"a look-alike", "Bearer", []string{"Bearer а_1"}, "", CodeMalformedCredential},
		{"a scheme that only folds to ours", "Basik", []string{"Basi\u212a a_1"}, "", CodeMalformedCredential},
	} {
		t.Run(test.name, func(t *testing.T) {
			secret, code := withScheme(test.scheme).Credential(test.values)
			if secret != test.secret || code != test.code {
				t.Errorf("got %q, %s; want %q, %s", clip(secret), code, clip(test.secret), test.code)
			}
		})
	}
}
