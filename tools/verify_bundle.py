#!/usr/bin/env python3
"""Checks an export of a keyledger audit log. Python's standard library is enough.

    verify_bundle.py BUNDLE KEY... [--policy FILE]

BUNDLE is the tar.gz, KEY a verifier key of the log or a file that holds one. PASS
or FAIL is printed, with the first place that is wrong; the exit code is 0, 7 for a
failed proof, 2 for a wrong call, 1 where the file cannot be read.

This is a second program beside `keyledger audit verify`, to be read before it is
believed, from top to bottom: signatures (RFC 8032, C2SP signed-note), trees (RFC
6962), the archive, and then the bundle itself, whose format the README.txt in it
describes. Nothing of a bundle is written to disk.
"""
import base64, calendar, gzip, hashlib, json, re, struct, sys, time, zlib

STREAMS = ["LEDGER", "USAGE", "OPS", "FEED"]
MEMBER = 16 << 20  # no member of a bundle is longer
UNPACKED = 300  # no bundle unpacks to more times its size

class Fail(Exception): "The bundle is not right: what, and where."

class Usage(Exception): "The call is not right."

def need(ok, why, where=""):
    if not ok:
        raise Fail((where + ": " if where else "") + why)

def sha256(b):
    return hashlib.sha256(b).digest()

# ---- Ed25519, RFC 8032 section 5.1; points are (X, Y, Z, T) with x = X/Z, y = Y/Z

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P

def add(p, q):
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P

def times(n, p):
    q = (0, 1, 1, 0)
    while n:
        if n & 1:
            q = add(q, p)
        p, n = add(p, p), n >> 1
    return q

def same(p, q):
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0

