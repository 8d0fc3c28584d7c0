#!/usr/bin/env python3
"""Checks an export of a keyledger audit log. Python's standard library is enough.

BUNDLE is the tar.gz, KEY a verifier key of the log or a file that holds one. PASS
or FAIL is printed, with the first place that is wrong; the exit code is 0, 7 for a
failed proof, 2 for a wrong call, 1 where the file cannot be read.

This is a second program beside `keyledger audit verify`, to be read before it is
believed, from top to bottom: signatures (RFC 8032, C2SP signed-note), trees (RFC
6962), the archive, and then the bundle itself, whose format the README.txt in it
describes. Nothing of a bundle is written to disk.
"""
import argparse, base64, calendar, functools, gzip, hashlib, itertools, json, re, struct, sys, time, zlib

STREAMS = ["LEDGER", "USAGE", "OPS", "FEED"]
# No member of a bundle is longer, none unpacks to more times its size, no event is nested deeper.
MEMBER, UNPACKED, DEPTH = 16 << 20, 300, 256
NUMBER = r"(0|[1-9]\d{0,18})"
HASHES = r"((?:\n\S{44}){0,64})"
LEAF = re.compile(rb"(0|[1-9]\d{0,19}) (0|[1-9]\d{0,9}) ([!-~]+) ([!-~]+) ([!-~]+) ([!-~]+) (0|[1-9]\d{0,17}) ([0-9a-f]{64})")
STREAM = {"stream": str, "size": int, "root": str, "last": int, "first": int, "leaves": int, "pruned": int, "state": str}
MANIFEST = {"format": str, "log": str, "scope": {"keyspace": str, "owner": str, "key": str}, "from": object, "to": object,
            "exported": {"sequence": int, "time": str, "actor": {"type": str, "id": str}}, "streams": list, "program": str}

class Fail(Exception): "The bundle is not right: what, and where."

class Usage(Exception): "The call is not right."

def need(ok, why, where=""):
    if not ok:
        raise Fail((where + ": " if where else "") + why)

def sha256(b):
    return hashlib.sha256(b).digest()

def unbase64(text):
    """Hashes, or a hash, in base64 written in the one way."""
    found = [base64.b64decode(t) for t in text.split()]
    if [base64.b64encode(b).decode() for b in found] != text.split():
        raise ValueError("base64 that nobody writes so")
    return found

# Ed25519, RFC 8032 section 5.1; points are (X, Y, Z, T) with x = X/Z, y = Y/Z.
P, L = 2**255 - 19, 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P

def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P

def times(n, p):
    q = (0, 1, 1, 0)
    for bit in bin(n)[2:]:
        q = add(add(q, q), p) if bit == "1" else add(q, q)
    return q

def point(b):
    """What 32 bytes stand for, None where it is no point of the curve."""
    y, sign = int.from_bytes(b, "little") % 2**255, b[31] >> 7
    xx = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(xx, (P + 3) // 8, P)
    x = x * pow(2, (P - 1) // 4, P) % P if (x * x - xx) % P else x
    if y >= P or (x * x - xx) % P or x == 0 and sign:
        return None
    x = x if x & 1 == sign else P - x
    return x, y, 1, x * y % P

BASE = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))

def ed25519(public, message, signature):
    a, r, s = point(public), point(signature[:32]), int.from_bytes(signature[32:], "little")
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    if not a or not r or s >= L or len(signature) != 64:
        return False
    p, q = times(s, BASE), add(r, times(k, a))
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 == (p[1] * q[2] - q[1] * p[2]) % P

def verifier_key(text):
    """name+hash+base64(algorithm and public key) -> (name, hash, algorithm, public key)"""
    name, digest, key = text.strip().split("+", 2)
    raw = base64.b64decode(key, validate=True)
    want = sha256(name.encode() + b"\n" + raw)[:4]
    if not name or want.hex() != digest or len(raw) != 33 or raw[0] not in (1, 4):
        raise ValueError("not a verifier key")
    return name, want, raw[0], raw[1:]

