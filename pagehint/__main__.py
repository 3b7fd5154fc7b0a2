"""`python -m pagehint`: the command line."""

import sys

from pagehint.cli import main

if __name__ == "__main__":
    sys.exit(main())
