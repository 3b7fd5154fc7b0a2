"""`python -m pagehint`: the command line."""

import sys

from pagehint.cli import main

sys.exit(main())
