"""The asyncio face: one completion queue per loop, drained in one crossing per wake."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Generator
from types import TracebackType
from typing import Any

from . import _native
from ._errors import from_status
from ._values import (
    Metadata,
    MetadataLike,
    Response,
    as_message,
    check_certificates,
    check_endpoint,
    check_method,
    milliseconds,
    pairs,
    response,
    timeout_ms,
)

# Messages that one crossing may bring.
_BATCH = 64


class _Hub:
    """One loop's queue and the futures that wait on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.queue = _native.Queue()
        self.waiting: dict[int, asyncio.Future[Any]] = {}
        loop.add_reader(self.queue.fileno(), self.drain)

    def drain(self) -> None:
        while completions := self.queue.drain():
            for op, kind, value in completions:
                future = self.waiting.pop(op, None)
                if future is None or future.done():
                    continue
                if kind == _native.ERROR:
                    future.set_exception(from_status(value))
                else:
                    future.set_result(value)


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = weakref.WeakKeyDictionary()


def _hub() -> tuple[_Hub, asyncio.AbstractEventLoop]:
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None:
        hub = _hubs[loop] = _Hub(loop)
    return hub, loop


async def _completion(hub: _Hub, loop: asyncio.AbstractEventLoop, op: int) -> Any:
    future: asyncio.Future[Any] = loop.create_future()
    hub.waiting[op] = future
    try:
        return await future
    except asyncio.CancelledError:
        hub.waiting.pop(op, None)
        _native.cancel(op)
        raise


class Connecting:
    """A connection to be: ``await`` it or enter it with ``async with``."""

    def __init__(self, endpoint: str, timeout: float, connect_timeout: float, trusted_certificates: str | None) -> None:
        self._endpoint = check_endpoint(endpoint)
        self._timeout_ms = milliseconds(timeout)
        self._connect_timeout_ms = milliseconds(connect_timeout, "connect_timeout")
        self._trusted = check_certificates(trusted_certificates)
        self._client: Client | None = None

    async def _connect(self) -> Client:
        hub, loop = _hub()
        try:
            handle, op = _native.connect(
                hub.queue, self._endpoint, self._timeout_ms, self._connect_timeout_ms, self._trusted
            )
        except _native.Refused as refused:
            raise from_status(refused.args) from None
        client = Client(handle)
        await _completion(hub, loop, op)
        return client

    def __await__(self) -> Generator[Any, None, Client]:
        return self._connect().__await__()

    async def __aenter__(self) -> Client:
        self._client = await self._connect()
        return self._client

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.aclose()


class Client:
    """Makes calls to one endpoint; usable from any loop and thread. Made by ``connect``."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._free = weakref.finalize(self, _native.client_free, handle)
        # The process's end frees more than this could.
        self._free.atexit = False

    async def request(self, message: str | bytes | bytearray | memoryview) -> bytes:
        """Sends a message to ``/echo`` and gives the answer. Text is sent as UTF-8."""
        return await self.call("/echo", as_message(message))  # type: ignore[arg-type]

    async def call(
        self,
        method: str,
        message: bytes | bytearray | memoryview = b"",
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
    ) -> bytes:
        """One message out, one message back.

        ``timeout`` in seconds; the client's (5.0) without one, ``math.inf`` for no limit. Cancelling the task cancels
        the call and the server's handler. Raises ``StatusError`` and its subclasses.
        """
        return (await self._call(method, message, timeout, metadata, priority))[0]  # type: ignore[no-any-return]

    async def call_with_response(
        self,
        method: str,
        message: bytes | bytearray | memoryview = b"",
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
    ) -> Response:
        """As ``call``, with the metadata and trailers that came with the answer."""
        return response(await self._call(method, message, timeout, metadata, priority))

    async def _call(
        self,
        method: str,
        message: Any,
        timeout: float | None,
        metadata: MetadataLike | None,
        priority: str | None,
    ) -> Any:
        hub, loop = _hub()
        try:
            op = _native.call(
                hub.queue,
                self._handle,
                check_method(method),
                message,
                timeout_ms(timeout),
                pairs(metadata),
                priority,
            )
        except _native.Refused as refused:
            raise from_status(refused.args) from None
        return await _completion(hub, loop, op)

    def open(
        self,
        method: str,
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
    ) -> Stream:
        """Opens a stream of any shape; without ``timeout`` it has no limit."""
        hub, _ = _hub()
        try:
            handle = _native.open(
                hub.queue, self._handle, check_method(method), timeout_ms(timeout), pairs(metadata), priority
            )
        except _native.Refused as refused:
            raise from_status(refused.args) from None
        return Stream(handle)

    async def stream(
        self,
        method: str,
        message: bytes | bytearray | memoryview = b"",
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
    ) -> AsyncIterator[bytes]:
        """Server streaming: sends one message, then yields the answers. Leaving the loop early cancels the call."""
        async with self.open(method, timeout=timeout, metadata=metadata, priority=priority) as stream:
            await stream.send(message)
            await stream.half_close()
            async for answer in stream:
                yield answer

    async def aclose(self) -> None:
        """Closes gracefully: calls in flight may finish within 5 s. Idempotent."""
        if not self._free.alive:
            return
        hub, loop = _hub()
        try:
            op = _native.close(hub.queue, self._handle)
        except _native.Refused:
            return
        await _completion(hub, loop, op)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class Stream:
    """One stream: ``send`` and ``half_close`` one way, ``async for`` or ``recv`` the other."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._free = weakref.finalize(self, _native.stream_free, handle)
        self._free.atexit = False
        self._ready: list[bytes] = []
        self._ended = False
        self.metadata = Metadata()
        """Initial metadata; complete at the end."""
        self.trailers = Metadata()
        """Trailers; empty before the end."""

    async def _run(self, submit: Any, *arguments: Any) -> Any:
        hub, loop = _hub()
        try:
            op = submit(hub.queue, self._handle, *arguments)
        except _native.Refused as refused:
            raise from_status(refused.args) from None
        return await _completion(hub, loop, op)

    async def send(self, message: bytes | bytearray | memoryview) -> None:
        """Sends a message; waits while the peer's credit is used up."""
        await self._run(_native.send, message)

    async def half_close(self) -> None:
        """No more messages from this side."""
        await self._run(_native.half_close)

    async def recv(self) -> bytes | None:
        """The next message; ``None`` once the call has ended well. Raises the status it ended with otherwise."""
        if not self._ready and not self._ended:
            messages, end = await self._run(_native.recv, _BATCH)
            messages.reverse()
            self._ready = messages
            if end is not None:
                self._ended = True
                self.metadata, self.trailers = Metadata(end[0]), Metadata(end[1])
        return self._ready.pop() if self._ready else None

    def cancel(self) -> None:
        """Cancels the call in both directions. Idempotent."""
        self._free()

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        message = await self.recv()
        if message is None:
            raise StopAsyncIteration
        return message

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
