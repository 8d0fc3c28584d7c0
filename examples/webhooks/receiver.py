"""Receives facts from a webhook: WEBHOOK_SECRET=whsec_… python3 receiver.py 8080"""

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))
seen = set()  # of a real receiver: a table with a unique column


def right(headers, body):
    """Whether one of the signatures is right, as Standard Webhooks says."""
    timestamp = headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > 300:
        return False
    signed = f"{headers.get('webhook-id')}.{timestamp}.".encode() + body
    want = "v1," + base64.b64encode(hmac.new(KEY, signed, hashlib.sha256).digest()).decode()
    return any(hmac.compare_digest(s, want) for s in headers.get("webhook-signature", "").split())


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if right(self.headers, body):
            event = json.loads(body)
            if event["id"] not in seen:
                print(event["type"], event["key"], flush=True)
            seen.add(event["id"])
        self.send_response(204 if right(self.headers, body) else 401)
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
print("listening", "%s:%d" % server.server_address, flush=True)
server.serve_forever()
