package subscribers

import (
	"fmt"
	"strings"
)

// Account is the one whose streams subscribers see a part of, in the server's
// configuration.
const Account = "KEYLEDGER"

// Exports are what the account of the streams must offer to the others: the part of its
// configuration that deploy/nats/nats.conf has.
const Exports = `exports: [
  {stream: "live.>"}
  {service: "$JS.API.CONSUMER.MSG.NEXT.FEED.*", response_type: stream}
  {service: "$JS.API.CONSUMER.INFO.FEED.*"}
  {service: "$JS.ACK.FEED.>"}
  {service: "$JS.ACK.keyledger.*.FEED.>"}
  {service: "subscribers.none"}
]`

// Config is the part of the server's configuration that lets subscribers in: entries of
// accounts, one for each, to be included behind [Account].
func Config(list []Subscriber) string {
	var b strings.Builder
	b.WriteString("# Who follows FEED from outside: `keyledger subscribers list --config` prints this file.\n")
	for i := range list {
		b.WriteByte('\n')
		b.WriteString(list[i].Config())
	}
	return b.String()
}

// Config is the entry of one subscriber.
//
// What it may ask for is answered within its own account, wherever it wants the answer
// sent. Without the import of what nobody answers, the server would answer
// $JS.API.CONSUMER.> itself, as of an account without JetStream.
func (x *Subscriber) Config() string {
	part := "all of FEED"
	switch {
	case x.Owner != "":
		part = "keyspace " + x.Keyspace + ", owner " + x.Owner
	case x.Keyspace != "":
		part = "keyspace " + x.Keyspace
	}
	next, info := "$JS.API.CONSUMER.MSG.NEXT.FEED."+x.Consumer, "$JS.API.CONSUMER.INFO.FEED."+x.Consumer
	acks := []string{"$JS.ACK.FEED." + x.Consumer + ".>", "$JS.ACK.keyledger.*.FEED." + x.Consumer + ".>"}
	return fmt.Sprintf(`# %[1]s: %[2]s
SUBSCRIBER_%[3]s {
  users: [{nkey: %[4]s, permissions: {
    publish: {allow: ["%[5]s", "%[6]s", "%[7]s", "%[8]s"]}
    subscribe: {allow: ["%[9]s", "_INBOX.>"]}
  }}]
  imports: [
    {stream: {account: %[10]s, subject: "%[9]s"}}
    {service: {account: %[10]s, subject: "%[5]s"}}
    {service: {account: %[10]s, subject: "%[6]s"}}
    {service: {account: %[10]s, subject: "%[7]s"}}
    {service: {account: %[10]s, subject: "%[8]s"}}
    {service: {account: %[10]s, subject: "subscribers.none"}, to: "$JS.API.INFO"}
  ]
}
`, x.Name, part, strings.ReplaceAll(x.Name, "-", "_"), x.PublicKey, next, info, acks[0], acks[1], x.Live, Account)
}
