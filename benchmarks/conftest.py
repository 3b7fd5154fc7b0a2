from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest

import pagehint as ph

TOP = 10


class LinkedList:
    """The yardstick, `linked_list_buddy.c`, with the names of `PageAllocator`."""

    library: ctypes.CDLL

    def __init__(self, gib: int) -> None:
        self._buddy = ctypes.c_void_p(self.library.buddy_create(ctypes.c_uint64(gib << 18)))
        self._blocks = gib << 8
        self.bytes_per_page = 12.0

    def __del__(self) -> None:
        self.library.buddy_destroy(self._buddy)

    def alloc_pages_bulk(self, count: int, order: int = 0) -> np.ndarray:
        pfns = np.empty(count, np.uint64)
        self.library.buddy_alloc(self._buddy, ctypes.c_void_p(pfns.ctypes.data), ctypes.c_uint64(count), order)
        return pfns

    def free_pages_bulk(self, pfns: np.ndarray, order: int = 0) -> None:
        self.library.buddy_free(self._buddy, ctypes.c_void_p(pfns.ctypes.data), ctypes.c_uint64(len(pfns)), order)

    def all_free(self) -> bool:
        return self.library.buddy_free_blocks(self._buddy, TOP) == self._blocks


class PageHint(ph.PageAllocator):
    """The real one, without page sets."""

    def __new__(cls, gib: int) -> PageHint:
        return super().__new__(cls, f"{gib}GiB", pcp=False)

    @property
    def bytes_per_page(self) -> float:
        return self.zones[0].metadata_bytes / self.zones[0].managed_pages

    def all_free(self) -> bool:
        return self.zones[0].nr_free[TOP] << TOP == self.zones[0].managed_pages


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="1 GiB only, as a smoke test")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "gib" in metafunc.fixturenames:
        metafunc.parametrize("gib", [1] if metafunc.config.getoption("quick") else [1, 16, 128], ids="{}GiB".format)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    target = tmp_path_factory.mktemp("yardstick") / "buddy.so"
    source = Path(__file__).with_name("linked_list_buddy.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-Wall", "-Werror", "-o", target, source], check=True)
    loaded = ctypes.CDLL(str(target))
    loaded.buddy_create.restype = ctypes.c_void_p
    loaded.buddy_free_blocks.restype = ctypes.c_uint64
    return loaded


@pytest.fixture(params=[PageHint, LinkedList], ids=["pagehint", "linked-list"])
def pages(request: pytest.FixtureRequest, gib: int, library: ctypes.CDLL):
    LinkedList.library = library
    return request.param(gib)
