"""A stranger's decoder of the Valkyrie wire, written from PROTOCOL.md alone, with nothing but the standard library.

Decodes every vector of v1.json and compares all fields; refuses every broken vector that a decoder of single frames can
judge. Run it from anywhere: python3 tests/vectors/decode.py. With `-` it decodes the connections that it is given.
"""

import json
import pathlib
import struct
import sys

MAGIC = b"\xf6VLK"
TYPES = {
    0x01: "HELLO", 0x02: "AUTH", 0x03: "PING", 0x04: "PONG", 0x05: "GOAWAY", 0x06: "WINDOW", 0x07: "AUTHENTICATED",
    0x10: "CALL", 0x11: "HEAD", 0x12: "MESSAGE", 0x13: "STATUS", 0x14: "RESET",
}  # fmt: skip
END, MESSAGE, MORE = 1, 2, 4
# PROTOCOL.md, "Handshake and first flight": the least and the most of each setting.
SETTINGS = {
    1: (16384, 2**32 - 1), 2: (16384, 2**32 - 1), 3: (16384, 2**32 - 1),
    4: (100, 2**32 - 1), 5: (65536, 2**31), 6: (65536, 2**31),
}  # fmt: skip


class Refused(Exception):
    """A frame that the protocol forbids; the argument is the error code's name."""


def crc32c(data: bytes) -> int:
    """PROTOCOL.md, "Checksums": Castagnoli, reflected, 0x82F63B78."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 & -(crc & 1))
    return crc ^ 0xFFFFFFFF


class Record:
    """PROTOCOL.md, "Control records": the bincode 2 standard format."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise Refused("RECORD")
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self, most: int = 8) -> int:
        """An integer of a field that is `most` bytes wide."""
        first = self.byte()
        if first < 251:
            return first
        width = {251: 2, 252: 4, 253: 8}.get(first, 9)
        if width > most:
            raise Refused("RECORD")
        return int.from_bytes(self.take(width), "little")

    def bytes(self) -> str:
        return self.take(self.varint()).hex()

    def text(self) -> str:
        try:
            return self.take(self.varint()).decode()
        except UnicodeDecodeError:
            raise Refused("RECORD") from None

    def list(self, read) -> list:
        count = self.varint()
        if count > 128:
            raise Refused("RECORD")
        return [read() for _ in range(count)]

    def entries(self) -> list:
        return self.list(lambda: [self.text(), self.bytes()])

    def option(self, read):
        return {0: lambda: None, 1: read}.get(self.byte(), self.refuse)()

    def refuse(self):
        raise Refused("RECORD")

    def extensions(self, known: tuple = ()) -> list:
        found = self.list(lambda: [self.varint(4), self.bytes()])
        if any(not number & 0x80000000 and number not in known for number, _ in found):
            raise Refused("RECORD")
        return found


def check_method(method: str) -> str:
    if not method.startswith("/") or len(method) > 512 or not all("!" <= c <= "~" for c in method):
        raise Refused("RECORD")
    return method


def check_metadata(entries: list) -> list:
    for key, value in entries:
        if not 1 <= len(key) <= 128 or not all(c in "abcdefghijklmnopqrstuvwxyz0123456789-_." for c in key):
            raise Refused("RECORD")
        if not key.endswith("-bin") and not all(32 <= byte <= 126 for byte in bytes.fromhex(value)):
            raise Refused("RECORD")
    return entries


def decode_record(kind: str, data: bytes):
    r = Record(data)
    if kind == "HELLO":
        out = {"min_version": r.byte(), "max_version": r.byte(), "features": r.varint()}
        out["settings"] = r.list(lambda: [r.varint(4), r.varint()])
        out["extensions"] = r.extensions()
        if not out["min_version"] <= 1 <= out["max_version"]:
            raise Refused("VERSION")
        known = [number for number, _ in out["settings"] if not number & 0x80000000]
        if len(set(known)) < len(known):
            raise Refused("SETTING")
        for number, value in out["settings"]:
            least, most = SETTINGS.get(number, (0, 2**64 - 1 if number & 0x80000000 else -1))
            if not least <= value <= most:
                raise Refused("SETTING")
    elif kind == "AUTH":
        out = {"token": r.bytes(), "extensions": r.extensions()}
        if len(out["token"]) > 2 * 8192:
            raise Refused("RECORD")
    elif kind == "AUTHENTICATED":
        out = {"expires_in_ms": r.varint(), "extensions": r.extensions()}
    elif kind in ("PING", "PONG"):
        out = {"data": r.varint(), "extensions": r.extensions()}
    elif kind == "GOAWAY":
        out = {
            "last_stream": r.varint(),
            "code": r.varint(2),
            "message": r.text(),
            "extensions": r.extensions((1,)),
        }
    elif kind == "WINDOW":
        out = {"offset": r.varint(), "extensions": r.extensions()}
    elif kind == "CALL":
        out = {
            "method": check_method(r.text()),
            "timeout_us": r.varint(),
            "codec": r.varint(2),
            "schema": r.varint(),
        }
        out |= {"metadata": check_metadata(r.entries()), "extensions": r.extensions()}
    elif kind == "HEAD":
        out = {"metadata": check_metadata(r.entries()), "extensions": r.extensions()}
    elif kind == "STATUS":
        out = {
            "code": r.varint(4),
            "reason": r.varint(2),
            "message": r.text(),
            "details": r.entries(),
        }
        out["pushback_ms"] = r.option(r.varint)
        out |= {
            "metadata": check_metadata(r.entries()),
            "trailers": check_metadata(r.entries()),
        }
        out["extensions"] = r.extensions()
    elif kind == "RESET":
        out = {"code": r.varint(2), "extensions": r.extensions()}
    elif kind == "MESSAGE":
        out = None
    else:
        return None
    if r.at != len(data):
        raise Refused("RECORD")
    return out


