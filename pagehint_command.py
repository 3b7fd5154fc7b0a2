"""The command `pagehint`, outside the package: importing that takes a while, in which Ctrl-C shall be no traceback."""

import sys


def main() -> int:
    """Run the command; returns its exit status, as `pagehint.cli.main` does."""
    try:
        from pagehint import cli
    except KeyboardInterrupt:
        print("pagehint: interrupted", file=sys.stderr)
        return 130
    return cli.main()
