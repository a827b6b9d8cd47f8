"""Certificates, keys and authorities are files, replaced while calls run: no call is lost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import valkyrie

if TYPE_CHECKING:
    from valkyrie._aio import Connecting

CALLS = 10_000
# Calls of one client; the next one reads the files anew.
CALLS_OF_A_CLIENT = 50
WORKERS = 8
# A hang must become a failure.
PATIENCE = 120.0


def replace(old: Path, new: bytes) -> None:
    """Nobody sees half a file."""
    fresh = old.with_suffix(".new")
    fresh.write_bytes(new)
    os.replace(fresh, old)


def test_files_are_replaced_while_calls_run() -> None:
    program = os.environ["VALKYRIE_CONFORMANCE_CERTIFICATE_SERVER"]
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        said = json.loads(server.stdout.readline())
        try:
            asyncio.run(asyncio.wait_for(rotate(said["endpoint"], Path(said["rotating"])), PATIENCE))
        finally:
            assert server.stdin is not None
            server.stdin.close()


async def rotate(endpoint: str, folder: Path) -> None:
    following = folder / "next"
    rotated = asyncio.Event()
    answered = 0

    def connect(ca: Path, identity: Path) -> Connecting:
        return valkyrie.connect(
            endpoint, server_name="localhost", trusted_certificates=ca, identity=(identity, identity), timeout=60.0
        )

    async def until_taken(ca: Path, identity: Path) -> None:
        """Until the server has looked at its files again: it does so once a second."""
        while True:
            try:
                async with connect(ca, identity) as client:
                    await client.request("taken")
                    return
            except valkyrie.Unauthenticated:
                pass

    async def work() -> None:
        nonlocal answered
        while answered < CALLS or not rotated.is_set():
            async with connect(folder / "ca.pem", folder / "client.pem") as client:
                for number in range(CALLS_OF_A_CLIENT):
                    assert await client.request(str(number)) == str(number).encode()
                    answered += 1

    async def change() -> None:
        both = (folder / "ca.pem").read_bytes() + (following / "ca.pem").read_bytes()
        replace(folder / "ca.pem", both)
        await until_taken(folder / "ca.pem", following / "client.pem")
        for name in ("server.pem", "client.pem"):
            replace(folder / name, (following / name).read_bytes())
        await until_taken(following / "ca.pem", following / "client.pem")
        replace(folder / "ca.pem", (following / "ca.pem").read_bytes())
        rotated.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(change())
        for _ in range(WORKERS):
            group.create_task(work())
    assert answered >= CALLS