def signers(note, keys, where):
    """The text of a note, and which of the keys have signed it: C2SP signed-note, tlog-cosignature."""
    text, split, tail = note.rpartition(b"\n\n")
    need(split and tail.endswith(b"\n"), "it is not a signed note", where)
    text, found, lines = text + b"\n", [], tail[:-1].split(b"\n")
    need(len(set(lines)) == len(lines), "a signature stands twice", where)
    for line in lines:
        m = re.fullmatch(rb"\xe2\x80\x94 ([^ +]+) ([A-Za-z0-9+/]+=*)", line)
        need(m, "a signature is not written as one is", where)
        (raw,) = unbase64(m[2].decode())
        for name, digest, algorithm, public in keys:
            if m[1] != name.encode() or raw[:4] != digest:
                continue
            message, signature = text, raw[4:]
            if algorithm == 4:
                message, signature = b"cosignature/v1\ntime %d\n" % int.from_bytes(raw[4:12], "big") + text, raw[12:]
            need(ed25519(public, message, signature), "a signature does not fit", where)
            found.append(name)
    return text.decode(), found

def checkpoint(note, origin, keys, where):
    """Size and root (C2SP tlog-checkpoint) and, of a tree of parts, the tree that it is of."""
    text, found = signers(note, keys, where)
    need(found, "none of the keys that were given has signed it", where)
    m = re.fullmatch(r"([^\n]+)\n" + NUMBER + r"\n(\S{44})\n(?:of (\S+) (\S+)\n)?", text)
    need(m and m[1] == origin, "it is not a checkpoint of %r" % origin, where)
    return int(m[2]), unbase64(m[3])[0], (m[4], m[5]) if m[4] else None

def policy_check(text, note, where):
    """Sigsum's format: log, witness, group and quorum lines."""
    ok, witnesses, quorum = {"none": True}, [], None
    for line in text.splitlines():
        word, *w = line.split("#")[0].split() or ["log"]
        if word == "witness":
            ok[w[0]] = bool(signers(note, [verifier_key(w[1])], where)[1])
            witnesses.append(w[0])
        elif word == "group":
            ok[w[0]] = sum(ok[x] for x in w[2:]) >= ({"any": 1, "all": len(w) - 2}.get(w[1]) or int(w[1]))
        elif word == "quorum":
            quorum = w[0]
        elif word != "log":
            raise Usage("policy: unknown word " + word)
    if quorum is None:
        raise Usage("policy: it names no quorum")
    yes, no = (", ".join(w for w in witnesses if ok[w] == b) or "nobody" for b in (True, False))
    need(ok[quorum], "it does not have the signatures that the policy asks for: signed by %s; not by %s" % (yes, no), where)

# Trees, RFC 6962. Proofs are checked as it defines them: from their end, where the tree is divided first.

def node(left, right):
    return sha256(b"\1" + left + right)

def grow(peaks, n, leaf):
    """Adds leaf n to the roots of the whole trees, largest first, that n leaves make."""
    while n & 1:
        leaf, n = node(peaks.pop(), leaf), n >> 1
    peaks.append(leaf)

def root_of(peaks):
    return functools.reduce(lambda right, left: node(left, right), reversed(peaks)) if peaks else sha256(b"")

def parts(n):
    """Where a tree of n leaves divides: the largest power of two below n."""
    return 1 << (n - 1).bit_length() - 1

def path(leaf, i, n, proof):
    """The root that a proof leads to, from leaf i of n (section 2.1.1)."""
    need((n == 1) == (not proof) and 0 <= i < n, "a proof is too short, too long or of another leaf")
    if n == 1:
        return leaf
    k, rest, last = parts(n), proof[:-1], proof[-1]
    return node(path(leaf, i, k, rest), last) if i < k else node(last, path(leaf, i - k, n - k, rest))

def paths(old, m, n, proof, whole=True):
    """The roots of the first m and of all n leaves that a proof leads to (section 2.1.2).
    whole: this part of the tree was the whole old one, whose root needs no proof."""
    need((m == n and len(proof) == (not whole)) or (0 < m < n and proof), "a proof of consistency is too short or too long")
    if m == n:
        return (old, old) if whole else (proof[0], proof[0])
    k, rest, last = parts(n), proof[:-1], proof[-1]
    if m <= k:
        before, now = paths(old, m, k, rest, whole)
        return before, node(now, last)
    before, now = paths(old, m - k, n - k, rest, False)
    return node(last, before), node(last, now)

def contains(old, m, new, n, proof):
    """The tree of m leaves is the beginning of that of n."""
    return (not proof and old == sha256(b"")) if m == 0 else paths(old, m, n, proof) == (old, new)

