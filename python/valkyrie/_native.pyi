from collections.abc import Coroutine, Generator
from typing import Any, Literal, Never, TypeVar, final

from typing_extensions import Buffer

from ._values import MetadataLike, Pem

__all__ = [
    "Operation",
    "Queue",
    "breakers",
    "breakers_other_than",
    "call",
    "call_whole",
    "client_free",
    "close",
    "connect",
    "connectivity",
    "connectivity_other_than",
    "half_close",
    "in_flight",
    "isolate",
    "metrics",
    "open",
    "recv",
    "send",
    "set_service_config",
    "stream_free",
    "token_provide",
    "token_wanted",
    "version",
]

_T = TypeVar("_T", covariant=True)
_Entries = list[tuple[str, bytes]]

@final
class Operation(Coroutine[Any, Any, _T]):
    """Something to await, once; it begins when it is awaited."""

    def __await__(self) -> Generator[Any, Any, _T]: ...
    def __iter__(self) -> Generator[Any, Any, _T]: ...
    def __next__(self) -> Any: ...
    def send(self, value: None) -> Any: ...
    def throw(self, kind: Any, value: Any = None, traceback: Any = None) -> Never: ...
    def close(self) -> None: ...
    def client(self) -> int:
        """Of connect: makes the client, which may be asked for its tokens, before it is awaited."""
    def wait(self) -> _T:
        """Blocks instead of being awaited."""

@final
class Queue:
    """For a loop other than asyncio's: what is submitted comes out of drain, as (op, value, error)."""

    def __new__(cls) -> Queue: ...
    def fileno(self) -> int: ...
    def submit(self, operation: Operation[Any]) -> int: ...
    def drain(self) -> list[tuple[int, Any, BaseException | None]]: ...
    def abandon(self, op: int) -> None: ...

def connect(
    endpoint: str,
    timeout: float,
    connect_timeout: float,
    *,
    trusted_certificates: Pem | None,
    system_roots: bool,
    revocation_lists: Pem | None,
    identity: tuple[Pem, Pem] | None,
    server_name: str | None,
    sealed: bool,
    min_security: str | None,
    token: object,
    service_config: str | None,
    keepalive: float | None,
    keepalive_timeout: float | None,
    keepalive_idle: float | None,
) -> Operation[int]: ...
def call(
    client: int,
    method: str,
    message: Buffer,
    timeout: float | None,
    metadata: MetadataLike | None,
    priority: str | None,
    idempotent: bool,
    idempotency_key: str | bytes | Literal[True] | None,
) -> Operation[bytes]: ...
def call_whole(
    client: int,
    method: str,
    message: Buffer,
    timeout: float | None,
    metadata: MetadataLike | None,
    priority: str | None,
    idempotent: bool,
    idempotency_key: str | bytes | Literal[True] | None,
) -> Operation[tuple[bytes, _Entries, _Entries]]: ...
def open(
    client: int, method: str, timeout: float | None, metadata: MetadataLike | None, priority: str | None
) -> int: ...
def send(stream: int, message: Buffer) -> Operation[None]: ...
def half_close(stream: int) -> Operation[None]: ...
def recv(stream: int, max: int) -> Operation[tuple[list[bytes], tuple[_Entries, _Entries] | None]]: ...
def close(client: int) -> Operation[None]: ...
def set_service_config(client: int, config: str | None) -> None: ...
def breakers(client: int) -> str: ...
def breakers_other_than(client: int, seen: int) -> Operation[tuple[int, str]]: ...
def metrics(client: int) -> str: ...
def isolate(client: int, server: str, method: str | None, isolated: bool) -> None: ...
def connectivity(client: int) -> int: ...
def connectivity_other_than(client: int, seen: int) -> Operation[int]: ...
def token_wanted(client: int) -> Operation[int]: ...
def token_provide(client: int, request: int, token: str | None, error: str | None) -> None: ...
def stream_free(stream: int) -> None: ...
def client_free(client: int) -> None: ...
def in_flight() -> int: ...
def version() -> str: ...
