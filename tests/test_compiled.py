"""Compiled callbacks: the capsule and the header, used from C as anybody would."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest
from conftest import real

import pagehint as ph

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
        assert "Input/output error" in str(pages.last_error)
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
