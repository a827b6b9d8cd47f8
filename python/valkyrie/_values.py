"""Metadata, responses and the checks of what a caller passes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

MetadataLike = Mapping[str, "str | bytes"] | Iterable[tuple[str, "str | bytes"]]

NO_TIMEOUT = 2**64 - 1


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


def check_endpoint(endpoint: object) -> str:
    if not isinstance(endpoint, str):
        raise TypeError(f"endpoint is a str such as 'tcp://host:port', not {type(endpoint).__name__}")
    return endpoint


def check_certificates(pem: object) -> str | None:
    if pem is not None and not isinstance(pem, str):
        raise TypeError(f"trusted_certificates is a str of PEM text, not {type(pem).__name__}")
    return pem


def check_method(method: object) -> str:
    if not isinstance(method, str):
        raise TypeError(f"method is a str such as '/echo', not {type(method).__name__}")
    return method


def milliseconds(timeout: object, name: str = "timeout") -> int:
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {type(timeout).__name__}")
    if timeout == float("inf"):
        return NO_TIMEOUT
    if not timeout > 0:
        raise ValueError(f"{name} {timeout} is not above 0 seconds")
    return min(max(1, round(timeout * 1000)), NO_TIMEOUT)


def timeout_ms(timeout: float | None) -> int | None:
    return None if timeout is None else milliseconds(timeout)


def pairs(metadata: MetadataLike | None) -> list[tuple[str, str | bytes]] | None:
    if metadata is None:
        return None
    return list(metadata.items() if isinstance(metadata, Mapping) else metadata)


def as_message(message: object) -> object:
    """Text is allowed where a person writes it: in ``request``."""
    return message.encode() if isinstance(message, str) else message


def response(value: tuple[bytes, list[tuple[str, bytes]] | None, list[tuple[str, bytes]] | None]) -> Response:
    message, metadata, trailers = value
    return Response(message, Metadata(metadata or ()), Metadata(trailers or ()))
