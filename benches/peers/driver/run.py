#!/usr/bin/env python3
"""Peer benchmark driver. Starts one pinned server per (round, group, peer), runs the peer's client with the
same measuring loop, interleaves peers over the rounds, prints JSON lines and a table of medians.
Adding a peer: one entry in SERVERS (if it brings a server) and one in PEERS."""
import argparse, json, os, resource, shutil, signal, socket, statistics, subprocess, sys, tempfile, time
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
R = f"{ROOT}/rust/target/release/peer-"; C = f"{ROOT}/c/"; PY = f"{ROOT}/python/venv/bin/python"; PYD = f"{ROOT}/python/"; ND = f"{ROOT}/node/"
FRESH = os.path.join(os.path.dirname(os.path.dirname(ROOT)), "target/fresh")  # where `cargo xtask package` installs
UV = f"{ROOT}/python/venv/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"  # uvloop for the fresh place, which has Valkyrie only
CERT, KEY, CA = (f"{ROOT}/certs/{x}" for x in ("srv.pem", "srv.key", "ca.pem"))
ap = argparse.ArgumentParser()
ap.add_argument("--quick", action="store_true"); ap.add_argument("--rounds", type=int); ap.add_argument("--only", default=""); ap.add_argument("--groups", default="")
ap.add_argument("--prio", choices=["none", "nice", "rt"], default="none", help="scheduling class of servers and clients")
ap.add_argument("--out", default=f"{ROOT}/results"); ap.add_argument("--report", help="only re-print the table of a JSON-lines file")
ap.add_argument("--lang", default="", help="of the selected peers only those in these languages: rust, c, py, node, jvm, swift, web")
ap.add_argument("--needs", action="store_true", help="only print what the selection needs built, for setup.sh")
ap.add_argument("--without", default="", help="lines 'WORD PACKAGE...' of setup.sh: peers that need these words are left out")
ap.add_argument("--server-core", default="0"); ap.add_argument("--client-core", default="1")
A = ap.parse_args()
ROUNDS = A.rounds or (1 if A.quick else 3); SECS = .12 if A.quick else .3
try: resource.setrlimit(resource.RLIMIT_NOFILE, (max(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]),) * 2)
except (ValueError, OSError): pass
TMP = os.path.join(tempfile.gettempdir(), f"peers-{os.getpid()}"); port_n = [17100]

def ports(): port_n[0] += 2; return port_n[0], port_n[0] + 1
def std(p): return lambda a, b: [[R + p, "serve", "--port", str(a), "--tls-port", str(b), "--cert", CERT, "--key", KEY]]
def nats(a, b):
    f = f"{TMP}/nats-{a}.conf"
    os.makedirs(TMP, exist_ok=True)
    with open(f, "w") as h: h.write(f'listen: "127.0.0.1:{a}"\nmax_payload: 8388608\nmax_pending: 2147483648\nmax_connections: 65536\n')
    return [[shutil.which("nats-server") or "/usr/sbin/nats-server", "-c", f], ["@wait"], [R + "nats", "serve", "--port", str(a)]]
