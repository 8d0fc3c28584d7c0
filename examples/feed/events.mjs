// Server-Sent Events, with nothing but Node 18 or later.
let last = '0' // keep it where it outlives the program, to go on there

async function connection() {
  const answer = await fetch(process.env.KEYLEDGER_URL + '/v1/feeds/events?type=key.revoked', {
    headers: { Authorization: 'Bearer ' + process.env.KEYLEDGER_TOKEN, Accept: 'text/event-stream', 'Last-Event-ID': last },
  })
  if (!answer.ok) throw new Error(answer.status + ' ' + await answer.text()) // 422: of another FEED, begin with 0
  let event = {}, rest = ''
  for await (const text of answer.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split('\n')
    rest = lines.pop()
    for (const line of lines) {
      const colon = line.indexOf(': ')
      if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 2)
      if (line !== '') continue
      if (event.id) { // an event is whole
        const { previous, event: fact } = JSON.parse(event.data)
        if (String(previous) !== last) throw new Error(`what came between ${last} and ${previous} is missing`)
        if (event.event === 'reached') console.log('what there was is told')
        else console.log(fact.key, 'revoked', fact.data.reason)
        last = event.id
      }
      event = {}
    }
  }
}

for (;;) {
  await connection().catch((err) => console.error(err.message))
  await new Promise((again) => setTimeout(again, 1000))
}
