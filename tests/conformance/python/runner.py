"""The Python runner: asyncio over the installed package. ../README.md has the actions, the variables and the output."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import valkyrie

CASE_TIMEOUT = 60.0


class Mismatch(Exception):
    """Something other than what the case expects."""


class Got:
    """A reply, or an error in the same shape."""

    def __init__(
        self,
        message: bytes = b"",
        metadata: Any = (),
        trailers: Any = (),
        error: valkyrie.StatusError | None = None,
    ) -> None:
        self.message, self.metadata, self.trailers, self.error = (
            message,
            list(metadata),
            list(trailers),
            error,
        )
        self.code = error.code.name if error else "OK"
        self.number = error.number if error else 0

    def __repr__(self) -> str:
        return f"{self.error.reason} {self.error}" if self.error else f"OK with {len(self.message)} bytes"


def failed(error: BaseException) -> Got:
    if isinstance(error, valkyrie.StatusError):
        return Got(b"", error.metadata, error.trailers, error)
    if isinstance(error, asyncio.CancelledError):
        return Got(error=valkyrie.Cancelled(valkyrie.Code.CANCELLED))
    raise error


async def outcome(call: Awaitable[valkyrie.Response]) -> Got:
    try:
        response = await call
    except (valkyrie.StatusError, asyncio.CancelledError) as error:
        return failed(error)
    return Got(response.message, response.metadata, response.trailers)


def entries(text: str | None) -> list[tuple[str, str | bytes]]:
    pairs: list[tuple[str, str | bytes]] = []
    for entry in text.split("&") if text else ():
        key, value = entry.split("=", 1)
        pairs.append((key, bytes.fromhex(value) if key.endswith("-bin") else value))
    return pairs


def as_bytes(pairs: list[tuple[str, str | bytes]]) -> list[tuple[str, bytes]]:
    return [(key, value.encode() if isinstance(value, str) else value) for key, value in pairs]


class Case:
    def __init__(self, client: valkyrie.Client, fields: dict[str, Any], token: str) -> None:
        self.client, self.fields, self.token = client, fields, token

    def text(self, key: str) -> str | None:
        value: str | None = self.fields.get(key)
        if value is None:
            return None
        return value.replace("$TOKEN", self.token).replace("$ABSENT", ABSENT)

    @property
    def method(self) -> str:
        # What is no UTF-8 becomes surrogates that stand alone: only such text is none.
        if "method_hex" in self.fields:
            return bytes.fromhex(self.fields["method_hex"]).decode(errors="surrogateescape")
        return self.text("method") or ""

    @property
    def count(self) -> int:
        return int(self.fields.get("count", 0))

    @property
    def message(self) -> bytes:
        text = self.text("text")
        if text is not None:
            return text.encode()
        if "hex" in self.fields:
            return bytes.fromhex(self.fields["hex"])
        size: int = self.fields.get("size", 0)
        return (bytes(range(251)) * (size // 251 + 1))[:size]

    def pattern(self, i: int) -> bytes:
        return bytes([i % 251]) * int(self.fields.get("size", 0))

    @property
    def options(self) -> dict[str, Any]:
        metadata = entries(self.text("metadata"))
        if "metadata_size" in self.fields:
            metadata.append(("x-large", "x" * self.fields["metadata_size"]))
        timeout = self.fields.get("timeout_ms")
        return {
            "metadata": metadata,
            "timeout": None if timeout is None else timeout / 1000,
        }

    def unary(self) -> Awaitable[Got]:
        return self.call(self.message)

    def call(self, message: bytes) -> Awaitable[Got]:
        idempotent = self.fields.get("idempotent") == 1
        key: Any = True if self.fields.get("draw_idempotency_key") == 1 else self.text("idempotency_key")
        return outcome(
            self.client.call_with_response(
                self.method, message, idempotent=idempotent, idempotency_key=key, **self.options
            )
        )

    async def check(self, got: Got) -> None:
        wrong: list[str] = []

        def compare(what: str, expected: object, value: object) -> None:
            if expected is not None and expected != value:
                wrong.append(f"{what}: expected {str(expected)[:120]!r}, got {str(value)[:120]!r}")

        fields, error = self.fields, got.error
        detail = error.details[0] if error and error.details else ("", b"")
        compare("code", fields.get("code"), got.code)
        compare("code number", fields.get("code_number"), got.number)
        compare("reason", fields.get("reason"), error.reason if error else "")
        compare(
            "status message",
            self.text("status_message"),
            error.message if error else "",
        )
        compare("detail type", fields.get("detail_type"), detail[0])
        compare("detail", fields.get("detail_text"), detail[1].decode())
        pushback = error.pushback if error else None
        compare(
            "pushback",
            fields.get("pushback_ms"),
            None if pushback is None else round(pushback * 1000),
        )
        compare("reply size", fields.get("reply_size"), len(got.message))
        if "reply_text" in fields:
            compare("reply", fields["reply_text"], got.message.decode())
        for key, found in (
            ("expect_metadata", got.metadata),
            ("expect_trailers", got.trailers),
        ):
            if key in fields:
                compare(key, as_bytes(entries(self.text(key))), found)
        if fields.get("reply_echo") == 1 and got.message != self.message:
            wrong.append(f"the reply of {len(got.message)} bytes is not the message")
        if "reply_max" in fields and not 1 <= int(got.message) <= fields["reply_max"]:
            wrong.append(f"reply: expected 1 to {fields['reply_max']}, got {int(got.message)}")
        if wrong:
            raise Mismatch(f"{'; '.join(wrong)} ({got})")
        if fields.get("then_dropped") == 1:
            await self.hang_until("dropped")

    async def hang_until(self, until: str) -> dict[str, int]:
        stats = await self.client.call(
            "/test/hang_stats",
            self.token.encode(),
            metadata={"until": until},
            timeout=30,
        )
        found: dict[str, int] = json.loads(stats)
        return found

    async def fresh_server(
        self,
    ) -> tuple[valkyrie.Client, Callable[[str], Awaitable[None]]]:
        scheme = ENDPOINT.split(":")[0]
        endpoint = (await self.client.call("/test/private", scheme.encode())).decode()
        config = self.fields.get("service_config")
        client = await valkyrie.connect(endpoint, service_config=config, **trust(endpoint))

        async def shutdown(how: str) -> None:
            try:
                await client.call("/test/shutdown", how.encode())
            except valkyrie.StatusError:
                pass

        return client, shutdown

    def server_stream(self, client: valkyrie.Client, message: bytes) -> Any:
        """A stream of one message, kept as an object so that its end can be read."""

        async def start() -> valkyrie.Stream:
            stream = client.open(self.method, **self.options)
            try:
                await stream.send(message)
                await stream.half_close()
            except valkyrie.StatusError:
                pass  # Receiving says how it ended.
            return stream

        return start()

    async def receive_all(
        self,
        stream: valkyrie.Stream,
        right: Callable[[bytes, int], bool] | None = None,
        count: int = 0,
    ) -> tuple[int, Got, bytes]:
        last = b""
        try:
            while (message := await stream.recv()) is not None:
                if right is not None and not right(message, count):
                    raise Mismatch(f"message {count} of {len(message)} bytes is not the pattern")
                last = message
                count += 1
        except (valkyrie.StatusError, asyncio.CancelledError) as error:
            return count, failed(error), last
        return count, Got(b"", stream.metadata, stream.trailers), last


async def do_request(one: Case) -> None:
    text = one.text("text")
    try:
        got = Got(await one.client.request(text if text is not None else one.message))
    except valkyrie.StatusError as error:
        got = failed(error)
    await one.check(got)


async def do_unary(one: Case) -> None:
    await one.check(await one.unary())


async def do_twice(one: Case) -> None:
    """Two calls with the same options; a server says which of the answers is not the first of its key."""
    first = await one.unary()
    message = one.text("then_message")
    then = await one.call(one.message if message is None else message.encode())
    if then.code != one.fields.get("then_code", then.code):
        raise Mismatch(f"the second call: {then}")
    if then.message.decode() != one.fields.get("then_reply", then.message.decode()):
        raise Mismatch(f"the second reply: {then.message!r}")
    replayed = [dict(got.metadata).get("valkyrie-replayed") == b"true" for got in (first, then)]
    if replayed != [False, one.fields.get("replayed") == 1]:
        raise Mismatch(f"replayed: {replayed}")
    await one.check(first)


async def do_stream_with_key(one: Case) -> str:
    client: Any = one.client
    try:
        client.open(one.method, idempotency_key=one.text("idempotency_key"))
    except TypeError as error:
        return str(error)
    raise Mismatch("the key was taken")


async def do_server_stream(one: Case) -> None:
    stream = await one.server_stream(one.client, (one.text("text") or "").encode())
    count, got, _ = await one.receive_all(stream, lambda message, i: message == one.pattern(i))
    if count != one.count:
        raise Mismatch(f"expected {one.count} messages, got {count}, then {got}")
    await one.check(got)


async def do_client_stream(one: Case) -> None:
    stream = one.client.open(one.method, **one.options)
    try:
        for i in range(one.count):
            await stream.send(one.pattern(i))
        await stream.half_close()
    except valkyrie.StatusError:
        pass  # The call may be over already; receiving says how it ended.
    count, got, reply = await one.receive_all(stream)
    if got.error is None and count != 1:
        raise Mismatch(f"expected one reply, got {count}")
    got.message = reply
    await one.check(got)


async def do_bidi(one: Case) -> None:
    stream = one.client.open(one.method, **one.options)
    lockstep = one.fields.get("lockstep") == 1

    async def receive(i: int) -> None:
        if await stream.recv() != one.pattern(i):
            raise Mismatch(f"message {i} is not the one sent")

    async def send_all() -> None:
        for i in range(one.count):
            await stream.send(one.pattern(i))
            if lockstep:
                await receive(i)
        await stream.half_close()

    await send_all()
    if not lockstep:
        for i in range(one.count):
            await receive(i)
    count, got, _ = await one.receive_all(stream)
    if count:
        raise Mismatch("a message after the last")
    await one.check(got)


async def do_cancel_before(one: Case) -> None:
    call = asyncio.ensure_future(one.client.call_with_response(one.method, one.message, **one.options))
    call.cancel()
    await one.check(await outcome(call))


async def do_cancel_during(one: Case) -> None:
    call = asyncio.ensure_future(one.client.call_with_response(one.method, one.message, **one.options))
    await one.hang_until("started")
    call.cancel()
    await one.check(await outcome(call))


async def do_cancel_times(one: Case) -> str:
    took = []
    for number in range(one.count):
        round = Case(one.client, one.fields, f"{one.token}-{number}")
        call = asyncio.ensure_future(round.client.call_with_response(round.method, round.message, **round.options))
        await round.hang_until("started")
        since = time.time_ns() // 1000
        call.cancel()
        await round.check(await outcome(call))
        took.append(max((await round.hang_until("dropped"))["dropped_us"] - since, 0))
    took.sort()
    return f"{took[len(took) // 2]} µs, {took[-1]} at worst"


async def do_cancel_after(one: Case) -> None:
    call = asyncio.ensure_future(one.client.call_with_response(one.method, one.message, **one.options))
    await one.check(await outcome(call))
    call.cancel()
    await one.check(await one.unary())


async def do_cancel_stream(one: Case) -> None:
    stream = one.client.open(one.method, **one.options)
    await stream.send(one.message)
    await one.hang_until("started")
    receiving = asyncio.ensure_future(one.receive_all(stream))
    await one.client.call("/echo")  # The receive is under way once this has answered.
    stream.cancel()
    _, got, _ = await receiving
    await one.check(got)


async def do_leave_stream(one: Case) -> None:
    left = one.count
    async for _ in one.client.stream(one.method, one.message, **one.options):
        left -= 1
        if left == 0:
            break
    if left:
        raise Mismatch(f"the stream ended {left} messages early")
    await one.check(await outcome(one.client.call_with_response("/echo", b"x")))


async def do_in_flight(one: Case) -> None:
    calls = (one.client.call(one.method, str(i).encode(), **one.options) for i in range(one.count))
    replies = await asyncio.gather(*calls)
    for i, reply in enumerate(replies):
        if reply != str(i).encode():
            raise Mismatch(f"reply {i} is {reply!r}")


class Heard(logging.Handler):
    """All that is logged, as text."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.__dict__!r}\n"


