"""Values that nobody should call anything with, by what they are not: integers, sizes, arrays, names."""

from __future__ import annotations

import datetime
import enum
import itertools
from decimal import Decimal
from fractions import Fraction

import numpy as np

import pagehint as ph


class Angry:
    """Raises whatever it is asked."""

    class AngryError(Exception):
        pass

    def _raise(self, *args):
        raise self.AngryError("no")

    __index__ = __int__ = __float__ = __bool__ = __iter__ = __len__ = __array__ = __call__ = __str__ = _raise
    __eq__ = _raise
    __hash__ = object.__hash__


class Index:
    """Whatever it was made of, as an index."""

    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


class One(int):
    pass


class OneOf(enum.IntEnum):
    ONE = 1


class LowLevelCallable(tuple):
    """Has the name of scipy's."""


NAN, INF = float("nan"), float("inf")


NO_INTEGERS = [
    None, "1", "", b"1", 1.0, NAN, INF, -INF, 1j, Decimal(1), Fraction(1), object(), [], [1], (1,), {}, {1}, int, print,
    Ellipsis, np.float64(1), np.float32(NAN), np.bool_(True), np.str_("1"), np.datetime64(1, "s"),
    np.timedelta64(1, "s"), np.array([1]), np.array([1, 2]), np.array(1.0), np.array(None, object), np.void(b"1"),
    np.ma.masked, Index("1"), Index(1.0), Angry(), datetime.timedelta(1),
]  # fmt: skip


TOO_SMALL = [-1, -(2**31), -(2**63), -(2**64), -(2**200), -(10**5000), np.int8(-1), np.int64(-(2**63)), Index(-1)]


TOO_LARGE = [2**52, 2**63, 2**64 - 1, 2**64, 2**64 + 1, 2**200, 10**5000, np.uint64(2**64 - 1), Index(2**200)]


ONES = [True, np.int64(1), np.uint8(1), np.array(1), np.array(1, object), One(1), OneOf.ONE, Index(1)]


NO_NUMBERS = [None, "1", b"1", 1j, object(), [], [1.0], {}, np.array([1.0, 2.0]), Angry(), int, np.datetime64(1, "s")]


NO_INTEGERS_AND_RANGE = [*NO_INTEGERS, *TOO_SMALL, *TOO_LARGE]


BUT_NONE = [value for value in NO_INTEGERS_AND_RANGE if value is not None]


NO_NAMES = [1, b"movable", "Movable", "movable ", "", "movable\0", [], ["movable"], object(), NAN, Angry(), "isolated"]


NO_SIZES = [
    *[value for value in NO_INTEGERS if not isinstance(value, str)], *TOO_SMALL, 0, "", "0", "-1MiB", "1.5", "1e6",
    "nan", "inf", "infGiB", "1 XiB", "GiB", "1GiB1", "1GiB\0", "\N{FULLWIDTH DIGIT ONE}GiB", "99999999999999EiB",
    "9" * 5000, "9" * 4000 + "EiB", "0.1B", 2**200, 10**5000, "-0", "+1", "0x1000", "1_000",
]  # fmt: skip


BLOCKS = np.array([(0, 0), (1, 1)], [("pfn", "u8"), ("order", "u4")])


NO_PFNS = [
    None, 5, "5", "abc", b"abc", 1.5, NAN, object(), {}, {5}, Angry(), [Angry()], [None], ["5"], [1.5], [NAN], [INF],
    [1j], [[1, 2]], [[1], [2, 3]], [object()], [-1], [2**64], [2**200], [-(10**5000)], [1, "2"], [True], [Index("x")],
    np.array(5), np.array([[5]]), np.zeros(3), np.array([NAN]), np.zeros(2, bool), np.zeros(2, complex), BLOCKS,
    np.array(["5"]), np.array([b"5"]), np.array([None]), np.array([1.5], object), np.array([-5]), np.array([2**70]),
    np.array([1], "datetime64[s]"), np.array([1], "timedelta64[s]"), np.zeros(2, np.float16), np.zeros(2, "V8"),
    np.zeros((0, 2)), np.array([5, 5]), np.array([2**64 - 1], np.uint64), np.array([2**52]), range(-3, 3), iter([1]),
    itertools.count, np.zeros(1, ph.OP_DTYPE),
]  # fmt: skip


NO_OPS = [
    None, 5, "abc", [], [(0, 0, 0)], object(), Angry(), np.zeros(3), np.zeros(3, np.uint64), np.array(None, object),
    np.zeros((), ph.OP_DTYPE), np.zeros((2, 2), ph.OP_DTYPE), np.zeros(2, ph.OP_DTYPE.newbyteorder()), BLOCKS,
    np.zeros(2, [("slot", "u4"), ("order", "u2")]), np.zeros(2, [("order", "u2"), ("op", "u2"), ("slot", "u4")]),
    np.zeros(2, {"names": ["slot", "order", "op"], "formats": ["u4", "u2", "u2"], "offsets": [4, 2, 0]}),
    np.zeros(2, np.dtype({"names": ["slot", "order", "op"], "formats": ["u4", "u2", "u2"], "itemsize": 16})),
    *[np.array([op], ph.OP_DTYPE) for op in [(9, 0, 0), (2**32 - 1, 0, 0), (0, 10, 0), (0, 65535, 0), (0, 0, 2)]],
    np.array([(0, 0, 65535)], ph.OP_DTYPE), np.array([(3, 0, ph.OP_FREE)], ph.OP_DTYPE),
]  # fmt: skip


def misaligned():
    return np.frombuffer(bytearray(33), np.uint8)[1:].view(np.uint64)


def readonly(array):
    array.flags.writeable = False
    return array


NO_TABLES = [
    None, 5, [0, 0, 0, 0], (0, 0), object(), Angry(), b"\0" * 32, bytearray(32), memoryview(bytearray(32)), np.zeros(4),
    np.zeros(4, np.int64), np.zeros(4, np.uint32), np.zeros(4, ">u8"), np.zeros(4, object), np.array(0, np.uint64),
    np.zeros((2, 2), np.uint64), np.zeros(8, np.uint64)[::2], np.zeros(8, np.uint64)[::-1],
    readonly(np.zeros(4, np.uint64)), np.zeros(0, np.uint64), misaligned(), np.zeros(4, "M8[s]"), np.zeros(4, "V8"),
    np.broadcast_to(np.uint64(0), 4),
]  # fmt: skip
