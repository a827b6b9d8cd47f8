"""A client made before gunicorn forks its workers: gunicorn --preload --workers 4 web:application

The endpoint comes from VALKYRIE_ENDPOINT. Answers with what the RPC server echoes and the worker's process.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import valkyrie.sync

client = valkyrie.sync.connect(os.environ.get("VALKYRIE_ENDPOINT", "tcp://localhost:8080"))
# The connection stands before the fork.
client.request("preloaded")


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    answer = client.request(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer]
