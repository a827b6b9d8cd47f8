"""The blocking face: the same names without ``await``. The GIL is released while a call waits; Ctrl-C ends it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
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

__all__ = ["Client", "Stream", "connect"]

_BATCH = 64


class _Thread(threading.local):
    """Each thread waits on a queue of its own."""

    def __init__(self) -> None:
        self.queue = _native.Queue(blocking=True)


_thread = _Thread()


def _run(submit: Any, *arguments: Any) -> Any:
    queue = _thread.queue
    try:
        submitted = submit(queue, *arguments)
    except _native.Refused as refused:
        raise from_status(refused.args) from None
    handle, op = submitted if isinstance(submitted, tuple) else (None, submitted)
    try:
        while True:
            queue.wait()
            for done, kind, value in queue.drain():
                # Anything else was given up by an earlier exception.
                if done == op:
                    if kind == _native.ERROR:
                        raise from_status(value)
                    return value if handle is None else handle
    except BaseException:
        _native.cancel(op)
        if handle is not None:
            _native.client_free(handle)
        raise


def connect(
    endpoint: str,
    *,
    timeout: float = 5.0,
    connect_timeout: float = 5.0,
    trusted_certificates: str | None = None,
) -> Client:
    """Connects; see ``valkyrie.connect``."""
    handle = _run(
        _native.connect,
        check_endpoint(endpoint),
        milliseconds(timeout),
        milliseconds(connect_timeout, "connect_timeout"),
        check_certificates(trusted_certificates),
    )
    return Client(handle)


class Client:
    """Makes calls to one endpoint; usable from any thread. Made by ``connect``."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._free = weakref.finalize(self, _native.client_free, handle)
        self._free.atexit = False

    def request(self, message: str | bytes | bytearray | memoryview) -> bytes:
        """Sends a message to ``/echo`` and gives the answer. Text is sent as UTF-8."""
        return self.call("/echo", as_message(message))  # type: ignore[arg-type]

    def call(
        self,
        method: str,
        message: bytes | bytearray | memoryview = b"",
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
    ) -> bytes:
        """One message out, one message back; see ``valkyrie.Client.call``."""
        return self._call(method, message, timeout, metadata, priority)[0]  # type: ignore[no-any-return]

    def call_with_response(
        self,
        method: str,
        message: bytes | bytearray | memoryview = b"",
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
    ) -> Response:
        """As ``call``, with the metadata and trailers that came with the answer."""
        return response(self._call(method, message, timeout, metadata, priority))

    def _call(
        self,
        method: str,
        message: Any,
        timeout: float | None,
        metadata: MetadataLike | None,
        priority: str | None,
    ) -> Any:
        return _run(
            _native.call,
            self._handle,
            check_method(method),
            message,
            timeout_ms(timeout),
            pairs(metadata),
            priority,
        )

    def open(
        self,
        method: str,
        *,
        timeout: float | None = None,
        metadata: MetadataLike | None = None,
        priority: str | None = None,
    ) -> Stream:
        """Opens a stream of any shape; without ``timeout`` it has no limit."""
        try:
            handle = _native.open(
                _thread.queue,
                self._handle,
                check_method(method),
                timeout_ms(timeout),
                pairs(metadata),
                priority,
            )
        except _native.Refused as refused:
            raise from_status(refused.args) from None
        return Stream(handle)

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

    def close(self) -> None:
        """Closes gracefully: calls in flight may finish within 5 s. Idempotent."""
        try:
            _run(_native.close, self._handle)
        except Exception as error:
            if getattr(error, "reason", None) != "CLIENT_CLOSED":
                raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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
        _run(_native.send, self._handle, message)

    def half_close(self) -> None:
        """No more messages from this side."""
        _run(_native.half_close, self._handle)

    def recv(self) -> bytes | None:
        """The next message; ``None`` once the call has ended well. Raises the status it ended with otherwise."""
        if not self._ready and not self._ended:
            messages, end = _run(_native.recv, self._handle, _BATCH)
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
