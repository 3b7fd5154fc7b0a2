"""Whole numbers that callers pass, as C numbers: what is out of range or no integer is refused, nothing is rounded.

The functions are inline, since every call goes through some of them. Inline functions of a `.pxd` cannot use names of a
module, so the errors are imported where they are raised.
"""
from cpython.number cimport PyNumber_Index
from libc.stdint cimport uint64_t

cdef extern from *:
    """
    /* The value of an int from 0 to 2**30 - 1, or -1 for anything else. Nearly every argument is small: no call. */
    static inline long ph_small_int(PyObject *o)
    {
        if (!PyLong_CheckExact(o))
            return -1;
    #if PY_VERSION_HEX >= 0x030C0000
        return PyUnstable_Long_IsCompact((PyLongObject *)o) ? (long)PyUnstable_Long_CompactValue((PyLongObject *)o) : -1;
    #else
        return Py_SIZE(o) == 1 ? (long)((PyLongObject *)o)->ob_digit[0] : Py_SIZE(o) == 0 ? 0 : -1;
    #endif
    }
    """
    long small_int "ph_small_int" (object)

cdef extern from "Python.h":
    uint64_t PyLong_AsUnsignedLongLong(object) noexcept
    void *PyErr_Occurred() noexcept
    void PyErr_Clear() noexcept


cdef inline uint64_t as_pfn(object pfn) except? 0xFFFFFFFFFFFFFFFF:
    """A page frame number; BadPageError if it is negative or has more than 64 bits."""
    cdef uint64_t number
    cdef long small = small_int(pfn)
    if small >= 0:
        return small
    if type(pfn) is not int:
        pfn = PyNumber_Index(pfn)       # refuses a float, whose fraction would be lost
    # Without `try`, which costs as much as the rest of the call even if nothing is raised.
    number = PyLong_AsUnsignedLongLong(pfn)
    if number == <uint64_t>-1 and PyErr_Occurred():
        PyErr_Clear()
        from pagehint import errors, sizes
        raise errors.BadPageError(f"PFN {sizes.shown(pfn)} is outside every zone")
    return number


cdef inline uint64_t as_count(object count, str what, uint64_t least) except? 0xFFFFFFFFFFFFFFFF:
    """A number of pages or blocks from `least` to 2**52 - 1, else BadPageError; `what` is its name in the message."""
    cdef object number = PyNumber_Index(count)
    if not least <= number < 1 << 52:
        from pagehint import errors, sizes
        raise errors.BadPageError(f"{what} must be from {least} to 2**52, not {sizes.shown(number)}")
    return number


cdef inline uint64_t as_positive(object number, str what) except 0:
    """A setting from 1 to 2**20, else ValueError; `what` is its name in the message."""
    cdef object value = PyNumber_Index(number)
    if not 1 <= value <= 1 << 20:
        from pagehint import sizes
        raise ValueError(f"{what} must be from 1 to 2**20, not {sizes.shown(value)}")
    return value
