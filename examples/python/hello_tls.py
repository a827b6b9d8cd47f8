"""Hello over TLS. Usage: hello_tls.py [endpoint authorities.pem]"""

import asyncio
import sys
from pathlib import Path

import valkyrie


async def main(endpoint: str = "tls://localhost:8443", ca: str = "certificates/ca.pem") -> None:
    async with valkyrie.connect(endpoint, trusted_certificates=Path(ca)) as client:
        print((await client.request("Hello, World!")).decode())


asyncio.run(main(*sys.argv[1:]))
