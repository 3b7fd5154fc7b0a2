"""The table of commands, in the order of `pagehint --help`."""

from __future__ import annotations

from pagehint.cli.command import Command
from pagehint.cli.demo import Demo
from pagehint.cli.replay import Replay
from pagehint.cli.run import Run
from pagehint.cli.soak import Soak
from pagehint.cli.status import Status
from pagehint.cli.traces import Traces

COMMANDS: list[Command] = [
    Demo(),
    Run(),
    Status(),
    Replay(),
    Traces(),
    Soak(),
]
