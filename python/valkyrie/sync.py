"""The blocking face: the same names without ``await``. The GIL is released while a call waits; Ctrl-C ends it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType

from . import _native
from ._client import _Client
from ._errors import ClientClosed, StatusError
from ._values import (
    CONNECTIVITIES,
    Breaker,
    Connectivity,
    Metadata,
    MetadataLike,
    Pem,
    Response,
    as_breakers,
    as_message,
    as_service_config,
    response,
)

# What a type checker takes for true, without the import of typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

__all__ = ["Client", "Stream", "connect"]

# Messages that one crossing may bring.
_BATCH = 64


def connect(
    endpoint: str,
    *,
    timeout: float = 5.0,
    connect_timeout: float = 5.0,
    trusted_certificates: Pem | None = None,
    system_roots: bool = False,
    revocation_lists: Pem | None = None,
    identity: tuple[Pem, Pem] | None = None,
    server_name: str | None = None,
    sealed: bool = False,
    min_security: str | None = None,
    token: str | Callable[[], str] | None = None,
    service_config: str | Mapping[str, object] | None = None,
    keepalive: float | None = None,
    keepalive_timeout: float | None = None,
    keepalive_idle: float | None = None,
) -> Client:
    """Connects; see ``valkyrie.connect``.

    A function for ``token`` is called on a thread of its own, one for each client, which begins with it: the program's
    threads may be anywhere when a newer token is wanted. In a child of a fork it is called by a thread of the child's.
    """
    connecting = _native.connect(
        endpoint,
        timeout,
        connect_timeout,
        trusted_certificates=trusted_certificates,
        system_roots=system_roots,
        revocation_lists=revocation_lists,
        identity=identity,
        server_name=server_name,
        sealed=sealed,
        min_security=min_security,
        token=token,
        service_config=as_service_config(service_config),
        keepalive=keepalive,
        keepalive_timeout=keepalive_timeout,
        keepalive_idle=keepalive_idle,
    )
    if not callable(token):
        return Client(connecting.wait())
    from ._token import ask_in_thread

    asking = ask_in_thread(connecting.client(), token)
    try:
        return Client(connecting.wait())
    except StatusError as error:
        raise asking.explain(error)  # noqa: B904


class Client(_Client):
    """Makes calls to one endpoint; usable from any thread. Made by ``connect``."""

    def request(self, message: str | bytes | bytearray | memoryview) -> bytes:
        """Sends a message to ``/echo`` and gives the answer. Text is sent as UTF-8."""
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
    ) -> bytes:
        """One message out, one message back; see ``valkyrie.Client.call``."""
        return _native.call(
            self._handle, method, message, timeout, metadata, priority, idempotent, idempotency_key
        ).wait()

    def call_with_response(
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
        return response(whole.wait())

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

    def stream(
        self,
        method: str,
        message: bytes | bytearray | memoryview = b"",
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
    ) -> Iterator[bytes]:
        """Server streaming: sends one message, then yields the answers. Leaving the loop early cancels the call."""
        with self.open(method, timeout=timeout, metadata=metadata, priority=priority) as stream:
            stream.send(message)
            stream.half_close()
            yield from stream

    def breaker_changes(self) -> Iterator[list[Breaker]]:
        """The circuit breakers now, and then whenever one has changed its state; blocks until then.

        See ``valkyrie.Client.breaker_changes``. After Ctrl-C the same iterator goes on with ``next``.
        """
        return _BreakerChanges(self)

    def connectivity_other_than(self, seen: Connectivity) -> Connectivity:
        """Blocks until the client no longer stands as in ``seen``; see ``valkyrie.Client.connectivity_other_than``."""
        number = CONNECTIVITIES.index(Connectivity(seen))
        return CONNECTIVITIES[_native.connectivity_other_than(self._handle, number).wait()]

    def close(self) -> None:
        """Closes gracefully: calls in flight may finish within 5 s. Idempotent."""
        try:
            _native.close(self._handle).wait()
        except ClientClosed:
            pass

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _BreakerChanges:
    """What stands for the breakers that were given last."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._seen = 0

    def __iter__(self) -> _BreakerChanges:
        return self

    def __next__(self) -> list[Breaker]:
        try:
            self._seen, text = _native.breakers_other_than(self._client._handle, self._seen).wait()
        except ClientClosed:
            raise StopIteration from None
        return as_breakers(text)


class Stream:
    """One stream: ``send`` and ``half_close`` one way, iteration or ``recv`` the other."""

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

    def send(self, message: bytes | bytearray | memoryview) -> None:
        """Sends a message; waits while the peer's credit is used up."""
        _native.send(self._handle, message).wait()

    def half_close(self) -> None:
        """No more messages from this side."""
        _native.half_close(self._handle).wait()

    def recv(self) -> bytes | None:
        """The next message; ``None`` once the call has ended well. Raises the status it ended with otherwise."""
        if not self._ready and not self._ended:
            messages, end = _native.recv(self._handle, _BATCH).wait()
            messages.reverse()
            self._ready = messages
            if end is not None:
                self._ended = True
                self.metadata, self.trailers = Metadata(end[0]), Metadata(end[1])
        return self._ready.pop() if self._ready else None

    def cancel(self) -> None:
        """Cancels the call in both directions. Idempotent."""
        self._free()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> bytes:
        message = self.recv()
        if message is None:
            raise StopIteration
        return message

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
