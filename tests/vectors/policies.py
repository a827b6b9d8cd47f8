"""Checks policies.json by a second implementation, written from docs/policies.md alone. Prints how much it compared."""

import json
import sys
from pathlib import Path
from typing import Any

MASK = (1 << 64) - 1


class Random:
    """SplitMix64."""

    def __init__(self, seed: int) -> None:
        self.state = seed

    def draw(self) -> int:
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
        return z ^ z >> 31

    def below(self, bound: int) -> int:
        return self.draw() * bound >> 64


def ceiling(base_us: int, thousandths: int, cap_us: int, n: int) -> int:
    us = min(base_us, cap_us)
    for _ in range(n):
        us = min(us * thousandths // 1000, cap_us)
    return us


def reconnects(random: Random, count: int) -> list[int]:
    waits = []
    for n in range(count):
        middle = ceiling(1_000_000, 1600, 30_000_000 * 100 // 120, n)
        spread = middle * 20 // 100
        waits.append(middle - spread + random.below(2 * spread + 1))
    return waits


def throttled(random: Random, calls: int) -> str:
    """All calls lie within two minutes and within a second of one that passed, so nothing is forgotten."""
    accepts, passes = 0, ""
    for call in range(calls):
        part = call * 1000 - accepts * 2000
        refused = part > 0 and random.below((call + 1) * 1000) < part
        passes += "0" if refused else "1"
        accepts += call % 7 == 0 and not refused
    return passes


def picks(policy: str, random: Random, count: int) -> list[int]:
    # Half of the four near ones are well: 140 * 2 / 4 = 70 % go to them, the rest to the far ones.
    near, far = [0, 1], [4, 5]
    busy, turn, found = [0] * 6, 0, []
    for pick in range(count):
        tried = [0] if pick % 5 == 4 else []
        level = near if random.below(100) < 70 else far
        choice = [place for place in level if place not in tried]
        if len(choice) == 1:
            place = choice[0]
        elif policy == "RoundRobin":
            place = choice[turn % len(choice)]
            turn += 1
        else:
            i, j = random.below(len(choice)), random.below(len(choice) - 1)
            first, second = choice[i], choice[j + (j >= i)]
            place = second if busy[second] < busy[first] else first
        busy[place] += 1
        found.append(place)
    return found


def main() -> None:
    path = Path(__file__).with_name("policies.json")
    vectors: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    compared = 0

    def compare(what: str, found: object, expected: object) -> None:
        nonlocal compared
        compared += 1
        if found != expected:
            sys.exit(f"{what}: {found} here, {expected} in {path.name}")  # Exit 1.

    def seeded(vector: dict[str, Any]) -> Random:
        return Random(int(vector["seed"]))

    for vector in vectors["random"]:
        random = seeded(vector)
        compare("draws", [str(random.draw()) for _ in range(5)], vector["draws"])
        random = seeded(vector)
        compare("below", [random.below(100) for _ in range(10)], vector["below_100"])
    for vector in vectors["backoff"]:
        base, cap = vector["base_ms"] * 1000, vector["cap_ms"] * 1000
        thousandths = round(vector["multiplier"] * 1000)
        random = seeded(vector)
        waits = [random.below(ceiling(base, thousandths, cap, n) + 1) for n in range(8)]
        compare("backoff", waits, vector["waits_us"])
    vector = vectors["reconnect"]
    compare("reconnect", reconnects(seeded(vector), 10), vector["waits_us"])
    vector = vectors["throttle"]
    compare("throttle", throttled(seeded(vector), 200), vector["passes"])
    for vector in vectors["balance"]["picks"]:
        compare("balance", picks(vector["policy"], seeded(vector), 30), vector["picks"])
    print(f"{compared} vectors of policies")


main()
