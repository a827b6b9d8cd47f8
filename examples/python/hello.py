"""Hello: one call. Usage: hello.py [endpoint]"""

import asyncio
import sys

import valkyrie


async def main() -> None:
    async with valkyrie.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://localhost:8080") as client:
        print((await client.request("Hello, World!")).decode())


asyncio.run(main())
