"""Clients that were made before a fork, as web servers and job runners use them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ENDPOINT = os.environ["VALKYRIE_CONFORMANCE_ENDPOINT"]
EXAMPLES = Path(__file__).parents[2] / "examples/python/fork"

# Forks while an asyncio loop and two threads call; each message is one of a kind.
FORKS = """
import asyncio, itertools, os, signal, sys, threading
import valkyrie, valkyrie.sync

endpoint, forks = sys.argv[1], int(sys.argv[2])
client = valkyrie.sync.connect(endpoint)
async def connected():
    return await valkyrie.connect(endpoint)

loop_client = asyncio.run(connected())
stop = threading.Event()
calls = []

def nonces(who):
    return (f"{os.getpid()} {who} {number}" for number in itertools.count())

def call(who):
    for nonce in nonces(who):
        if stop.is_set():
            break
        assert client.request(nonce) == nonce.encode()
        calls.append(nonce)

async def call_many(who):
    async def one(who):
        for nonce in nonces(who):
            if stop.is_set():
                break
            assert await loop_client.request(nonce) == nonce.encode()
            calls.append(nonce)
    await asyncio.gather(*(one(f"{who} {number}") for number in range(8)))

def guarded(work, *arguments):
    try:
        work(*arguments)
    except BaseException as error:
        failed.append(error)

failed = []
threads = [threading.Thread(target=guarded, args=(call, f"thread {number}")) for number in range(2)]
threads.append(threading.Thread(target=guarded, args=(lambda: asyncio.run(call_many("loop")),)))
for thread in threads:
    thread.start()
stream = client.open("/echo")
stream.send(b"parent's")

async def in_childs_loop():
    nonce = f"{os.getpid()} loop"
    answers = await asyncio.gather(*(loop_client.request(f"{nonce} {i}") for i in range(5)))
    assert answers == [f"{nonce} {i}".encode() for i in range(5)], answers

def child():
    signal.alarm(60)
    try:
        stream.recv()
        raise AssertionError("the parent's stream goes on in the child")
    except valkyrie.Unavailable as error:
        assert error.reason == "FORKED", error.reason
    for nonce in itertools.islice(nonces("child"), 3):
        assert client.request(nonce) == nonce.encode()
    asyncio.run(in_childs_loop())

for number in range(forks):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)  # The child's verdict; pytest's end is its parent's.
    assert os.waitpid(pid, 0)[1] == 0, number
assert stream.recv() == b"parent's"
stop.set()
for thread in threads:
    thread.join()
assert not failed, failed
assert len(calls) == len(set(calls)) > forks, len(calls)
print("ok", len(calls))
"""

# A child that is made in a task's step has a loop of its own.
IN_A_TASK = """
import asyncio, os, signal, sys
import valkyrie

async def main():
    async with valkyrie.connect(sys.argv[1]) as client:
        pending = [asyncio.ensure_future(client.call("/test/hang", b"py-fork-task", timeout=600)) for _ in range(3)]
        await client.request("before")
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.alarm(60)
                assert asyncio.run(in_child(client)) == b"child"
                status = 0
            finally:
                os._exit(status)  # The child's verdict; pytest's end is its parent's.
        assert os.waitpid(pid, 0)[1] == 0
        assert await client.request("parent") == b"parent"
        for call in pending:
            assert not call.done()
            call.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    print("ok")

async def in_child(client):
    await asyncio.gather(*(client.request(str(number)) for number in range(3)))
    return await client.request("child")

asyncio.run(main())
"""

# Tokens of a function and of asyncio's loop, in both processes; all that is logged goes to standard error.
TOKENS = """
import asyncio, itertools, logging, os, signal, sys
import valkyrie, valkyrie.sync

logging.basicConfig(level=logging.DEBUG)
class Whole(logging.Formatter):
    def format(self, record):
        return repr(record.__dict__)
logging.getLogger().handlers[0].setFormatter(Whole())
endpoint, asked = sys.argv[1], []

def token():
    asked.append(os.getpid())
    return "good canary-7f3a"

