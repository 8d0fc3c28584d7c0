"""Prints facts of one owner or keyspace, as a durable consumer of FEED hands them out, and
what comes on live. It needs nats-py with nkeys (pip install 'nats-py[nkeys]'), and what
`keyledger subscribers add` printed: NATS_URL, SEED_FILE, CONSUMER and LIVE.
"""

import asyncio
import json
import os

import nats


async def live(m):
    fact = json.loads(m.data)
    print("live", fact["type"], fact["key"], flush=True)


async def main():
    with open(os.environ["SEED_FILE"]) as f:
        seed = f.read().strip()
    nc = await nats.connect(os.environ["NATS_URL"], nkeys_seed_str=seed, max_reconnect_attempts=-1)
    await nc.subscribe(os.environ["LIVE"], cb=live)

    consumer = await nc.jetstream().pull_subscribe_bind(consumer=os.environ["CONSUMER"], stream="FEED")
    print("following", flush=True)
    while True:
        try:
            facts = await consumer.fetch(1, timeout=60)
        except nats.errors.TimeoutError:
            continue  # nothing happened
        for m in facts:
            fact = json.loads(m.data)
            print(fact["type"], fact["key"], flush=True)  # may come twice: fact["id"] tells
            await m.ack()


asyncio.run(main())
