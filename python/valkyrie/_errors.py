"""Statuses as exceptions, and the one function that makes them."""

from __future__ import annotations

import enum

from ._values import Metadata


class Code(enum.IntEnum):
    """Status codes: gRPC's names and numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class StatusError(Exception):
    """A call that ended with a status other than OK.

    ``code`` is a ``Code`` (``UNKNOWN`` for a number without a name), ``number`` the number as it came, ``reason`` the
    library's stable reason or ``"NONE"``, ``error_class`` whose fault it is, ``details`` pairs of type and bytes,
    ``pushback`` the seconds the server asks to wait, ``timeline`` what became of the call's attempts, a line for each.
    """

    def __init__(
        self,
        code: int = Code.UNKNOWN,
        message: str = "",
        *,
        reason: str = "NONE",
        error_class: str = "application",
        details: tuple[tuple[str, bytes], ...] = (),
        pushback: float | None = None,
        metadata: Metadata | None = None,
        trailers: Metadata | None = None,
        timeline: str = "",
    ) -> None:
        self.number = int(code)
        self.code = Code(code) if code in _NUMBERS else Code.UNKNOWN
        self.message = message
        self.reason = reason
        self.error_class = error_class
        self.details = details
        self.pushback = pushback
        self.timeline = timeline
        self.metadata = metadata if metadata is not None else Metadata()
        self.trailers = trailers if trailers is not None else Metadata()
        super().__init__(f"{self.code.name}: {message}" if message else self.code.name)


class Cancelled(StatusError):
    """The call was cancelled by somebody other than this task."""


class ClientClosed(Cancelled):
    """The client is closed."""


class Unknown(StatusError):
    """An error without a better code."""


class InvalidArgument(StatusError, ValueError):
    """The caller sent something that can never be right."""


class DeadlineExceeded(StatusError, TimeoutError):
    """The deadline passed before the call ended."""


class NotFound(StatusError):
    """The thing asked for does not exist."""


class AlreadyExists(StatusError):
    """The thing to create exists."""


class PermissionDenied(StatusError):
    """The caller is known and may not do this."""


class ResourceExhausted(StatusError):
    """A limit or a quota is used up."""


class FailedPrecondition(StatusError):
    """The system is not in the state that the call needs."""


class Aborted(StatusError):
    """A conflict; try the whole again."""


class OutOfRange(StatusError):
    """Past the valid range."""


class Unimplemented(StatusError):
    """The server has no such method."""


class Internal(StatusError):
    """Something that must hold does not."""


class Unavailable(StatusError, ConnectionError):
    """The service cannot be reached now."""


class DataLoss(StatusError):
    """Data is lost or corrupt."""


class Unauthenticated(StatusError):
    """The caller did not prove who it is."""


_NUMBERS = frozenset(int(code) for code in Code)
_CLASSES: dict[int, type[StatusError]] = {
    1: Cancelled,
    2: Unknown,
    3: InvalidArgument,
    4: DeadlineExceeded,
    5: NotFound,
    6: AlreadyExists,
    7: PermissionDenied,
    8: ResourceExhausted,
    9: FailedPrecondition,
    10: Aborted,
    11: OutOfRange,
    12: Unimplemented,
    13: Internal,
    14: Unavailable,
    15: DataLoss,
    16: Unauthenticated,
}

StatusFields = tuple[
    int,
    int,
    str,
    str,
    str,
    str,
    list[tuple[str, bytes]],
    int | None,
    list[tuple[str, bytes]],
    list[tuple[str, bytes]],
]


def from_status(fields: StatusFields) -> StatusError:
    """The exception of a status: the one mapping."""
    code, _, reason, error_class, message, timeline, details, pushback_ms, metadata, trailers = fields
    made = ClientClosed if reason == "CLIENT_CLOSED" else _CLASSES.get(code, Unknown)
    return made(
        code,
        message,
        reason=reason,
        error_class=error_class,
        details=tuple(details),
        pushback=None if pushback_ms is None else pushback_ms / 1000,
        metadata=Metadata(metadata),
        trailers=Metadata(trailers),
        timeline=timeline,
    )
