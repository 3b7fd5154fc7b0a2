"""What a command of `pagehint` is."""

from __future__ import annotations

import argparse
from typing import Protocol


class Command(Protocol):
    """A command: `pagehint NAME`. It is one file of this room, and one line in `commands.py`.

    The main program makes its parser, and calls `arguments` for each command, then `check` and `run` for the one that
    was chosen. Ctrl-C and errors are the main program's: a PageHintError, OSError or MemoryError, in `check` or `run`,
    is printed as one line, and the exit status is 1.

    Every command's file is imported at each start, so that whatever an extra installs is imported in the methods.

    Attributes
    ----------
    name : str
        What the user types.
    help : str
        One line for the list in `pagehint --help`.
    """

    name: str
    help: str

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options; set the parser's `description`, and its `epilog` to examples."""

    def check(self, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        """Refuse what cannot end well before the work begins: `parser.error` for arguments that do not go together."""

    def run(self, args: argparse.Namespace) -> int:
        """Do the work. Returns the exit status."""
        ...
