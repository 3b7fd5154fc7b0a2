"""``%load_ext pagehint``: NumPy on an arena, from a notebook. Needs IPython, which whoever loads it has."""

from __future__ import annotations

from typing import Any

from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_cell_magic, magics_class

from pagehint.arena.arena import Arena
from pagehint.numpy.installation import install, installed, uninstall
from pagehint.sizes import format_size


@magics_class
class PagehintMagics(Magics):
    """The magic ``%pagehint``."""

    @line_cell_magic
    def pagehint(self, line: str, cell: str | None = None) -> Any:
        """NumPy on an arena, which gives unused memory back to the operating system.

        %pagehint on         make NumPy's new arrays of 64 KiB or more in an arena
        %pagehint on 1       the same; free memory stays for one second, not for as long as is learnt
        %pagehint off        make new arrays in the C heap again; those in the arena stay
        %pagehint status     show what the arena holds: used, free and warm, given back
        %pagehint trim       give everything back that is free, now
        %%pagehint chart     run the cell, and draw the memory of this process meanwhile
        """
        command = line.strip() or "status"
        if cell is not None:
            if command != "chart":
                raise UsageError("a cell is for %%pagehint chart")
            self._chart(cell)
            return None
        verb, *seconds = command.split()
        if verb == "on" and len(seconds) <= 1:
            try:
                return install(min_age=float(seconds[0]) if seconds else None)
            except ValueError as error:
                raise UsageError(f"%pagehint {command}: {error}") from None
        if command == "off":
            uninstall()
            return None
        if command == "status":
            return self._arena().status()
        if command == "trim":
            print(f"{format_size(self._arena().trim())} given back")
            return None
        raise UsageError(f"%pagehint {command}: it is on, off, status or trim, or a cell's %%pagehint chart")

    def _chart(self, cell: str) -> None:
        try:
            from pagehint.notebook.chart import Chart
        except ImportError:
            raise UsageError("%%pagehint chart needs matplotlib: pip install 'pagehint[demo]'") from None
        chart = Chart()
        try:
            self.shell.run_cell(cell).raise_error()  # type: ignore[union-attr]
        finally:
            chart.end()

    def _arena(self) -> Arena:
        arena = installed()
        if arena is None:
            raise UsageError("NumPy is not on an arena: %pagehint on")
        return arena


def load(shell: InteractiveShell) -> None:
    """Register the magic."""
    shell.register_magics(PagehintMagics)
