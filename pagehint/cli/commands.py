"""The table of commands, in the order of `pagehint --help`."""

from __future__ import annotations

from pagehint.cli.command import Command
from pagehint.cli.demo import Demo
from pagehint.cli.soak import Soak

COMMANDS: list[Command] = [
    Demo(),
    Soak(),
]
