"""Errors: a method that is not there, and a deadline. Usage: errors.py [endpoint]"""

import asyncio
import sys

import valkyrie


async def main() -> None:
    async with valkyrie.connect(sys.argv[1] if len(sys.argv) > 1 else "tcp://localhost:8080") as client:
        try:
            await client.call("/no/such/method")
        except valkyrie.StatusError as error:
            print(error.code.name, error.reason, error.message)


asyncio.run(main())
