"""`pagehint soak`: the soak, for so many minutes, with a progress bar and a report."""

from __future__ import annotations

import argparse
import logging
import random

from pagehint.cli.arguments import minutes
from pagehint.cli.command import Command
from pagehint.extras import require
from pagehint.soak.soak import soak

_DESCRIPTION = """\
Threads allocate and free in a model, and write canaries to arrays in an arena,
while others take memory offline and online, switch hinting on and off, change
its settings, and fail in its callbacks. About every second all metadata is
verified, and leaks are looked for at the end. Ctrl-C ends it early, with the
report. The exit status is 1 if anything was found.
"""
_EXAMPLES = """\
examples:
  pagehint soak --minutes 60
  pagehint soak --minutes 1 --seed 7       what is random is as it was with this seed before
"""


class Soak(Command):
    """`pagehint soak`."""

    name = "soak"
    help = "do everything at once, at random, for long, and check that it holds"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add how long, and the seed."""
        parser.description = _DESCRIPTION
        parser.epilog = _EXAMPLES
        parser.add_argument("--minutes", type=minutes, default=10.0, help="how long (default: 10)")
        parser.add_argument("--seed", type=int, help="of all that is random (default: another one each time)")

    def check(self, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        """Refuse to run without a progress bar."""
        require("rich", "the progress bar", "demo")

    def run(self, args: argparse.Namespace) -> int:
        """Run the soak. The exit status is 0, also after Ctrl-C, and 1 if anything was found."""
        from pagehint.soak.report import print_summary, progress_bar

        seed = random.randrange(1 << 31) if args.seed is None else args.seed
        logging.getLogger("pagehint").setLevel(logging.CRITICAL)  # the host fails on purpose
        print(f"seed {seed}: begins; {args.minutes:g} minutes", flush=True)
        with progress_bar(seed) as tell:
            summary = soak(args.minutes * 60, seed, tell)
        print_summary(summary, seed)
        return 1 if summary.findings else 0
