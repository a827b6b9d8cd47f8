"""Functions that give tokens: each client's is called whenever the core wants one, and never twice at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from . import _native
from ._errors import StatusError

Source = Callable[[], "str | Awaitable[str]"]


class Asking:
    """Answers one client's requests until it is closed or freed, and keeps nothing of it but its number."""

    def __init__(self, client: int, source: Source) -> None:
        self._client = client
        self._source = source
        self.failure: Exception | None = None
        """What the function raised when it was called last."""

    def explain(self, error: StatusError) -> StatusError:
        """The same, with what the function raised as its cause, where that ended the call."""
        if error.reason == "CREDENTIALS_UNAVAILABLE":
            error.__cause__ = self.failure
        return error

    def _answer(self, request: int, token: object) -> None:
        self.failure = None
        if not isinstance(token, str):
            raise TypeError(f"the token function gave {type(token).__name__}, not str")
        _native.token_provide(self._client, request, token, None)

    def _fail(self, request: int, error: Exception) -> None:
        self.failure = error
        _native.token_provide(self._client, request, None, f"{type(error).__name__}: {error}")

    async def run(self) -> None:
        """For a loop."""
        while True:
            try:
                request = await _native.token_wanted(self._client)
            except StatusError:
                return
            try:
                token: Any = self._source()
                if hasattr(token, "__await__"):
                    token = await token
                self._answer(request, token)
            except Exception as error:
                self._fail(request, error)

    def block(self) -> None:
        """For a thread of its own."""
        while True:
            try:
                request = _native.token_wanted(self._client).wait()
            except StatusError:
                with _lock:
                    _in_threads.discard(self)
                return
            try:
                self._answer(request, self._source())
            except Exception as error:
                self._fail(request, error)


_tasks: set[Any] = set()
_in_threads: set[Asking] = set()
_lock = threading.Lock()


def ask_in_loop(client: int, source: Source) -> Asking:
    """Asks as a task of the loop that runs, of asyncio or trio."""
    import asyncio

    asking = Asking(client, source)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        import trio  # type: ignore[import-not-found, unused-ignore]

        trio.lowlevel.spawn_system_task(asking.run)
    else:
        task = loop.create_task(asking.run())
        # The loop itself keeps none.
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
    return asking


def ask_in_thread(client: int, source: Source) -> Asking:
    """Asks on a thread of its own: the program's may be anywhere when a token is wanted."""
    asking = Asking(client, source)
    with _lock:
        _in_threads.add(asking)
    _start(asking)
    return asking


def _start(asking: Asking) -> None:
    threading.Thread(target=asking.block, name="valkyrie-token", daemon=True).start()


def _forked() -> None:
    """A child has none of the threads."""
    global _lock
    _lock = threading.Lock()
    for asking in tuple(_in_threads):
        _start(asking)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
