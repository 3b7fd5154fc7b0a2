"""Programs of `pagehint run` that can be asked what they hold, and a folder of their own for their sockets."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from started import environment

from pagehint.observing import places

MIB = 1 << 20


@contextmanager
def runtime_folder() -> Iterator[Path]:
    """A folder with a short path, as a socket's has at most 107 bytes. Sockets of this user elsewhere are not seen."""
    with tempfile.TemporaryDirectory(prefix="rt-", dir="/tmp") as folder:
        before, temporary = os.environ.get("XDG_RUNTIME_DIR"), places.TEMPORARY
        os.environ["XDG_RUNTIME_DIR"] = folder
        places.TEMPORARY = Path(folder, "no such folder")
        try:
            yield Path(folder)
        finally:
            places.TEMPORARY = temporary
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before


@contextmanager
def program(code: str, *options: str, lines: int = 1) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run a program until it has said so many lines; it is to wait for its standard input to end, and ends then."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(textwrap.dedent(code))
        file.flush()
        with subprocess.Popen(
            [sys.executable, "-m", "pagehint", "run", *options, file.name],
            env=environment(),
            cwd="/",
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            try:
                assert process.stdout is not None
                yield process, [process.stdout.readline().strip() for _ in range(lines)]
                process.communicate(timeout=60)
            finally:
                process.kill()


def sockets(folder: Path) -> list[str]:
    """The processes that have a socket there, by its name."""
    return sorted(path.name.split("-")[0] for path in (folder / "pagehint").iterdir())
