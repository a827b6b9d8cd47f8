"""Valkyrie's RPC client: ``connect`` for asyncio, ``valkyrie.sync.connect`` to block.

Importing starts no thread, opens no socket and loads no asyncio.

``logging.getLogger("valkyrie")`` hears of connections that cannot be made or are lost (``WARNING``), that are made or
whose server goes away (``INFO``), and that end here (``DEBUG``), on the thread that awaits or calls. Its level counts
from the next ``connect``; who has no handler hears nothing.
"""

from __future__ import annotations

from . import _native
from ._errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    ClientClosed,
    Code,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    StatusError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from ._values import Breaker, Connectivity, Metadata, MetadataLike, Pem, Response, as_service_config

# What a type checker takes for true, without the import of typing.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from . import sync
    from ._aio import Client, Connecting, Stream

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Breaker",
    "Cancelled",
    "Client",
    "ClientClosed",
    "Code",
    "Connectivity",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "Metadata",
    "MetadataLike",
    "NotFound",
    "OutOfRange",
    "Pem",
    "PermissionDenied",
    "ResourceExhausted",
    "Response",
    "StatusError",
    "Stream",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "connect",
    "sync",
    "version",
]

__version__ = "0.1.0"
if _native.version().split(" ", 1)[0] != __version__:
    raise ImportError(
        f"valkyrie {__version__} found the native part of {_native.version()}: "
        "files of two versions are installed over each other; reinstall valkyrie-sdk"
    )


def version() -> str:
    """The version, and a hash of the core that every language carries."""
    return _native.version()


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
    token: str | Callable[[], str | Awaitable[str]] | None = None,
    service_config: str | Mapping[str, object] | None = None,
    keepalive: float | None = None,
    keepalive_timeout: float | None = None,
    keepalive_idle: float | None = None,
) -> Connecting:
    """A client for ``endpoint``: ``tcp://host:port``, ``unix:///path``, ``ws://host:port``, and encrypted
    ``tls://host:port``, ``wss://host:port``, ``quic://host:port``.

    ``echo://core`` is a server inside the library, for a first try and for tests: it opens no socket.

    ``await`` it, or use it in ``async with``; nothing happens before. ``timeout`` is the limit of unary calls that give
    none, ``connect_timeout`` that of making a connection, in seconds, 5.0 each.

    For what is encrypted, where a ``Pem`` is a ``str`` of PEM text, or a ``pathlib.Path`` of a file, which is looked at
    again for each connection, once a second at most, so that it may be replaced:

    * ``trusted_certificates``: the server's certificates must lead to one of these. ``system_roots``: or to one that
      the system trusts. One of the two is needed.
    * ``revocation_lists``: those of the authorities (CRL). A certificate that one of them names is refused.
    * ``identity``: ``(certificates, key)``, the chain that is shown to a server which asks, and its private key.
    * ``server_name``: the name that the server's certificate must be for. Default: the endpoint's host.
    * ``sealed``: speak TLS 1.3 with the server inside of whatever carries the bytes, so that nobody between the two can
      read or change them.
    * ``min_security``: the least protection, ``"insecure"``, ``"tls"`` or ``"mtls"``. Default: ``"mtls"`` with an
      identity, ``"tls"`` with certificates to trust, else ``"insecure"``.

    ``token`` says whom the client calls for: a JWT for one, or a function that gives it, which may be ``async``. It is
    called on the loop that connects: for each new connection, and for a newer token before the last one ends, while
    streams go on. What it raises ends the calls that wait with ``reason`` ``CREDENTIALS_UNAVAILABLE`` and its text,
    which must hold no secret; so does silence for ``connect_timeout``. A token travels encrypted or within the machine
    only. A child of a fork connects anew.

    ``service_config`` says what the client does about failures: retries and their budget, circuit breakers, throttling,
    balancing, and which methods are idempotent. It is JSON with the keys of docs/policies.md, or a mapping with them,
    such as ``{"methods": [{"names": ["/store.Items/*"], "idempotent": True}]}``. Without one, or a key of it, the
    defaults there hold. One that is wrong raises ``InvalidArgument``, ``reason`` ``INVALID_CONFIGURATION``, and says
    line, key and what to write instead.

    A server that fell silent is found by asking it: after ``keepalive`` seconds of silence while calls are open, 30.0
    by default and at least 10, 0 for never, it has ``keepalive_timeout`` seconds to answer, 10.0 by default and at
    least 1; then the connection ends with ``CONNECTION_LOST``, and calls are retried by their policy.
    ``keepalive_idle`` is the same while no call is open, for networks that forget who is idle: 0, never, by default, at
    least 300. Source: gRFC A8. Other times raise ``InvalidArgument``, ``reason`` ``INVALID_CONFIGURATION``.

    Raises ``InvalidArgument`` for an endpoint that is written wrong, ``Unavailable`` when nobody answers,
    ``Unauthenticated`` when a certificate is refused; its ``reason`` says why.
    """
    from ._aio import Connecting

    operation = _native.connect(
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
    return Connecting(operation, token if callable(token) else None)


def __getattr__(name: str) -> object:
    # asyncio takes most of an import's time: only who uses it pays.
    if name in ("Client", "Stream"):
        from . import _aio

        return getattr(_aio, name)
    if name == "sync":
        import importlib

        return importlib.import_module(".sync", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
