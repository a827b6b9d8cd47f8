"""Transfer: files up and down through /echo, hashed at both ends. Usage: transfer.py endpoint file..."""

import asyncio
import hashlib
import json
import sys
import time

import valkyrie

CHUNK = 64 * 1024


async def main(endpoint: str, paths: list[str]) -> None:
    sent, received, size, began = hashlib.sha256(), hashlib.sha256(), 0, time.perf_counter()
    digest = {"want-digest": "sha-256"}
    async with valkyrie.connect(endpoint) as client, client.open("/echo", metadata=digest) as stream:

        async def upload() -> None:
            nonlocal size
            for path in paths:
                with open(path, "rb") as file:
                    while chunk := file.read(CHUNK):
                        sent.update(chunk)
                        size += len(chunk)
                        await stream.send(chunk)
            await stream.half_close()

        async def download() -> None:
            async for message in stream:
                received.update(message)

        await asyncio.gather(upload(), download())
        server = stream.trailers.text("digest-sha-256")
    seconds = time.perf_counter() - began
    digests = {"sent": sent.hexdigest(), "received": received.hexdigest(), "server": server}
    print(json.dumps({"bytes": size, "seconds": round(seconds, 3), **digests}))


asyncio.run(main(sys.argv[1], sys.argv[2:]))
