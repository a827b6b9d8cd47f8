"""The installed package against a real server: what the conformance cases do not see."""

# mypy: allow-untyped-decorators
from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
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
            with pytest.raises(TypeError, match="bytes"):
                await client.call("/echo", "text")  # type: ignore[arg-type]
        with pytest.raises(ConnectionError):
            await valkyrie.connect(ABSENT)
        with pytest.raises(valkyrie.InvalidArgument):
            await valkyrie.connect("nonsense")
        with pytest.raises(TypeError, match="trusted_certificates"):
            await valkyrie.connect(ENDPOINT, trusted_certificates=b"PEM")  # type: ignore[arg-type]
        with pytest.raises(valkyrie.InvalidArgument, match="needs the certificate"):
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


def test_ctrl_c_ends_a_blocking_call() -> None:
    script = (
        # Whoever runs the tests in the background of a shell hands down an ignored SIGINT.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"import valkyrie.sync; client = valkyrie.sync.connect({ENDPOINT!r}); print('ready', flush=True)\n"
        "try: client.call('/test/hang', b'py-ctrl-c', timeout=600)\n"
        "except KeyboardInterrupt: print('interrupted', flush=True)"
    )
    process = run(script)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    with valkyrie.sync.connect(ENDPOINT) as client:
        client.call("/test/hang_stats", b"py-ctrl-c", metadata={"until": "started"}, timeout=60)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        assert out == "interrupted\n", error
        client.call("/test/hang_stats", b"py-ctrl-c", metadata={"until": "dropped"}, timeout=60)


@pytest.mark.parametrize("how", ["idle", "call in flight"])
def test_the_interpreter_ends(how: str) -> None:
    call = "threading.Thread(target=client.call, args=('/test/hang',), daemon=True).start()" if "call" in how else "0"
    script = f"import threading, valkyrie.sync; client = valkyrie.sync.connect({ENDPOINT!r}); {call}; print('end')"
    process = run(script)
    out, error = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "end\n"), error


def test_a_client_made_before_fork_works_in_the_child() -> None:
    client = valkyrie.sync.connect(ENDPOINT)
    assert client.request("parent") == b"parent"
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if client.request("child") == b"child" else 2
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            pytest.fail("the child hangs")
        client.request("parent")
    assert ended[1] == 0
    assert client.request("parent again") == b"parent again"
    client.close()