def point(b):
    y = int.from_bytes(b, "little")
    sign, y = y >> 255, y & (2**255 - 1)
    if y >= P:
        return None
    xx = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(xx, (P + 3) // 8, P)
    if (x * x - xx) % P:
        x = x * pow(2, (P - 1) // 4, P) % P
    if (x * x - xx) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P

BASE = point((4 * pow(5, -1, P) % P).to_bytes(32, "little"))

def ed25519(public, message, signature):
    a, r, s = point(public), point(signature[:32]), int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L or len(signature) != 64:
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    return same(times(s, BASE), add(r, times(k, a)))

# ---- signed notes and checkpoints: c2sp.org/signed-note, tlog-checkpoint, tlog-cosignature

def verifier_key(text):
    """name+hash+base64(algorithm and public key) -> (name, hash, algorithm, public key)"""
    name, digest, key = text.strip().split("+", 2)
    raw = base64.b64decode(key, validate=True)
    want = sha256(name.encode() + b"\n" + raw)[:4]
    if not name or want.hex() != digest or len(raw) != 33 or raw[0] not in (1, 4):
        raise ValueError("not a verifier key")
    return name, want, raw[0], raw[1:]

def signers(note, keys, where):
    """The text of a note, and which of the keys have signed it."""
    text, split, tail = note.rpartition(b"\n\n")
    need(split and tail.endswith(b"\n"), "it is not a signed note", where)
    text, found, lines = text + b"\n", [], tail[:-1].split(b"\n")
    need(len(set(lines)) == len(lines), "a signature stands twice", where)
    for line in lines:
        m = re.fullmatch(rb"\xe2\x80\x94 ([^ +]+) ([A-Za-z0-9+/]+=*)", line)
        need(m, "a signature is not written as one is", where)
        raw = base64.b64decode(m[2])
        need(base64.b64encode(raw) == m[2], "a signature is not written as one is", where)
        for key in keys:
            name, digest, algorithm, public = key
            if m[1] != name.encode() or raw[:4] != digest:
                continue
            message, signature = text, raw[4:]
            if algorithm == 4:
                stamp = int.from_bytes(raw[4:12], "big")
                message, signature = b"cosignature/v1\ntime %d\n" % stamp + text, raw[12:]
            need(ed25519(public, message, signature), "a signature does not fit", where)
            found.append(key)
    return text.decode(), found

def checkpoint(note, origin, keys, where):
    """size, root and, of a tree of parts, the tree that it is of"""
    text, found = signers(note, keys, where)
    need(found, "none of the keys that were given has signed it", where)
    m = re.fullmatch(r"([^\n]+)\n(0|[1-9]\d{0,18})\n(\S{44})\n(?:of (\S+) (\S+)\n)?", text)
    need(m, "it is not a checkpoint", where)
    need(m[1] == origin, "it is a checkpoint of %r, not of %r" % (m[1], origin), where)
    return int(m[2]), base64.b64decode(m[3]), (m[4], m[5]) if m[4] else None

def policy_check(text, note, where):
    """Sigsum's format: log, witness, group and quorum lines."""
    ok, quorum, witnesses = {}, None, []
    for line in text.splitlines():
        w = line.split("#")[0].split()
        if not w or w[0] == "log":
            continue
        if w[0] == "witness":
            ok[w[1]] = bool(signers(note, [verifier_key(w[2])], where)[1])
            witnesses.append(w[1])
        elif w[0] == "group":
            n = {"any": 1, "all": len(w) - 3}.get(w[2]) or int(w[2])
            ok[w[1]] = sum(ok[x] for x in w[3:]) >= n
        elif w[0] == "quorum":
            quorum = w[1]
        else:
            raise Usage("policy: unknown word " + w[0])
    if quorum is None:
        raise Usage("policy: it names no quorum")
    names = lambda b: ", ".join(w for w in ok if w in witnesses and ok[w] == b) or "nobody"
    need(quorum == "none" or ok[quorum], "it does not have the signatures that the policy asks for: signed by %s; not by %s" % (names(True), names(False)), where)

# ---- trees, RFC 6962

def node(left, right):
    return sha256(b"\1" + left + right)

class Tree:
    def __init__(self):
        self.size, self.peaks = 0, []

    def add(self, leaf):
        self.size += 1
        n = self.size
        while n % 2 == 0:
            leaf, n = node(self.peaks.pop(), leaf), n // 2
        self.peaks.append(leaf)

    def root(self):
        if not self.peaks:
            return sha256(b"")
        h = self.peaks[-1]
        for p in reversed(self.peaks[:-1]):
            h = node(p, h)
        return h

def included(leaf, index, size, proof, root):
    """RFC 9162, section 2.1.3.2"""
    if not 0 <= index < size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = node(p, r)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == root

def contains(old, n, new, m, proof):
    """RFC 9162, section 2.1.4.2: the tree of n leaves is the beginning of that of m."""
    if n == m or n == 0:
        return not proof and (old, n) in ((new, m), (sha256(b""), 0))
    proof = ([old] if n & (n - 1) == 0 else []) + proof
    if n > m or not proof:
        return False
    fn, sn, fr, sr = n - 1, m - 1, proof[0], proof[0]
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    for c in proof[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = node(c, fr), node(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and (fr, sr) == (old, new)

# ---- the archive: gzip, then tar; links, folders, devices and odd names are refused

FRAME = bytes.fromhex("1f8b08040000000000ff2800") + b"KL\x24\0"

def unpacked(f):
    """The bytes of the tar, in pieces. As keyledger writes it, each member is a gzip
    member whose header has length and SHA-256 of what is compressed; any other gzip
    of the same tar will do."""
    start = f.read(4)
    f.seek(0)
    if len(start) == 4 and not start[3] & 4:  # without an extra field
        packed, total = gzip.GzipFile(fileobj=f), 0
        while piece := packed.read(1 << 20):
            total += len(piece)
            need(total <= UNPACKED * (f.tell() + (1 << 20)), "the archive unpacks to far too much")
            yield piece
        return
    while head := f.read(len(FRAME) + 36):
        need(head[: len(FRAME)] == FRAME and len(head) == len(FRAME) + 36, "the archive is damaged, truncated or followed by something")
        size = struct.unpack("<I", head[len(FRAME) : -32])[0]
        need(size <= MEMBER + (1 << 16), "a compressed member is too long")
        packed, tail = f.read(size), f.read(8)
        need(len(packed) == size and len(tail) == 8, "the archive is truncated")
        need(sha256(packed) == head[-32:], "a compressed member is not what its header says")
        crc, length = struct.unpack("<II", tail)
        need(length <= min(MEMBER + 2048, UNPACKED * (size + 1032)), "a member unpacks to far too much")
        z = zlib.decompressobj(-15)
        piece = z.decompress(packed, length + 1)
        need(len(piece) == length and z.eof and not z.unused_data and zlib.crc32(piece) == crc, "a member does not unpack to what its end says")
        yield piece

def members(f):
    """name and content of each member"""
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
        name, kind = head[:100].rstrip(b"\0").decode("ascii", "replace"), head[156:157]
        total = sum(head[:148]) + sum(head[156:]) + 8 * 32
        need(head[148:156].strip(b"\0 ") == b"%06o" % total and re.fullmatch(rb"[0-7]+[\0 ]", head[124:136]), "the archive is damaged")
        size = int(head[124:135], 8)
        need(size <= MEMBER, "the member %r is too long" % name)
        data = read(size)
        need(not any(read(-size % 512)), "something stands between two members")
        if kind == b"x":  # times with fractions, when somebody packed it again
            keys = re.findall(rb"\d+ (\w[^=\n]*)=", data)
            need(set(keys) <= {b"mtime", b"atime", b"ctime"}, "an extended header that no bundle has")
            continue
        need(kind in b"0\0" and not any(head[345:500]), "the member %r is no plain file" % name)
        yield name, data
    rest = bytes(have) + b"".join(pieces)
    need(len(rest) < 1 << 16 and not any(rest), "something follows the end of the archive")

# ---- the bundle

def strict_json(body, where):
    """One object, and no member twice: nothing that another reader reads differently."""

    def unique(pairs):
        d = dict(pairs)
        need(len(d) == len(pairs), "a member stands twice in its JSON", where)
        return d

    def constant(word):
        raise ValueError(word)

    try:
        need(body[:1] == b"{" and body[-1:] == b"}", "its body is not a JSON object", where)
        if body.count(b"{") + body.count(b"[") > 256:
            depth = 0
            for c in re.sub(rb'"(?:[^"\\]|\\.)*"', b"", body):
                depth += (c in b"{[") - (c in b"}]")
                need(depth <= 256, "its body is nested too deeply", where)
        return json.loads(body.decode(), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as e:
        raise Fail("%s: its body is not JSON: %s" % (where, e))

def moment(ms):
    return ms and time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + ".%03dZ" % (ms % 1000)

def milliseconds(text):
    if text is None:
        return None
    m = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{3})Z", text)
    need(m, "a time is not written as one is", "manifest.json")
    return calendar.timegm(time.strptime(m[1], "%Y-%m-%dT%H:%M:%S")) * 1000 + int(m[2])

class Bundle:
    def __init__(self, path, keys, policy=None):
        self.file = open(path, "rb")
        self.members, self.sums, self.keys, self.policy = members(self.file), b"", keys, policy

    def next(self, want):
        name, data = next(self.members, (None, None))
        need(name is not None, "the archive ends before it", want)
        need(name == want, "%r stands in its place: a member is missing, doubled, renamed or out of order" % name, want)
        if want != "SHA256SUMS":
            self.sums += b"%s  %s\n" % (hashlib.sha256(data).hexdigest().encode(), want.encode())
        return data

    def verify(self):
        self.next("README.txt")
        self.manifest()
        self.next("keys.txt")
        self.next("policy.txt")
        told = [self.stream(s) for s in self.m["streams"]]
        need(self.confirmed, "the event of this export does not stand in the log", "export.ndjson")
        sums = self.sums
        need(self.next("SHA256SUMS") == sums, "a sum is not the one that is written", "SHA256SUMS")
        extra = next(self.members, None)
        need(extra is None, "a member follows the last one", extra and repr(extra[0]))
        return told

    def manifest(self):
        raw = self.next("manifest.json")
        self.m = m = strict_json(raw.rstrip(b"\n"), "manifest.json")
        try:
            shape = [list(m), list(m["scope"]), list(m["exported"]), [(s["stream"], [w for w in s if w != "later" or not s[w]]) for s in m["streams"]]]
            numbers = [n for s in m["streams"] for n in (s["size"], s["last"], s["leaves"], s["first"], s["pruned"], s.get("later", 1))] + [m["exported"]["sequence"]]
            whole = all(type(n) is int and n >= 0 for n in numbers)
            words = all(type(w) is str for w in [*m["scope"].values(), m["log"], m["program"], *(s[w] for s in m["streams"] for w in ("root", "state"))])
        except (TypeError, KeyError, AttributeError):
            raise Fail("manifest.json: it is not one of a bundle")
        stream = ["stream", "size", "root", "last", "first", "leaves", "pruned", "state"]
        need(shape == [["format", "log", "scope", "from", "to", "exported", "streams", "program"], ["keyspace", "owner", "key"], ["sequence", "time", "actor"],
                       [(s, stream) for s in STREAMS]] and whole and words and m["format"] == "keyledger bundle v1"
             and (json.dumps(m, indent=2, ensure_ascii=False) + "\n").encode() == raw, "it is not one of a bundle", "manifest.json")
        self.keys = [k for k in self.keys if k[0] == m["log"]]
        need(self.keys, "it is of the log %r, and no key of that name was given" % m["log"], "manifest.json")
        self.start, self.end = milliseconds(m["from"]) or 0, milliseconds(m["to"])
        self.scope = tuple(m["scope"][w] for w in ("keyspace", "owner", "key"))
        need(self.scope[0] or not any(self.scope), "its scope names no keyspace", "manifest.json")
        # The log itself says what this export is.
        line = self.next("export.ndjson")
        need(line.count(b"\n") == 1 and line.endswith(b"\n"), "it is not one line", "export.ndjson")
        self.event, e = sha256(line[:-1]), strict_json(line[:-1], "export.ndjson")
        x, short = m["exported"], m["streams"][2]["last"] < m["exported"]["sequence"]  # OPS ends before this event
        says = {k: v for k, v in [*m["scope"].items(), ("from", m["from"]), ("to", m["to"])] if v}
        says.update(("tree." + s["stream"], ("%d %s %d %d %d %s" % (s["size"], s["root"], s["last"], s["first"], s["pruned"], s["state"])).strip()) for s in m["streams"] if s["stream"] != "OPS" or short)
        says.update(("later." + s["stream"], str(s["later"])) for s in m["streams"] if "later" in s)
        need((e.get("type"), e.get("time"), e.get("actor")) == ("audit.read", x["time"], x["actor"])
             and e["data"].get("what") == "bundle" and e["data"].get("filter") == says,
             "the manifest says something else than the event of the export: one of them, or a checkpoint, was changed", "export.ndjson")
        self.confirmed = short
        if short:  # C2SP tlog-proof, the leaf's text as extra data
            where = "export.proof.txt"
            p = re.fullmatch(rb"c2sp.org/tlog-proof@v1\nextra (\S+)\nindex (0|[1-9]\d{0,18})((?:\n[A-Za-z0-9+/]{43}=){0,64})\n\n(.+)", self.next(where), re.S)
            need(p, "it is not a proof", where)
            size, root, of = checkpoint(p[4], m["log"] + "/ops", self.keys, where)
            leaf, *hashes = [base64.b64decode(h) for h in (p[1], *p[3].split())]
            need([base64.b64encode(h) for h in (leaf, *hashes)] == [p[1], *p[3].split()], "it is not written as one is", where)
            lines = leaf.decode().split("\n")
            need(lines[1] == "OPS %d 0" % x["sequence"] and lines[5] == self.event.hex(), "it is the proof of another event than the one in export.ndjson", where)
            need(not of and included(sha256(b"\0" + leaf), int(p[2]), size, hashes, root), "the event of this export is not at its place in the signed tree", where)

    def stream(self, s):
        name, low, log = s["stream"], s["stream"].lower() + "/", self.m["log"]
        cp = self.next(low + "checkpoint.txt")
        size, signed, of = checkpoint(cp, log + "/" + low[:-1], self.keys, low + "checkpoint.txt")
        part, root = any(self.scope), base64.b64decode(s["root"])
        need(not of and size >= s["size"] and (size > s["size"] or signed == root), "it is not of the export's tree: an older or another log's", low + "checkpoint.txt")
        if part or size > s["size"]:
            hashes = self.next(low + "consistency.txt").decode()
            need(re.fullmatch(r"([A-Za-z0-9+/]{43}=\n){0,128}", hashes), "it is not a proof of consistency", low + "consistency.txt")
            need(contains(root, s["size"], signed, size, [base64.b64decode(h) for h in hashes.split()]), "the signed tree does not contain the export's", low + "consistency.txt")
        if self.policy is not None:
            policy_check(self.policy, cp, low + "checkpoint.txt")
        if part:
            count, chain = self.part(low, log, (str(s["size"]), s["root"]))
        want, state = count if part else s["size"], [base64.b64decode(h) for h in s["state"].split()]
        need(s["pruned"] + s["leaves"] == want, "the log has %d events of it, the manifest says %d" % (want, s["pruned"] + s["leaves"]), "manifest.json")
        need(len(state) == (s["pruned"] > 0 if part else bin(s["pruned"]).count("1")) and (name == "USAGE" or (s["first"], s["pruned"]) == (1, 0)),
             "what it says of pruned events makes no sense", "manifest.json")
        tree, link, last, left, bodies, n = Tree(), (state or [bytes(32)])[0], None, s["leaves"], 0, 0
        tree.size, tree.peaks = s["pruned"], state
        while left > 0:
            n += 1
            file = low + "%06d.leaves.txt" % n
            lines, events = self.next(file), self.next(low + "%06d.events.ndjson" % n)
            need(lines.endswith(b"\n") and (events.endswith(b"\n") or not events), "it does not end with a newline", file)
            lines, events = lines[:-1].split(b"\n"), iter(events[:-1].split(b"\n") if events else ())
            need(len(lines) <= left, "it has more lines than leaves are left", file)
            left -= len(lines)
            for i, line in enumerate(lines, 1):
                m = re.fullmatch(rb"(0|[1-9]\d{0,19}) (0|[1-9]\d{0,9}) ([!-~]+) ([!-~]+) ([!-~]+) ([!-~]+) (0|[1-9]\d{0,17}) ([0-9a-f]{64})", line)
                need(m, "line %d is not a leaf" % i, file)
                place, at = (int(m[1]), int(m[2])), "%s %s %s" % (name, m[1].decode(), m[2].decode())
                need(name == "USAGE" or place[1] == 0, "only pages of USAGE have lines", at)
                if last:
                    need(place > last, "it stands twice, or the events are out of order", at)
                    need(part or place in ((last[0], last[1] + 1), (last[0] + 1, 0)), "what stands before it is missing", at)
                else:
                    need(place[0] >= s["first"] and (part or place == (s["first"], 0)), "the stream does not begin with it", at)
                last, about = place, tuple("" if m[g] == b"_" else m[g].decode() for g in (4, 5, 6))
                need(not part or all(w in ("", a) for w, a in zip(self.scope, about)), "it is not about what was exported", at)
                if name == "OPS" and place[0] == self.m["exported"]["sequence"]:
                    need(m[8].decode() == self.event.hex(), "it is another event than the one in export.ndjson", at)
                    self.confirmed = True
                ms = int(m[7])
                if self.start <= ms and (self.end is None or ms < self.end):
                    body = next(events, None)
                    need(body is not None, "its body is missing", at)
                    need(hashlib.sha256(body).hexdigest().encode() == m[8], "the SHA-256 of its body is not the one of its leaf", at)
                    self.fits(name, strict_json(body, at), about, ms, m[3].decode(), at)
                    bodies += 1
                leaf = sha256(b"\0keyledger event v1\n%s %s %s\n%s\n%s %s %s\n%s\n%s\n" % (name.encode(), m[1], m[2], *m.groups()[2:]))
                if part:
                    link = sha256(b"\2" + link + leaf)
                else:
                    tree.add(leaf)
            need(next(events, None) is None, "it has more events than there are leaves within the times", low + "%06d.events.ndjson" % n)
        if part:
            need(link == chain, "the events are not those whose chain is signed", low + "part.txt")
        else:
            need(tree.root() == root, "the events do not add up to the signed root", low + "checkpoint.txt")
        end = last[0] if last else 0
        need(end <= s["last"] and (part or last is None or end == s["last"]) and (s["last"] == 0 or 0 < s["size"] and s["first"] <= s["last"] + 1), "its last event is not the one that the export's event names", low)
        return name, s["size"], s["leaves"], bodies

    def part(self, low, log, of):
        """Count and chain of the scope's events, (0, zeros) where there are none."""
        size, root, tree = checkpoint(self.next(low + "parts.txt"), log + "/" + low[:-1] + "/parts", self.keys, low + "parts.txt")
        need(tree == of, "it is a tree of parts of another tree than the export's", low + "parts.txt")
        name = "keyledger scope v1\n%s\n" % " ".join(w or "_" for w in self.scope)
        want, where, proofs = sha256(name.encode()).hex(), low + "part.txt", []
        blocks = self.next(where).decode("ascii", "replace").split("\n\n")
        need(blocks.pop() == "", "it is not the proof of a part", where)
        for block in blocks:
            m = re.fullmatch(r"(keyledger part v1\n([0-9a-f]{64}) ([1-9]\d{0,18}) ([0-9a-f]{64})\n)index (0|[1-9]\d{0,18})((?:\n\S{44}){0,64})", block)
            need(m, "it is not the proof of a part", where)
            hashes = [base64.b64decode(h) for h in m[6].split()]
            need(included(sha256(b"\0" + m[1].encode()), int(m[5]), size, hashes, root), "a part is not at its place in the signed tree of parts", where)
            proofs.append((m[2], int(m[5]), int(m[3]), bytes.fromhex(m[4])))
        if len(proofs) == 1 and proofs[0][0] == want:
            return proofs[0][2:]
        ids, places = [p[0] for p in proofs], [p[1] for p in proofs]
        need(not proofs and size == 0 or len(proofs) == 1 and (places == [0] and want < ids[0] or places == [size - 1] and ids[0] < want)
             or len(proofs) == 2 and places[1] == places[0] + 1 and ids[0] < want < ids[1], "it shows neither this part nor that there is none", where)
        return 0, bytes(32)

    def fits(self, stream, e, about, ms, subject, at):
        says = tuple(e.get(w, 0) if e.get(w, 0) is not None else "" for w in ("keyspace", "owner", "key"))
        ks, owner, key = (w or "_" for w in about)
        want = {"LEDGER": "ledger.keyledger._._" if ks == "keyledger" else "ledger.%s.%s.%s" % (ks, owner, key), "OPS": "ops.%s.%s.%s" % (ks, owner, key),
                "FEED": "feed.%s.%s.%s.%s" % (e.get("type"), about[0], owner, key), "USAGE": "usage.%s." % ks}[stream]
        need(says == about and e.get("time", 0) == (moment(ms) or None) and (subject == want or stream == "USAGE" and subject.startswith(want)),
             "its body says another time, keyspace, owner, key or subject than its leaf", at)

def check(path, keys, policy=None):
    """None and what was checked, or why not."""
    try:
        b = Bundle(path, keys, policy)
        return None, (b, b.verify())
    except Fail as e:
        return str(e), None
    except (EOFError, gzip.BadGzipFile, zlib.error) as e:
        return "the archive is damaged or truncated: %s" % e, None
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as e:
        return "something in it is not written as in a bundle: %s" % e, None

def main(argv):
    policy = None
    try:
        if "--policy" in argv:
            i = argv.index("--policy")
            policy = open(argv.pop(i + 1)).read()
            argv.pop(i)
        path, keys = argv[0], [verifier_key(k if k.count("+") >= 2 else open(k).read()) for k in argv[1:]]
        if not keys:
            raise ValueError("a key of the log is needed; the one in the bundle proves nothing")
    except (IndexError, ValueError, OSError) as e:
        print("usage: verify_bundle.py BUNDLE KEY... [--policy FILE]\n%s" % e, file=sys.stderr)
        return 2
    try:
        why, result = check(path, keys, policy)
    except (OSError, Usage) as e:
        print("verify_bundle.py: %s" % e, file=sys.stderr)
        return 2 if isinstance(e, Usage) else 1
    if why:
        print("FAIL  " + why)
        return 7
    b, streams = result
    m = b.m
    print("PASS  log %s, scope %s, from %s to %s" % (m["log"], " ".join(w for w in b.scope if w) or "everything", m["from"] or "the first", m["to"] or "the last"))
    print("      exported %s by %s %s, recorded as OPS %d" % (m["exported"]["time"], m["exported"]["actor"]["type"], m["exported"]["actor"]["id"], m["exported"]["sequence"]))
    for (name, size, leaves, bodies), s in zip(streams, m["streams"]):
        print("      %-7s %d of %d events, %d with their bytes" % (name, leaves, size, bodies) + (", %d later ones are not in it" % s["later"] if "later" in s else ""))
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
