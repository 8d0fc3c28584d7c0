"""Server-Sent Events, with nothing but Python's standard library."""

import json
import os
import sys
import time
import urllib.request

last = "0"  # keep it where it outlives the program, to go on there


def connection():
    global last
    request = urllib.request.Request(
        os.environ["KEYLEDGER_URL"] + "/v1/feeds/events?type=key.revoked",
        headers={
            "Authorization": "Bearer " + os.environ["KEYLEDGER_TOKEN"],
            "Accept": "text/event-stream",
            "Last-Event-ID": last,
        },
    )
    event = {}
    # A comment comes every 15 seconds: a connection that is silent for longer is dead.
    with urllib.request.urlopen(request, timeout=40) as answer:
        for line in answer:
            field, colon, value = line.decode().rstrip("\n").partition(": ")
            if colon and field:
                event[field] = value
            if line != b"\n":
                continue
            if "id" in event:  # an event is whole
                data = json.loads(event["data"])
                if str(data["previous"]) != last:
                    raise ValueError(f"what came between {last} and {data['previous']} is missing")
                if event.get("event") == "reached":
                    print("what there was is told", flush=True)
                else:
                    print(data["event"]["key"], "revoked", data["event"]["data"]["reason"], flush=True)
                last = event["id"]
            event = {}


while True:
    try:
        connection()
    except (OSError, ValueError) as err:  # 422: of another FEED, begin with 0
        print(err, file=sys.stderr)
    time.sleep(1)
