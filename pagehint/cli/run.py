"""`pagehint run`: a program, and every Python that it starts, with NumPy's arrays in an arena."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pagehint.cli.arguments import address, age, memory_size, seconds
from pagehint.cli.command import Command
from pagehint.extras import require
from pagehint.malloc.library import THRESHOLD
from pagehint.running.interpreter import environment, python, require_hook
from pagehint.running.settings import Settings
from pagehint.running.summary import summary
from pagehint.running.supervise import end_as, supervise

_DESCRIPTION = """\
Run a program, and every Python that it starts (multiprocessing, subprocess,
joblib), with NumPy's arrays in an arena that gives back what is free. It is
started by Python itself, and nothing else of it is changed.
"""
_EXAMPLES = """\
examples:
  pagehint run train.py --epochs 3
  pagehint run --summary -m pytest tests
  pagehint run --malloc etl.py                memory of pandas, Arrow, torch, ...
  pagehint run --metrics 127.0.0.1:9464 server.py
  pagehint run --trace run.json train.py      for ui.perfetto.dev
  pagehint run --size 8GiB --min-age 0.5 server.py
  python -X dev -m pagehint run script.py     Python's own options
"""


class Run(Command):
    """`pagehint run`."""

    name = "run"
    help = "run a program, and every Python that it starts, with its arrays in an arena"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options; the program and its arguments come after them, and are kept as they are."""
        parser.description, parser.epilog = _DESCRIPTION, _EXAMPLES
        parser.usage = "pagehint run [OPTIONS] (SCRIPT | -m MODULE) [ARGUMENTS]"
        parser.allow_abbrev = False
        parser.set_defaults(program=[])  # what follows the options: see `CommandParser`
        parser.add_argument(
            "--size", type=memory_size, help="of each process's arena (default: the memory that it can have)"
        )
        parser.add_argument(
            "--min-age", type=age, metavar="SECONDS",
            help='how long memory must have been free before it goes back, or "auto": learnt (default: auto)',
        )  # fmt: skip
        parser.add_argument(
            "--cost", type=seconds, metavar="SECONDS",
            help="with auto: for how long keeping memory costs as much as having it come back (default: 1)",
        )  # fmt: skip
        parser.add_argument(
            "--hugepages", action=argparse.BooleanOptionalAction, help="whether to ask for huge pages (default: yes)"
        )
        parser.add_argument(
            "--malloc", action="store_true",
            help="serve large requests of malloc, too, whichever library makes them",
        )  # fmt: skip
        parser.add_argument(
            "--malloc-threshold", type=memory_size, metavar="SIZE",
            help="what is large (default: 32KiB); a request gets whole pages",
        )  # fmt: skip
        parser.add_argument(
            "--summary", action="store_true", help="at the end, a table of the processes that had an arena, on stderr"
        )
        parser.add_argument(
            "--metrics", type=address, metavar="HOST:PORT",
            help="serve metrics of all its processes in OpenMetrics text; port 0: a free one",
        )  # fmt: skip
        parser.add_argument(
            "--trace", type=Path, metavar="FILE",
            help="write what its processes hold over time, as JSON that Perfetto reads",
        )  # fmt: skip

    def check(self, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        """Refuse settings with which there can be no arena, and a Python without the hook."""
        if not args.program:
            parser.error("there is no program: name a script, or -m and a module")
        if args.malloc_threshold is not None and not args.malloc:
            parser.error("--malloc-threshold is for --malloc")
        if args.metrics is not None:
            require("prometheus_client", "--metrics", "metrics")
        malloc = THRESHOLD if args.malloc and args.malloc_threshold is None else args.malloc_threshold
        try:
            args.settings = Settings.checked(
                size=args.size, min_age=args.min_age, cost=args.cost, hugepages=args.hugepages, malloc=malloc
            )
        except ValueError as error:
            parser.error(str(error))
        require_hook(python(), args.settings)

    def run(self, args: argparse.Namespace) -> int:
        """Become the program; with a summary, metrics or a trace, wait for its end, and end as it did."""
        command = [*python(), *args.program]
        sys.stdout.flush()
        sys.stderr.flush()
        if not args.summary and args.metrics is None and args.trace is None:
            os.execve(command[0], command, environment(args.settings))
        status, first, ended = supervise(command, args.settings, args.metrics, args.trace)
        if args.summary:
            print(summary(ended, first), file=sys.stderr, flush=True)
        return end_as(status)