SERVERS = {
    "valkyrie": std("valkyrie"),
    "valkyriespin": lambda a, b: [[R + "valkyrie", "serve", "--port", str(a), "--spin", "50"]],
    "raw": std("raw"), "tonic": std("tonic"),
    "rustblock": lambda a, b: [[R + "raw", "serve", "--port", str(a), "--mode", "blocking"]],
    "tarpc": lambda a, b: [[R + "tarpc", "serve", "--port", str(a)]], "connect": lambda a, b: [[R + "connect", "serve", "--port", str(a)]],
    "capnp": lambda a, b: [[R + "capnp", "serve", "--port", str(a)]], "zenoh": lambda a, b: [[R + "zenoh", "serve", "--port", str(a)]],
    "nats": nats, "cblock": lambda a, b: [[C + "raw", "serve", "--port", str(a)]], "cspin": lambda a, b: [[C + "raw", "serve", "--port", str(a), "--spin"]],
    "ws": lambda a, b: [[R + "ws", "serve", "--port", str(a)]],
    "nng": lambda a, b: [[C + "nng", "serve", "--port", str(a)]], "zmq": lambda a, b: [[C + "zmq", "serve", "--port", str(a)]],
}
def rs(p, *x): return [R + p, "bench", *x]
def py(f, *x): return [PY, PYD + f, *x]
def js(f, *x): return ["node", ND + f, *x]
def jvm(peer): return ["java", "-XX:+UseSerialGC", "-cp", f"{ROOT}/jvm/target/classes:{ROOT}/jvm/target/lib/*", "bench.HarnessKt", "--peer", peer]
SWIFT = [f"{ROOT}/swift/inside.sh", f"{os.path.dirname(os.path.dirname(ROOT))}/target/swift/build/peer/release/peer"]
def web(mode): return ["node", f"{ROOT}/web/bench.mjs", mode]
# name, server, client command, capabilities: u unary1, m many in flight, s server stream, p ping-pong, c conns, i idle, k connect, t TLS, b bulk
PEERS = [
    ("c-spin (floor)", "cspin", [C + "raw", "bench", "--spin"], "umpskb", "c"),
    ("c-blocking (floor)", "cblock", [C + "raw", "bench"], "umpskb", "c"),
    ("c-raw-blocking", "raw", [C + "raw", "bench"], "uk", "c"),
    ("rust-blocking (floor)", "rustblock", rs("raw", "--mode", "blocking"), "uk", "rust"),
    ("rust-valkyrie", "valkyrie", rs("valkyrie"), "umspciktb", "rust"),
    ("rust-valkyrie-sealed", "valkyrie", rs("valkyrie", "--sealed"), "umk", "rust"),
    ("rust-valkyrie-spin", "valkyriespin", rs("valkyrie", "--spin", "50"), "um", "rust"),
    ("rust-tokio-raw", "raw", rs("raw"), "umspciktb", "rust"),
    ("rust-tonic", "tonic", rs("tonic"), "umspciktb", "rust"),
    ("rust-connectrpc", "connect", rs("connect"), "umspcikb", "rust"),
    ("rust-tarpc", "tarpc", rs("tarpc"), "umcik", "rust"),
    ("rust-capnp-rpc", "capnp", rs("capnp"), "umcik", "rust"),
    ("rust-async-nats", "nats", rs("nats"), "umspcikb", "rust"),
    ("rust-zenoh", "zenoh", rs("zenoh"), "umspkb", "rust"),
    ("cpp-grpc 1.51", "tonic", [C + "grpc", "bench"], "umskb", "c"),
    ("c-nng", "nng", [C + "nng", "bench"], "umk", "c"),
    ("c-zmq", "zmq", [C + "zmq", "bench"], "umk", "c"),
    ("c-valkyrie", "valkyrie", [C + "valkyrie", "bench"], "umskb", "c"),
    ("py-valkyrie-sync", "valkyrie", [f"{FRESH}/python/bin/python", PYD + "valkyrie_peer.py", "--mode", "sync"], "umskb", "py"),
    ("py-valkyrie-aio", "valkyrie", [f"{FRESH}/python/bin/python", PYD + "valkyrie_peer.py", "--mode", "aio"], "umspckb", "py"),
    ("py-valkyrie-uvloop", "valkyrie", ["env", f"PYTHONPATH={UV}", f"{FRESH}/python/bin/python", PYD + "valkyrie_peer.py", "--mode", "aio", "--uvloop"], "umspckb", "py"),
    ("node-valkyrie", "valkyrie", js("valkyrie.js"), "umspckb", "node"),
    ("py-raw-blocking", "raw", py("raw.py", "--mode", "blocking"), "uk", "py"),
    ("py-asyncio-streams", "raw", py("raw.py", "--mode", "streams"), "umspcktb", "py"),
    ("py-asyncio-protocol", "raw", py("raw.py", "--mode", "proto"), "umspcktb", "py"),
    ("py-uvloop-streams", "raw", py("raw.py", "--mode", "streams", "--uvloop"), "umspcktb", "py"),
    ("py-uvloop-protocol", "raw", py("raw.py", "--mode", "proto", "--uvloop"), "umspcktb", "py"),
    ("py-grpcio-sync", "tonic", py("pgrpc.py", "--mode", "sync"), "umspktb", "py"),
    ("py-grpcio-aio", "tonic", py("pgrpc.py", "--mode", "aio"), "umspcktb", "py"),
    ("py-nats", "nats", py("pnats.py"), "umspckb", "py"),
    ("py-zenoh", "zenoh", py("pzenoh.py"), "uspkb", "py"),
    ("py-rust-inline", "raw", py("ffi_peer.py", "--mode", "inline"), "umpk", "py"),
    ("py-rust-inline-uvloop", "raw", py("ffi_peer.py", "--mode", "inline", "--uvloop"), "umpk", "py"),
    ("py-rust-thread", "raw", py("ffi_peer.py", "--mode", "thread"), "ump", "py"),
    ("py-rust-thread-uvloop", "raw", py("ffi_peer.py", "--mode", "thread", "--uvloop"), "ump", "py"),
    ("py-rust-future", "raw", py("ffi_peer.py", "--mode", "future"), "ump", "py"),
    ("node-rust-thread", "raw", js("ffi_peer.js", "--mode", "thread"), "ump", "node"),
    ("node-rust-future", "raw", js("ffi_peer.js", "--mode", "future"), "ump", "node"),
    ("node-net-raw", "raw", js("raw.js"), "umspcktb", "node"),
    ("node-grpc-js", "tonic", js("grpc.js"), "umspcktb", "node"),
    ("node-nats", "nats", js("nats.js"), "umspckb", "node"),
    ("jvm-valkyrie", "valkyrie", jvm("valkyrie"), "umk", "jvm"),
    ("jvm-socket (floor)", "raw", jvm("raw"), "umk", "jvm"),
    ("jvm-grpc-java", "tonic", jvm("grpc"), "umk", "jvm"),
    ("jvm-grpc-java-direct", "tonic", jvm("grpc-direct"), "umk", "jvm"),
    ("swift-valkyrie", "valkyrie", SWIFT, "umk", "swift"),
    ("web-valkyrie", "valkyrie", web("valkyrie"), "um", "web"),
    ("web-websocket", "ws", web("websocket"), "um", "web"),
]
def needs(peer):
    """Words for setup.sh: rust:NAME, c:NAME, python, node, ffi-py, ffi-node, jvm, swift, nats, certs, package:LANGUAGE (Valkyrie's own)."""
    words = set()
    for part in [x for c in SERVERS[peer[1]](1, 2) for x in c] + peer[2]:
        if part.startswith(R): words.add("rust:" + part[len(R):])
        elif part.startswith(C): words.add("c:" + part[len(C):])
        elif part.startswith(FRESH): words.add("package:python")
        elif part == PY or part.endswith(UV): words.add("python")
        elif part == CERT: words.add("certs")
        elif part == ND + "valkyrie.js": words.add("package:node")
        elif part.startswith(ND): words.add("node")
        elif part == SWIFT[0]: words |= {"swift", "package:c", "package:swift"}
        elif part == "bench.HarnessKt": words |= {"jvm", "package:kotlin"}
        elif part.endswith("/web/bench.mjs"): words.add("package:web")
        elif part.endswith("nats-server"): words.add("nats")
        if part == C + "valkyrie": words.add("package:c")
        if part.endswith(("ffi_peer.py", "ffi_peer.js")): words.add("ffi-py" if part.endswith("py") else "ffi-node")
    return words
