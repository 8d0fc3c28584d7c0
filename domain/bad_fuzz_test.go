package domain

import "strings"

// badTexts are what people and attackers write where a text belongs: every fuzz
// test of this package begins with them.
var badTexts = []string{
	"", " ", "  ", "\t", "\n", "\r\n", "a\r\nX-Injected: 1", "\x00", "a\x00b", "\x7f", "\xff\xfe", "\xed\xa0\x80", "\ufeff",
	"a, b", "a,b", ",", ";", "a;b", "\u00e4", "\u043a\u0435\u0443", "\u212a", "\u017f", "\uff4b\uff45\uff59", "a\u202eb", "\u2028", "\u200b",
	"null", "true", "0", "-1", "9223372036854775808", "100", `"100"`, "1e3", "0x10", "=cmd()", "+1", "@x", "<script>alert(1)</script>", "'; drop table keys; --",
	"${", "}", "${}", "${code}", "${unknown}", "${${code}}", "$", "{", "{{.}}", "%s%n", "%", "%2f", "%00", "%252e",
	"../../etc/passwd", "..", ".", "/", "//", `\`, "*", "**", "https://a.example.evil.example", "https://a.example:8443", "https://xn--bcher-kva.example",
	"::ffff:192.0.2.1", "fe80::1%eth0", "192.0.2.1:80", "http://127.0.0.1/", "http://169.254.169.254/",
	strings.Repeat("a", 10_000), strings.Repeat("\u00e4", 600), strings.Repeat("[", 10_000), strings.Repeat("${code}", 200),
}
