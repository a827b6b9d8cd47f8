#!/usr/bin/env python3
"""How often a message is copied in user space, each language's client and the server behind it, for an echo: bytes of memcpy and
memmove by bytes of messages sent and received. The kernel's own copies, one for each read and write, are not counted.
Usage: copies.py [PEER...]; a peer needs to be built (run.sh --only PEER does it). Runs in the browser are not counted. A JVM
copies out of a buffer that is not its own by code of its own: that is one copy more of what its client receives, 0.50 in the table."""
import glob, json, os, signal, subprocess, sys, tempfile
HERE = os.path.dirname(os.path.abspath(__file__)); sys.argv, args = sys.argv[:1], sys.argv[1:]
g = {"__file__": HERE + "/run.py", "__name__": "drv"}; exec(compile(open(HERE + "/run.py").read().split("if A.report:")[0], "run.py", "exec"), g)
names = args or ["rust-valkyrie", "c-valkyrie", "py-valkyrie-sync", "py-valkyrie-aio", "node-valkyrie", "jvm-valkyrie", "swift-valkyrie"]
SIZES = (64 << 10, 1 << 20)
with tempfile.TemporaryDirectory() as room:
    shim = room + "/copies.so"; subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-fno-builtin", "-o", shim, HERE + "/copies.c", "-ldl"], check=True)
    log = open(os.devnull, "w")
    def counted(name):
        total = 0
        for path in glob.glob(f"{room}/{name}.*"): total += int(open(path).read()); os.unlink(path)
        return total
    def env(name): return dict(os.environ, LD_PRELOAD=shim, COPIES_OUT=f"{room}/{name}")
    def measure(peer, size, secs):
        """Calls, and bytes copied by the client and by the server."""
        a, b = g["ports"]()
        server = subprocess.Popen(g["SERVERS"][peer[1]](a, b)[0], stdout=log, stderr=log, env=env("server"))
        try:
            if not g["wait_port"](a): sys.exit(f"the server of {peer[0]} does not listen")
            spec = json.dumps([dict(w="unary", size=size, inflight=1, secs=secs, label="x")])
            client = subprocess.run(peer[2] + ["--addr", f"127.0.0.1:{a}", "--ca", g["CA"], "--pid", str(server.pid), "--spec", spec], stdout=subprocess.PIPE, stderr=log, text=True, env=env("client"), timeout=60)
            lines = [l for l in client.stdout.splitlines() if l.startswith("{")]
            if not lines or "n" not in json.loads(lines[0]): sys.exit(f"{peer[0]} gave no result: {client.stdout[:200]}")
            server.send_signal(signal.SIGUSR1)
            while not glob.glob(f"{room}/server.*"): os.sched_yield()
        finally: server.kill(); server.wait()
        calls = json.loads(lines[0])
        # Some tell of their warm-up's calls; the others' are few.
        return calls["n"] + calls.get("warm", 0), counted("client"), counted("server")
    print("copies in user space of each message, sent and received, of an echo\n\n| peer | " + " | ".join(f"{s >> 10} KiB: client | server" for s in SIZES) + " |\n|---|" + "---:|---:|" * len(SIZES))
    for peer in [p for n in names for p in g["PEERS"] if p[0] == n]:
        cells = []
        for size in SIZES:
            few, many = measure(peer, size, .3), measure(peer, size, 1.5)
            calls = (many[0] - few[0]) * 2 * size  # what begins a process is the same in both
            cells += [f"{(many[i] - few[i]) / calls:.2f}" for i in (1, 2)]
        print(f"| {peer[0]} | " + " | ".join(cells) + " |", flush=True)
