"""The asyncio face. Whatever is awaited is one operation of the native part, which knows the loop that runs."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Literal

from . import _native
from ._client import _Client
from ._errors import ClientClosed, StatusError
from ._values import (
    CONNECTIVITIES,
    Breaker,
    Connectivity,
    Metadata,
    MetadataLike,
    Response,
    as_breakers,
    as_message,
    response,
)

# Messages that one crossing may bring.
_BATCH = 64


class Connecting:
    """A connection to be: ``await`` it or enter it with ``async with``."""

    def __init__(self, operation: _native.Operation[int], source: Callable[[], str | Awaitable[str]] | None) -> None:
        self._operation = operation
        self._source = source
        self._client: Client | None = None

    async def _connect(self) -> Client:
        if self._source is None:
            return Client(await self._operation)
        from ._token import ask_in_loop

        asking = ask_in_loop(self._operation.client(), self._source)
        try:
            return Client(await self._operation)
        except StatusError as error:
            raise asking.explain(error)  # noqa: B904

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


class Client(_Client):
    """Makes calls to one endpoint; usable from any loop and thread. Made by ``connect``."""

    def request(self, message: str | bytes | bytearray | memoryview) -> _native.Operation[bytes]:
        """Sends a message to ``/echo`` and gives the answer; see ``call``. Text is sent as UTF-8."""
        return self.call("/echo", as_message(message))

    def call(
        self,
        method: str,
        message: bytes | bytearray | memoryview = b"",
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
        idempotent: bool = False,
        idempotency_key: str | bytes | Literal[True] | None = None,
    ) -> _native.Operation[bytes]:
        """One message out, one message back: a coroutine, which begins when it is awaited or made a task.

        ``timeout`` in seconds; the client's (5.0) without one, ``math.inf`` for no limit. Cancelling the task cancels
        the call and the server's handler. Raises ``StatusError`` and its subclasses.

        ``idempotent``: the call may be executed twice, so that it is tried again though a server may have seen it (gRFC
        A6). Default ``False``, or what the ``service_config`` says of the method. Streams are not tried again.

        ``idempotency_key``: 1 to 64 bytes, text as UTF-8, that tell the call from every other of its caller's and its
        method's, as an order's number does; ``True`` draws 128 random bits. It may be tried again then like an
        idempotent one: a server that keeps keys runs it once and answers each time, with ``valkyrie-replayed`` in the
        metadata of an answer that is not the first (PROTOCOL.md, W5-12). ``InvalidArgument`` for a key of another
        length and for one that was used for another message. Default: none. Streams have none.
        """
        return _native.call(self._handle, method, message, timeout, metadata, priority, idempotent, idempotency_key)

    async def call_with_response(
        self,
        method: str,
        message: bytes | bytearray | memoryview = b"",
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
        idempotent: bool = False,
        idempotency_key: str | bytes | Literal[True] | None = None,
    ) -> Response:
        """As ``call``, with the metadata and trailers that came with the answer."""
        whole = _native.call_whole(
            self._handle, method, message, timeout, metadata, priority, idempotent, idempotency_key
        )
        return response(await whole)

    def open(
        self,
        method: str,
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
    ) -> Stream:
        """Opens a stream of any shape; without ``timeout`` it has no limit."""
        return Stream(_native.open(self._handle, method, timeout, metadata, priority))

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

    def breaker_changes(self) -> AsyncIterator[list[Breaker]]:
        """The circuit breakers now, and then whenever one has changed its state, until the client is closed.

        Without a limit. Steps that followed each other at once may be passed over. A cancel loses nothing: what was not
        given comes by the next ``anext`` of the same iterator. What waits here keeps no process alive.
        """
        return _BreakerChanges(self)

    async def connectivity_other_than(self, seen: Connectivity) -> Connectivity:
        """Waits until the client no longer stands as in ``seen``, and says how it does. Without a limit.

        Steps that followed each other at once may be passed over; a cancel loses nothing. A client that is closed is
        ``SHUTDOWN`` for ever: who has seen that gets ``ClientClosed``. What waits here keeps no process alive.
        """
        number = CONNECTIVITIES.index(Connectivity(seen))
        return CONNECTIVITIES[await _native.connectivity_other_than(self._handle, number)]

    def connectivity_changes(self) -> AsyncIterator[Connectivity]:
        """Where the client stands now, and then each change, to ``SHUTDOWN``. As ``connectivity_other_than``.

        A step that is cancelled loses nothing: the next one goes on.
        """
        return _ConnectivityChanges(self)

    async def aclose(self) -> None:
        """Closes gracefully: calls in flight may finish within 5 s. Idempotent."""
        try:
            await _native.close(self._handle)
        except ClientClosed:
            pass

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class _ConnectivityChanges:
    """How the client stood when it was asked last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen: Connectivity | None = None

    def __aiter__(self) -> _ConnectivityChanges:
        return self

    async def __anext__(self) -> Connectivity:
        if self._seen is Connectivity.SHUTDOWN:
            raise StopAsyncIteration
        if self._seen is None:
            self._seen = self._client.connectivity
        else:
            self._seen = await self._client.connectivity_other_than(self._seen)
        return self._seen


class _BreakerChanges:
    """What stands for the breakers that were given last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen = 0

    def __aiter__(self) -> _BreakerChanges:
        return self

    async def __anext__(self) -> list[Breaker]:
        try:
            self._seen, text = await _native.breakers_other_than(self._client._handle, self._seen)
        except ClientClosed:
            raise StopAsyncIteration from None
        return as_breakers(text)


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

    def send(self, message: bytes | bytearray | memoryview) -> _native.Operation[None]:
        """Sends a message; waits while the peer's credit is used up. Nothing is sent before this is awaited."""
        return _native.send(self._handle, message)

    def half_close(self) -> _native.Operation[None]:
        """No more messages from this side."""
        return _native.half_close(self._handle)

    async def recv(self) -> bytes | None:
        """The next message; ``None`` once the call has ended well. Raises the status it ended with otherwise."""
        if not self._ready and not self._ended:
            messages, end = await _native.recv(self._handle, _BATCH)
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
