"""`python -m pagehint.soak`: the same as `pagehint soak`."""

import sys

from pagehint.cli import main

if __name__ == "__main__":
    sys.exit(main(["soak", *sys.argv[1:]]))
