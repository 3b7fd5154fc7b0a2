"""Somebody else's data memory handler for NumPy (NEP 49), and NumPy's C functions to set one."""

from __future__ import annotations

import ctypes

import numpy as np

handler_name = np._core.multiarray.get_handler_name

_NAME, _HANDLER_BYTES = 127, 127 + 1 + 5 * ctypes.sizeof(ctypes.c_void_p)
_SET_HANDLER, _GET_HANDLER = 304, 305  # in NumPy's table of C functions

_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
_table = (ctypes.c_void_p * 400).from_address(_pointer(np._core._multiarray_umath._ARRAY_API, None))
_kept = []  # NumPy may ask a handler for as long as the process runs

set_handler = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(_table[_SET_HANDLER])
get_handler = ctypes.PYFUNCTYPE(ctypes.py_object)(_table[_GET_HANDLER])
_default = get_handler()


def foreign_handler(name: bytes) -> object:
    """A handler that does as NumPy's own, under another name."""
    memory = ctypes.create_string_buffer(_HANDLER_BYTES)
    ctypes.memmove(memory, _pointer(_default, b"mem_handler"), _HANDLER_BYTES)
    ctypes.memmove(memory, name.ljust(_NAME, b"\0"), _NAME)
    _kept.append(memory)
    return _new(ctypes.addressof(memory), b"mem_handler", None)
