"""The process of one run of the demo: `python -m pagehint.demo.child SIZE SECONDS ADVICE HOST`.

What it writes is described in `processes.py`. Nothing may import this file: Python warns of a module that is run with
`-m` and was imported before.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from typing import Any

from pagehint.demo.measuring import measure


def say(message: dict[str, Any]) -> None:
    """Write a line to the parent."""
    try:
        print(json.dumps(message), flush=True)
    except BrokenPipeError:
        # The parent has gone. This is called in the sampler's thread, too, of which an exception would be the only end.
        os._exit(130)


def main(size: str, seconds: str, advice: str, host: str) -> None:
    """Run the workload and tell the parent about it."""
    try:
        measured = measure(int(size), float(seconds), advice, lambda done, rss: say({"done": done, "rss": rss}), host)
        say({"measured": asdict(measured)})
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C goes to the parent as well, which says so


if __name__ == "__main__":
    main(*sys.argv[1:])
