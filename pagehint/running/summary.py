"""The table of a program's processes."""

from __future__ import annotations

from collections.abc import Sequence

from pagehint.columns import aligned
from pagehint.running.account import Balance
from pagehint.running.sample import Process
from pagehint.sizes import format_size

_HEAD = ("process", "peak", "mean", "last", "given back", "again")
_NOTE = """\
peak, mean, last: resident memory, looked at 20 times a second from the import of NumPy, or the fork, on
given back: by the arena. again: of this, handed out again before the break-even age
?: not known, as of a process that was killed, left by os._exit, still runs, or was too short"""


def summary(ended: Sequence[tuple[Process, Balance | None]], first: int) -> str:
    """Return the table, the program itself first. `first` is its process."""
    if not ended:
        return "pagehint: no process of the program has imported NumPy, so none had an arena"
    lines = sorted(ended, key=lambda each: each[0].pid != first)  # else in their order
    rows = [_HEAD, *(_row(process, balance, process.pid == first) for process, balance in lines)]
    return "\n".join([*aligned(rows), _NOTE])


def _row(process: Process, balance: Balance | None, program: bool) -> tuple[str, ...]:
    given_back, again = (None, None) if balance is None else (balance.given_back, balance.again)
    figures = (process.peak, process.mean, process.last, given_back, again)
    name = f"{process.pid} (program)" if program else str(process.pid)
    return (name, *("?" if figure is None else format_size(figure) for figure in figures))
