#!/bin/sh
# Asks keyledger about one request, by hand or from a service in any language
# (docs/http-api.md). The root key, of role verifier, is in KEYLEDGER_TOKEN; the value
# of the credential header, as the client sent it (Authorization: Bearer pb_live_…), in
# CREDENTIAL. Neither is an argument, which other users of the machine could see.
#
# The answer is always 200: "valid" says whether the request may pass, and "answer"
# what to tell the client where it may not.
set -eu
curl --silent --show-error --config - <<END
url = "${KEYLEDGER_URL:-http://127.0.0.1:7070}/v1/verify"
header = "Authorization: Bearer ${KEYLEDGER_TOKEN:?}"
header = "Content-Type: application/json"
data = "{\"keyspace\": \"parcelbird\", \"authorization\": \"${CREDENTIAL:?}\", \"method\": \"${1:-GET}\", \"path\": \"${2:-/}\"}"
END
