"""The installed package against a real server: what the conformance cases do not see."""

# mypy: allow-untyped-decorators
from __future__ import annotations

import asyncio
import gc
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest  # type: ignore[import-not-found, unused-ignore]

import valkyrie
import valkyrie.sync

ENDPOINT = os.environ["VALKYRIE_CONFORMANCE_ENDPOINT"]
ABSENT = os.environ["VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT"]


def test_import_is_light() -> None:
    script = (
        "import os, sys, threading; fds, modules = set(os.listdir('/proc/self/fd')), set(sys.modules); "
        "import valkyrie; "
        "assert threading.active_count() == 1; assert len(os.listdir('/proc/self/task')) == 1; "
        "assert set(os.listdir('/proc/self/fd')) == fds; "
        # Some installations load typing at their start.
        "heavy = {'asyncio', 'dataclasses', 'typing'} & (set(sys.modules) - modules); assert not heavy, heavy; "
        "print(valkyrie.version())"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "core" in out.stdout


def test_the_echo_core_opens_no_socket_and_starts_no_process() -> None:
    script = """
import asyncio, os, valkyrie
from pathlib import Path

def sockets():
    found = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            found += os.readlink(f"/proc/self/fd/{fd}").startswith("socket:")
        except FileNotFoundError:
            pass  # that of the list itself
    return found

def children():
    return "".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))

async def main():
    before = sockets()  # the loop's own
    async with valkyrie.connect("echo://core") as client, client.open("/echo") as stream:
        hanging = asyncio.ensure_future(client.call("/test/hang", b"key"))
        await client.call("/test/hang_stats", b"key", metadata={"until": "started"})
        for message in (b"small", bytes(1 << 20)):
            await stream.send(message)
            assert await stream.recv() == message
            assert await client.request(message) == message
        assert (sockets(), children()) == (before, ""), (sockets(), before, children())
        hanging.cancel()
        await client.call("/test/hang_stats", b"key", metadata={"until": "dropped"})

asyncio.run(main())
"""
    process = run(script)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ""), error


def test_asyncio_quick_start() -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            assert await client.request("Hello, World!") == b"Hello, World!"
            assert await client.call("/echo", memoryview(b"view")) == b"view"
            assert await client.call("/echo", bytearray(b"array")) == b"array"
            assert [message async for message in client.stream("/echo", b"once")] == [b"once"]
        with pytest.raises(valkyrie.ClientClosed):
            await client.request("late")

    asyncio.run(main())


