"""Functions that libraries of this process export, wherever they are: an allocator that came with a library, say."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from typing import Final

_dl: Final = ctypes.CDLL(None)
_dl.dlopen.restype = ctypes.c_void_p
_dl.dlopen.argtypes = (ctypes.c_char_p, ctypes.c_int)
_dl.dlsym.restype = ctypes.c_void_p
_dl.dlsym.argtypes = (ctypes.c_void_p, ctypes.c_char_p)
_dl.dlclose.argtypes = (ctypes.c_void_p,)


def exported(paths: Iterable[str], names: Iterable[str]) -> dict[int, str]:
    """Return the functions of these names in libraries that are loaded: their names by their addresses.

    What several libraries find in one that they share is there once.
    """
    found: dict[int, str] = {}
    wanted = list(names)
    for handle in _handles(paths):
        for name in wanted:
            address = _dl.dlsym(handle, name.encode())
            if address:
                found.setdefault(address, name)
    return found


def _handles(paths: Iterable[str]) -> Iterator[int]:
    """Yield a handle for each library that is loaded, and none for other files; it is good until the next one."""
    for path in paths:
        handle = _dl.dlopen(os.fsencode(path), os.RTLD_NOLOAD | os.RTLD_LAZY)
        if handle:
            try:
                yield handle
            finally:
                _dl.dlclose(handle)
