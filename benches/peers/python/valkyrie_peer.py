"""Valkyrie: `--mode aio`, with `--uvloop` on that loop, or `--mode sync` (many in flight from threads)."""

import struct
import sys
import threading

import harness
import valkyrie
import valkyrie.sync
from harness import arg, now


class Aio:
    @staticmethod
    async def connect(o):
        self = Aio()
        self.client = await valkyrie.connect(f"tcp://{o['host']}:{o['port']}")
        return self

    async def echo(self, payload):
        return len(await self.client.call("/echo", payload))

    async def server_stream(self, count, size):
        messages = received = 0
        async for message in self.client.stream("/stream", struct.pack("<QI", count, size)):
            messages += 1
            received += len(message)
        return messages, received

    async def ping_pong(self, payload, more):
        async with self.client.open("/echo") as stream:
            while True:
                began = now()
                await stream.send(payload)
                await stream.recv()
                if not more(began):
                    return

    async def close(self):
        await self.client.aclose()


class Sync:
    ASYNC = False

    @staticmethod
    def connect(o):
        self = Sync()
        self.client = valkyrie.sync.connect(f"tcp://{o['host']}:{o['port']}")
        return self

    def echo(self, payload):
        return len(self.client.call("/echo", payload))

    def echo_n(self, payload, in_flight, end, samples):
        def caller():
            while (began := now()) < end:
                self.client.call("/echo", payload)
                samples.append(now() - began)

        threads = [threading.Thread(target=caller) for _ in range(in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def server_stream(self, count, size):
        messages = received = 0
        for message in self.client.stream("/stream", struct.pack("<QI", count, size)):
            messages += 1
            received += len(message)
        return messages, received

    def close(self):
        self.client.close()


if __name__ == "__main__":
    loop_factory = None
    if "--uvloop" in sys.argv:
        import uvloop

        loop_factory = uvloop.new_event_loop
    harness.main({"sync": Sync, "aio": Aio}[arg("--mode")], loop_factory)
