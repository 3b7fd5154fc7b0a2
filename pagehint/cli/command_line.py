"""The main program: it makes the parsers, runs the command that was chosen, and reports what ended it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pagehint import __version__
from pagehint.cli import commands
from pagehint.cli.command import Command
from pagehint.errors import PageHintError


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, and whose --help to read: the command's or the main program's."""

    def error(self, message: str) -> NoReturn:
        """End the program with the message and status 2."""
        self.exit(2, f"pagehint: error: {message} (see {self.prog} --help)\n")


class CommandParser(Parser):
    """The parser of one command. It refuses what it does not know itself, so that the error names its --help.

    Of a command with a default for `program`, what follows the options is another program's: `program` is that, and
    argparse, which would take its options for the command's, does not see it.
    """

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse what follows the command's name."""
        nr_own = len(args) if self.get_default("program") is None else self._nr_options(args)
        found, unknown = super().parse_known_args(args[:nr_own], namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        if nr_own < len(args):
            found.program = args[nr_own:]
        return found, unknown

    def _nr_options(self, args: Sequence[str]) -> int:
        """Return how many are options, with their values, up to what Python takes as a program: its name, -, or -m."""
        n = 0
        while n < len(args) and args[n].startswith("-") and args[n] != "-" and not args[n].startswith("-m"):
            action = self._option_string_actions.get(args[n])
            n += 1 if action is None or action.nargs == 0 else 2
        return n


def make_parser() -> Parser:
    """Return the parser of all commands. `chosen` is the command (None without one), and the parser that is its own."""
    parser = Parser(
        prog="pagehint",
        description="Free page hinting in user space: give freed memory back to where it came from.",
        epilog="`pagehint COMMAND --help` lists the options of a command, and has examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pagehint {__version__}")
    parser.set_defaults(chosen=(None, parser))
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=CommandParser)
    for command in commands.COMMANDS:
        own = subparsers.add_parser(
            command.name, help=command.help, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        own.set_defaults(chosen=(command, own))
        command.arguments(own)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns
    -------
    int
        The exit status: the command's own, 1 for an error, 130 for Ctrl-C, 141 if nobody reads the output any more.

    Raises
    ------
    SystemExit
        After --help and --version, and with status 2 for bad arguments.
    """
    args = make_parser().parse_args(argv)
    command: Command | None
    command, parser = args.chosen
    if command is None:
        parser.print_help()
        return 0
    try:
        command.check(parser, args)
        status = command.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("pagehint: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # who reads the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush fails, too
        return 141
    except (PageHintError, OSError) as error:
        print(f"pagehint: error: {error}", file=sys.stderr)
        return 1
    except MemoryError as error:
        print(f"pagehint: error: not enough memory: {error}", file=sys.stderr)
        return 1