async def do_credentials(one: Case) -> None:
    heard, logger = Heard(), logging.getLogger("valkyrie")
    logger.addHandler(heard)
    logger.setLevel(logging.DEBUG)
    try:
        await show_credentials(one, heard)
    finally:
        logger.removeHandler(heard)
        logger.setLevel(logging.NOTSET)


async def show_credentials(one: Case, heard: Heard) -> None:
    token, source, wanted = one.fields.get("token"), one.fields.get("source"), one.fields.get("asked", 0)
    endpoint, asked = one.text("endpoint"), 0

    async def ask() -> str:
        nonlocal asked
        asked += 1
        if source == "fails" or (source == "once" and asked > 1):
            raise LookupError("no token today")
        if source == "silent":
            await asyncio.Event().wait()
        return str(token)

    options = {} if endpoint else trust(ENDPOINT)
    if "connect_timeout_ms" in one.fields:
        options["connect_timeout"] = one.fields["connect_timeout_ms"] / 1000
    if endpoint is None:
        scheme = f"{ENDPOINT.split(':')[0]} {one.fields.get('server', 'credentials')}"
        endpoint = (await one.client.call("/test/private", scheme.encode())).decode()

    async def calls() -> valkyrie.Response:
        async with valkyrie.connect(endpoint, token=ask if source else token, **options) as client:
            async with client.open("/echo") as stream:
                if one.fields.get("hold") == 1:
                    await stream.recv()
                    raise Mismatch("the stream ended well")
                for _ in range(one.count - 1):
                    await client.call(one.method)
                while asked < wanted:
                    await stream.send(b"x")
                    if await stream.recv() is None:
                        raise Mismatch("the stream ended meanwhile")
                    await client.call(one.method)
                return await client.call_with_response(one.method)

    got = await outcome(calls())
    if token and token in f"{got!r} {got.error and got.error.__cause__!r} {heard.text}":
        raise Mismatch("the token is shown")
    if got.code == "OK" and "connected to" not in heard.text:
        raise Mismatch(f"nothing of the connection is logged: {heard.text}")
    await one.check(got)


