"""The command `pagehint`, one file for each of its commands.

Begin with `command.py`, what a command is, and `commands.py`, the table of all; a new one is a file and a line in that
table. `command_line.py` is the main program. Uses every other room.
"""

from pagehint.cli.command_line import main

__all__ = ["main"]
