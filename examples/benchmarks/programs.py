"""Counts in a compiled program, where loops are counted by their trips, and of branches the largest."""

import functools
import math
import re
from collections.abc import Callable

SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def count(text: str, weight: Callable[[str], float], *, fused: bool = False) -> float:
    """The sum of `weight(line)` over a compiled program, and over the lines inside of fusions where these are asked."""
    followed = rf" (?:call{'|fusion' if fused else ''})\(.*?(?:to_apply|calls)=%?([\w.\-]+)"
    parts: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.split("\n"):
        if head := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            lines = parts["ENTRY" if head[1] else head[2]] = []
        else:
            lines.append(line)

    def trips(line: str, condition: str) -> int:
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
            return int(known[1])
        bounds = (int(n) for c in parts.get(condition, []) for n in re.findall(r"s32\[\][^=]* constant\((\d+)\)", c))
        return max(bounds, default=1)

    @functools.cache
    def total(name: str) -> float:
        result = 0.0
        for line in parts.get(name, []):
            result += weight(line)
            if loop := re.search(r" while\(.*?condition=%?([\w.\-]+).*?body=%?([\w.\-]+)", line):
                result += trips(line, loop[1]) * total(loop[2])
            elif called := re.search(followed, line):
                result += total(called[1])
            elif " conditional(" in line:
                names = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", line)
                if branches := re.search(r"branch_computations=\{(.*?)\}", line):
                    names = re.findall(r"[\w.\-]+", branches[1])
                result += max(map(total, names), default=0.0)
        return result

    return total("ENTRY")


def _bytes(types: str) -> int:
    """The size of the arrays in a type, which may be a tuple."""
    found = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return sum(SIZES.get(t, 0) * math.prod(int(n) for n in shape.split(",") if n) for t, shape in found)


def _collective(line: str, kind: str) -> int | None:
    """The bytes that a device receives by a collective of a kind, or None for any other line."""
    made = re.search(rf"= (.*?) {kind}(-start)?\(", line)
    if not made:
        return None
    size = _bytes(made[1])
    if made[2]:
        size //= 2  # a start has its operand beside its result
    if devices := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        group = len(devices[1].split(","))
    elif devices := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        group = int(devices[1])
    else:
        return size  # a permute
    others = (group - 1) / group
    return round(size * {"all-gather": others, "all-to-all": others, "all-reduce": 2 * others}.get(kind, group - 1))


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """The number of collectives of each kind that a device takes part in, and the bytes that it receives by them."""
    found = {}
    for kind in COLLECTIVES:
        number = count(text, lambda line, kind=kind: _collective(line, kind) is not None)
        if number:
            found[kind] = round(number), round(count(text, lambda line, kind=kind: _collective(line, kind) or 0))
    return found


def largest_gather(text: str) -> int:
    """The bytes of the largest array that an all-gather makes."""
    return max((_bytes(types) for types in re.findall(r"= (.*?) all-gather(?:-start)?\(", text)), default=0)


def flops_of_products(text: str) -> float:
    """The FLOPs of the matrix products of a program for CPUs."""
    shapes: dict[str, list[int]] = {}
    for name, shape in re.findall(r"%?([\w.\-]+) = \w+\[([\d,]*)\]", text):
        shapes[name] = [int(n) for n in shape.split(",") if n]

    def weight(line: str) -> float:
        made = re.search(r"= \w+\[([\d,]*)\]\S* dot\((?:\w+\[[\d,]*\]\S* )?%?([\w.\-]+)", line)
        if not made:
            return 0.0
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", line)
        dims = [int(n) for n in contracted[1].split(",")] if contracted else []
        return 2.0 * math.prod(int(n) for n in made[1].split(",") if n) * math.prod(shapes[made[2]][d] for d in dims)

    return count(text, weight, fused=True)
