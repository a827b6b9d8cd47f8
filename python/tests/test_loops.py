"""Every loop and every way to give a call up."""

# mypy: allow-untyped-decorators
from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest  # type: ignore[import-not-found, unused-ignore]
import trio  # type: ignore[import-not-found, unused-ignore]
import uvloop  # type: ignore[import-not-found, unused-ignore]

import valkyrie
from valkyrie import _native

ENDPOINT = os.environ["VALKYRIE_CONFORMANCE_ENDPOINT"]

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def run(request: Any) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    def run(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(main)

    return run


async def until(client: valkyrie.Client, key: bytes, state: str) -> None:
    await client.call("/test/hang_stats", key, metadata={"until": state}, timeout=60)


def test_every_shape(run: Any) -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            assert await client.request("Hello") == b"Hello"
            assert [message async for message in client.stream("/test/count", b"200 1")] == [
                bytes([i]) for i in range(200)
            ]
            async with client.open("/echo") as stream:
                for number in range(3):
                    await stream.send(str(number).encode())
                    assert await stream.recv() == str(number).encode()
                await stream.half_close()
                assert await stream.recv() is None
            answers = await asyncio.gather(*(client.call("/echo", b"%d" % i) for i in range(300)))
            assert answers == [b"%d" % i for i in range(300)]

    run(main())


def test_a_call_is_a_coroutine(run: Any) -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(client.call("/echo", b"%d" % i)) for i in range(5)]
            assert [task.result() for task in tasks] == [b"%d" % i for i in range(5)]
            assert await asyncio.ensure_future(client.call("/echo", b"x")) == b"x"
            call = client.call("/echo", b"once")
            assert await call == b"once"
            with pytest.raises(RuntimeError, match="twice"):
                await call
            call = client.call("/echo")
            with pytest.raises(TypeError):
                call.send(1)  # type: ignore[arg-type]
            call.close()

    run(main())
    with pytest.raises(RuntimeError, match="no running event loop"):
        _native.recv(0, 1).send(None)


def test_a_call_that_is_never_awaited_is_said() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _native.recv(0, 1)
        gc.collect()
    assert [str(warning.message) for warning in caught] == ["an operation was never awaited"]


async def by_timeout(client: valkyrie.Client, key: bytes) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:
            call = asyncio.ensure_future(until(client, key, "started"))
            call.add_done_callback(lambda _: limit.reschedule(0))
            await client.call("/test/hang", key, timeout=math.inf)


async def by_wait_for(client: valkyrie.Client, key: bytes) -> None:
    call = asyncio.ensure_future(asyncio.wait_for(client.call("/test/hang", key, timeout=math.inf), 600))
    await until(client, key, "started")
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def by_task_group(client: valkyrie.Client, key: bytes) -> None:
    async def fail() -> None:
        await until(client, key, "started")
        raise LookupError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(client.call("/test/hang", key, timeout=math.inf))
            group.create_task(fail())


async def by_close(client: valkyrie.Client, key: bytes) -> None:
    call = client.call("/test/hang", key, timeout=math.inf)
    call.send(None)
    await until(client, key, "started")
    call.close()
    with pytest.raises(RuntimeError, match="twice"):
        call.send(None)


async def by_drop(client: valkyrie.Client, key: bytes) -> None:
    call = client.call("/test/hang", key, timeout=math.inf)
    call.send(None)
    await until(client, key, "started")
    del call


async def by_throw(client: valkyrie.Client, key: bytes) -> None:
    call = client.call("/test/hang", key, timeout=math.inf)
    call.send(None)
    await until(client, key, "started")
    with pytest.raises(LookupError, match="thrown"):
        call.throw(LookupError("thrown"))


@pytest.mark.parametrize("way", [by_timeout, by_wait_for, by_task_group, by_close, by_drop, by_throw])
def test_giving_up_stops_the_servers_handler(run: Any, way: Any) -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            key = f"{way.__name__} {id(run)}".encode()
            await way(client, key)
            await until(client, key, "dropped")
        assert _native.in_flight() == 0

    run(main())


