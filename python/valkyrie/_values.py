"""Metadata and responses."""

from __future__ import annotations

import enum
import os
from collections.abc import Iterable, Iterator, Mapping

MetadataLike = Mapping[str, "str | bytes"] | Iterable[tuple[str, "str | bytes"]]
# PEM text, or the path of a file of it.
Pem = str | os.PathLike[str]


class Connectivity(enum.StrEnum):
    """Where a client stands with its servers, as gRPC names it."""

    IDLE = "idle"
    """No connection, and none is being made: the next call makes one."""
    CONNECTING = "connecting"
    """A connection is being made."""
    READY = "ready"
    """There is a connection that takes calls."""
    TRANSIENT_FAILURE = "transient_failure"
    """The last try failed, and the next one waits."""
    SHUTDOWN = "shutdown"
    """The client is closed."""


# By the number that the native part has for each.
CONNECTIVITIES = tuple(Connectivity)


class Breaker:
    """What a client's circuit breaker of one server and one method does; see docs/policies.md."""

    __slots__ = ("age", "calls", "changes", "failures", "method", "opens_for", "server", "state")

    def __init__(
        self,
        server: str,
        method: str | None,
        state: str,
        age_ms: int | None,
        opens_for_ms: int | None,
        calls: int,
        failures: int,
        changes: int,
    ) -> None:
        self.server = server
        """The server's endpoint."""
        self.method = method
        """Calls of which method; ``None`` for all, while the whole server is isolated."""
        self.state = state
        """``"closed"``, ``"open"``, ``"half_open"`` or ``"isolated"``."""
        self.age = None if age_ms is None else age_ms / 1000
        """For how many seconds; ``None`` while it has never done anything else."""
        self.opens_for = None if opens_for_ms is None else opens_for_ms / 1000
        """An open one's: after how many seconds it lets trial calls pass."""
        self.calls = calls
        """Calls that it remembers, 10 s of them unless the service config says otherwise."""
        self.failures = failures
        """Those of them that failed."""
        self.changes = changes
        """How often its state has changed."""

    def __repr__(self) -> str:
        counts = f"{self.failures} of {self.calls} failed"
        return f"Breaker({self.server!r}, {self.method!r}, {self.state!r}, {counts})"


class Metadata:
    """Metadata as it came: pairs of key and bytes, in order, keys perhaps more than once."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Iterable[tuple[str, bytes]] = ()) -> None:
        self._entries = tuple(entries)

    def get(self, key: str) -> bytes | None:
        """The first value of ``key``, ``None`` without one."""
        return next((value for name, value in self._entries if name == key), None)

    def text(self, key: str) -> str | None:
        """The first value of ``key`` as text."""
        value = self.get(key)
        return None if value is None else value.decode()

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata) and self._entries == other._entries

    def __hash__(self) -> int:
        return hash(self._entries)

    def __repr__(self) -> str:
        return f"Metadata({list(self._entries)!r})"


class Response:
    """The answer of a unary call with everything that came with it."""

    __slots__ = ("message", "metadata", "trailers")

    def __init__(self, message: bytes, metadata: Metadata, trailers: Metadata) -> None:
        self.message = message
        self.metadata = metadata
        self.trailers = trailers

    def __repr__(self) -> str:
        return f"Response({len(self.message)} bytes, {self.metadata!r}, trailers={self.trailers!r})"


def as_message(message: str | bytes | bytearray | memoryview) -> bytes | bytearray | memoryview:
    """Text is allowed where a person writes it: in ``request``."""
    return message.encode() if isinstance(message, str) else message


def as_service_config(config: str | Mapping[str, object] | None) -> str | None:
    """A mapping is written as JSON."""
    if config is None or isinstance(config, str):
        return config
    if not isinstance(config, Mapping):
        raise TypeError(f"service_config is a str of JSON or a mapping, not {type(config).__name__}")
    import json

    return json.dumps(dict(config))


def as_breakers(text: str) -> list[Breaker]:
    import json

    return [Breaker(**breaker) for breaker in json.loads(text)]


def response(value: tuple[bytes, list[tuple[str, bytes]], list[tuple[str, bytes]]]) -> Response:
    message, metadata, trailers = value
    return Response(message, Metadata(metadata), Metadata(trailers))