def test_a_client_serves_several_loops() -> None:
    async def connect() -> valkyrie.Client:
        return await valkyrie.connect(ENDPOINT)

    client = asyncio.run(connect())
    for number in range(3):
        assert asyncio.run(client.request(str(number))) == str(number).encode()
    answers: list[bytes] = []
    threads = [
        threading.Thread(target=lambda n=n: answers.append(asyncio.run(client.request(str(n))))) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [str(n).encode() for n in range(8)]


def test_the_blocking_face_takes_a_service_config_and_idempotent_calls() -> None:
    token = f"blocking{os.getpid()}".encode()
    config = {"methods": [{"names": ["*"], "retry": {"max_attempts": 2}}]}
    with valkyrie.sync.connect(ENDPOINT, service_config=config) as client:
        again = client.call_with_response("/test/flaky", token, metadata={"n": "1"}, idempotent=True)
        assert again.message == b"2"
        with pytest.raises(valkyrie.Unavailable, match="asked 1"):
            client.call("/test/flaky", token + b"once", metadata={"n": "1"})
        keys: list[Any] = ["order-7", bytes(range(64)), True]
        for key in keys:
            counted = token + str(key)[:4].encode()
            answers = [client.call_with_response("/test/flaky", counted, idempotency_key=key) for _ in range(2)]
            replayed = [answer.metadata.text("valkyrie-replayed") for answer in answers]
            assert replayed == ([None, None] if key is True else [None, "true"])
            assert [answer.message for answer in answers] == [b"1", b"2" if key is True else b"1"]
        for wrong_key in (42, False, bytearray(b"key")):
            with pytest.raises(TypeError, match="idempotency_key"):
                client.call("/echo", b"", idempotency_key=wrong_key)  # type: ignore[arg-type]
    with pytest.raises(valkyrie.InvalidArgument, match="line 1: retries: there is no such key") as wrong:
        valkyrie.sync.connect(ENDPOINT, service_config='{"retries": 3}')
    assert wrong.value.reason == "INVALID_CONFIGURATION"


def test_connectivity_and_its_changes() -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            assert client.connectivity is valkyrie.Connectivity.READY
            ready: Any = "ready"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.connectivity_other_than(ready), 0.01)
            with pytest.raises(ValueError, match="steady"):
                await client.connectivity_other_than("steady")  # type: ignore[arg-type]
            changes = client.connectivity_changes()
            states = [await anext(changes)]
            left = asyncio.ensure_future(anext(changes))
            # It has begun before this is answered.
            assert await client.request("x") == b"x"
            left.cancel()
            with pytest.raises(asyncio.CancelledError):
                await left
            waiting = asyncio.ensure_future(anext(changes))
            assert await client.request("x") == b"x"
        states.append(await waiting)
        assert states == ["ready", "shutdown"]
        assert [state async for state in changes] == []
        assert [state async for state in client.connectivity_changes()] == ["shutdown"]
        with pytest.raises(valkyrie.ClientClosed):
            await client.connectivity_other_than(valkyrie.Connectivity.SHUTDOWN)

    asyncio.run(main())
    with valkyrie.sync.connect(ENDPOINT) as client:
        assert client.connectivity == "ready"
        assert client.connectivity_other_than(valkyrie.Connectivity.IDLE) == "ready"
        ended: list[valkyrie.Connectivity] = []
        wait = threading.Thread(target=lambda: ended.append(client.connectivity_other_than(client.connectivity)))
        wait.start()
    wait.join()
    assert ended == ["shutdown"] and client.connectivity == "shutdown"


def test_a_live_client_gets_another_service_config_and_shows_its_breakers() -> None:
    with valkyrie.sync.connect(ENDPOINT) as client:
        client.call("/echo", b"x")
        (breaker,) = client.breakers()
        assert (breaker.method, breaker.state, breaker.age, breaker.opens_for) == ("/echo", "closed", None, None)
        assert (breaker.calls, breaker.failures, breaker.changes) == (1, 0, 0)
        assert 'valkyrie_client_calls_total{method="/echo",code="OK"} 1\n' in client.metrics()
        client.isolate(breaker.server, "/echo")
        (breaker,) = client.breakers()
        assert breaker.state == "isolated" and breaker.age is not None and breaker.age < 60
        with pytest.raises(valkyrie.Unavailable) as held:
            client.call("/echo", b"x")
        assert held.value.reason == "BREAKER_OPEN"
        client.restore(breaker.server)
        client.set_service_config({"methods": [{"names": ["/test/sleep"], "timeout_ms": 20}]})
        with pytest.raises(valkyrie.DeadlineExceeded):
            client.call("/test/sleep", b"60000")
        with pytest.raises(valkyrie.InvalidArgument, match="there is no such key"):
            client.set_service_config({"retries": 3})
        for wrong in (None, 42):
            with pytest.raises(TypeError, match="service_config"):
                client.set_service_config(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="server"):
            client.isolate(42)  # type: ignore[arg-type]
    with pytest.raises(valkyrie.ClientClosed):
        client.breakers()


def _states(breakers: list[valkyrie.Breaker]) -> list[tuple[str | None, str, int]]:
    return [(breaker.method, breaker.state, breaker.changes) for breaker in breakers]


_BREAKS = {"methods": [{"names": ["*"], "breaker": {"min_calls": 2}}], "throttle": {"enabled": False}}
_OPEN = [("/echo", "closed", 0), ("/test/status", "open", 1)]


