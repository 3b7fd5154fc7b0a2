"""What processes hold, as text."""

from __future__ import annotations

from collections.abc import Sequence

from pagehint.columns import aligned
from pagehint.observing.asking import Process
from pagehint.observing.holdings import Holding
from pagehint.sizes import format_size

NOBODY = "no process of this user has pagehint that can be asked; `pagehint run` starts such"
_COLUMNS = (
    ("in use", "used"),
    ("warm", "warm"),
    ("beside others", "fragmented"),
    ("given back", "given_back"),
    ("again", "again"),
)
_NOTE = """\
of arenas: in use; warm: in memory and free; beside others: as warm, but not a whole granule (2 MiB); given back so far,
and of this handed out again before the break-even age. `pagehint status PID` says why not all that is free"""
_COMMAND = 40  # characters


def overview(processes: Sequence[Process]) -> str:
    """Return a table with a line for each process."""
    if not processes:
        return NOBODY
    rows = [("process", "resident", *(head for head, _ in _COLUMNS)), *(_row(each) for each in processes)]
    ends = ["command", *(_end(each) for each in processes)]
    lines = [f"{line}  {end}" for line, end in zip(aligned(rows), ends, strict=True)]
    return "\n".join([*lines, _NOTE])


def details(process: Process) -> str:
    """Return what a process holds, and of each arena where the free memory is, and why."""
    if process.holdings is None:
        return overview([process])
    parts = [overview([process])]
    for number, arena in enumerate(process.holdings.arenas, 1):
        parts.append(f"\narena {number} of at most {format_size(arena.size)}{_condition(arena)}\n{arena.free!r}")
    return "\n".join(parts)


def _row(process: Process) -> tuple[str, ...]:
    holdings = process.holdings
    if holdings is None:
        return (str(process.pid),)
    totals = [holdings.total(name) for _, name in _COLUMNS]
    sizes = ("?" if total is None else format_size(total) for total in totals)
    return (str(process.pid), format_size(holdings.resident), *sizes)


def _end(process: Process) -> str:
    command = process.command
    short = command if len(command) <= _COMMAND else f"{command[: _COMMAND - 3]}..."
    return f"{short}: {process.trouble}" if process.trouble else short


def _condition(arena: Holding) -> str:
    """What is out of the ordinary with an arena."""
    conditions = {
        "hinting is off": not arena.hinting,
        "memory is short, so that nothing stays warm": arena.memory_short,
        "what is in memory is estimated": arena.estimated,
    }
    return "".join(f"; {condition}" for condition, holds in conditions.items() if holds)
