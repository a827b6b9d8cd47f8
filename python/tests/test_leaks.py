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
        async with valkyrie.connect(ENDPOINT) as client:

            async def running() -> int:
                return int(json.loads(await client.call("/test/hang_stats", b"py-storm"))["running"])

            # As many calls complete as are cancelled: a server ends a connection that does nothing but reset.
            for _ in range(20):
                calls = [
                    asyncio.ensure_future(client.call("/test/hang", b"py-storm", timeout=math.inf)) for _ in range(500)
                ]
                answers = await asyncio.gather(*(client.call("/echo", b"%d" % number) for number in range(500)))
                assert answers == [b"%d" % number for number in range(500)]
                for call in calls:
                    call.cancel()
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                assert {type(outcome) for outcome in outcomes} == {asyncio.CancelledError}
            assert _native.in_flight() == 0
            async with asyncio.timeout(60):
                while await running():
                    pass
            # Every stream that the connection may have is free.
            answers = await asyncio.gather(*(client.call("/echo", b"%d" % number) for number in range(1024)))
            assert answers == [b"%d" % number for number in range(1024)]

    asyncio.run(main())


def test_many_calls_and_clients_leave_nothing() -> None:
    soak = Path(__file__).parent / "soak.py"
    ended = subprocess.run([sys.executable, "-P", str(soak), ENDPOINT], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    print(ended.stdout, end="")