def test_changes_of_breakers() -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT, service_config=_BREAKS) as client:
            changes = client.breaker_changes()
            assert await anext(changes) == []
            # Who is cancelled goes on with the same iterator.
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(changes), 0.01)
            waiting = asyncio.ensure_future(anext(changes))
            assert await client.request("x") == b"x"
            for _ in range(2):
                assert not waiting.done()
                with pytest.raises(valkyrie.Unavailable):
                    await client.call("/test/status", metadata={"code": "14"})
            assert _states(await waiting) == _OPEN
            assert _states(await anext(client.breaker_changes())) == _OPEN
            waiting = asyncio.ensure_future(anext(changes))
            assert await client.request("x") == b"x"
        with pytest.raises(StopAsyncIteration):
            await waiting
        assert [breakers async for breakers in changes] == []

    asyncio.run(main())


def test_changes_of_breakers_for_a_thread_that_blocks() -> None:
    seen: queue.Queue[list[tuple[str | None, str, int]]] = queue.Queue()

    def watch() -> None:
        for breakers in client.breaker_changes():
            seen.put(_states(breakers))

    with valkyrie.sync.connect(ENDPOINT, service_config=_BREAKS) as client:
        thread = threading.Thread(target=watch)
        thread.start()
        assert seen.get(timeout=60) == []
        client.call("/echo", b"x")
        for _ in range(2):
            with pytest.raises(valkyrie.Unavailable):
                client.call("/test/status", metadata={"code": "14"})
        assert seen.get(timeout=60) == _OPEN
    thread.join(60)
    assert not thread.is_alive() and seen.empty()


def test_who_waits_for_a_change_keeps_no_process_alive() -> None:
    script = """
import asyncio, os, valkyrie

async def main():
    client = await valkyrie.connect(os.environ["VALKYRIE_CONFORMANCE_ENDPOINT"])
    asyncio.ensure_future(client.connectivity_other_than(client.connectivity))
    breakers = client.breaker_changes()
    await anext(breakers)
    asyncio.ensure_future(anext(breakers))
    await client.request("x")

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_errors_are_the_languages_own() -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            with pytest.raises(TimeoutError) as late:
                await client.call("/test/sleep", b"60000", timeout=0.02)
            assert isinstance(late.value, valkyrie.DeadlineExceeded)
            assert late.value.code is valkyrie.Code.DEADLINE_EXCEEDED
            with pytest.raises(valkyrie.Unimplemented) as unknown:
                await client.call("/nope")
            assert unknown.value.reason == "UNKNOWN_METHOD"
            with pytest.raises(ValueError, match="not above 0"):
                await client.call("/echo", b"", timeout=0)
            with pytest.raises(ValueError, match="priority"):
                await client.call("/echo", b"", priority="urgent")
            with pytest.raises(TypeError, match="idempotent"):
                await client.call("/echo", b"", idempotent="yes")  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="bytes"):
                await client.call("/echo", "text")  # type: ignore[arg-type]
        with pytest.raises(ConnectionError):
            await valkyrie.connect(ABSENT)
        with pytest.raises(valkyrie.InvalidArgument):
            await valkyrie.connect("nonsense")
        with pytest.raises(TypeError, match="trusted_certificates"):
            await valkyrie.connect(ENDPOINT, trusted_certificates=b"PEM")  # type: ignore[arg-type]
        wrong: list[dict[str, Any]] = [
            {"revocation_lists": 42},
            {"system_roots": "yes"},
            {"identity": "PEM"},
            {"identity": ("PEM",)},
            {"identity": ("PEM", b"PEM")},
            {"server_name": 42},
            {"sealed": 1},
            {"min_security": 2},
            {"service_config": 42},
            {"service_config": b"{}"},
        ]
        for options in wrong:
            for connect in (valkyrie.connect, valkyrie.sync.connect):
                with pytest.raises(TypeError, match=next(iter(options))):
                    connect(ENDPOINT, **options)
        with pytest.raises(ValueError, match="best"):
            await valkyrie.connect(ENDPOINT, min_security="best")
        with pytest.raises(valkyrie.InvalidArgument, match="whom to trust"):
            await valkyrie.connect("quic://127.0.0.1:1")

    asyncio.run(main())


def test_cancelling_the_task_raises_cancelled_error() -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            call = asyncio.ensure_future(client.call("/test/hang", b"py-cancel", timeout=60))
            await client.call("/test/hang_stats", b"py-cancel", metadata={"until": "started"}, timeout=60)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await client.call("/test/hang_stats", b"py-cancel", metadata={"until": "dropped"}, timeout=60)

    asyncio.run(main())


def test_sync_has_every_shape() -> None:
    with valkyrie.sync.connect(ENDPOINT) as client:
        assert client.request("Hello") == b"Hello"
        assert list(client.stream("/test/count", b"5 1")) == [bytes([i]) for i in range(5)]
        with client.open("/test/half_close") as stream:
            for _ in range(3):
                stream.send(b"x")
            stream.half_close()
            assert stream.recv() == b"3"
            assert stream.recv() is None
        with pytest.raises(valkyrie.DeadlineExceeded):
            client.call("/test/sleep", b"60000", timeout=0.02)
        response = client.call_with_response("/test/metadata", metadata=[("k", "v"), ("b-bin", b"\0")])
        assert list(response.metadata) == [("k", b"v"), ("b-bin", b"\0")]
        assert response.trailers.get("t-k") == b"v"
    with pytest.raises(valkyrie.ClientClosed):
        client.request("late")
    client.close()
    with pytest.raises(valkyrie.Unavailable):
        valkyrie.sync.connect(ABSENT)


def test_other_threads_run_while_a_call_blocks() -> None:
    with valkyrie.sync.connect(ENDPOINT) as client:
        done = threading.Event()
        errors: list[BaseException] = []

        def block() -> None:
            try:
                client.call("/test/barrier", metadata={"n": "2", "barrier": "py-gil"}, timeout=60)
            except BaseException as error:
                errors.append(error)
            done.set()

        thread = threading.Thread(target=block)
        thread.start()
        # The blocked thread can only end through this one.
        client.call("/test/barrier", metadata={"n": "2", "barrier": "py-gil"}, timeout=60)
        thread.join()
        assert done.is_set() and not errors


def run(script: str, **kwargs: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


# What blocks, after the process has said that it is about to.
BLOCKING = {
    "call": "client.call('/test/hang', b'py-ctrl-c', timeout=600)",
    "recv": "stream.recv()",
    "send": "[stream.send(bytes(65536)) for _ in iter(int, 1)]",
    "connect": "valkyrie.sync.connect(full, connect_timeout=600)",
}


@pytest.mark.parametrize("what", BLOCKING)
def test_ctrl_c_ends_what_blocks(what: str) -> None:
    script = f"""
