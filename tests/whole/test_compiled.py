"""Compiled users: callbacks in C, by the capsule and the header; a consumer in Cython, by `pagehint/_core.pxd`."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import threading

import numpy as np
import pytest
from allocators import real

import pagehint as ph
from benchmarks.build import build_consumer

SOURCE = r"""
#include <errno.h>
#include "pagehint.h"

struct log { uint64_t calls, blocks, pages, fail_pfn; int answer; };

int hint(const pagehint_block *blocks, size_t n, uint8_t *failed, void *data)
{
    struct log *log = data;
    log->calls++;
    for (size_t i = 0; i < n; i++) {
        log->blocks++;
        log->pages += (uint64_t)1 << blocks[i].order;
        failed[i] = blocks[i].pfn == log->fail_pfn;
    }
    return log->answer;
}

const char *signature(void) { return PAGEHINT_HINT_SIGNATURE; }
"""


class Log(ctypes.Structure):
    _fields_ = (
        ("calls", ctypes.c_uint64),
        ("blocks", ctypes.c_uint64),
        ("pages", ctypes.c_uint64),
        ("fail_pfn", ctypes.c_uint64),
        ("answer", ctypes.c_int),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is needed, as for building pagehint"
    folder = tmp_path_factory.mktemp("compiled")
    (folder / "hint.c").write_text(SOURCE)
    command = [compiler, "-shared", "-fPIC", "-Wall", "-Werror", f"-I{ph.get_include()}", "-o", "hint.so", "hint.c"]
    subprocess.run(command, cwd=folder, check=True)
    loaded = ctypes.CDLL(str(folder / "hint.so"))
    loaded.signature.restype = ctypes.c_char_p
    return loaded


names = []


def capsule(library, log, name=None):
    api = ctypes.pythonapi
    api.PyCapsule_New.restype = ctypes.py_object
    api.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    api.PyCapsule_SetContext.argtypes = [ctypes.py_object, ctypes.c_void_p]
    name = name or library.signature()
    names.append(name)  # a capsule does not copy its name
    made = api.PyCapsule_New(ctypes.cast(library.hint, ctypes.c_void_p), name, None)
    api.PyCapsule_SetContext(made, ctypes.addressof(log))
    return made


@pytest.mark.parametrize("workqueue", ["thread", "manual"])
def test_a_compiled_function_is_called_without_python(library, workqueue):
    pages, log = real("1GiB"), Log(fail_pfn=1)
    with pages.hinting(ph.PageHintingCallbacks(capsule(library, log)), workqueue=workqueue):
        pages.flush_hinting()
        assert (log.calls, log.blocks, log.pages) == (16, 256, 1 << 18)
        assert pages.stats().blocks_reported == 256
    assert pages.last_error is None


def test_a_block_that_fails_alone_is_hinted_again(library):
    pages, log = real("1GiB"), Log(fail_pfn=2048)
    with pages.hinting(ph.PageHintingCallbacks(capsule(library, log)), workqueue="manual"):
        pages.flush_hinting()
        assert pages.stats().blocks_failed == 1
        assert pages.stats().hints_pending == 2
        assert "0x800" in str(pages.last_error)
        log.fail_pfn = 1
        pages.flush_hinting()
        assert pages.stats().hints_pending == 0


def test_a_batch_that_fails_says_why(library):
    pages, log = real("1GiB"), Log(fail_pfn=1, answer=-5)
    with pages.hinting(ph.PageHintingCallbacks(capsule(library, log)), workqueue="manual"):
        pages.flush_hinting()
        assert pages.stats().blocks_reported == 0
        assert os.strerror(errno.EIO) in str(pages.last_error)
    pages.verify()


def test_a_function_of_another_signature_is_refused(library):
    for name in (b"int (double)", b"int (pagehint_block *, size_t)"):
        with pytest.raises(TypeError, match="signature"):
            ph.PageHintingCallbacks(capsule(library, Log(), name))
    for name in (
        library.signature(),
        b"int (void *, size_t, uint8_t *, void *)",
        b"int(pagehint_block*,size_t,uint8_t*,void*)",
    ):
        ph.PageHintingCallbacks(capsule(library, Log(), name))


@pytest.fixture(scope="module")
def consumer(tmp_path_factory):
    return build_consumer(tmp_path_factory.mktemp("consumer"))


@pytest.mark.parametrize("pcp", [True, False], ids=["pcp", "no-pcp"])
def test_two_compiled_threads_never_have_the_same_page(consumer, pcp):
    """Without the GIL; every page has its owner's name on it, while the worker reports what is free."""
    pages = ph.PageAllocator("64MiB", pcp=pcp)
    owner = np.zeros(1 << 14, np.int32)
    clashes = {}

    def work(me):
        clashes[me] = consumer.churn(pages, owner, me, 20_000)

    with pages.hinting(ph.PageHintingCallbacks(consumer.noop_callback()), threshold=1, delay=0.001):
        threads = [threading.Thread(target=work, args=(me,)) for me in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert clashes == {1: 0, 2: 0}
    assert pages.last_error is None
    pages.verify()
    pages.drain_pcp()
    pages.verify()
    assert pages.stats().free_pages == 1 << 14


def test_compiled_bulk_takes_every_page_once(consumer):
    pages, pfns = ph.PageAllocator("64MiB"), np.zeros(1 << 14, np.uint64)
    consumer.alloc_bulk(pages, pfns, 1000)
    assert np.array_equal(np.sort(pfns), np.arange(1 << 14))
    with pytest.raises(RuntimeError, match="E_NOMEM"):
        consumer.pairs(pages, 1)
    consumer.free_bulk(pages, pfns, 1000)
    with pytest.raises(RuntimeError, match="E_FREE"):
        consumer.free_bulk(pages, pfns, 1000)
    pages.verify()
    assert pages.stats().free_pages == 1 << 14


def test_a_wrong_compiled_free_is_refused_with_its_code(consumer):
    pages = ph.PageAllocator("64MiB")
    small, large = pages.alloc_pages(), pages.alloc_pages(9)
    before = pages.stats()
    assert consumer.free(pages, large + 1, 9) == "E_ALIGN"
    assert consumer.free(pages, large, 8) == "E_SIZE"
    assert consumer.free(pages, large + 64, 6) == "E_INSIDE"
    assert consumer.free(pages, 1 << 14) == "E_NO_ZONE"
    after = pages.stats()
    assert after.allocated_pages == before.allocated_pages
    assert consumer.free(pages, large, 9) == "OK"
    assert consumer.free(pages, large, 9) == "E_FREE"
    assert consumer.free(pages, small) == "OK"
    assert consumer.free(pages, small) == "E_WITHHELD"  # by this CPU's page set
    pages.verify()


@pytest.mark.parametrize("order", [0, 1, 3])
def test_threads_free_each_others_blocks(consumer, order):
    """Half of the blocks are freed where they were not allocated, so that no leaf stays one set's own for long."""
    pages = ph.PageAllocator("256MiB")
    owner, shelf = np.zeros(65536, np.int32), np.zeros(97, np.uint64)
    cpus = sorted(os.sched_getaffinity(0))
    clashes = {}

    def work(me):
        os.sched_setaffinity(0, {cpus[me % len(cpus)]})
        clashes[me] = consumer.exchange(pages, owner, shelf, 200_000, order)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clashes == {0: 0, 1: 0, 2: 0}
    pages.verify()
    for left in shelf[shelf > 0].tolist():
        pages.free_pages(left - 1, order)
    pages.drain_pcp()
    pages.verify()
    assert pages.stats().free_pages == 65536
