"""What the fuzzer's bytes mean: a machine, and operations on it. Any bytes do; small changes of them are small ones.

Examples are kept as text, which still means the same when there are other operations: `fuzz/examples/*.json`, the seeds
of the corpus and what has failed. `python -m fuzz.inputs seed DIR` writes them as inputs, `… keep FILE …` keeps inputs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pagehint.testing import LAYOUTS, Operation
from pagehint.testing.manual_checker import ManualChecker

EXAMPLES = Path(__file__).parent / "examples"
NAMES = sorted(LAYOUTS)
KINDS = list(ManualChecker.operations.items())
MOST = 60  # operations; more take longer, and hardly get anywhere else


def decode(data: bytes) -> tuple[str, list[Operation]]:
    """One byte for the machine; then, for each operation, one for its name and two for each of its arguments."""
    layout = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
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


def load(example: Path) -> tuple[str, list[Operation]]:
    """Read a kept example."""
    text = json.loads(example.read_text())
    return text["layout"], [(name, values) for name, values in text["operations"]]


def keep(data: bytes, name: str) -> Path:
    """Keep an input as an example."""
    layout, operations = decode(data)
    lines = ",\n".join(f"  {json.dumps(operation)}" for operation in operations)
    example = EXAMPLES / f"{name}.json"
    example.write_text(f'{{"layout": {json.dumps(layout)}, "operations": [\n{lines}\n]}}\n')
    return example


def main() -> None:
    """Write the examples as inputs, or keep inputs as examples."""
    command, *paths = sys.argv[1:]
    if command == "seed":
        for example in EXAMPLES.glob("*.json"):
            (Path(paths[0]) / example.stem).write_bytes(encode(*load(example)))
    elif command == "keep":
        for path in map(Path, paths):
            print(f"kept as {keep(path.read_bytes(), path.name)}")


if __name__ == "__main__":
    main()