import signal, socket, threading, valkyrie.sync
from valkyrie import _native

# Whoever runs the tests in the background of a shell hands down an ignored SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
# One caller more than its backlog: nobody answers the next.
listener = socket.create_server(("127.0.0.1", 0), backlog=0)
address = listener.getsockname()
callers = [socket.socket() for _ in range(2)]
for caller in callers:
    caller.setblocking(False)
    caller.connect_ex(address)
full = f"tcp://127.0.0.1:{{address[1]}}"
client = valkyrie.sync.connect({ENDPOINT!r})
stream = client.open("/test/hang")

def handler(state):
    if {what!r} == "call":
        client.call("/test/hang_stats", b"py-ctrl-c", metadata={{"until": state}}, timeout=60)

def watch():
    while not _native.in_flight():
        pass
    handler("started")
    print("begun", flush=True)

threading.Thread(target=watch).start()
try:
    {BLOCKING[what]}
except KeyboardInterrupt:
    print("interrupted", _native.in_flight(), flush=True)
    handler("dropped")
"""
    process = run(script)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "interrupted 0\n", process.communicate(timeout=60)
    print(f"{what}: {(time.monotonic() - began) * 1000:.0f} ms from Ctrl-C to the exception")
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, ""), error


def test_a_signal_handler_calls_while_a_call_blocks() -> None:
    script = f"""
import os, signal, threading, valkyrie.sync
from valkyrie import _native

client = valkyrie.sync.connect({ENDPOINT!r})

def meet():
    return client.call("/test/barrier", metadata={{"n": "2", "barrier": "py-handler"}}, timeout=60)

def watch():
    while not _native.in_flight():
        pass
    os.kill(os.getpid(), signal.SIGUSR1)

