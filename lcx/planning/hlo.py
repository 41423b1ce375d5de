"""What a compiled program sends from device to device, read from its text (XLA's HLO)."""

import math
import re
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64, "c128": 128}

# What one device of a group of n sends, for each byte of its result, when the work goes round
# in a ring; an all-reduce is a reduce-scatter and an all-gather.
WIRE: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1.0,  # the result is one n-th of what is reduced
    "collective-permute": lambda n: 1.0,
    "all-to-all": lambda n: (n - 1) / n,
}

HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.-]+ = (.*?) ([a-z][a-z-]*)\(")
ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\]")
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
CALLED = re.compile(r"(?:body|to_apply|calls|\w+_computation)=%?([\w.-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collectives(NamedTuple):
    """Bytes that one device sends in one run of the program, by the kind of the collective."""

    wire: dict[str, float]
    unknown: int
    """Collectives in loops whose number of turns XLA does not know: counted for one turn."""


def collectives(text: str, devices: int) -> Collectives:
    """Count the collectives of a program compiled for CPUs, as `compiled.as_text()` gives it.

    Those in a loop count as often as it turns. Of the branches of a conditional all are counted.
    Every device of a permutation is taken to send.
    """
    entry, computations = _computations(text)
    found: dict[str, tuple[dict[str, float], int]] = {}

    def of(name: str) -> tuple[dict[str, float], int]:
        if name not in found:
            wire: dict[str, float] = defaultdict(float)
            unknown = 0
            for line in computations.get(name, ()):
                match = INSTRUCTION.match(line)
                if match is None:
                    continue
                shape, operation = match.groups()
                if operation in WIRE:
                    wire[operation] += _bytes(shape) * WIRE[operation](_group(line, devices))
                    continue
                branches = (m for all in BRANCHES.findall(line) for m in all.split(","))
                for called in (*CALLED.findall(line), *(b.strip(" %") for b in branches)):
                    inner, inside = of(called)
                    trips = TRIPS.search(line)
                    if operation == "while" and trips is None:
                        inside = max(inside, len(inner))
                    turns = int(trips[1]) if operation == "while" and trips else 1
                    unknown += inside
                    for kind, bytes_sent in inner.items():
                        wire[kind] += bytes_sent * turns
            found[name] = wire, unknown
        return found[name]

    wire, unknown = of(entry)
    return Collectives(dict(sorted(wire.items())), unknown)


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the entry, and the lines of every computation."""
    entry, computations, lines = "", {}, []
    for line in text.splitlines():
        if header := HEADER.match(line):
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    return entry, computations


def _bytes(shape: str) -> int:
    """Of an array, or of all arrays of a tuple."""
    total = 0
    for kind, sizes in ARRAY.findall(re.sub(r"\{[^{}]*\}|/\*.*?\*/", "", shape)):
        bits = BITS.get(kind) or int(re.sub(r"\D", "", kind) or 0)
        total += math.prod(int(n) for n in sizes.split(",") if n) * bits // 8
    return total


def _group(line: str, devices: int) -> int:
    """How many devices take part in one collective, in each of the forms that XLA writes."""
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(iota[1])
    if axes := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])
        return math.prod(int(part or sizes[name]) for name, part in named)
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return listed[1].count(",") + 1
    return devices
