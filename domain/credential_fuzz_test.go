package domain

import (
	"regexp"
	"strings"
	"testing"
)

// Of the header's values exactly one is accepted: the scheme, one blank and a
// secret of visible characters, written here a second time as an expression.
func FuzzCredential(f *testing.F) {
	schemes := []string{"Bearer", "", "Api-Key", "KEYS", "x"}
	for i, s := range badTexts {
		at := uint8(i % len(schemes))
		f.Add(at, schemes[at]+" "+s, "", uint8(1))
		f.Add(at, s+schemes[at]+" a_1", s, uint8(1))
		f.Add(at, schemes[at]+" a_1"+s, s, uint8(1+i%2))
	}
	for i, scheme := range schemes {
		for _, s := range []string{"a_1", " a_1", "a_1 ", "a_1\t", "a_1,", "a_1, " + scheme + " a_1", strings.Repeat("a", MaxCredential), strings.Repeat("a", MaxCredential+1)} {
			f.Add(uint8(i), scheme+" "+s, scheme+" "+s, uint8(1))
		}
		for _, as := range []string{strings.ToUpper(scheme), strings.ToLower(scheme), scheme + "\t", " " + scheme, "Basic", "Basi\u212a", ""} {
			f.Add(uint8(i), as+" a_1", as+" a_1", uint8(1))
		}
		f.Add(uint8(i), scheme+" a_1", scheme+" a_1", uint8(2))
		f.Add(uint8(i), scheme, "", uint8(1))
		f.Add(uint8(i), "", "", uint8(0))
	}
	f.Add(uint8(0), "Bearer "+strings.Repeat("a", 1<<20), "", uint8(1))
	well := make([]*regexp.Regexp, len(schemes))
	spaces := make([]*Keyspace, len(schemes))
	for i, scheme := range schemes {
		before := ""
		for _, c := range []byte(scheme) {
			before += "[" + strings.ToLower(string(c)) + strings.ToUpper(string(c)) + "]"
		}
		if scheme != "" {
			before = strings.ReplaceAll(before, "[--]", "-") + " "
		}
		well[i] = regexp.MustCompile(`^` + before + `([!-+\--~]{1,512})$`)
		spaces[i] = withScheme(scheme)
	}
	f.Fuzz(func(t *testing.T, which uint8, first, second string, n uint8) {
		i := int(which) % len(schemes)
		values := []string{first, second, first}[:n%4]
		want, wantCode := "", CodeMalformedCredential
		if len(values) == 0 {
			wantCode = CodeMissingCredential
		} else if m := well[i].FindStringSubmatch(first); len(values) == 1 && m != nil {
			want, wantCode = m[1], ""
		}
		if secret, code := spaces[i].Credential(values); secret != want || code != wantCode {
			t.Errorf("scheme %q, %q: %q %s, want %q %s", schemes[i], values, secret, code, want, wantCode)
		}
		if secret, code := spaces[i].JudgeCredential(&Request{Credential: values}); secret != want || code != wantCode {
			t.Errorf("scheme %q, %q is judged %s, want %s", schemes[i], values, code, wantCode)
		}
	})
}
