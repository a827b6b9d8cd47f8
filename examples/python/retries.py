"""A call with a deadline that is retried, behind a circuit breaker. Usage: retries.py [endpoint,endpoint]"""

import asyncio
import sys

import valkyrie

CONFIG = {"methods": [{"names": ["*"], "retry": {"max_attempts": 4}, "breaker": {"open_ms": 10000}}]}


async def main(endpoint: str = "tcp://localhost:8080") -> None:
    async with valkyrie.connect(endpoint, service_config=CONFIG) as client:
        try:
            reply = await client.call("/echo", b"Hello, World!", idempotent=True, timeout=2)
            print(reply.decode())
        except valkyrie.StatusError as error:
            print(error, error.timeline, sep="\n")


asyncio.run(main(*sys.argv[1:]))
