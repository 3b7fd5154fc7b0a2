"""For the tests against a real QEMU: arrays with known contents, what to wait for, what must be left behind."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import pagehint as ph
from pagehint.qemu.process import BINARY

MIB = 1 << 20
without_qemu = pytest.mark.skipif(
    shutil.which(BINARY) is None and "CI" not in os.environ, reason=f"{BINARY} is not installed"
)


def small_host():
    """A fixture: a host with little memory."""
    with ph.qemu.Host("256MiB", timeout=5) as made:
        yield made


def filled(arena, nr_bytes, seed=1):
    array = arena.empty(nr_bytes // 8, np.uint64)
    array[:] = np.random.default_rng(seed).integers(1 << 60, size=len(array), dtype=np.uint64)
    return array


def is_whole(array, seed=1):
    return (array == np.random.default_rng(seed).integers(1 << 60, size=len(array), dtype=np.uint64)).all()


def open_files():
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
