"""What happens to connections, for the program's own ``logging``, which whoever listens has imported."""

from __future__ import annotations

import sys
from typing import Any


def level() -> int:
    """The least grave level that the program wants, as ``logging`` counts."""
    logging: Any = sys.modules.get("logging")
    return 30 if logging is None else int(logging.getLogger("valkyrie").getEffectiveLevel())


def emit(records: list[tuple[int, str, str, dict[str, str]]]) -> None:
    """Hands ``(level, logger, message, particulars)`` to ``logging``, on the thread that drained them."""
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return
    for number, name, message, fields in records:
        logger = logging.getLogger(name)
        # Without a handler nobody listens; Python's last resort would print to stderr what the caller was told.
        if logger.hasHandlers():
            logger.log(number, message, extra=fields)
