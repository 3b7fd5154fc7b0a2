"""For the tests against a real QEMU: arrays with known contents, what to wait for, what must be left behind."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import pagehint as ph
from pagehint.qemu.huge_pages import free_pages, require_transparent
from pagehint.qemu.process import BINARY

MIB = 1 << 20
NEEDED = 64  # huge pages
POOL = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
without_qemu = pytest.mark.skipif(
    shutil.which(BINARY) is None and "CI" not in os.environ, reason=f"{BINARY} is not installed"
)


def _missing(words):
    """Skip a test that needs huge pages; where .ci/run has made some, fail."""
    (pytest.fail if "PAGEHINT_HUGE_PAGES" in os.environ else pytest.skip)(words)


def need_huge_pages(kind):
    """Skip unless the machine has huge pages of this kind, as many as the tests need."""
    if kind == "2MiB" and free_pages() < NEEDED:
        _missing(f"{NEEDED} free huge pages are needed: echo {NEEDED} > {POOL}, as root")
    if kind == "thp":
        try:
            require_transparent()
        except ph.HostError as error:
            _missing(str(error))


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