def who(client):
    return client.call("/test/principal").decode()

async def whose(client):
    return (await client.call("/test/principal")).decode()

private = valkyrie.sync.connect(endpoint).call("/test/private", b"tcp credentials").decode()
client = valkyrie.sync.connect(private, token=token)
fixed = valkyrie.sync.connect(private, token="good canary-7f3a")
refused = valkyrie.sync.connect(private, token="bad canary-7f3a")

def check():
    assert who(client) == who(fixed) == "sub:canary-7f3a", who(client)
    assert asked[-1] == os.getpid(), asked
    async def looped():
        async with valkyrie.connect(private, token=token) as own:
            return await whose(own)
    assert asyncio.run(looped()) == "sub:canary-7f3a"

check()
for number in range(5):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(60)
            check()
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)  # The child's verdict; pytest's end is its parent's.
    assert os.waitpid(pid, 0)[1] == 0, number
    check()
# Last, for the server makes an address pay for it.
try:
    refused.call("/test/principal")
    raise AssertionError("it was taken")
except valkyrie.Unauthenticated as error:
    assert error.reason == "CREDENTIALS_REFUSED" and "canary" not in str(error), error
print("ok", len(asked))
"""


def script(text: str, *arguments: str) -> str:
    command = [sys.executable, "-P", "-W", "ignore::DeprecationWarning", "-c", text, ENDPOINT, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_200_forks_under_load() -> None:
    assert script(FORKS, "200").startswith("ok")


def test_a_fork_in_a_task() -> None:
    assert script(IN_A_TASK) == "ok\n"


def test_tokens_survive_a_fork_and_are_in_no_record() -> None:
    command = [sys.executable, "-P", "-W", "ignore::DeprecationWarning", "-c", TOKENS, ENDPOINT]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (0, "ok 7\n"), ended.stderr
    for words in ("connected to tcp://", "CREDENTIALS_REFUSED", "7f3a"):
        assert (words in ended.stderr) == (words != "7f3a"), ended.stderr


def test_multiprocessing() -> None:
    command = [sys.executable, "-P", str(EXAMPLES / "pool.py"), ENDPOINT]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert re.fullmatch(r"before the fork\n100 jobs in [234] processes\nafter the fork\n", ended.stdout), ended


def test_gunicorn_preload() -> None:
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "4", "--bind", "127.0.0.1:0"]
    process = subprocess.Popen(
        [*command, "--chdir", str(EXAMPLES), "web:application"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "VALKYRIE_ENDPOINT": ENDPOINT},
    )
    try:
        assert process.stderr is not None
        log = []
        found = None
        for line in process.stderr:
            log.append(line)
            found = found or re.search(r"Listening at: (http://\S+)", line)
            if sum("Booting worker" in line for line in log) == 4:
                break
        assert found, log

        def get(number: int) -> None:
            with urllib.request.urlopen(f"{found[1]}/{number}", timeout=60) as answer:
                assert answer.read() == f"/{number}".encode()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(get, range(400)))
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[1]
        assert process.returncode == 0, rest
        assert "Traceback" not in rest, rest
    finally:
        process.kill()
        process.wait()


def test_celery_prefork(tmp_path: Path) -> None:
    env = {**os.environ, "VALKYRIE_ENDPOINT": ENDPOINT, "JOBS_FOLDER": str(tmp_path)}
    options = ["--pool", "prefork", "--concurrency", "4", "--loglevel", "WARNING", "--without-mingle"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "--workdir", str(EXAMPLES), "--app", "jobs", "worker", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**env, "C_FORCE_ROOT": "1"},
    )
    try:
        sender = [sys.executable, str(EXAMPLES / "jobs.py")]
        ended = subprocess.run(sender, capture_output=True, text=True, timeout=300, env=env)
        assert re.fullmatch(r"40 jobs in [234] processes\n", ended.stdout), ended
        worker.send_signal(signal.SIGTERM)
        errors = worker.communicate(timeout=60)[1]
        assert worker.returncode == 0, errors
    finally:
        worker.kill()
        worker.wait()
