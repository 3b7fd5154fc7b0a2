"""`pagehint replay`: what hinting policies would have returned on a recorded machine, how soon, and at what cost."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pagehint.cli.command import Command
from pagehint.cli.pictures import check_writable, plottable
from pagehint.errors import PageHintError
from pagehint.extras import require
from pagehint.policies.comparison import replay
from pagehint.policies.names import BUILT_IN, policy_of
from pagehint.replaying.progress import steps_bar
from pagehint.traces.events import Event
from pagehint.traces.folder import read_recording
from pagehint.traces.views.view import VIEWS

DEFAULT = ("recorded", "linux", "v10", "threshold", "age:1s", "auto")

_DESCRIPTION = """\
Replays a kernel's recording page by page, and says what each policy would have
returned to the host. TRACE is a trace, or a folder with trace.txt.gz (or
another form), before/ and after/.

policies:
"""
_EXAMPLES = """\
examples:
  pagehint replay FOLDER
  pagehint replay FOLDER --policy linux --policy age:500ms --policy optimum:1s
  pagehint replay trace.parquet --snapshot before --json
  pagehint replay FOLDER --html report.html --plot report.png
"""


class Replay(Command):
    """`pagehint replay`."""

    name = "replay"
    help = "compare hinting policies on a kernel's recording"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the recording, the policies, and where the results go."""
        parser.description = _DESCRIPTION + "\n".join(f"  {name:<12}{text}" for name, text in BUILT_IN.items())
        parser.epilog = _EXAMPLES
        parser.add_argument("trace", metavar="TRACE", type=Path, help="the recording")
        parser.add_argument("--snapshot", metavar="DIR", type=Path, help="the state before (default: TRACE/before)")
        parser.add_argument("--after", metavar="DIR", type=Path, help="the state after (default: TRACE/after)")
        parser.add_argument(
            "--policy", metavar="NAME", action="append", help=f"may be repeated (default: {', '.join(DEFAULT)})"
        )
        parser.add_argument(
            "--events", choices=[*VIEWS], help="what is believed: every event, the kernel's own, alloc and free alone"
        )
        parser.add_argument("--begin", metavar="MARK", help="policies are switched on at a mark with this text in it")
        parser.add_argument(
            "--resident", action="store_true", help="the host begins with what the snapshot says it had, not with all"
        )
        parser.add_argument("--json", action="store_true", help="print one object")
        parser.add_argument("--html", metavar="FILE", type=Path, help="write a page: the table and the pictures")
        parser.add_argument("--plot", metavar="FILE", type=Path, help="write the pictures, in the format of its ending")

    def check(self, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        """Refuse unknown policies, and pictures that cannot be drawn."""
        for name in args.policy or ():
            try:
                policy_of(name)
            except ValueError as error:
                parser.error(str(error))
        if args.html or args.plot:
            require("matplotlib", "a picture", "demo")
        for option, path in (("--html", args.html), ("--plot", args.plot)):
            if path:
                check_writable(parser, option, path)
        if args.plot and not plottable(args.plot):
            parser.error(f"--plot: no picture can be written as {args.plot.suffix or 'a file without an ending'}")

    def run(self, args: argparse.Namespace) -> int:
        """Compare, and print or write. The exit status is 0."""
        with steps_bar(not args.json) as step:
            step("recording", 0, 0)
            trace, before, after = read_recording(args.trace, args.snapshot, args.after)
            known = [name for name in DEFAULT if name != "recorded" or Event.PUTBACK in trace.counts]
            try:
                found = replay(
                    trace,
                    args.policy or known,
                    before=before,
                    after=after,
                    events=args.events,
                    begin=args.begin,
                    resident=args.resident,
                    name=args.trace.resolve().name,
                    progress=step,
                )
            except ValueError as error:  # a mark that the recording does not have
                raise PageHintError(str(error)) from None
        if args.html or args.plot:
            from pagehint.policies.plots import plot_comparison, write_page

            if args.plot:
                plot_comparison(found, args.plot)
            if args.html:
                write_page(found, args.html)
        print(json.dumps(found.to_dict(), indent=1) if args.json else found)
        return 0