FRAME = bytes.fromhex("1f8b08040000000000ff2800") + b"KL\x24\0"

def unpacked(f):
    """The bytes of the tar, in pieces. As keyledger writes it, each member is a gzip
    member whose header has length and SHA-256 of what is compressed; any other gzip
    of the same tar will do."""
    if f.peek(4)[3:4] and not f.peek(4)[3] & 4:  # without an extra field
        packed = gzip.GzipFile(fileobj=f)
        while piece := packed.read(1 << 20):
            need(packed.tell() <= UNPACKED * (f.tell() + (1 << 20)), "the archive unpacks to far too much")
            yield piece
        return
    while head := f.read(len(FRAME) + 36):
        size, digest = int.from_bytes(head[len(FRAME) : -32], "little"), head[-32:]
        need(head[:-36] == FRAME and size <= MEMBER + (1 << 16), "the archive is damaged, truncated or followed by something")
        packed, tail, limit = f.read(size), f.read(8), min(MEMBER + 2048, UNPACKED * (size + 1032))
        need(sha256(packed) == digest and len(tail) == 8, "a compressed member is cut off, or not what its header says")
        z, (crc, length) = zlib.decompressobj(-15), struct.unpack("<II", tail)
        piece = z.decompress(packed, limit + 1)
        need(len(piece) == length <= limit and z.eof and not z.unused_data and zlib.crc32(piece) == crc, "a member does not unpack to what its end says")
        yield piece

def members(f):
    """Name and content of each member of the tar; links, folders, devices and odd names are refused."""
    pieces, have = unpacked(f), bytearray()

    def read(n):
        while len(have) < n:
            piece = next(pieces, b"")
            need(piece, "the archive is truncated")
            have.extend(piece)
        b = bytes(have[:n])
        del have[:n]
        return b

    while any(head := read(512)):
        name, kind, size = head[:100].rstrip(b"\0").decode("ascii", "replace"), head[156:157], int(head[124:135], 8)
        need(head[148:156].strip(b"\0 ") == b"%06o" % (sum(head[:148]) + sum(head[156:]) + 8 * 32)
             and re.fullmatch(rb"[0-7]+[\0 ]", head[124:136]) and size <= MEMBER, "the archive is damaged, or the member %r too long" % name)
        data = read(size)
        need(not any(read(-size % 512)), "something stands between two members")
        if kind == b"x":  # times with fractions, when somebody packed it again
            need(set(re.findall(rb"\d+ (\w[^=\n]*)=", data)) <= {b"mtime", b"atime", b"ctime"}, "an extended header that no bundle has")
            continue
        need(kind in b"0\0" and not any(head[345:500]), "the member %r is no plain file" % name)
        yield name, data
    rest = bytes(have) + b"".join(pieces)
    need(len(rest) < 1 << 16 and not any(rest), "something follows the end of the archive")

def strict_json(body, where):
    """One object, and no member twice: nothing that another reader reads differently."""

    def unique(pairs):
        need(len(dict(pairs)) == len(pairs), "a member stands twice in its JSON", where)
        return dict(pairs)

    try:
        need(body[:1] == b"{" and body[-1:] == b"}", "its body is not a JSON object", where)
        if body.count(b"{") + body.count(b"[") > DEPTH:
            depths = itertools.accumulate((c in b"{[") - (c in b"}]") for c in re.sub(rb'"(?:[^"\\]|\\.)*"', b"", body))
            need(max(depths) <= DEPTH, "its body is nested too deeply", where)
        return json.loads(body.decode(), object_pairs_hook=unique, parse_constant=int)  # int refuses NaN
    except (ValueError, RecursionError) as e:
        raise Fail("%s: its body is not JSON: %s" % (where, e))

def shaped(v, form):
    """A value has the members of a form, in its order, and no others; no number is negative."""
    if type(form) is dict:
        return type(v) is dict and list(v) == list(form) and all(shaped(v[w], form[w]) for w in form)
    return form is object or type(v) is form and (form is not int or v >= 0)

def moment(ms):
    return ms and time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + ".%03dZ" % (ms % 1000)

def milliseconds(text, otherwise):
    if text is None:
        return otherwise
    ms = calendar.timegm(time.strptime(text[:-5], "%Y-%m-%dT%H:%M:%S")) * 1000 + int(text[-4:-1])
    need(moment(ms) == text, "a time is not written as one is", "manifest.json")
    return ms

