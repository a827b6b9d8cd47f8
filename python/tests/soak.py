"""What many calls and many clients leave behind: nothing. Usage: soak.py ENDPOINT [CALLS CLIENTS]

By default 20,000 calls and 200 clients, some seconds; the long run is 1,000,000 and 100,000, some minutes. Calls are
made on asyncio, each tenth beside one that is cancelled, and by threads; clients are made, used and closed, or dropped.
Prints by how much memory, Python's objects, descriptors and threads grew between the first tenth and the end, and fails
when one kept growing.
"""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import valkyrie
import valkyrie.sync
from valkyrie import _native

# Memory may grow by this per 1,000 calls or clients, and by the allocator's own once.
KIB_PER_1000, KIB_ONCE = 1, 4096
# Blocks of Python's allocator: caches fill up once.
BLOCKS_ONCE = 1000
IN_FLIGHT = 64


def memory_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 1024


def now(endpoint: str) -> dict[str, int]:
    gc.collect()
    # The runtime's one thread closes what was dropped in the order in which it is told: this client, which waits, last.
    with valkyrie.sync.connect(endpoint):
        pass
    return {
        "KiB": memory_kib(),
        "blocks": sys.getallocatedblocks(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "in flight": _native.in_flight(),
    }


async def asyncio_calls(endpoint: str, count: int) -> None:
    async with valkyrie.connect(endpoint) as client:

        async def some(first: int) -> None:
            for number in range(first, count, IN_FLIGHT):
                message = b"%d" % number
                if number % 10 == 0:
                    hanging = asyncio.ensure_future(client.call("/test/hang", b"soak", timeout=math.inf))
                    assert await client.call("/echo", message) == message
                    hanging.cancel()
                else:
                    assert await client.call("/echo", message) == message

        await asyncio.gather(*(some(first) for first in range(IN_FLIGHT)))


def blocking_calls(endpoint: str, count: int) -> None:
    with valkyrie.sync.connect(endpoint) as client, ThreadPoolExecutor(4) as pool:
        for part in pool.map(
            lambda size: all(client.call("/echo", b"x") == b"x" for _ in range(size)), [count // 4] * 4
        ):
            assert part


async def clients(endpoint: str, count: int) -> None:
    for number in range(count):
        if number % 2:
            client = await valkyrie.connect(endpoint)
            assert await client.request("dropped") == b"dropped"
        else:
            async with valkyrie.connect(endpoint) as client:
                async with client.open("/echo") as stream:
                    await stream.send(b"cancelled")


def part(endpoint: str, calls: int, made: int) -> None:
    asyncio.run(asyncio_calls(endpoint, calls // 2))
    blocking_calls(endpoint, calls // 2)
    asyncio.run(clients(endpoint, made))


def main(endpoint: str, calls: int = 20_000, made: int = 200) -> None:
    part(endpoint, calls // 10, made // 10)
    before = now(endpoint)
    for _ in range(9):
        part(endpoint, calls // 10, made // 10)
    after = now(endpoint)
    grown = {what: after[what] - before[what] for what in before}
    print(f"{calls} calls and {made} clients: " + ", ".join(f"{what} {by:+}" for what, by in grown.items()))
    assert grown["KiB"] <= KIB_ONCE + KIB_PER_1000 * (calls + made) / 1000, grown
    assert grown["blocks"] <= BLOCKS_ONCE, grown
    assert grown["descriptors"] <= 0 and grown["threads"] <= 0 and after["in flight"] == 0, grown


main(sys.argv[1], *map(int, sys.argv[2:]))