def decode_frame(data: bytes) -> tuple[dict, bytes]:
    """One frame and what follows it. PROTOCOL.md, "Frame header", in the order of its checks."""
    if data[:4] != MAGIC[: len(data[:4])]:
        raise Refused("MAGIC")
    (
        version,
        number,
        flags,
        stream,
        payload_len,
        metadata_len,
        priority,
        epoch,
        reserved,
        payload_crc,
        header_crc,
    ) = struct.unpack("<BBHQIIBB6sII", data[4:40])
    if crc32c(data[:36]) != header_crc:
        raise Refused("CHECKSUM")
    if version != 1:
        raise Refused("VERSION")
    optional = number & 0x80
    if (flags & ~7 and not optional) or reserved != bytes(6) or priority > 2:
        raise Refused("PROTOCOL")
    if payload_len > 65536 or metadata_len > 16384:
        raise Refused("FRAME_SIZE")
    if epoch:
        raise Refused("PROTOCOL")
    if number not in TYPES and not optional:
        raise Refused("UNKNOWN_FRAME")
    kind = TYPES.get(number, hex(number))
    if not optional:
        if payload_len and not flags & MESSAGE:
            raise Refused("PROTOCOL")
        if flags and kind not in ("CALL", "MESSAGE", "STATUS"):
            raise Refused("PROTOCOL")
        if flags & MORE and (not flags & MESSAGE or flags & END or kind == "STATUS"):
            raise Refused("PROTOCOL")
        if kind != "WINDOW" and (number < 0x10) != (stream == 0):
            raise Refused("PROTOCOL")
    body = data[40 : 40 + metadata_len + payload_len]
    if len(body) != metadata_len + payload_len:
        raise Refused("TRUNCATED")
    if (crc32c(body) if body else 0) != payload_crc:
        raise Refused("CHECKSUM")
    if kind == "CALL" and stream >= 2**62:
        raise Refused("STREAM_ID")
    fields = {
        "type": kind, "flags": flags, "stream": stream, "priority": priority,
        "record": decode_record(kind, body[:metadata_len]),
        "payload": body[metadata_len:].hex(),
    }  # fmt: skip
    return fields, data[40 + len(body) :]


# Broken in their order or their sums, which only a connection can see.
STATEFUL = {
    "first: a call before hello", "a second hello", "a call of the server's parity", "a stream opened twice",
    "stream ids that fall", "a message on a stream that was never opened", "a status from the caller",
    "a window far ahead", "a half-close inside a message", "a window for a stream that was never opened",
    "credentials, which this version has not", "first: a call ahead of the credentials", "an answer to no credentials",
}  # fmt: skip


def read_streams() -> int:
    """Reads what one side sent on one connection from each line of the standard input, in hexadecimal digits, and
    prints its frame types; a frame that is refused ends it with the code."""
    for line in sys.stdin:
        kinds, rest = [], bytes.fromhex(line)
        try:
            while rest:
                fields, rest = decode_frame(rest)
                kinds.append(fields["type"])
        except Refused as refused:
            kinds.append(f"refused with {refused}")
        print(*kinds)
    return 0


def main() -> int:
    vectors = json.loads((pathlib.Path(__file__).parent / "v1.json").read_text())
    failed = 0
    for vector in vectors["frames"]:
        name, data = vector.pop("name"), bytes.fromhex(vector.pop("hex"))
        del vector["spec"]
        try:
            fields, rest = decode_frame(data)
            problem = None if fields == vector and not rest else f"read {fields}"
        except Refused as refused:
            problem = f"refused: {refused}"
        if problem:
            failed += 1
            print(f"{name}: {problem}", file=sys.stderr)
    broken = [vector for vector in vectors["broken"] if vector["name"] not in STATEFUL]
    for vector in broken:
        try:
            rest = bytes.fromhex(vector["hex"])
            while rest:
                _, rest = decode_frame(rest)
            problem = "was accepted"
        except Refused as refused:
            problem = None if str(refused) == vector["error"] else f"refused as {refused}, not {vector['error']}"
        if problem:
            failed += 1
            print(f"{vector['name']}: {problem}", file=sys.stderr)
    total = len(vectors["frames"]) + len(broken)
    print(f"{total - failed} passed, {failed} failed")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(read_streams() if sys.argv[1:] == ["-"] else main())
