"""Stream: both ways at once. Usage: stream.py [endpoint]"""

import asyncio
import sys

import valkyrie


async def main() -> None:
    async with valkyrie.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://localhost:8080") as client:
        async with client.open("/echo") as stream:
            for word in (b"one", b"two", b"three"):
                await stream.send(word)
            await stream.half_close()
            async for message in stream:
                print(message.decode())


asyncio.run(main())
