"""What a client does without waiting, which is the same for both faces."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from . import _native
from ._values import CONNECTIVITIES, Breaker, Connectivity, as_breakers, as_service_config


class _Client:
    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._free = weakref.finalize(self, _native.client_free, handle)
        # The process's end frees more than this could.
        self._free.atexit = False

    def set_service_config(self, service_config: str | Mapping[str, object]) -> None:
        """Puts another service config in the place of the client's, at once and without a lost call.

        Calls that began keep their time limit and how they are tried again; all the rest heeds the new one. What is
        known of the servers stays, such as an open breaker. One that is wrong raises ``InvalidArgument``, ``reason``
        ``INVALID_CONFIGURATION``, says line, key and what to write instead, and changes nothing.
        """
        _native.set_service_config(self._handle, as_service_config(service_config))

    def breakers(self) -> list[Breaker]:
        """The circuit breakers: one for each server and method that was called or isolated.

        Each server that is isolated as a whole has one of its own, too.
        """
        return as_breakers(_native.breakers(self._handle))

    def metrics(self) -> str:
        """What became of the client's calls since it was made, in Prometheus' text format.

        Names begin with ``valkyrie_client_``; times are in seconds. A child of a fork counts anew.
        """
        return _native.metrics(self._handle)

    def isolate(self, server: str, method: str | None = None) -> None:
        """Holds the calls of a method, or all calls, back from a server until ``restore``. Idempotent.

        Those that go on end; further ones go to the other servers, and fail with ``reason`` ``BREAKER_OPEN`` where
        there is none. ``InvalidArgument`` for what is none of the client's servers.
        """
        _native.isolate(self._handle, server, method, True)

    def restore(self, server: str, method: str | None = None) -> None:
        """Ends ``isolate``; without a method for the server and each of its methods. Idempotent."""
        _native.isolate(self._handle, server, method, False)

    @property
    def connectivity(self) -> Connectivity:
        """Where the client stands with its servers now. It waits for nothing and makes no connection."""
        return CONNECTIVITIES[_native.connectivity(self._handle)]
