package webhooks

import (
	"net/netip"
	"strings"
	"testing"
)

// Where facts may be sent to without anybody allowing it is public, written as one
// would, and says https.
func TestPolicy(t *testing.T) {
	var strict Policy
	for _, address := range []string{
		"https://example.com", "https://example.com/hooks?a=b", "https://EXAMPLE.com.:8443/", "https://8.8.8.8/x", "https://[2606:4700::1111]/", "https://xn--bcher-kva.example/",
		"https://example.com:1/",
	} {
		if p := strict.Check(address); p != nil {
			t.Errorf("%s %s", address, p.Message)
		}
	}
	for _, address := range []string{
		"", "example.com", "//example.com/", "http://example.com/", "ftp://example.com/", "https:example.com", "https://", "https:///x", "javascript:alert(1)", "file:///etc/passwd",
		"https://user@example.com/", "https://user:pass@example.com/", "https://example.com/#x", "https://example.com/#", "https://example.com:0/", "https://example.com:65536/", "https://example.com:/", "https://example.com:x/",
		"https://exam\tple.com/", "https://example.com/\r\nX: y", "https://ex ample.com/", "https://bücher.example/", `https://example.com\@127.0.0.1/`, "https://" + strings.Repeat("a", 2050),
		// This machine and its surroundings, in every spelling.
		"https://localhost/", "https://LOCALHOST:443/", "https://a.localhost/", "https://localhost./", "https://127.0.0.1/", "https://127.8.9.1/", "https://0.0.0.0/", "https://[::]/", "https://[::1]/",
		"https://10.0.0.1/", "https://172.16.0.1/", "https://172.31.255.255/", "https://192.168.1.1/", "https://100.64.0.1/", "https://100.127.255.255/", "https://169.254.169.254/latest/meta-data/",
		"https://100.100.100.200/", "https://192.0.0.192/", "https://168.63.129.16/", "https://[fd00:ec2::254]/", "https://[fe80::1]/", "https://[fe80::1%25eth0]/", "https://[fc00::1]/", "https://[ff02::1]/",
		"https://[::ffff:127.0.0.1]/", "https://[::ffff:7f00:1]/", "https://[::127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[64:ff9b::8.8.8.8]/", "https://[64:ff9b:1::1]/", "https://[2002:7f00:1::]/", "https://[2001::1]/", "https://[2001:db8::1]/",
		"https://[::ffff:0:127.0.0.1]/", "https://[fec0::1]/", "https://[100::1]/", "https://[5f00::1]/", "https://224.0.0.1/", "https://255.255.255.255/", "https://240.0.0.1/", "https://198.18.0.1/", "https://192.0.2.1/", "https://203.0.113.7/", "https://198.51.100.1/",
		"https://127.1/", "https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://127.0.0.1./", "https://1.2.3.0x4/",
	} {
		if p := strict.Check(address); p == nil {
			t.Errorf("%q is allowed", address)
		} else if p.Fix == "" || p.Path != "url" {
			t.Errorf("%q: %+v", address, p)
		}
	}
	open, err := ParsePolicy(true, []string{"127.0.0.0/8", "10.1.2.3", "hooks.internal.example", "::1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"http://127.0.0.1:8080/", "http://localhost/", "https://[::1]/", "https://10.1.2.3/", "http://example.com/", "https://[::ffff:10.1.2.3]/"} {
		if p := open.Check(address); p != nil {
			t.Errorf("%s %s", address, p.Message)
		}
	}
	for _, address := range []string{"https://10.1.2.4/", "https://169.254.169.254/"} {
		if p := open.Check(address); p == nil {
			t.Errorf("%s is allowed", address)
		}
	}
	private := netip.MustParseAddr("192.168.7.7")
	if !open.Allows("Hooks.Internal.Example.", private) || open.Allows("example.com", private) || open.Allows("x.hooks.internal.example", private) {
		t.Error("a host that is allowed is not, or another one is")
	}
	for _, bad := range []string{"", "10.0.0.0/33", "https://example.com", "a b", "*.example.com"} {
		if _, err := ParsePolicy(false, []string{bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
