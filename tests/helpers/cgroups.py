"""Real control groups, made below the one that the tests run in; a test is skipped where that cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from processes import run_code
from waiting import wait_for


def own_folder() -> tuple[Path, bool]:
    """Where this process's cgroup is, if it is where systems have it; and whether it is of version 2."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    for _, controllers, path in lines:
        if "memory" in controllers.split(","):
            return Path("/sys/fs/cgroup/memory" + path), False
    return Path("/sys/fs/cgroup" + next(path for number, _, path in lines if number == "0")), True


@contextmanager
def cgroup(limit: int, name: str = "memory.max") -> Iterator[Path]:
    """Make a cgroup with a limit, and another in it without one; yield the inner one's folder."""
    try:
        own, unified = own_folder()
        outer = own / f"pagehint-test-{os.getpid()}"
        outer.mkdir()
    except (OSError, StopIteration) as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    inner = outer / "inner"
    try:
        file = outer / (name if unified else "memory.limit_in_bytes")
        if not file.exists() or (name != "memory.max" and not unified):
            pytest.skip(f"cgroups have no {name} here")
        file.write_text(str(limit))
        inner.mkdir()
        yield inner
    finally:
        for folder in (inner, outer):
            wait_for(partial(gone, folder), "the last process of a cgroup")


def gone(folder: Path) -> bool:
    """Remove a cgroup; it may be busy for a moment after its last process has ended."""
    try:
        folder.rmdir()
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def run_inside(folder: Path, code: str) -> tuple[int, str, str]:
    """Run code in a process that is in a cgroup from its beginning."""
    return run_code(f"open({str(folder / 'cgroup.procs')!r}, 'w').write('0')\n" + code)
