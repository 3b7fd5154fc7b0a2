"""The command `pagehint`."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from pagehint.arena.base import HUGE_PAGE
from pagehint.demo.demo import MIB, available_bytes, run_both
from pagehint.errors import HostError, PageHintError
from pagehint.qemu.process import find_qemu
from pagehint.sizes import format_size, parse_size

_EPILOG = """\
examples:
  pagehint demo                            one GiB, twenty seconds, a table at the end
  pagehint demo --size 4GiB --seconds 60 --plot rss.png
  pagehint demo --advice free --json
  pagehint demo --host qemu                the same in a guest's RAM, reported to QEMU (extra "qemu")
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"pagehint: error: {message} (see {self.prog} --help)\n")


def _size(text: str) -> int:
    try:
        size = parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if size < 64 * MIB:
        raise argparse.ArgumentTypeError(f"{text!r} is too small to see anything; at least 64MiB")
    return size


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a number of seconds: {text!r}") from None
    if not (math.isfinite(seconds) and 0 < seconds <= 86400):
        raise argparse.ArgumentTypeError(f"seconds must be more than 0 and at most 86400, not {text}")
    return seconds


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pagehint",
        description="Free page hinting in user space: give freed memory back to where it came from.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pagehint {version('pagehint')}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="measure a bursty workload on this machine's memory, with hinting off and on",
        description="Run a bursty workload of arrays (grow, use, free, idle) in real memory, twice: with hinting off"
        " and on, each in a process of its own. Everything shown is measured.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument("--size", type=_size, default="1GiB", help="memory to work in (default: 1GiB)")
    demo.add_argument("--seconds", type=_seconds, default=20.0, help="time for both runs together (default: 20)")
    demo.add_argument(
        "--host", choices=("os", "qemu"), default="os",
        help="whose memory: this machine's, or the RAM of a guest, given back to a real QEMU (default: os)",
    )  # fmt: skip
    demo.add_argument(
        "--advice", choices=("dontneed", "free"),
        help="give memory back at once, or when the system is short of it (default: dontneed)",
    )  # fmt: skip
    demo.add_argument("--plot", type=Path, metavar="FILE", help="write a picture of RSS over time (.png, .svg, .pdf)")
    demo.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser


def _require(parser: argparse.ArgumentParser, module: str, what: str, extra: str = "demo") -> None:
    try:
        import_module(module)
    except ImportError:
        parser.exit(1, f"pagehint: error: {what} needs {module}: pip install 'pagehint[{extra}]'\n")


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what cannot end well before the work begins."""
    if args.host == "qemu":
        if args.advice:
            parser.error("--advice is for the operating system; QEMU is told over its balloon")
        _require(parser, "qemu.qmp", "--host qemu", "qemu")
        try:
            find_qemu(None)
        except HostError as error:
            parser.exit(1, f"pagehint: error: {error}\n")
        args.size -= args.size % HUGE_PAGE
        if args.size < 128 * MIB:
            parser.error("--size for --host qemu is at least 128MiB: a quarter of it stays in use")
    if args.size > available_bytes():
        parser.error(
            f"--size {format_size(args.size)} is more than the {format_size(available_bytes())} available here"
        )
    if not args.json:
        _require(parser, "rich", "the table (--json does without)")
    if args.plot:
        _require(parser, "matplotlib", "--plot")
        from pagehint.demo.plot import plottable

        if not plottable(args.plot):
            parser.error(f"--plot {args.plot}: not an ending that pictures have, such as .png")
        if not os.access(args.plot.parent, os.W_OK) or args.plot.is_dir():
            parser.error(f"--plot {args.plot}: cannot be written")


def _demo(args: argparse.Namespace) -> None:
    advice = args.advice or "dontneed"
    if args.json:
        outcome = run_both(args.size, args.seconds, advice, lambda name, done, rss: None, args.host)
        print(outcome.to_json())
    else:
        from pagehint.demo.table import live_progress, print_outcome

        with live_progress() as tell:
            outcome = run_both(args.size, args.seconds, advice, tell, args.host)
        where = "a guest's RAM in QEMU" if args.host == "qemu" else "an arena"
        how = "reported over its balloon" if args.host == "qemu" else f"advice {advice!r}"
        print_outcome(outcome, f"{where} of {format_size(args.size)}, {how}")
    if args.plot:
        from pagehint.demo.plot import plot_outcome

        plot_outcome(outcome, args.plot)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status: 0, 1 for a failure, 2 for bad arguments, 130 for Ctrl-C."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    _check(parser, args)
    try:
        _demo(args)
    except KeyboardInterrupt:
        print("pagehint: interrupted", file=sys.stderr)
        return 130
    except (PageHintError, OSError) as error:
        print(f"pagehint: error: {error}", file=sys.stderr)
        return 1
    return 0
