"""The main job, a line per thing done. After "ready" it waits for the server to stop.

Usage: demo.py endpoint file...
"""

import asyncio
import hashlib
import sys
import time

import valkyrie

CHUNK = 64 * 1024


async def call(client: valkyrie.Client) -> None:
    print("call", (await client.request("Hello, World!")).decode())


async def transfer(client: valkyrie.Client, paths: list[str]) -> None:
    """The files go up and come down on one stream. Each end hashes what it gets."""
    sent, received, size, began = hashlib.sha256(), hashlib.sha256(), 0, time.perf_counter()
    async with client.open("/echo", metadata={"want-digest": "sha-256"}) as stream:

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
        print("bytes", size)
        print(f"seconds {time.perf_counter() - began:.3f}")
        print("sent", sent.hexdigest())
        print("received", received.hexdigest())
        print("server", stream.trailers.text("digest-sha-256"))


async def in_flight(client: valkyrie.Client, count: int) -> None:
    """None of the calls can end before all of them are open, on one connection."""
    began = time.perf_counter()
    streams = [client.open("/echo") for _ in range(count)]
    await asyncio.gather(*(stream.send(str(number).encode()) for number, stream in enumerate(streams)))
    await asyncio.gather(*(stream.half_close() for stream in streams))
    answered = 0
    for number, stream in enumerate(streams):
        answered += [message async for message in stream] == [str(number).encode()]
    print("in_flight", answered)
    print(f"in_flight_seconds {time.perf_counter() - began:.3f}")


async def cancel(client: valkyrie.Client) -> None:
    """A call that waits for an answer is given up; the same connection goes on."""
    async with client.open("/echo") as stream:
        waiting = asyncio.create_task(stream.recv())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    await client.request("still here")
    print("cancelled", str(waiting.cancelled()).lower())


async def deadline(client: valkyrie.Client) -> None:
    try:
        await client.open("/echo", timeout=0.1).recv()
    except valkyrie.DeadlineExceeded as error:
        print("deadline", error.code.name, error.reason)


async def server_stops(client: valkyrie.Client) -> None:
    """The server stops between two messages: one call ends well in the time it is given, another does not end."""
    async with client.open("/echo") as ends, client.open("/echo") as stays:
        for stream in ends, stays:
            await stream.send(b"before")
            await stream.recv()
        print("ready", flush=True)
        try:
            while True:
                # So short a time leaves none to wait for the server's return.
                await client.call("/echo", b"anyone there?", timeout=0.5)
        except valkyrie.Unavailable as error:
            print("refused", error.code.name, error.reason)
        await ends.send(b"after")
        await ends.half_close()
        print("finished OK", *[message.decode() async for message in ends])
        try:
            await stays.recv()
        except valkyrie.Unavailable as error:
            print("cut", error.code.name, error.reason)


async def main(endpoint: str, *paths: str) -> None:
    async with valkyrie.connect(endpoint) as client:
        await call(client)
        await transfer(client, list(paths))
        await in_flight(client, 1000)
        await cancel(client)
        await deadline(client)
        await server_stops(client)


asyncio.run(main(*sys.argv[1:]))
