"""`pagehint traces`: recordings of a kernel made, looked at, and brought into the form that everything reads fast."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pagehint.cli.arguments import memory_size, seconds
from pagehint.cli.command import Command
from pagehint.extras import require
from pagehint.sizes import format_size
from pagehint.traces.files import convert
from pagehint.traces.folder import read_recording, recording_files
from pagehint.traces.record import TOOLS, record, script
from pagehint.traces.snapshots.files import read_snapshot, snapshot_bytes
from pagehint.traces.views.checking import check

_DESCRIPTION = """\
Recordings of what a kernel's page allocator did: events, and the state of all
pages before and after.
"""
_EXAMPLES = """\
examples:
  pagehint traces record FOLDER                    prints the commands that record this machine
  sudo pagehint traces record --run FOLDER         runs them
  pagehint traces check FOLDER                     what is lost, missing or contradictory
  pagehint traces convert FOLDER trace.parquet     under a byte an event, and read in no time
"""
_VERBS = {
    "record": "print the commands that record this machine, or run them",
    "check": "say what is lost, missing or contradictory, and how far to believe a replay",
    "convert": "write a recording as Parquet, with the states of its folder",
}


class Traces(Command):
    """`pagehint traces`."""

    name = "traces"
    help = "record a kernel's page allocator, check a recording, convert it"

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the verbs, each with its own."""
        parser.description = _DESCRIPTION
        parser.epilog = _EXAMPLES
        verbs = parser.add_subparsers(title="verbs", metavar="VERB", dest="verb", required=True)
        parsers = {verb: verbs.add_parser(verb, help=text, description=text) for verb, text in _VERBS.items()}

        recording = parsers["record"]
        recording.add_argument("folder", type=Path, help="where the recording goes; it must not exist")
        recording.add_argument("--run", action="store_true", help="run the commands, as root, instead of printing them")
        recording.add_argument("--seconds", type=seconds, default=10.0, help="how long (default: 10); Ctrl-C ends it")
        recording.add_argument("--with", dest="tool", choices=TOOLS, default="tracefs", help="(default: tracefs)")
        recording.add_argument(
            "--buffer", type=memory_size, default=64 << 20, help="of each CPU, in which events wait (default: 64MiB)"
        )

        checking = parsers["check"]
        checking.add_argument("trace", type=Path, help="a trace, or the folder of a recording")
        checking.add_argument("--snapshot", type=Path, help="the state before (default: what the folder has)")
        checking.add_argument("--after", type=Path, help="the state after (default: what the folder has)")
        checking.add_argument("--json", action="store_true", help="print one object")

        converting = parsers["convert"]
        converting.add_argument("trace", type=Path, help="a trace, or the folder of a recording")
        converting.add_argument("parquet", type=Path, help="the file to write")

    def check(self, parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
        """Refuse a Parquet file without the extra that writes it."""
        if args.verb == "convert":
            require("pyarrow", "Parquet", "traces")

    def run(self, args: argparse.Namespace) -> int:
        """Run the verb. `check` exits with 1 if the recording has a problem."""
        if args.verb == "record":
            return self._record(args)
        if args.verb == "check":
            return self._check(args)
        return self._convert(args)

    def _record(self, args: argparse.Namespace) -> int:
        options = (args.folder, args.seconds, args.tool, args.buffer)
        if args.run:
            record(*options)
            print(f"recorded in {args.folder}; next: pagehint traces check {args.folder}")
        else:
            print(script(*options), end="")
        return 0

    def _check(self, args: argparse.Namespace) -> int:
        found = check(*read_recording(args.trace, args.snapshot, args.after))
        print(json.dumps(found.to_dict(), indent=1) if args.json else found)
        return 0 if found.ok else 1

    def _convert(self, args: argparse.Namespace) -> int:
        source, *places = recording_files(args.trace)
        states = {
            name: snapshot_bytes(read_snapshot(place))
            for name, place in zip(("before", "after"), places, strict=True)
            if place is not None
        }
        convert(source, args.parquet, snapshots=states or None)
        sizes = [format_size(each.stat().st_size) for each in (source, args.parquet)]
        print(f"{source}, {sizes[0]}: {args.parquet}, {sizes[1]}")
        return 0
