"""The entry point of the command `pagehint`.

It is outside the package, because importing that takes a while, and Ctrl-C meanwhile must not be a traceback.
"""

import sys


def main() -> int:
    """Run the command; returns its exit status, as `pagehint.cli.main` does."""
    try:
        from pagehint import cli
    except KeyboardInterrupt:
        print("pagehint: interrupted", file=sys.stderr)
        return 130
    return cli.main()