async def do_go_away(one: Case) -> None:
    client, shutdown = await one.fresh_server()
    stream = await one.server_stream(client, one.message)
    for i in range(one.count):
        if await stream.recv() is None:
            raise Mismatch(f"the stream ended after {i} messages")
    await shutdown(one.fields["how"])
    count, got, _ = await one.receive_all(stream, count=one.count)
    total = one.fields.get("total")
    if total is not None and count != total:
        raise Mismatch(f"expected {total} messages, got {count}, then {got}")
    await one.check(got)
    after = await outcome(client.call_with_response("/echo", b"x"))
    if after.code != one.fields.get("then_code", after.code):
        raise Mismatch(f"then: expected {one.fields['then_code']}, got {after}")
    await client.aclose()


async def do_connect(one: Case) -> None:
    async def call() -> valkyrie.Response:
        client = await connect(one.text("endpoint") or "")
        return await client.call_with_response("/echo", b"x")

    await one.check(await outcome(call()))


async def do_connect_with(one: Case) -> None:
    """As the case says, and in no other way."""

    def file(key: str) -> Path | None:
        return Path(one.fields[key]) if key in one.fields else None

    certificates, key = file("identity"), file("key")

    async def call() -> valkyrie.Response:
        async with valkyrie.connect(
            one.fields["endpoint"],
            trusted_certificates=file("trusted"),
            revocation_lists=file("revoked"),
            identity=(certificates, key) if certificates and key else None,
            server_name=one.text("server_name"),
            min_security=one.text("min_security"),
            sealed=one.fields.get("sealed") == 1,
        ) as client:
            return await client.call_with_response("/echo", b"x")

    await one.check(await outcome(call()))


