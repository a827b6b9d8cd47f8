"""What storms and long runs leave behind."""

from __future__ import annotations

import asyncio
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import valkyrie
from valkyrie import _native

ENDPOINT = os.environ["VALKYRIE_CONFORMANCE_ENDPOINT"]


def test_a_storm_of_10_000_cancels_leaves_nothing() -> None:
    async def main() -> None:
        async with valkyrie.connect(ENDPOINT) as public:
            endpoint = (await public.call("/test/private", ENDPOINT.split(":")[0].encode())).decode()
        async with valkyrie.connect(endpoint) as client, valkyrie.connect(endpoint) as watch:
            calls = [asyncio.ensure_future(client.call("/test/hang", timeout=math.inf)) for _ in range(10_000)]
            await watch.call("/test/hang_stats", metadata={"until": "started"}, timeout=60)
            for call in calls:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
            assert _native.in_flight() == 0
            # Nothing is left at the server, on a connection that lives.
            held = {"streams": 10_000}
            async with asyncio.timeout(60):
                while any(held.values()):
                    held = json.loads(await client.call("/test/held"))
                    assert held.pop("accepted") == 2
            # Every stream that the connection may have is free.
            answers = await asyncio.gather(*(client.call("/echo", b"%d" % number) for number in range(1024)))
            assert answers == [b"%d" % number for number in range(1024)]

    asyncio.run(main())


def test_many_calls_and_clients_leave_nothing() -> None:
    soak = Path(__file__).parent / "soak.py"
    ended = subprocess.run([sys.executable, "-P", str(soak), ENDPOINT], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    print(ended.stdout, end="")
