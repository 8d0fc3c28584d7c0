// One's own part of FEED by a durable consumer, and live beside it. npm install
// @nats-io/transport-node@3.4.0 @nats-io/jetstream@3.4.0
import { readFile } from 'node:fs/promises'
import { connect, nkeyAuthenticator } from '@nats-io/transport-node'
import { jetstream } from '@nats-io/jetstream'

const seed = new TextEncoder().encode((await readFile(process.env.SEED_FILE, 'utf8')).trim())
const nc = await connect({ servers: process.env.NATS_URL, authenticator: nkeyAuthenticator(seed), maxReconnectAttempts: -1 })

nc.subscribe(process.env.LIVE, {
  callback: (err, m) => err ? console.error(err.message) : console.log('live', m.json().type, m.json().key),
})

const consumer = await jetstream(nc).consumers.get('FEED', process.env.CONSUMER)
console.log('following')
for await (const m of await consumer.consume()) {
  const fact = m.json()
  console.log(fact.type, fact.key) // may come twice: fact.id tells
  m.ack()
}