async def do_configured(one: Case) -> None:
    """By the text, and by the mapping that a text may stand for."""
    config = one.fields["service_config"]
    forms = [config]
    try:
        forms.append(json.loads(config))
    except ValueError:
        pass  # The core says what is wrong with it.
    for number, form in enumerate(forms):
        other = Case(one.client, one.fields, f"{one.token}-{number}")

        async def call(form: Any = form, other: Case = other) -> valkyrie.Response:
            async with valkyrie.connect(ENDPOINT, service_config=form, **trust(ENDPOINT)) as client:
                return await client.call_with_response(other.method, other.message, **other.options)

        await other.check(await outcome(call()))


async def do_failover(one: Case) -> None:
    """One of several servers is killed among many calls, 50 at a time, that may be executed twice."""
    failures: list[str] = []
    async with valkyrie.connect(one.fields["endpoint"], **trust(one.fields["endpoint"])) as client:
        for first in range(0, one.count, 50):
            numbers = [str(number).encode() for number in range(first, first + 50)]
            calls = [outcome(client.call_with_response("/echo", number, idempotent=True)) for number in numbers]
            if first == one.count // 4 // 50 * 50:
                calls.append(outcome(client.call_with_response("/test/die", b"")))
            for number, got in zip(numbers, await asyncio.gather(*calls), strict=False):
                if got.message != number:
                    failures.append(f"call {number.decode()}: {got} {got.error.timeline if got.error else ''}")
    if failures:
        raise Mismatch(f"{len(failures)} of {one.count} failed: {failures[0]}")


