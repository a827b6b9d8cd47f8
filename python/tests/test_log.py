"""What happens to connections, in the program's own logging."""

# mypy: allow-untyped-decorators
from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest  # type: ignore[import-not-found, unused-ignore]
import trio  # type: ignore[import-not-found, unused-ignore]

import valkyrie
import valkyrie.sync

ENDPOINT = os.environ["VALKYRIE_CONFORMANCE_ENDPOINT"]


class Heard(logging.Handler):
    """Keeps every record."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def of(self, endpoint: str) -> list[tuple[str, str, str]]:
        return [
            (record.levelname, record.name, record.getMessage())
            for record in self.records
            if getattr(record, "endpoint", None) == endpoint
        ]


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logger = logging.getLogger("valkyrie")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def absent() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def test_a_connection_that_fails_is_a_warning_in_every_style(heard: Heard) -> None:
    async def fail(endpoint: str) -> None:
        with pytest.raises(valkyrie.Unavailable):
            await valkyrie.connect(endpoint)

    for library in ("asyncio", "trio"):
        endpoint = absent()
        if library == "asyncio":
            asyncio.run(fail(endpoint))
        else:
            trio.run(fail, endpoint)
        with pytest.raises(valkyrie.Unavailable):
            valkyrie.sync.connect(endpoint)
        # Whoever drained first had the first; the last thing that drains has all.
        level, name, message = heard.of(endpoint)[0]
        assert (level, name) == ("WARNING", "valkyrie.connection"), library
        assert message.startswith(f"cannot connect to {endpoint}")
    assert heard.records[0].__dict__["reason"] == "CONNECT_FAILED"


def test_the_level_is_the_loggers_and_a_connection_that_stands_is_info(heard: Heard) -> None:
    with valkyrie.sync.connect(ENDPOINT) as client:
        client.request(b"x")
    assert heard.of(ENDPOINT) == []
    logging.getLogger("valkyrie").setLevel(logging.DEBUG)
    with valkyrie.sync.connect(ENDPOINT) as client:
        client.request(b"x")
    said = heard.of(ENDPOINT)
    assert said[0] == ("INFO", "valkyrie.connection", f"connected to {ENDPOINT}")
    assert [level for level, _, _ in said[1:]] == ["DEBUG"] * (len(said) - 1)


def test_an_idle_loop_is_told_when_its_connection_is_lost(heard: Heard) -> None:
    logging.getLogger("valkyrie").setLevel(logging.INFO)

    async def main() -> None:
        lost = asyncio.Event()

        class Tell(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "is over" in record.getMessage():
                    lost.set()

        tell = Tell()
        logging.getLogger("valkyrie").addHandler(tell)
        # A server of this process: it says nothing, and hangs up.
        server = await asyncio.start_server(lambda _, writer: accepted.set_result(writer), "127.0.0.1", 0)
        accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()
        port = server.sockets[0].getsockname()[1]
        async with valkyrie.connect(f"tcp://127.0.0.1:{port}"):
            (await accepted).transport.abort()
            # Nothing else is under way on this loop.
            await asyncio.wait_for(lost.wait(), 60)
        logging.getLogger("valkyrie").removeHandler(tell)
        server.close()

    asyncio.run(main())


def test_a_handler_that_calls_and_one_that_fails_disturb_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failure: failures.append(str(failure.exc_value)))

    class Calls(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with valkyrie.sync.connect(ENDPOINT) as client:
                assert client.request(b"from a handler") == b"from a handler"
            raise ValueError("from a handler")

    handler = Calls()
    logger = logging.getLogger("valkyrie")
    logger.addHandler(handler)
    try:
        with pytest.raises(valkyrie.Unavailable):
            valkyrie.sync.connect(absent())
    finally:
        logger.removeHandler(handler)
    assert failures == ["from a handler"]


def test_ctrl_c_in_a_handler_is_the_callers(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(record: logging.LogRecord) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(heard, "emit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        valkyrie.sync.connect(absent())

    async def connect() -> None:
        await valkyrie.connect(absent())

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(connect())


def test_importing_loads_no_logging_and_nobody_listening_hears_nothing() -> None:
    source = f"""
import sys, valkyrie.sync
try:
    valkyrie.sync.connect({absent()!r})
except valkyrie.Unavailable:
    pass
assert 'logging' not in sys.modules
import logging
try:
    valkyrie.sync.connect({absent()!r})
except valkyrie.Unavailable:
    pass
"""
    done = subprocess.run([sys.executable, "-P", "-c", source], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")
