"""From bytes to a machine and operations on it, so that any input is one, and small changes of it are small ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pagehint._judge import ManualJudge
from pagehint.testing import LAYOUTS, Operation, ZoneLayout

NAMES = sorted(LAYOUTS)
KINDS = list(ManualJudge.operations.items())
MOST = 60  # operations; more in one input are slower, and hardly reach anything else


def decode(data: bytes) -> tuple[ZoneLayout, list[Operation]]:
    """One byte for the machine; then, for each operation, one for its name and two for each of its arguments."""
    layout = LAYOUTS[NAMES[data[0] % len(NAMES)]] if data else LAYOUTS[NAMES[0]]
    operations: list[Operation] = []
    at = 1
    while at < len(data) and len(operations) < MOST:
        name, arguments = KINDS[data[at] % len(KINDS)]
        at += 1
        values: dict[str, Any] = {}
        for argument, choices in arguments.items():
            values[argument] = choices[int.from_bytes(data[at : at + 2], "little") % len(choices)]
            at += 2
        operations.append((name, values))
    return layout, operations


def encode(layout: str, operations: Iterable[Operation]) -> bytes:
    """What `decode` makes these of."""
    names = [name for name, _ in KINDS]
    data = bytes([NAMES.index(layout)])
    for name, values in operations:
        kind = names.index(name)
        data += bytes([kind])
        for argument, choices in KINDS[kind][1].items():
            data += choices.index(values[argument]).to_bytes(2, "little")
    return data
