"""`pagehint demo`: the demo, with a table, a picture, or figures as JSON."""

from __future__ import annotations

import argparse
from pathlib import Path

from pagehint.arena.base import HUGE_PAGE
from pagehint.cli.arguments import memory_size, seconds
from pagehint.cli.command import Command
from pagehint.cli.pictures import check_writable, plottable
from pagehint.demo.outcome import Outcome
from pagehint.demo.processes import run_both
from pagehint.demo.workload import MIB
from pagehint.extras import require
from pagehint.process_memory import available_bytes
from pagehint.qemu.process import find_qemu
from pagehint.sizes import format_size

_DESCRIPTION = """\
Run a bursty workload of arrays (grow, use, free, idle) in real memory, twice:
with hinting off and on, each in a process of its own. Everything shown is
measured.
"""
_EXAMPLES = """\
examples:
  pagehint demo                            one GiB, twenty seconds, a table at the end
  pagehint demo --size 4GiB --seconds 60 --plot rss.png
  pagehint demo --advice free --json
  pagehint demo --host qemu                the same in a guest's RAM, reported to QEMU (extra "qemu")
"""


class Demo(Command):
    """`pagehint demo`."""

    name = "demo"
    help = "measure a bursty workload on this machine's memory, with hinting off and on"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what to run, and what to make of it."""
        parser.description = _DESCRIPTION
        parser.epilog = _EXAMPLES
        parser.add_argument("--size", type=memory_size, default="1GiB", help="memory to work in (default: 1GiB)")
        parser.add_argument("--seconds", type=seconds, default=20.0, help="time for both runs together (default: 20)")
        parser.add_argument(
            "--host", choices=("os", "qemu"), default="os",
            help="whose memory: this machine's, or the RAM of a guest, given back to a real QEMU (default: os)",
        )  # fmt: skip
        parser.add_argument(
            "--advice", choices=("dontneed", "free"),
            help="give memory back at once, or when the system is short of it (default: dontneed)",
        )  # fmt: skip
        parser.add_argument(
            "--plot", type=Path, metavar="FILE", help="write a picture of RSS over time (.png, .svg, .pdf)"
        )
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")

    def check(self, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        """Refuse what does not fit into memory, a host that is not there, a picture that cannot be written."""
        least = 64 * MIB
        if args.host == "qemu":
            if args.advice:
                parser.error("--advice is for the operating system; QEMU is told over its balloon")
            require("qemu.qmp", "--host qemu", "qemu")
            find_qemu(None)
            args.size -= args.size % HUGE_PAGE
            least = 128 * MIB  # a quarter of it stays in use
        if args.size < least:
            parser.error(f"--size {format_size(args.size)} is too small to see anything; at least {format_size(least)}")
        if args.size > available_bytes():
            parser.error(
                f"--size {format_size(args.size)} is more than the {format_size(available_bytes())} available here"
            )
        if not args.json:
            require("rich", "the table (--json does without)", "demo")
        if args.plot:
            _check_plot(parser, args.plot)

    def run(self, args: argparse.Namespace) -> int:
        """Run the demo; print the table or JSON, and write the picture."""
        advice = args.advice or "dontneed"
        if args.json:
            outcome = run_both(args.size, args.seconds, advice, lambda name, done, rss: None, args.host)
            print(outcome.to_json())
        else:
            outcome = _run_with_table(args, advice)
        if args.plot:
            from pagehint.demo.plot import plot_outcome

            plot_outcome(outcome, args.plot)
        return 0


def _check_plot(parser: argparse.ArgumentParser, path: Path) -> None:
    require("matplotlib", "--plot", "demo")
    if not plottable(path):
        parser.error(f"--plot {path}: not an ending that pictures have, such as .png")
    check_writable(parser, "--plot", path)


def _run_with_table(args: argparse.Namespace, advice: str) -> Outcome:
    from pagehint.demo.table import live_progress, print_outcome

    with live_progress() as tell:
        outcome = run_both(args.size, args.seconds, advice, tell, args.host)
    where = "a guest's RAM in QEMU" if args.host == "qemu" else "an arena"
    how = "reported over its balloon" if args.host == "qemu" else f"advice {advice!r}"
    print_outcome(outcome, f"{where} of {format_size(args.size)}, {how}")
    return outcome