@pytest.mark.parametrize("make", LOOPS, ids=["asyncio", "uvloop"])
def test_a_loop_that_ends_cancels_what_it_left(make: Any) -> None:
    key = make.__module__.encode()

    async def main() -> tuple[valkyrie.Client, asyncio.Task[bytes]]:
        client = await valkyrie.connect(ENDPOINT)
        call = asyncio.ensure_future(client.call("/test/hang", key, timeout=math.inf))
        await until(client, key, "started")
        return client, call

    loop = make()
    loop.set_exception_handler(lambda loop, context: None)
    client, call = loop.run_until_complete(main())
    loop.close()
    asyncio.run(until(client, key, "dropped"))
    assert _native.in_flight() == 0
    left = weakref.ref(loop)
    del loop, call
    gc.collect()
    assert left() is None


def test_a_large_message_is_lent_and_given_back(run: Any) -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            message = os.urandom(1 << 20)
            before = sys.getrefcount(message)
            for _ in range(3):
                assert await client.call("/echo", message) == message
            # The reply shows that all was read; the next crossing takes back what was lent.
            await client.call("/echo", b"")
            assert sys.getrefcount(message) == before
            call = client.call("/echo", message)
            assert sys.getrefcount(message) == before + 1
            call.close()

    run(main())


def test_token_functions_under_trio() -> None:
    asked: list[str] = []

    def token() -> str:
        asked.append(trio.lowlevel.current_task().name)
        return "good trio"

    async def later() -> str:
        await trio.lowlevel.checkpoint()
        return token()

    async def fails() -> str:
        raise LookupError("no token today")

    async def brief() -> str:
        await trio.lowlevel.checkpoint()
        asked.append("brief")
        return "brief 2000 trio"

    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            private = (await client.call("/test/private", b"tcp credentials")).decode()
        for source in (token, later, "good trio"):
            async with valkyrie.connect(private, token=source) as client:
                assert await client.call("/test/principal") == b"sub:trio"
        assert len(asked) == 2
        with pytest.raises(valkyrie.Unauthenticated) as refused:
            async with valkyrie.connect(private, token=fails) as client:
                await client.call("/test/principal")
        assert refused.value.reason == "CREDENTIALS_UNAVAILABLE"
        assert isinstance(refused.value.__cause__, LookupError)
        # Asked again before the last token ends, while a stream goes on.
        async with valkyrie.connect(private, token=brief) as client, client.open("/echo") as stream:
            while asked.count("brief") < 3:
                await stream.send(b"x")
                assert await stream.recv() == b"x"

    for _ in range(2):
        asked.clear()
        trio.run(main)
        assert _native.in_flight() == 0


@pytest.mark.filterwarnings("error")
def test_trio() -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as client:
            assert await client.request("Hello") == b"Hello"
            assert [message async for message in client.stream("/test/count", b"200 1")] == [
                bytes([i]) for i in range(200)
            ]
            with pytest.raises(valkyrie.Unimplemented):
                await client.call("/nope")
            answers = []

            async def call(number: int) -> None:
                answers.append(await client.call("/echo", b"%d" % number))

            async with trio.open_nursery() as nursery:
                for number in range(300):
                    nursery.start_soon(call, number)
                # Awaited by trio itself.
                nursery.start_soon(client.call, "/echo", b"bare")
            assert sorted(answers) == sorted(b"%d" % number for number in range(300))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.call, "/test/hang", b"py-trio")
                await client.call("/test/hang_stats", b"py-trio", metadata={"until": "started"}, timeout=60)
                nursery.cancel_scope.cancel()
            await client.call("/test/hang_stats", b"py-trio", metadata={"until": "dropped"}, timeout=60)
            with trio.CancelScope() as scope:
                scope.cancel()
                await client.call("/test/hang", b"py-trio-never")
            assert scope.cancelled_caught
        with pytest.raises(valkyrie.Unavailable):
            await valkyrie.connect(os.environ["VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT"])

    for _ in range(2):
        trio.run(main)
        assert _native.in_flight() == 0