async def do_script(one: Case) -> str:
    """The outcomes of its calls, and the core's trace of them."""
    trace = ""
    config = one.fields.get("service_config")
    async with valkyrie.connect(one.fields["endpoint"], service_config=config) as client:
        for step in one.fields["steps"].split(";"):
            words = step.split()
            count, kind = 1, words[0][-1]
            if kind in "x&":
                count, words = int(words[0][:-1]), words[1:]
            options: dict[str, Any] = {"idempotent": "idempotent" in words}
            for word in words:
                if word.startswith("timeout="):
                    options["timeout"] = int(word[8:]) / 1000
            calls = [outcome(client.call_with_response(words[0], b"", **options)) for _ in range(count)]
            if kind == "&":
                await client.call(f"/script/together/{count}", b"")
                outcomes = await asyncio.gather(*calls)
            else:
                outcomes = [await call for call in calls]
            for got in outcomes if not words[0].startswith("/script/") else ():
                trace += f"{got.code} {got.error.reason if got.error else got.message.decode()}\n"
                for line in got.error.timeline.splitlines() if got.error else ():
                    trace += f"  {line}\n"
        return trace + (await client.call("/script/trace", b"")).decode()


async def do_bad_metadata(one: Case) -> str:
    try:
        await one.client.call("/echo", b"x", **one.options)
    except ValueError as error:
        return str(error)
    raise Mismatch("the metadata was taken")


async def do_wrong_type(one: Case) -> str:
    client: Any = one.client
    any_connect: Any = valkyrie.connect
    wrong: dict[str, Callable[[], Awaitable[object]]] = {
        "message": lambda: client.call("/echo", 42),
        "method": lambda: client.call(42, b"x"),
        "timeout": lambda: client.call("/echo", b"x", timeout="soon"),
        "idempotent": lambda: client.call("/echo", b"x", idempotent="yes"),
        "idempotency_key": lambda: client.call("/echo", b"x", idempotency_key=42),
        "service_config": lambda: any_connect(ENDPOINT, service_config=42),
        "keepalive": lambda: any_connect(ENDPOINT, keepalive="often"),
    }
    try:
        await wrong[one.fields["argument"]]()
    except TypeError as error:
        return str(error)
    raise Mismatch("the argument was taken")


async def do_connectivity(one: Case) -> str:
    """Ready, another while the server goes, and the end."""
    client, shutdown = await one.fresh_server()
    changes = client.connectivity_changes()
    if client.connectivity != "ready" or await anext(changes) is not valkyrie.Connectivity.READY:
        raise Mismatch(f"connected, and {client.connectivity}")
    going = asyncio.ensure_future(shutdown(one.fields["how"]))
    without = await anext(changes)
    await going
    closing = asyncio.ensure_future(client.aclose())
    states = [without] + [state async for state in changes]
    await closing
    if states[-1] != "shutdown" or client.connectivity != "shutdown":
        raise Mismatch(f"closed, and {states}, {client.connectivity}")
    return f"{without} in between"


async def do_reconfigured(one: Case) -> None:
    async with valkyrie.connect(ENDPOINT, service_config=one.fields["service_config"], **trust(ENDPOINT)) as client:
        one.client = client
        first = await one.unary()
        if first.code != one.fields["first_code"]:
            raise Mismatch(f"the first call: {first}")
        try:
            client.set_service_config(one.fields["then_config"])
        except valkyrie.StatusError as error:
            return await one.check(failed(error))
        await one.check(await one.unary())


async def do_isolate(one: Case) -> None:
    """Of the server as a whole, and of one of its methods."""
    client, method, other = await connect(ENDPOINT), one.method, "/test/sleep"

    async def reason(method: str) -> str:
        got = await outcome(client.call_with_response(method, b"1"))
        return got.error.reason if got.error else "OK"

    seen = [await reason(method)]
    server = client.breakers()[0].server
    client.isolate(server)
    seen += [await reason(method), await reason(other)]
    isolated = any(breaker.method is None and breaker.state == "isolated" for breaker in client.breakers())
    client.restore(server)
    seen.append(await reason(method))
    client.isolate(server, method)
    seen += [await reason(method), await reason(other)]
    client.restore(server, method)
    seen.append(await reason(method))
    restored = all(breaker.state == "closed" for breaker in client.breakers())
    if not isolated or not restored or seen != one.fields["reasons"].split():
        raise Mismatch(f"isolated {isolated}, restored {restored}, {seen}")
    try:
        client.isolate("tcp://192.0.2.1:1")
        raise Mismatch("a stranger is isolated")
    except valkyrie.StatusError as error:
        await one.check(failed(error))
    finally:
        await client.aclose()