class Bundle:
    def __init__(self, path, keys, policy):
        self.members, self.sums, self.keys, self.policy = members(open(path, "rb")), b"", keys, policy

    def next(self, want):
        name, data = next(self.members, (None, None))
        instead = "%r stands in its place: a member is missing, doubled, renamed or out of order" % name
        need(name == want, instead if name else "the archive ends before it", want)
        self.sums += b"%s  %s\n" % (sha256(data).hex().encode(), want.encode())
        return data

    def verify(self):
        self.next("README.txt")
        raw = self.next("manifest.json")
        self.m = m = strict_json(raw.rstrip(b"\n"), "manifest.json")
        need(shaped(m, MANIFEST) and m["format"] == "keyledger bundle v1" and [s["stream"] for s in m["streams"]] == STREAMS
             and all(shaped(s, {**STREAM, "later": int} if s.get("later") else STREAM) for s in m["streams"])
             and (json.dumps(m, indent=2, ensure_ascii=False) + "\n").encode() == raw, "it is not one of a bundle", "manifest.json")
        self.keys = [k for k in self.keys if k[0] == m["log"]]
        need(self.keys, "it is of the log %r, and no key of that name was given" % m["log"], "manifest.json")
        self.start, self.end = milliseconds(m["from"], 0), milliseconds(m["to"], 1 << 63)
        self.scope = tuple(m["scope"].values())
        need(self.scope[0] or not any(self.scope), "its scope names no keyspace", "manifest.json")
        self.export()
        self.next("keys.txt"), self.next("policy.txt")
        told = [self.stream(s) for s in m["streams"]]
        need(self.confirmed, "the event of this export does not stand in the log", "export.ndjson")
        need(self.sums == self.next("SHA256SUMS"), "a sum is not the one that is written", "SHA256SUMS")
        need(next(self.members, None) is None, "a member follows the last one")
        return told

    def export(self):
        """The event in the log that says what this export is."""
        m, line = self.m, self.next("export.ndjson")
        need(line.count(b"\n") == 1 and line.endswith(b"\n"), "it is not one line", "export.ndjson")
        self.event, e = sha256(line[:-1]), strict_json(line[:-1], "export.ndjson")
        x, short = m["exported"], m["streams"][2]["last"] < m["exported"]["sequence"]  # OPS ends before this event
        says = {w: v for w, v in [*m["scope"].items(), ("from", m["from"]), ("to", m["to"])] if v}
        for s in m["streams"]:
            if s["stream"] != "OPS" or short:
                says["tree." + s["stream"]] = " ".join(str(s[w]) for w in ("size", "root", "last", "first", "pruned", "state")).strip()
            if "later" in s:
                says["later." + s["stream"]] = str(s["later"])
        need((e.get("type"), e.get("time"), e.get("actor")) == ("audit.read", x["time"], x["actor"])
             and e["data"].get("what") == "bundle" and e["data"].get("filter") == says,
             "the manifest says something else than the event of the export: one of them, or a checkpoint, was changed", "export.ndjson")
        self.confirmed = short
        if short:  # C2SP tlog-proof, the leaf's text as extra data
            where, proof = "export.proof.txt", self.next("export.proof.txt").decode()
            p = re.fullmatch(r"c2sp.org/tlog-proof@v1\nextra (\S+)\nindex " + NUMBER + HASHES + r"\n\n(.+)", proof, re.S)
            need(p, "it is not a proof", where)
            size, root, of = checkpoint(p[4].encode(), m["log"] + "/ops", self.keys, where)
            leaf, *hashes = unbase64(p[1] + p[3])
            need(leaf.split(b"\n")[1:6:4] == [b"OPS %d 0" % x["sequence"], self.event.hex().encode()], "it is the proof of another event than the one in export.ndjson", where)
            need(not of and path(sha256(b"\0" + leaf), int(p[2]), size, hashes) == root, "the event of this export is not at its place in the signed tree", where)

    def stream(self, s):
        name, low, log = s["stream"], s["stream"].lower() + "/", self.m["log"]
        where, (root,), part = low + "checkpoint.txt", unbase64(s["root"]), any(self.scope)
        cp = self.next(where)
        size, signed, of = checkpoint(cp, log + "/" + low[:-1], self.keys, where)
        need(not of and size >= s["size"] and (size > s["size"] or signed == root), "it is not of the export's tree: an older or another log's", where)
        policy_check(self.policy, cp, where)
        if part or size > s["size"]:
            where, hashes = low + "consistency.txt", self.next(low + "consistency.txt").decode()
            need(re.fullmatch(r"(\S{44}\n){0,128}", hashes), "it is not a proof of consistency", where)
            need(contains(root, s["size"], signed, size, unbase64(hashes)), "the signed tree does not contain the export's", where)
        want, state = s["size"], unbase64(s["state"])
        if part:
            want, chain = self.part(low, log, (str(s["size"]), s["root"]))
        need(s["pruned"] + s["leaves"] == want, "the log has %d events of it, the manifest says %d" % (want, s["pruned"] + s["leaves"]), "manifest.json")
        need(len(state) == (s["pruned"] > 0 if part else bin(s["pruned"]).count("1")) and (name == "USAGE" or (s["first"], s["pruned"]) == (1, 0)),
             "what it says of pruned events makes no sense", "manifest.json")
        link, last, bodies = (state or [bytes(32)])[0], None, 0
        for n, (place, about, subject, ms, digest, body, leaf, at) in enumerate(self.leaves(name, s["leaves"]), s["pruned"]):
            if last:
                need(place > last, "it stands twice, or the events are out of order", at)
                need(part or place in ((last[0], last[1] + 1), (last[0] + 1, 0)), "what stands before it is missing", at)
            else:
                need(place[0] >= s["first"] and (part or place == (s["first"], 0)), "the stream does not begin with it", at)
            need(not part or all(w in ("", a) for w, a in zip(self.scope, about)), "it is not about what was exported", at)
            if name == "OPS" and place[0] == self.m["exported"]["sequence"]:
                need(digest == self.event.hex(), "it is another event than the one in export.ndjson", at)
                self.confirmed = True
            if body is not None:
                need(sha256(body).hex() == digest, "the SHA-256 of its body is not the one of its leaf", at)
                fits(name, strict_json(body, at), about, ms, subject, at)
                bodies += 1
            last = place
            if part:
                link = sha256(b"\2" + link + leaf)
            else:
                grow(state, n, leaf)
        if part:
            need(link == chain, "the events are not those whose chain is signed", low + "part.txt")
        else:
            need(root_of(state) == root, "the events do not add up to the signed root", low + "checkpoint.txt")
        end = last[0] if last else 0
        need(end <= s["last"] and (part or last is None or end == s["last"])
             and (s["last"] == 0 or 0 < s["size"] and s["first"] <= s["last"] + 1), "its last event is not the one that the export's event names", low)
        return name, s["size"], s["leaves"], bodies

    def leaves(self, name, left):
        """The leaves of a stream, each with its body where its time is the export's."""
        for n in itertools.takewhile(lambda n: left > 0, itertools.count(1)):
            file = "%s/%06d.leaves.txt" % (name.lower(), n)
            lines, events = self.next(file), self.next(file.replace("leaves.txt", "events.ndjson"))
            need(lines.endswith(b"\n") and (events.endswith(b"\n") or not events), "it does not end with a newline", file)
            lines, events = lines[:-1].split(b"\n"), iter(events.split(b"\n")[:-1])
            need(len(lines) <= left, "it has more lines than leaves are left", file)
            left -= len(lines)
            for i, line in enumerate(lines, 1):
                m = LEAF.fullmatch(line)
                need(m, "line %d is not a leaf" % i, file)
                text = b"keyledger event v1\n%s %s %s\n%s\n%s %s %s\n%s\n%s\n" % (name.encode(), *m.groups())
                place, ms, at = (int(m[1]), int(m[2])), int(m[7]), "%s %s %s" % (name, m[1].decode(), m[2].decode())
                need(name == "USAGE" or place[1] == 0, "only pages of USAGE have lines", at)
                within = self.start <= ms < self.end
                body = next(events, None) if within else None
                need(body is not None or not within, "its body is missing", at)
                about = tuple("" if w == b"_" else w.decode() for w in m.groups()[3:6])
                yield place, about, m[3].decode(), ms, m[8].decode(), body, sha256(b"\0" + text), at
            need(next(events, None) is None, "it has more events than there are leaves within the times", file)

    def part(self, low, log, of):
        """Count and chain of the scope's events, (0, zeros) where there are none."""
        where, proofs = low + "parts.txt", []
        size, root, tree = checkpoint(self.next(where), log + "/" + low[:-1] + "/parts", self.keys, where)
        need(tree == of, "it is a tree of parts of another tree than the export's", where)
        name = "keyledger scope v1\n%s\n" % " ".join(w or "_" for w in self.scope)
        want, where = sha256(name.encode()).hex(), low + "part.txt"
        *blocks, end = self.next(where).decode("ascii", "replace").split("\n\n")
        for block in blocks:
            m = re.fullmatch(r"(keyledger part v1\n([0-9a-f]{64}) ([1-9]\d{0,18}) ([0-9a-f]{64})\n)index " + NUMBER + HASHES, block)
            need(m and not end, "it is not the proof of a part", where)
            need(path(sha256(b"\0" + m[1].encode()), int(m[5]), size, unbase64(m[6])) == root, "a part is not at its place in the signed tree of parts", where)
            proofs.append((m[2], int(m[5]), int(m[3]), bytes.fromhex(m[4])))
        if [p[0] for p in proofs] == [want]:
            return proofs[0][2:]
        # Or its neighbours, between which it would stand; before the first and behind the last there is one.
        ids, places = [p[0] for p in proofs], [p[1] for p in proofs]
        need(not end and (not ids and size == 0 or len(ids) == 1 and (places == [0] and want < ids[0] or places == [size - 1] and ids[0] < want)
             or len(ids) == 2 and places[1] == places[0] + 1 and ids[0] < want < ids[1]), "it shows neither this part nor that there is none", where)
        return 0, bytes(32)

