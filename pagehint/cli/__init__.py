"""The command `pagehint`, one file for each of its commands.

Begin with `command_line.py`. Uses every other room.
"""

from pagehint.cli.command_line import main

__all__ = ["main"]
