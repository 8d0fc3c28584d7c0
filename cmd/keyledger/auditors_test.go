package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the auditors' page shows is what is printed; and each command that its table of
// controls names does, on the same server, show what it is named for.
func TestAuditors(t *testing.T) {
	page, err := os.ReadFile("../../docs/auditors.md")
	if err != nil {
		t.Fatal(err)
	}
	tr := newTour(t)
	// Whoever runs the service is asked, not the auditor of the tour.
	// A refusal, which is recorded by the second.
	more := []string{"unset KEYLEDGER_TOKEN", "keyledger keys create --keyspace parcelbird --owner acme --name Refused --scopes keys:manage --secret-file refused.key >refused.txt",
		`curl -H "Authorization: Bearer $(cat refused.key)" $GATEWAY/parcelbird/v1/parcels/1 >refused.txt`, "until keyledger audit list --type key.denied | grep -q .; do :; done", "OPERATOR=$(keyledger root-key list | grep 'first operator' | cut -f 1)"}
	var commands []string
	_, controls, _ := strings.Cut(string(page), "\n## Controls\n")
	for line := range strings.Lines(controls) {
		if !strings.HasPrefix(line, "| ") {
			continue
		}
		shown := 0
		for _, code := range regexp.MustCompile("`(keyledger [^`]+)`").FindAllStringSubmatch(line, -1) {
			commands = append(commands, code[1])
			more = append(more, fmt.Sprintf("echo '>>> %d'\n%s", len(commands)-1, code[1]))
			shown++
		}
		if shown == 0 && !strings.HasPrefix(line, "| | asks for") {
			t.Errorf("no command shows this: %s", line)
		}
	}
	copied, err := os.ReadFile("../../keyspaces/parcelbird.yaml")
	if err == nil {
		err = os.WriteFile(filepath.Join(tr.dir, "parcelbird.yaml"), bytes.Replace(copied, []byte("about: Parcelbird"), []byte("about: The Parcelbird"), 1), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	rest := tr.follow("../../docs/auditors.md", more...)
	ran := map[string]bool{}
	for i, said := range strings.Split(rest, ">>> ")[1:] {
		_, said, _ = strings.Cut(said, "\n")
		wanted, ok := shows[commands[i]]
		if ran[commands[i]] = true; !ok {
			t.Errorf("%s: it is not known here what this is to show", commands[i])
		} else if !regexp.MustCompile("(?ms)" + wanted).MatchString(said) {
			t.Errorf("%s shows nothing like %s:\n%s", commands[i], wanted, said)
		}
	}
	for command := range shows {
		if !ran[command] {
			t.Errorf("the table has no %s", command)
		}
	}
}

// shows is what the output of each command of the controls has, in the state that the
// page's tour leaves behind.
var shows = map[string]string{
	"keyledger keyspaces get parcelbird":              `^scopes:.*GET /v1/parcels`,
	"keyledger audit list --key $KEY --type key.used": `(\tkey\.used\t.*){3}`,
	"keyledger audit as-of now --status active":       `\tCI pipeline\tactive\t`,
	"keyledger audit diff 90d":                        `\tstatus\t-\trevoked\troot_key key_`,
	"keyledger keys list --unused-since 90d":          ``, // all of them are new
	"keyledger root-key list":                         `\tauditor\tauditor\tactive\t`,
	"keyledger audit list --type keyspace.configured": `\tkeyspace\.configured\tparcelbird\t`,
	"keyledger audit list --type key.denied,credential.rejected,key.rate_limited,usage.gap --from 24h": `\tkey\.denied\t`,
	"keyledger doctor":                                                                                          `^ok\tclock\t.*^ok\tready\taudit log, .*^ok\tstreams\t`,
	"keyledger audit leaked < ci.key":                                                                           `^status\trevoked.*^uses\t2$.*^from\t127\.0\.0\.1`,
	"keyledger audit explain $DECISION":                                                                         `^INSUFFICIENT_SCOPE\tpassed\tthe request needs parcels:read`,
	"keyledger keyspaces apply -f parcelbird.yaml --dry-run":                                                    `"type":"keyspace.configured"`,
	"keyledger audit diff 90d --keyspace parcelbird":                                                            `^keyspace\tparcelbird\tconfigured`,
	"keyledger audit export -o evidence.tar.gz --keyspace parcelbird --owner birdwatch":                         `^PASS`,
	"keyledger audit verify evidence.tar.gz --log-key log.key":                                                  `^PASS`,
	"keyledger audit list --from 24h":                                                                           `\tservice\.started\t.*\tkey\.created\t`,
	"keyledger audit checkpoint ledger --log-key log.key":                                                       `^signed by\tkeyledger-`,
	"keyledger audit list --type audit.read":                                                                    `\taudit\.read\tparcelbird\tbirdwatch\t`,
	"keyledger audit list --type key.denied,credential.rejected --from 24h":                                     `\tkey\.denied\t`,
	"keyledger audit list --key $KEY --type key.created --limit 1 --json":                                       `"secret":\{"sha256":"[0-9a-f]{64}","first":"pb_live_`,
	"keyledger audit history $KEY --no-uses":                                                                    `\trotated\t.*reason: quarterly.*\trevoked\t`,
	"keyledger audit list --type service.started,usage.gap":                                                     `\tservice\.started\t`,
	"keyledger audit list --actor $OPERATOR":                                                                    `\tkey\.revoked\tparcelbird\tbirdwatch\t`,
	"keyledger audit list --type key.denied,credential.rejected":                                                `\tkey\.denied\t`,
	"keyledger audit list --type key.created,key.updated,key.rotated,key.revoked,key.deleted,root_key.reset":    `\troot_key\.reset\t.*\tkey\.rotated\t.*\tkey\.revoked\t`,
	"keyledger audit list --type service.started,usage.gap,usage.pruned":                                        `\tservice\.started\t`,
	"keyledger audit list --type keyspace.configured,owner.registered":                                          `\towner\.registered\tparcelbird\tbirdwatch\t`,
	"keyledger audit list --key $KEY --type key.used --limit 1 --json":                                          `"type":"key.used",.*"time":.*"key":"key_.*"actor":.*"status":200.*"source_ip":"127\.0\.0\.1"`,
	"keyledger audit prove ledger 30 --log-key log.key":                                                         `^PASS  LEDGER 30 0 is leaf 29 `,
	"keyledger backup -o backup.zip":                                                                            `^LEDGER\t`,
	"keyledger audit witness --once --state-dir watch --log ~/.local/state/keyledger/dev/log --log-key log.key": `^LEDGER\t.*(as before|contains the last)`,
	"keyledger audit list --from 24h --format ndjson":                                                           `^\{"id":"evt_.*"type":"key.revoked"`,
	"keyledger audit prune --older-than 400d --dry-run":                                                         `^events\t0$`,
	"keyledger audit scrub --now":                                                                               `^LEDGER\t`,
	"keyledger audit list --type usage.gap":                                                                     ``, // nothing was lost
	"keyledger audit list --owner birdwatch --from 24h":                                                         `\tkey\.used\tparcelbird\tbirdwatch\t`,
	"keyledger audit history $KEY":                                                                              `\tused\t1\tGET /v1/parcels/17`,
	"keyledger audit as-of 30 $KEY":                                                                             `^name\tCI$.*^status\tactive$`,
	"keyledger audit checkpoint usage --log-key log.key":                                                        `^stream\tUSAGE$`,
	"keyledger audit export -o trail.csv --format csv --owner birdwatch --keyspace parcelbird":                  `^trail\.csv: \d+ bytes`,
	"keyledger audit export -o trail.tar.gz":                                                                    `^PASS.*^about\teverything$`,
	"keyledger backup -o again.zip":                                                                             `^LEDGER\t`,
	"keyledger root-key create --name examiner --role auditor --secret-file examiner.key":                       `^name\texaminer$`,
	"keyledger privacy erase --before 2026-01 --dry-run":                                                        `^data keys\t0$`,
	`keyledger privacy erase --keyspace parcelbird --owner birdwatch --reason "request 17"`:                     `^data keys\t1$.*^recorded\t.*OPS `,
	"keyledger audit list --type privacy.erased":                                                                `\tprivacy\.erased\tparcelbird\tbirdwatch\t`,
	`keyledger audit hold set --keyspace parcelbird --owner acme --reason "case 4711"`:                          `^state\theld$`,
	"keyledger audit hold list":                                                                                 `^parcelbird/acme\tcase 4711\t`,
	"keyledger audit list --ip 203.0.113.7 --from 1h":                                                           `\tkey\.used\tparcelbird\tacme\t`,
}
