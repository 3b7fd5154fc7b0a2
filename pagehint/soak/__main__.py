"""`python -m pagehint.soak`."""

import sys

from pagehint.soak.soak import main

if __name__ == "__main__":
    sys.exit(main())
