"""Waiting under trio: one queue per run, drained by a system task."""

from __future__ import annotations

from typing import Any

import outcome  # type: ignore[import-not-found, unused-ignore]
import trio  # type: ignore[import-not-found, unused-ignore]

from . import _native


class _Hub:
    def __init__(self) -> None:
        self.queue = _native.Queue()
        self.waiting: dict[int, Any] = {}

    async def pump(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.queue.fileno())
            for op, value, error in self.queue.drain():
                ended = outcome.Value(value) if error is None else outcome.Error(error)
                trio.lowlevel.reschedule(self.waiting.pop(op), ended)


_hub: Any = trio.lowlevel.RunVar("valkyrie")


async def wait(operation: _native.Operation[Any]) -> Any:
    """Begins an operation and waits for it; a cancelled scope cancels it."""
    try:
        hub = _hub.get()
    except LookupError:
        hub = _Hub()
        _hub.set(hub)
        trio.lowlevel.spawn_system_task(hub.pump)
    try:
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        # It never begins, and that is as it should be.
        operation.close()
        raise
    op = hub.queue.submit(operation)

    def abort(_: Any) -> Any:
        del hub.waiting[op]
        hub.queue.abandon(op)
        return trio.lowlevel.Abort.SUCCEEDED

    hub.waiting[op] = trio.lowlevel.current_task()
    return await trio.lowlevel.wait_task_rescheduled(abort)