def selected(): return [p for p in PEERS if (not A.only or any(o in p[0] for o in A.only.split(","))) and (not A.lang or p[4] in A.lang.split(","))]
def ffi_wanted(): return not A.only and not A.lang and (not A.groups or "ffi" in A.groups.split(","))
def specs(group, name, caps, lang):
    slow = lang in ("py", "node"); q = A.quick; out = []
    def u(l, size, infl, **k): out.append(dict(w="unary", size=size, inflight=infl, secs=SECS, label=l, **k))
    if group == "unary":
        if "u" in caps: u("u1_32", 32, 1); u("u1_1k", 1024, 1); u("u1_64k", 65536, 1); u("u1_1m", 1 << 20, 1)
        if "m" in caps: u("u64_32", 32, 64); u("u256_32", 32, 256); u("u512_32", 32, 512); u("u64_1k", 1024, 64); u("u64_64k", 65536, 64)
    elif group == "stream":
        n = 300000 if slow and "grpc" not in name and "nats" not in name and "zenoh" not in name else 20000 if slow or "nats" in name or "zenoh" in name else 1000000 if name.startswith("c-") or "tokio-raw" in name else 100000
        if "s" in caps: out.append(dict(w="sstream", size=32, count=n // (5 if q else 1), label="sstream_32"))
        if "p" in caps: out.append(dict(w="pingpong", size=32, secs=SECS, label="pingpong_32"))
        if "b" in caps: out.append(dict(w="bulk", size=65536, count=(4096 if slow or "nats" in name or "zenoh" in name or "spin" in name else 16384) // (4 if q else 1), label="bulk_64k"))
    elif group == "connect":
        if "k" in caps: out.append(dict(w="connect", n=(20 if "zenoh" in name or "nng" in name else 100) // (2 if q else 1), label="connect"))
        if "t" in caps:
            out.append(dict(w="connect", n=60 // (2 if q else 1), label="connect_tls", tls=True)); u("tls_u1_32", 32, 1, tls=True); u("tls_u64_32", 32, 64, tls=True); u("tls_u64_1k", 1024, 64, tls=True); u("tls_u1_64k", 65536, 1, tls=True)
            out.append(dict(w="bulk", size=65536, count=(2048 if slow else 8192) // (4 if q else 1), label="tls_bulk_64k", tls=True))
    elif group == "conns" and "c" in caps: out.append(dict(w="conns", n=200 if q else 1000, secs=SECS * 1.5, label="conns1000"))
    elif group == "idle" and "i" in caps: out.append(dict(w="idle", n=1000 if q else 10000, label="idle10k"))
    return out
FFI = [("py", [PY, f"{ROOT}/ffi/py/bench.py"]), ("py", [PY, f"{ROOT}/ffi/py/bench.py", "--uvloop"]), ("node", ["node", f"{ROOT}/ffi/node/bench.js"])]
def ffi(log):
    out = []
    for cores in (A.client_core, f"{A.server_core},{A.client_core}"):
        for lang, cmd in FFI:
            try: o = subprocess.run(pin(cmd + ["--quick"] * A.quick, cores), stdout=subprocess.PIPE, stderr=log, text=True, timeout=90).stdout
            except subprocess.TimeoutExpired: continue
            for l in o.splitlines():
                try: r = json.loads(l)
                except ValueError: continue
                r.update(peer=f"ffi-{lang}" + ("-uvloop" if r.get("loop") == "uvloop" else ""), label=f"{r['case']}|{len(cores.split(','))}|{r['inflight']}", group="ffi"); out.append(r)
    return out
def pin(cmd, core):
    pre = ["taskset", "-c", core]
    if A.prio == "nice": pre = ["nice", "-n", "-19"] + pre
    if A.prio == "rt": pre = ["chrt", "-r", "5"] + pre
    return pre + cmd
def wait_port(p, t=8):
    e = time.time() + t
    while time.time() < e:
        try: socket.create_connection(("127.0.0.1", p), .5).close(); return True
        except OSError: time.sleep(.01)  # a peer's server tells nobody when it listens: its port is asked
    return False
live = []
def stop(ps):
    for p in ps: p.kill()
    for p in ps: p.wait(); live.remove(p)
def one(name, server, cmd, sp, log):
    a, b = ports(); ps = []
    try:
        for c in SERVERS[server](a, b):
            if c == ["@wait"]:
                if not wait_port(a): return [dict(label=s["label"], error="server did not start") for s in sp]
                continue
            p = subprocess.Popen(pin(c, A.server_core), stdout=log, stderr=log); live.append(p); ps.append(p)
        if not wait_port(a): return [dict(label=s["label"], error="server did not start") for s in sp]
        if server in ("nats", "zenoh"): time.sleep(.15)  # behind a broker: when the responder has subscribed, nobody tells
        full = pin(cmd, A.client_core) + ["--addr", f"127.0.0.1:{a}", "--tls-addr", f"127.0.0.1:{b}", "--ca", CA, "--pid", ",".join(str(p.pid) for p in ps), "--spec", json.dumps(sp)]
        cl = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=log, text=True); live.append(cl)
        try: out, _ = cl.communicate(timeout=100)
        except subprocess.TimeoutExpired: cl.kill(); out, _ = cl.communicate()
        live.remove(cl)
        res = []
        for l in out.splitlines():
            try: res.append(json.loads(l))
            except ValueError: pass
        seen = {r.get("label") for r in res}
        return res + [dict(label=s["label"], error="client died") for s in sp if s["label"] not in seen]
    finally: stop(ps)

# What is to be reached: a figure, ours, the specification and its value, at most or at least, how often the yardstick's.
# Without a yardstick the number stands for itself. Several yardsticks with a factor each: the least of the products.
TARGETS = [
    ("Rust: p50", "rust-valkyrie", "u1_32", "p50_us", "<=", 1.10, "rust-tokio-raw"), ("Rust: p50", "rust-valkyrie", "u1_32", "p50_us", "<=", .75, "rust-tonic"),
    ("Rust, spinning: p50", "rust-valkyrie-spin", "u1_32", "p50_us", "<=", 2, "c-spin (floor)"), ("Rust, spinning: p50", "rust-valkyrie-spin", "u1_32", "p50_us", "<=", .15, "rust-tonic"),
    ("Rust: 64 in flight", "rust-valkyrie", "u64_32", "rps", ">=", 6, "rust-tonic"), ("Rust: 64 in flight", "rust-valkyrie", "u64_32", "rps", ">=", 1.5, "rust-tarpc"), ("Rust: 64 in flight", "rust-valkyrie", "u64_32", "rps", ">=", .6, "rust-tokio-raw"),
    ("Rust: 512 in flight", "rust-valkyrie", "u512_32", "rps", ">=", 12, "rust-tonic"), ("Rust: 512 in flight", "rust-valkyrie", "u512_32", "rps", ">=", 2, "rust-tarpc"), ("Rust: 512 in flight", "rust-valkyrie", "u512_32", "rps", ">=", .5, "rust-tokio-raw"),
    ("Rust: server stream", "rust-valkyrie", "sstream_32", "mps", ">=", 2.5, "rust-tonic"), ("Rust: bulk", "rust-valkyrie", "bulk_64k", "gbps", ">=", 1.2, "rust-tonic"),
    ("Rust: 64 x 64 KiB", "rust-valkyrie", "u64_64k", "rps", ">=", .9, "c-zmq"), ("Rust: 64 x 64 KiB", "rust-valkyrie", "u64_64k", "rps", ">=", 2, "rust-tonic"),
    ("Rust: 1,000 connections", "rust-valkyrie", "conns1000", "rps", ">=", 4.5, "rust-tonic"), ("Rust: 1,000 connections", "rust-valkyrie", "conns1000", "rps", ">=", .8, "rust-tokio-raw"),
    ("Rust: server RSS of an idle connection", "rust-valkyrie", "idle10k", "srv_rss_per_conn", "<=", .4, "rust-tonic"),
    ("Rust: connect", "rust-valkyrie", "connect", "p50_us", "<=", .8, "rust-tonic"), ("Rust: connect", "rust-valkyrie", "connect", "p50_us", "<=", 1.15, "rust-tokio-raw"),
    ("asyncio: 64 in flight", "py-valkyrie-aio", "u64_32", "rps", ">=", 12, "py-grpcio-aio"), ("asyncio: 64 in flight", "py-valkyrie-aio", "u64_32", "rps", ">=", 1, "py-asyncio-protocol"),
    ("asyncio: 64 in flight", "py-valkyrie-aio", "u64_32", "rps", ">=", (.5, .9), ("rust-valkyrie", "py-asyncio-protocol")),
    ("uvloop: 64 in flight", "py-valkyrie-uvloop", "u64_32", "rps", ">=", 16, "py-grpcio-aio"), ("asyncio: p50", "py-valkyrie-aio", "u1_32", "p50_us", "<=", 1.10, "py-asyncio-protocol"),
    ("Python, blocking: p50", "py-valkyrie-sync", "u1_32", "p50_us", "<=", 1.10, "py-raw-blocking"), ("asyncio: CPU us per call, 256 in flight", "py-valkyrie-aio", "u256_32", "cli_cpu_s_per_M", "<=", 4, None),
    ("Node: 64 in flight", "node-valkyrie", "u64_32", "rps", ">=", 20, "node-grpc-js"), ("Node: 64 in flight", "node-valkyrie", "u64_32", "rps", ">=", .75, "node-net-raw"),
    ("Node: 64 in flight", "node-valkyrie", "u64_32", "rps", ">=", (.5, .9), ("rust-valkyrie", "node-net-raw")), ("Node: CPU us per call, 256 in flight", "node-valkyrie", "u256_32", "cli_cpu_s_per_M", "<=", 2.5, None),
    ("C: p50", "c-valkyrie", "u1_32", "p50_us", "<=", 1.10, "c-raw-blocking"), ("C: 64 in flight", "c-valkyrie", "u64_32", "rps", ">=", 1, "c-zmq"),
    ("C: 64 in flight", "c-valkyrie", "u64_32", "rps", ">=", (.5, .9), ("rust-valkyrie", "c-blocking (floor)")),
    ("Kotlin: 64 in flight", "jvm-valkyrie", "u64_32", "rps", ">=", 2, "jvm-grpc-java"), ("Kotlin: 64 in flight", "jvm-valkyrie", "u64_32", "rps", ">=", 2, "jvm-grpc-java-direct"),
    ("Kotlin: CPU us per call, 256 in flight", "jvm-valkyrie", "u256_32", "cli_cpu_s_per_M", "<=", 6, None),
    ("Swift: CPU us per call, 256 in flight", "swift-valkyrie", "u256_32", "cli_cpu_s_per_M", "<=", 4, None),
    ("browser: 64 in flight", "web-valkyrie", "u64_32", "rps", ">=", .8, "web-websocket"),
]
def verdicts(m):
    """A line for each target whose figures are all in this run. `m` gives the median of (peer, label, value), or None."""
    lines = []
    for figure, ours, label, value, op, factors, yardsticks in TARGETS:
        a = m(ours, label, value)
        if a is None: continue
        if yardsticks is None: target, reached, text = factors, a, f"{op} {factors:g}"
        else:
            if isinstance(yardsticks, str): factors, yardsticks = (factors,), (yardsticks,)
            b = [m(y, label, value) for y in yardsticks]
            if None in b: continue
            least = min(f * y for f, y in zip(factors, b)); i = [f * y for f, y in zip(factors, b)].index(least)
            target, reached = factors[i], a / b[i]
            text = f"{op} " + ("min of " if len(b) > 1 else "") + ", ".join(f"{f:g} x {y}" for f, y in zip(factors, yardsticks))
        lines.append(f"| {figure} | {text} | {reached:.2f} | {'yes' if (reached <= target if op == '<=' else reached >= target) else 'no'} |")
    if lines: print("\ntargets, medians of this run (reached: the ratio to the yardstick, of several to the one that decides)\n\n| figure | target | reached | |\n|---|---|---:|---|\n" + "\n".join(lines))

def table(rows):
    agg = {}
    for r in rows:
        if r.get("peer") is None: continue
        for k, v in r.items():
            if isinstance(v, (int, float)) and k not in ("round",): agg.setdefault((r["peer"], r["label"], k), []).append(v)
    err = {}
    for r in rows:
        if "error" in r: err[(r["peer"], r["label"])] = r["error"]
    def g(p, l, k, f="{:.0f}", s=1.0):
        v = agg.get((p, l, k))
        if v: return f.format(statistics.median(v) * s)
        return "err" if (p, l) in err else "-"
    peers = []
    for r in rows:
        if r.get("peer") and r["group"] != "ffi" and r["peer"] not in peers: peers.append(r["peer"])
    order = [p[0] for p in PEERS]; peers.sort(key=lambda p: order.index(p) if p in order else 999)
    def t(title, cols):
        cols = [c for c in cols if any(c[1](p).strip("-/ ") for p in peers)]
        if not cols: return
        print(f"\n{title}\n\n| peer | " + " | ".join(c[0] for c in cols) + " |\n|---|" + "---:|" * len(cols))
        for p in peers:
            cells = [c[1](p) for c in cols]
            if not any(x.strip("-/ ") for x in cells): continue
            print(f"| {p} | " + " | ".join(cells) + " |")
    def lat(l): return lambda p: "/".join(g(p, l, k, "{:.0f}") for k in ("p50_us", "p99_us", "p999_us")) if (p, l, "p50_us") in agg else g(p, l, "p50_us")
    def rps(l): return lambda p: g(p, l, "rps", "{:.1f}", 1e-3)
    t("(a) unary, 1 in flight: latency p50/p99/p99.9, us", [("32 B", lat("u1_32")), ("1 KiB", lat("u1_1k")), ("64 KiB", lat("u1_64k")), ("1 MiB", lat("u1_1m"))])
    def each(k, scale, f): return lambda p: " / ".join(g(p, f"u{n}_32", k, f, scale) for n in (1, 64, 256, 512))
    t("(b) unary 32 B on one connection at 1 / 64 / 256 / 512 in flight: thousand requests/s, p50 in us, CPU us per request; larger messages in thousand requests/s", [
        ("k req/s", each("rps", 1e-3, "{:.1f}")), ("p50", each("p50_us", 1, "{:.0f}")), ("server CPU", each("srv_cpu_s_per_M", 1, "{:.2f}")), ("client CPU", each("cli_cpu_s_per_M", 1, "{:.2f}")),
        ("64 x 1 KiB", rps("u64_1k")), ("64 x 64 KiB", rps("u64_64k"))])
    t("(c,h) streams", [("server stream 32 B, k msg/s", lambda p: g(p, "sstream_32", "mps", "{:.0f}", 1e-3)), ("bidi ping-pong us p50/p99/p99.9", lat("pingpong_32")), ("bulk 64 KiB, GB/s", lambda p: g(p, "bulk_64k", "gbps", "{:.2f}"))])
    t("(d,e) connections", [("1,000 conns, k req/s", rps("conns1000")), ("p99 us", lambda p: g(p, "conns1000", "p99_us")), ("server RSS/conn (1,000), KiB", lambda p: g(p, "conns1000", "srv_rss_per_conn", "{:.1f}", 1 / 1024)), ("client RSS/conn (1,000), KiB", lambda p: g(p, "conns1000", "cli_rss_per_conn", "{:.1f}", 1 / 1024)), ("server RSS/conn (10,000 idle), KiB", lambda p: g(p, "idle10k", "srv_rss_per_conn", "{:.1f}", 1 / 1024)), ("client RSS/conn (idle), KiB", lambda p: g(p, "idle10k", "cli_rss_per_conn", "{:.1f}", 1 / 1024)), ("conns opened/s", lambda p: g(p, "idle10k", "conns_per_s"))])
    t("(f,g) connect to first response, us p50/p99, and TLS", [("connect", lambda p: g(p, "connect", "p50_us") + "/" + g(p, "connect", "p99_us")), ("connect TLS", lambda p: g(p, "connect_tls", "p50_us") + "/" + g(p, "connect_tls", "p99_us")), ("TLS 32 B us p50/p99/p99.9", lat("tls_u1_32")), ("TLS 64 KiB us", lat("tls_u1_64k")), ("TLS 64 x 32 B, k req/s", rps("tls_u64_32")), ("TLS 64 x 1 KiB, k req/s", rps("tls_u64_1k")), ("TLS bulk GB/s", lambda p: g(p, "tls_bulk_64k", "gbps", "{:.2f}"))])
    def m(p, l, k): return statistics.median(agg[(p, l, k)]) if (p, l, k) in agg else None
    everyone = peers; langs = {p[0]: p[4] for p in PEERS}
    for ours in [p for p in everyone if "valkyrie" in p]:
        peers = [p for p in everyone if p != ours and (langs.get(p) == langs[ours] or p in ("rust-valkyrie", "rust-tonic") or "spin" in ours and "spin" in p)]
        def over(p, l, k):
            a, b = m(ours, l, k), m(p, l, k)
            return f"{a / b:.2f}" if a and b else "-"
        def ratio(l, k): return lambda p: over(p, l, k)
        def ratios(k):
            def cell(p):
                c = [over(p, f"u{n}_32", k) for n in (1, 64, 256, 512)]
                return "-" if c == ["-"] * 4 else " / ".join(c)
            return cell
        t(f"{ours} / peer: medians of this run, as ratios (p50 and CPU: lower is better; rates: higher); 32 B at 1 / 64 / 256 / 512 in flight", [
            ("req/s", ratios("rps")), ("p50", ratios("p50_us")), ("server CPU", ratios("srv_cpu_s_per_M")), ("client CPU", ratios("cli_cpu_s_per_M")),
            ("p50, 1 x 64 KiB", ratio("u1_64k", "p50_us")), ("req/s, 64 x 64 KiB", ratio("u64_64k", "rps")), ("server stream", ratio("sstream_32", "mps")), ("bulk", ratio("bulk_64k", "gbps")),
            ("1,000 conns", ratio("conns1000", "rps")), ("server RSS/idle conn", ratio("idle10k", "srv_rss_per_conn")), ("connect", ratio("connect", "p50_us"))])
    verdicts(m)
    peers = everyone
    fc = {}
    for (p, l, k), v in agg.items():
        if k == "calls_per_s": c, n, i = l.split("|"); fc.setdefault((p, c), {})[(n, i)] = statistics.median(v)
    if fc:
        cols = [(n, i) for i in ("1", "64", "512") for n in ("1", "2")]
        print("\nFFI micro-benchmarks: thousand calls/s (cores allowed / in flight)\n\n| binding | case | " + " | ".join(f"{n} core{'s' * (n != '1')}, {i}" for n, i in cols) + " |\n|---|---|" + "---:|" * 6)
        for (p, c), v in fc.items(): print(f"| {p} | {c} | " + " | ".join(f"{v[x] / 1e3:.0f}" if x in v else f"{v[(x[0], '0')] / 1e3:.0f}" if x[1] == "1" and (x[0], "0") in v else "-" for x in cols) + " |")
    if err:
        print("\nerrors:")
        for (p, l), e in sorted(err.items()): print(f"- {p} {l}: {e}")

if A.report:
    table([json.loads(l) for l in open(A.report)]); sys.exit()
if not selected(): sys.exit(f"no peer of the language {A.lang or 'any'!r} has {A.only!r} in its name; there are: " + ", ".join(p[0] for p in PEERS))
if A.needs: print(" ".join(sorted(set().union(*map(needs, selected()), ["ffi-py", "ffi-node", "python", "node"] if ffi_wanted() else [])))); sys.exit()
without = dict(l.split(" ", 1) for l in A.without.splitlines()); present = []
for p in selected():
    lacks = " ".join(sorted({d for w in needs(p) & without.keys() for d in without[w].split()}))
    if lacks: print(f"left out: {p[0]}, which needs what Debian calls {lacks}", file=sys.stderr)
    else: present.append(p)
if not present: sys.exit("no peer is left")
os.makedirs(A.out, exist_ok=True); f = open(f"{A.out}/run-{time.strftime('%Y%m%d-%H%M%S')}{'-quick' if A.quick else ''}.jsonl", "w"); log = open(f"{A.out}/stderr.log", "w")
rows = []; t0 = time.time()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
try:
    for rnd in range(ROUNDS):
        for grp in ("unary", "stream", "connect", "conns", "idle", "ffi"):
            if grp == "ffi" and ffi_wanted():
                for r in ffi(log):
                    r.update(round=rnd); rows.append(r); f.write(json.dumps(r) + "\n")
                continue
            if (A.groups and grp not in A.groups.split(",")) or (grp == "idle" and rnd > 0): continue
            for name, server, cmd, caps, lang in present:
                sp = specs(grp, name, caps, lang)
                if not sp: continue
                load = float(open("/proc/loadavg").read().split()[0])
                for r in one(name, server, cmd, sp, log):
                    r.update(peer=name, round=rnd, group=grp, load1=load); rows.append(r); f.write(json.dumps(r) + "\n"); f.flush()
                    if not os.environ.get("QUIET"): print(json.dumps(r), flush=True)
finally:
    for p in list(live):
        p.kill(); p.wait()
    shutil.rmtree(TMP, ignore_errors=True)
print(f"\n# {time.strftime('%Y-%m-%d %H:%M')} rounds={ROUNDS} prio={A.prio} seconds={time.time() - t0:.0f} file={os.path.basename(f.name)}"); table(rows)