async def do_breaker_changes(one: Case) -> None:
    """Nothing yet, a breaker that changes by itself, and the end."""
    client = await valkyrie.connect(ENDPOINT, service_config=one.fields["service_config"], **trust(ENDPOINT))
    one.client = client
    changes = client.breaker_changes()
    before = await anext(changes)
    waiting = asyncio.ensure_future(anext(changes))
    for _ in range(one.count):
        await one.unary()
    states = [breaker.state for breaker in await waiting if breaker.method == one.method]
    closing = asyncio.ensure_future(client.aclose())
    further = [breakers async for breakers in changes]
    await closing
    if before or further or states != [one.fields["state"]]:
        raise Mismatch(f"before {before}, {states}, then {further}")


async def do_metrics(one: Case) -> None:
    client = await connect(ENDPOINT)
    for _ in range(one.count):
        await outcome(client.call_with_response(one.method, one.message, **one.options))
    text = client.metrics()
    await client.aclose()
    if one.fields["line"] not in text.splitlines():
        raise Mismatch(f"no {one.fields['line']} in {text}")


async def do_keepalive(one: Case) -> None:
    names = ("keepalive", "keepalive_timeout", "keepalive_idle")
    times: dict[str, Any] = {name: one.fields[f"{name}_ms"] / 1000 for name in names if f"{name}_ms" in one.fields}

    async def call() -> valkyrie.Response:
        async with valkyrie.connect(ENDPOINT, **times, **trust(ENDPOINT)) as client:
            return await client.call_with_response("/echo", b"x")

    await one.check(await outcome(call()))


async def do_call_closed(one: Case) -> None:
    client = await connect(ENDPOINT)
    await client.aclose()
    await one.check(await outcome(client.call_with_response(one.method, one.message, **one.options)))


async def do_double_close(one: Case) -> None:
    client = await connect(ENDPOINT)
    await client.aclose()
    await client.aclose()


async def do_after_shutdown(one: Case) -> None:
    client, shutdown = await one.fresh_server()
    await client.call("/echo", b"x")
    await shutdown("now")
    for _ in range(100):
        got = await outcome(client.call_with_response(one.method, one.message, **one.options))
        if got.error is not None:
            await one.check(got)
            return await client.aclose()
    raise Mismatch("100 calls succeeded")


ENDPOINT = os.environ["VALKYRIE_CONFORMANCE_ENDPOINT"]
ABSENT = os.environ["VALKYRIE_CONFORMANCE_ABSENT_ENDPOINT"]
CERTIFICATES = Path(os.environ["VALKYRIE_CONFORMANCE_CERTIFICATES"]).read_text()
SEALED = os.environ.get("VALKYRIE_CONFORMANCE_SEALED") == "1"


def trust(endpoint: str) -> dict[str, Any]:
    # Trust is for what is encrypted.
    encrypted = SEALED or endpoint.startswith(("tls:", "wss:", "quic:"))
    return {"trusted_certificates": CERTIFICATES if encrypted else None, "sealed": SEALED}


def connect(endpoint: str) -> Awaitable[valkyrie.Client]:
    return valkyrie.connect(endpoint, **trust(endpoint))


async def main() -> int:
    cases = json.loads(Path(os.environ["VALKYRIE_CONFORMANCE_CASES"]).read_text(encoding="utf-8"))
    client = await connect(ENDPOINT)
    for number, fields in enumerate(cases):
        one = Case(client, fields, f"py{os.getpid()}x{number}")
        ok, detail = True, ""
        action = globals().get(f"do_{fields['action']}")
        try:
            if action is None:
                raise Mismatch(f"unknown action {fields['action']}")
            detail = await asyncio.wait_for(action(one), CASE_TIMEOUT) or ""
        except TimeoutError as error:
            ok, detail = False, str(error) or f"no end within {CASE_TIMEOUT} s"
        except Exception as error:
            ok, detail = False, f"{type(error).__name__}: {error}"
        print(json.dumps({"case": fields["case"], "ok": ok, "detail": detail}), flush=True)
    await client.aclose()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