# The blocked call can only end through the handler that it runs.
signal.signal(signal.SIGUSR1, lambda *_: meet())
threading.Thread(target=watch).start()
meet()
print(_native.in_flight(), client.request("after").decode())
"""
    out, error = run(script).communicate(timeout=120)
    assert out == "0 after\n", error


def test_finalizers_call() -> None:
    with valkyrie.sync.connect(ENDPOINT) as client:
        answers: list[bytes] = []

        class Caller:
            def __init__(self, name: str) -> None:
                self.name = name
                self.itself = self

            def __del__(self) -> None:
                answers.append(client.request(self.name))

        async def main() -> None:
            async with valkyrie.connect(ENDPOINT) as other:
                for number in range(50):
                    Caller(str(number))
                    # The collector may run anywhere in here, and does at the latest at the end.
                    assert await other.request("between") == b"between"
                gc.collect()

        asyncio.run(main())
        assert sorted(answers) == sorted(str(number).encode() for number in range(50))


# How a process ends: what it does last.
ENDS = {
    "idle": "client = valkyrie.sync.connect(endpoint)",
    "a blocked daemon thread": """
client = valkyrie.sync.connect(endpoint)
threading.Thread(target=client.call, args=("/test/hang",), daemon=True).start()
""",
    "an open stream": """
client = valkyrie.sync.connect(endpoint)
stream = client.open("/echo")
stream.send(b"x")
stream.recv()
""",
    "asyncio, nothing closed": """
async def main():
    global client, stream, calls
    client = await valkyrie.connect(endpoint)
    stream = client.open("/echo")
    await stream.send(b"x")
    calls = [asyncio.ensure_future(client.call("/test/hang")) for _ in range(3)]
    calls.append(asyncio.ensure_future(stream.recv()))
    await client.request("begun")

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
""",
    "a call at exit": """
client = valkyrie.sync.connect(endpoint)
atexit.register(lambda: client.request("late"))
""",
    "a finaliser at exit": """
class Caller:
    def __init__(self, client):
        self.client = client

    def __del__(self):
        self.client.request("latest")

caller = Caller(valkyrie.sync.connect(endpoint))
""",
    "at once": """
client = valkyrie.sync.connect(endpoint)
print("end", flush=True)
os._exit(0)
""",
}


@pytest.mark.parametrize("how", ENDS)
def test_the_interpreter_ends(how: str) -> None:
    script = f"""
import asyncio, atexit, os, threading, valkyrie, valkyrie.sync
endpoint = {ENDPOINT!r}
{ENDS[how]}
print("end")
"""
    process = run(script)
    out, error = process.communicate(timeout=60)
    # What asyncio says of tasks that nobody ended is its own.
    said = [line for line in error.splitlines() if not line.startswith(("Task was destroyed", "task: "))]
    assert (process.returncode, out, said) == (0, "end\n", []), error


def test_a_subinterpreter_is_told() -> None:
    script = """
import valkyrie

try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
interpreters.run_string(interpreters.create(), '''
try:
    import valkyrie
except ImportError as error:
    print(error, flush=True)
''')
"""
    out, error = run(script).communicate(timeout=60)
    assert "subinterpreters" in out, (out, error)


def test_a_native_part_of_another_version_is_told(tmp_path: Path) -> None:
    shutil.copytree(Path(valkyrie.__file__).parent, tmp_path / "valkyrie")
    init = tmp_path / "valkyrie/__init__.py"
    init.write_text(init.read_text().replace(f'"{valkyrie.__version__}"', '"0.0.9"'))
    process = run("import valkyrie", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    error = process.communicate(timeout=60)[1]
    assert "ImportError: valkyrie 0.0.9" in error and "reinstall valkyrie-sdk" in error, error


def test_a_client_made_before_fork_works_in_the_child() -> None:
    client = valkyrie.sync.connect(ENDPOINT)
    assert client.request("parent") == b"parent"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if client.request("child") == b"child" else 2
        finally:
            os._exit(status)  # The child's verdict; pytest's end is its parent's.
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child hangs")
        client.request("parent")
    assert ended[1] == 0
    assert client.request("parent again") == b"parent again"
    client.close()