def fits(stream, e, about, ms, subject, at):
    """An event says of itself what its leaf does."""
    says = tuple(e.get(w, 0) if e.get(w, 0) is not None else "" for w in ("keyspace", "owner", "key"))
    ks, owner, key = (w or "_" for w in about)
    want = {"LEDGER": "ledger.keyledger._._" if ks == "keyledger" else "ledger.%s.%s.%s" % (ks, owner, key), "OPS": "ops.%s.%s.%s" % (ks, owner, key),
            "FEED": "feed.%s.%s.%s.%s" % (e.get("type"), about[0], owner, key), "USAGE": "usage.%s." % ks}[stream]
    need(says == about and e.get("time", 0) == (moment(ms) or None) and (subject == want or stream == "USAGE" and subject.startswith(want)),
         "its body says another time, keyspace, owner, key or subject than its leaf", at)

def check(path, keys, policy="quorum none"):
    """Why the bundle is not right, or None, the bundle, and what of each stream was checked."""
    try:
        b = Bundle(path, keys, policy)
        return None, b, b.verify()
    except Fail as e:
        return str(e), None, None
    except (EOFError, gzip.BadGzipFile, zlib.error, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, struct.error) as e:
        return "it is damaged, truncated or not written as a bundle is: %s" % e, None, None

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("bundle")
    p.add_argument("key", nargs="+", type=lambda k: verifier_key(k if k.count("+") >= 2 else open(k).read()))
    p.add_argument("--policy", type=argparse.FileType())
    args = p.parse_args()
    try:
        why, b, streams = check(args.bundle, args.key, args.policy.read() if args.policy else "quorum none")
    except Usage as e:
        p.error(str(e))
    except OSError as e:
        sys.exit("verify_bundle.py: %s" % e)
    if why:
        print("FAIL  " + why)
        return 7
    m, x = b.m, b.m["exported"]
    print("PASS  log %s, scope %s, from %s to %s" % (m["log"], " ".join(w for w in b.scope if w) or "everything", m["from"] or "the first", m["to"] or "the last"))
    print("      exported %s by %s %s, recorded as OPS %d" % (x["time"], x["actor"]["type"], x["actor"]["id"], x["sequence"]))
    for (name, size, leaves, bodies), s in zip(streams, m["streams"]):
        later = ", %d later ones are not in it" % s["later"] if "later" in s else ""
        print("      %-7s %d of %d events, %d with their bytes%s" % (name, leaves, size, bodies, later))
    return 0

if __name__ == "__main__":
    sys.exit(main())
