"""`pagehint status`: the running processes of this user that have pagehint, and what each holds."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from pagehint.cli.arguments import seconds
from pagehint.cli.command import Command
from pagehint.errors import PageHintError
from pagehint.extras import require
from pagehint.observing.asking import Process, look
from pagehint.observing.table import details, overview

_DESCRIPTION = """\
The running processes of this user that `pagehint run` has started, or that
have called pagehint.observing.answer(): what each holds, what it has given
back, and, of one, why the rest is not given back.
"""
_EXAMPLES = """\
examples:
  pagehint status                 all of them
  pagehint status 4711            one, with where its free memory is, and why
  pagehint status --watch 0.5     twice a second, until Ctrl-C
  pagehint status --json          for programs, in bytes
"""


class Status(Command):
    """`pagehint status`."""

    name = "status"
    help = "show what running processes hold, what they have given back, and why not the rest"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options."""
        parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
        parser.add_argument("pid", metavar="PID", type=int, nargs="?", help="one process (default: all)")
        parser.add_argument(
            "--watch", type=seconds, nargs="?", const=1.0, metavar="SECONDS",
            help="look again, every second if not said otherwise, until Ctrl-C",
        )  # fmt: skip
        parser.add_argument("--json", action="store_true", help="print one object, or with --watch one a line")

    def check(self, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        """Refuse to watch in a terminal without the extra that draws there."""
        if args.watch is not None and not args.json and sys.stdout.isatty():
            require("rich", "--watch (--json does without)", "demo")

    def run(self, args: argparse.Namespace) -> int:
        """Print what there is, or what there is over time."""
        if args.watch is None:
            print(_text(args))
            return 0
        try:
            (_show_for_ever if sys.stdout.isatty() and not args.json else _print_for_ever)(args)
        except KeyboardInterrupt:  # the way to end it
            return 0


def _look(args: argparse.Namespace) -> Sequence[Process]:
    processes = look(None if args.pid is None else [args.pid])
    if args.pid is not None and not processes:
        raise PageHintError(f"process {args.pid} of this user has no pagehint that can be asked, or has ended")
    return processes


def _text(args: argparse.Namespace) -> str:
    processes = _look(args)
    if args.json:
        found = {"time": time.time(), "processes": [each.to_dict() for each in processes]}
        return json.dumps(found, indent=None if args.watch is not None else 1)
    return overview(processes) if args.pid is None else "\n".join(map(details, processes))


def _print_for_ever(args: argparse.Namespace) -> NoReturn:
    while True:
        print(_text(args), flush=True)
        time.sleep(args.watch)


def _show_for_ever(args: argparse.Namespace) -> NoReturn:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as screen:
        while True:
            screen.update(Text(_text(args), no_wrap=True, overflow="ellipsis"), refresh=True)
            time.sleep(args.watch)
