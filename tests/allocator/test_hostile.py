"""Everything public, called with what nobody should call it with: a clear error, never a crash, and nothing changed.

What there is to call is found by introspection: a new callable needs a line in `CALLS`, a new parameter in `HOSTILE`.
"""

from __future__ import annotations

import copy
import datetime
import enum
import inspect
import itertools
import pickle
import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from processes import survives

import pagehint as ph

MIB = 1 << 20


# ---- the world in which it happens --------------------------------------------------------------------------


class World:
    """A machine in use, with hinting on where that is needed, and an arena with an array in it."""

    def __init__(self, hinting=True):
        # With pages of 1 MiB a section has 128 pages.
        zones = [ph.ZoneSpec("DMA", 1, 1023, holes=[(500, 10)]), ph.ZoneSpec("Normal", 1024, 1024, node=1)]
        self.pages = ph.PageAllocator(zones, page_size=MIB, max_page_order=9, min_order=4, pcp=False)
        self.block = self.pages.alloc_pages(3)
        self.run = self.pages.alloc_pages_exact(70)
        self.bulk = self.pages.alloc_pages_bulk(5, 2)
        self.pages.offline(1024 + 512, 128)
        self.callbacks = ph.PageHintingCallbacks(lambda blocks: None, 4)
        if hinting:
            self.pages.enable_hinting(self.callbacks, workqueue="manual", delay=None)
        self.arena = ph.Arena("4MiB")
        self.array = self.arena.empty(1000)
        self.table = np.arange(4, dtype=np.uint64)
        self.ops = np.array([(0, 0, ph.OP_ALLOC), (1, 1, ph.OP_ALLOC), (0, 0, ph.OP_FREE)], ph.OP_DTYPE)

    def state(self):
        """Everything that a refused call must leave alone. Looking is what changes the counts of locks."""
        found = []
        for pages in (self.pages, self.arena.pages):
            pages.verify()
            stats = pages.stats().to_dict()
            del stats["lock_acquired"], stats["lock_contended"]
            found += [stats, pages.hinting_enabled, repr(pages.last_error), pages.pagetypeinfo(), pages.zoneinfo()]
            found += [(zone.free_blocks().tolist(), zone.hint_bitmap.tolist()) for zone in pages.zones]
            if pages.hinting_enabled:
                found += [pages.max_pages, pages.threshold, pages.delay]
        return [
            *found,
            self.arena.limit,
            self.arena.live_arrays,
            self.arena.closed,
            self.table.tolist(),
            self.ops.tolist(),
        ]


def entered(method):
    """A context manager does its work when it is entered."""

    def call(*args, **kwargs):
        with method(*args, **kwargs):
            pass

    return call


def setter(name):
    return lambda w: lambda value: setattr(w.pages, name, value)


# For each callable what to call in a world, and arguments with which the call is right.
CALLS = {
    "get_include": (lambda w: ph.get_include, lambda w: {}),
    "ZoneSpec": (lambda w: ph.ZoneSpec, lambda w: {"name": "Normal", "start_pfn": 0, "spanned_pages": 100}),
    "PageHintingCallbacks": (lambda w: ph.PageHintingCallbacks, lambda w: {"hint_pages": print}),
    "PageAllocator": (lambda w: ph.PageAllocator, lambda w: {"memory": "4MiB"}),
    "PageAllocator.x86_64": (lambda w: ph.PageAllocator.x86_64, lambda w: {"memory": "1GiB"}),
    "PageAllocator.alloc_pages": (lambda w: w.pages.alloc_pages, lambda w: {}),
    "PageAllocator.free_pages": (lambda w: w.pages.free_pages, lambda w: {"pfn": w.block, "order": 3}),
    "PageAllocator.alloc_pages_bulk": (lambda w: w.pages.alloc_pages_bulk, lambda w: {"count": 3}),
    "PageAllocator.free_pages_bulk": (lambda w: w.pages.free_pages_bulk, lambda w: {"pfns": w.bulk, "order": 2}),
    "PageAllocator.run_ops": (lambda w: w.pages.run_ops, lambda w: {"ops": w.ops, "pfns": w.table}),
    "PageAllocator.alloc_pages_at": (lambda w: w.pages.alloc_pages_at, lambda w: {"pfn": 512, "order": 4}),
    "PageAllocator.alloc_pages_exact": (lambda w: w.pages.alloc_pages_exact, lambda w: {"nr_pages": 3}),
    "PageAllocator.free_pages_exact": (lambda w: w.pages.free_pages_exact, lambda w: {"pfn": w.run, "nr_pages": 70}),
    "PageAllocator.drain_pcp": (lambda w: w.pages.drain_pcp, lambda w: {}),
    "PageAllocator.offline": (lambda w: w.pages.offline, lambda w: {"pfn": 1792, "nr_pages": 128}),
    "PageAllocator.online": (lambda w: w.pages.online, lambda w: {"pfn": 1536, "nr_pages": 128}),
    "PageAllocator.set_migratetype": (
        lambda w: w.pages.set_migratetype,
        lambda w: {"pfn": 1024, "nr_pages": 512, "migratetype": "isolate"},
    ),
    "PageAllocator.enable_hinting": (lambda w: w.pages.enable_hinting, lambda w: {"callbacks": w.callbacks}),
    "PageAllocator.hinting": (lambda w: entered(w.pages.hinting), lambda w: {"callbacks": w.callbacks}),
    "PageAllocator.disable_hinting": (lambda w: w.pages.disable_hinting, lambda w: {}),
    "PageAllocator.flush_hinting": (lambda w: w.pages.flush_hinting, lambda w: {}),
    "PageAllocator.run_pending": (lambda w: w.pages.run_pending, lambda w: {}),
    "PageAllocator.max_pages=": (setter("max_pages"), lambda w: {"value": 2}),
    "PageAllocator.threshold=": (setter("threshold"), lambda w: {"value": 2}),
    "PageAllocator.delay=": (setter("delay"), lambda w: {"value": 2}),
    "PageAllocator.stats": (lambda w: w.pages.stats, lambda w: {}),
    "PageAllocator.explain": (lambda w: w.pages.explain, lambda w: {}),
    "PageAllocator.buddyinfo": (lambda w: w.pages.buddyinfo, lambda w: {}),
    "PageAllocator.pagetypeinfo": (lambda w: w.pages.pagetypeinfo, lambda w: {}),
    "PageAllocator.zoneinfo": (lambda w: w.pages.zoneinfo, lambda w: {}),
    "PageAllocator.verify": (lambda w: w.pages.verify, lambda w: {}),
    "Zone.free_blocks": (lambda w: w.pages.zones[0].free_blocks, lambda w: {}),
    "Zone.figures": (lambda w: w.pages.zones[0].figures, lambda w: {}),
    "Stats.to_dict": (lambda w: w.pages.stats().to_dict, lambda w: {}),
    "Explanation.to_dict": (lambda w: w.pages.explain().to_dict, lambda w: {}),
    "Arena": (lambda w: ph.Arena, lambda w: {"size": "2MiB"}),
    "Arena.address": (lambda w: w.arena.address, lambda w: {"pfn": 1}),
    "Arena.empty": (lambda w: w.arena.empty, lambda w: {"shape": (3, 4)}),
    "Arena.hinting": (lambda w: entered(w.arena.hinting), lambda w: {}),
    "Arena.numpy": (lambda w: entered(w.arena.numpy), lambda w: {}),
    "Arena.trim": (lambda w: w.arena.trim, lambda w: {}),
    "Arena.limit=": (lambda w: lambda value: setattr(w.arena, "limit", value), lambda w: {"value": "1MiB"}),
    "Arena.status": (lambda w: w.arena.status, lambda w: {}),
    "Arena.close": (lambda w: ph.Arena("2MiB").close, lambda w: {}),
}

# They hold what they are given, and do nothing with it; a zone can only be made by its allocator, and says so.
PLAIN = {ph.Stats, ph.LockStats, ph.Watermarks, ph.Explanation, ph.Zone}
# Whoever needs it off; everybody else has it on.
OFF = {"PageAllocator.enable_hinting", "PageAllocator.hinting"}


# ---- what they are called with ------------------------------------------------------------------------------


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

# For each parameter what is refused, and what may be taken for right.
HOSTILE = {
    "order": ([value for value in NO_INTEGERS_AND_RANGE if value is not None], ONES),
    "pfn": (NO_INTEGERS_AND_RANGE, ONES),
    "count": (NO_INTEGERS_AND_RANGE, [0, *ONES]),
    "nr_pages": ([0, *NO_INTEGERS_AND_RANGE], ONES),
    "migratetype": ([None, *NO_NAMES], ["unmovable", np.str_("movable")]),
    "zone": (NO_NAMES, [None, "DMA"]),
    "pfns": (NO_PFNS, []),
    "ops": (NO_OPS, []),
    "name": ([None, 1, b"Normal", [], object(), Angry(), NAN], ["", "\0", "x" * 10000, np.str_("x")]),
    "start_pfn": ([*NO_INTEGERS, *TOO_SMALL, *TOO_LARGE], [0, *ONES]),
    "spanned_pages": ([0, 2**52 + 1, *NO_INTEGERS, *TOO_SMALL, *TOO_LARGE[1:]], [2**52, *ONES]),
    "node": ([*NO_INTEGERS, *TOO_SMALL], [*ONES, 2**200]),
    "holes": (
        [None, 5, "ab", [5], [(1,)], [(1, 2, 3)], [(1, 0)], [(1, -1)], [(-1, 5)], [(0, 100)], [(0, 101)], [(5, 2**200)],
         [(1.0, 2)], [(NAN, 2)], [("1", "2")], [(1, 5), (3, 5)], [None], [Angry()], Angry(), [(0, 50), (50, 50)],
         np.zeros((2, 3), int), np.zeros((2, 2))],
        [[], (), iter([(1, 2)]), np.array([[1, 2]]), {(1, 2)}],
    ),
    "hint_pages": (
        [None, 5, "print", [], object(), NAN, datetime.datetime_CAPI, LowLevelCallable([datetime.datetime_CAPI]),
         LowLevelCallable(), LowLevelCallable([None])],
        [int, Angry()],
    ),
    "max_pages": ([0, 2**20 + 1, *NO_INTEGERS_AND_RANGE], ONES),
    "prepare": ([5, "print", [], object(), NAN], [None, int, Angry()]),
    "cleanup": ([5, "print", [], object(), NAN], [None, int, Angry()]),
    "memory": (
        [*NO_SIZES, [None], ["1GiB"], [ph.ZoneSpec("a", 0, 10), ph.ZoneSpec("b", 9, 10)], ph.ZoneSpec("a", 0, 10), [5],
         [ph.ZoneSpec("a", 0, 10), ph.ZoneSpec("a", 20, 10)], [ph.ZoneSpec("a", 0, 2**52)], [Angry()],
         [ph.ZoneSpec("a", 2**52 - 10, 10), 5]],
        ["64MiB", iter([ph.ZoneSpec("a", 2**52 - 10, 10)]), 2**30],
    ),
    "nodes": ([0, *NO_INTEGERS_AND_RANGE, 10**9], ONES),
    "page_size": ([0, 1, 511, 513, 3 << 20, *NO_INTEGERS_AND_RANGE], [512, np.int64(4096)]),
    "max_page_order": ([33, *NO_INTEGERS_AND_RANGE], [0, 32, *ONES]),
    "min_order": ([11, *BUT_NONE], [None, 0, *ONES]),
    "pcp": ([Angry(), np.array([1, 2])], [None, 0, "no", NAN]),
    "watermarks": (
        ["Linux", "", b"linux", 5, (), (1, 2), (1, 2, 3, 4), (3, 2, 1), (-1, 0, 0), (0, 0, 2**52), (0, 0, 10**5000),
         (NAN, NAN, NAN), ("a", "b", "c"), (1.0, 2.0, 3.0), Angry(), [None] * 3, np.zeros(3), np.zeros((3, 3), int)],
        [None, "linux", [1, 2, 3], np.arange(3), np.str_("linux")],
    ),
    "callbacks": ([None, 5, print, "x", object(), Angry(), {}], []),
    "workqueue": ([None, "Thread", "", b"thread", 5, [], object(), Angry(), np.array(["thread"] * 2)], ["manual"]),
    "threshold": ([0, 2**20 + 1, *BUT_NONE], [None, *ONES]),
    "delay": (
        [-1, -1e-300, NAN, INF, 1e10, 2**200, np.float64(NAN), *[value for value in NO_NUMBERS if value is not None]],
        [None, 0, 1e-300, 1e9, Decimal("0.5"), Fraction(1, 2), np.float32(1), *ONES],
    ),
    "max_report_order": ([3, 10, *BUT_NONE], [None, 4, np.int64(5)]),
    "mark_free": ([Angry(), np.array([1, 2])], [None, "no", NAN]),
    "clock": ([5, "time", [], object(), NAN], [None]),
    "locks": ([Angry(), np.array([1, 2])], [None, "no", NAN]),
    "size": ([*NO_SIZES, 2**63, 2**64], [1, "1KiB", "2MiB", *ONES]),
    "hugepages": ([], [None, False, "no", NAN]),
    "shape": (
        [None, "3", 1.5, NAN, -1, (-1,), (3, -1), (2.0,), ("3",), [[3]], object(), Angry(), [Angry()], 2**63,
         (2**40, 2**40), (2**200,), 10**5000, (1,) * 100, {"a": 1}, Decimal(3)],
        [(), 0, (0,), [3], (True, 2), np.array([2, 3]), Index(3), {3}, iter([2, 3]), b"\x02\x03", range(3)],
    ),
    "dtype": (
        ["nonsense", "O", object, [("a", "O")], 5, Angry(), NAN, [("a", "f8"), ("a", "f8")], "V2147483648", b"\xff"],
        [None, "f4", "S0", "V0", "U10", bool, [("a", "f8"), ("b", "u1")], ("i4", (3, 3)), "M8[s]", ">u2"],
    ),
    "advice": ([None, "", "Free", b"free", 5, object(), ["free"], "willneed", NAN], ["free", np.str_("dontneed")]),
}  # fmt: skip
SPECIAL = {
    # The same name for something else.
    ("PageAllocator.free_pages_bulk", "order"): (
        [*[value for value in BUT_NONE if not isinstance(value, np.ndarray) and not hasattr(value, "__iter__")],
         None, [], [2], [2] * 4, [2] * 6, [2, 2, 2, 2, 3], [2, 2, 2, 2, -1], [2, 2, 2, 2, 10], [2, 2, 2, 2, 2**200],
         [2.0] * 5, [NAN] * 5, ["2"] * 5, [None] * 5, [[2] * 5], np.full(5, 2.0), np.ones(5, bool), np.full((5, 1), 2),
         np.array(["2"] * 5), np.full(5, -2), np.full(5, 2**64 - 1, np.uint64), np.zeros(5, ph.OP_DTYPE),
         "22222", {}, Angry()],
        [np.int64(2), np.array(2), [2] * 5, np.full(5, 2, object), np.full(10, 2)[::2], readonly(np.full(5, 2, ">i4"))],
    ),
    ("PageAllocator.run_ops", "pfns"): (NO_TABLES, []),
    ("PageAllocator.alloc_pages_bulk", "count"): (NO_INTEGERS_AND_RANGE, [0, *ONES]),
    ("PageAllocator.set_migratetype", "migratetype"): ([None, *NO_NAMES], ["movable", "unmovable"]),
    ("PageAllocator.max_pages=", "value"): ([0, 2**20 + 1, *NO_INTEGERS_AND_RANGE], ONES),
    ("Arena.hinting", "max_pages"): ([0, 2**20 + 1, *BUT_NONE], [None, *ONES]),
    ("Arena.empty", "order"): ([1, "X", b"X", "CF", object(), Angry(), [], NAN], ["F", None]),
}  # fmt: skip
SPECIAL["PageAllocator.threshold=", "value"] = HOSTILE["threshold"]
SPECIAL["PageAllocator.delay=", "value"] = HOSTILE["min_age"] = HOSTILE["delay"]
SPECIAL["Arena", "size"] = ([value for value in HOSTILE["size"][0] if value is not None], [None, *HOSTILE["size"][1]])
SPECIAL["Arena.limit=", "value"] = (
    [0, -1, "", "0", "much", "-1GiB", b"1MiB", 1.5, NAN, [], object(), Angry()],
    [None, *ONES, "1KiB", 2**64, 2**200],
)

# What is meant by a clear error. `AngryError` is the argument's own.
CLEAR = (ph.PageHintError, TypeError, ValueError, MemoryError, Angry.AngryError)
UNCLEAR = ("Exceeds the limit", "Python int too large", "SystemError")


def public_callables():
    """Name and signature of everything that can be called: functions, constructors, methods, settable properties."""
    for name in ph.__all__:
        value = getattr(ph, name)
        if inspect.isclass(value):
            if issubclass(value, Exception):
                continue
            if value not in PLAIN:
                yield name, inspect.signature(value)
            for member, what in vars(value).items():
                if member.startswith("_"):
                    continue
                if inspect.isroutine(what) or isinstance(what, classmethod | staticmethod):
                    yield f"{name}.{member}", inspect.signature(getattr(value, member))
                elif inspect.isdatadescriptor(what) and is_settable(value, member):
                    yield (
                        f"{name}.{member}=",
                        inspect.Signature([inspect.Parameter("value", inspect.Parameter.KEYWORD_ONLY)]),
                    )
        elif callable(value):
            yield name, inspect.signature(value)


def is_settable(kind, member):
    instances = {ph.PageAllocator: World().pages, ph.Zone: World().pages.zones[0], ph.Arena: ph.Arena("2MiB")}
    instance = instances.get(kind)
    if instance is None:
        return False  # frozen, or a tuple; or an object of constants
    try:
        setattr(instance, member, object())
    except AttributeError:
        return False
    except Exception:
        return True
    return True


CALLABLES = dict(public_callables())
CASES = [
    (name, parameter)
    for name, signature in CALLABLES.items()
    for parameter, kind in signature.parameters.items()
    if parameter != "self" and kind.kind is not inspect.Parameter.VAR_KEYWORD
]


def test_everything_public_is_covered():
    assert set(CALLS) == set(CALLABLES)
    for name, parameter in CASES:
        assert (name, parameter) in SPECIAL or parameter in HOSTILE, f"no hostile values for {parameter} of {name}"


def attempt(name, arguments, world):
    call, _ = CALLS[name]
    return call(world)(**arguments)


@pytest.mark.parametrize("name", CALLABLES)
def test_the_calls_are_right_without_hostile_values(name):
    """Otherwise they would be refused for another reason."""
    world = World(hinting=name not in OFF)
    attempt(name, CALLS[name][1](world), world)
    world.pages.verify()


def verdict(name, arguments, world):
    """What is wrong with how a call is refused, or None."""
    try:
        attempt(name, arguments, world)
    except CLEAR as error:
        return None if str(error) and not any(unclear in str(error) for unclear in UNCLEAR) else f"unclear: {error!r}"
    except Exception as error:
        return f"unclear: {error!r}"
    return "was taken"


def written(value):
    """The value as text, also where Python refuses."""
    try:
        return f"{value!r:.80}"
    except Exception:
        return type(value).__name__


@pytest.mark.parametrize(("name", "parameter"), CASES)
def test_hostile_arguments(name, parameter):
    refused, right = SPECIAL.get((name, parameter)) or HOSTILE[parameter]
    world = World(hinting=name not in OFF)
    before = world.state()
    findings = []
    for value in refused:
        arguments = {**CALLS[name][1](world), parameter: value}
        if parameter == "clock":
            arguments["workqueue"] = "manual"
        finding = verdict(name, arguments, world)
        if world.state() != before:
            finding = "has changed something"
            world = World(hinting=name not in OFF)
            before = world.state()
        if finding:
            findings.append(f"{written(value)}: {finding}")
    assert not findings, "\n".join(findings)
    for value in right:
        world = World(hinting=name not in OFF)
        before = world.state()
        try:
            attempt(name, {**CALLS[name][1](world), parameter: value}, world)
        except CLEAR:
            assert world.state() == before
        else:
            world.pages.verify()
            world.arena.pages.verify()


# ---- what is no argument ------------------------------------------------------------------------------------


def test_objects_made_without_their_constructor_have_nothing_to_read():
    """A zone that `__new__` alone had made was read from address zero."""
    survives("""
        import inspect
        import pagehint as ph
        for name in ph.__all__:
            kind = getattr(ph, name)
            if not inspect.isclass(kind):
                continue
            for maker in (lambda: kind.__new__(kind), lambda: object.__new__(kind), lambda: type("Sub", (kind,), {})()):
                try:
                    made = maker()
                except TypeError:
                    continue
                for member in dir(made):
                    try:
                        value = getattr(made, member)
                        if member in ("verify", "figures", "free_blocks", "close", "__repr__", "_repr_html_"):
                            value()
                    except (AttributeError, TypeError):
                        pass
                    except ValueError as error:  # it can be made without arguments, and has been closed just now
                        assert "the arena is closed" in str(error)
    """)


def test_copies_are_as_good_as_the_original_or_refused():
    world = World()
    pickled = lambda value: pickle.loads(pickle.dumps(value))  # noqa: E731
    for original in (world.pages, world.pages.zones[0], world.callbacks, world.arena._mapping):
        for duplicate in (copy.copy, copy.deepcopy, pickled):
            with pytest.raises(TypeError):
                duplicate(original)
    for original in (world.pages.stats(True), ph.ZoneSpec("a", 1, 9, 0, [(2, 3)]), ph.Watermarks(1, 2, 3)):
        for duplicate in (copy.copy, copy.deepcopy, pickled):
            assert duplicate(original) == original


def test_somebody_elses_self_is_refused():
    """A method asked of the class took whatever it was called with for an allocator."""
    survives("""
        import inspect
        import pagehint as ph
        callbacks = ph.PageHintingCallbacks(print)
        for kind in (getattr(ph, name) for name in ph.__all__):
            for name, method in vars(kind).items() if inspect.isclass(kind) else ():
                if not inspect.isroutine(method) or name in ("__new__", "__init_subclass__"):
                    continue
                for stranger in (object(), None, callbacks, ph):
                    if type(stranger) is kind:
                        continue
                    try:
                        method(stranger)
                    except (TypeError, AttributeError):
                        pass
    """)


def test_a_zone_of_another_machine_is_refused():
    world, other = World(), World()
    before = world.state()
    for call in (world.pages.alloc_pages, world.pages.alloc_pages_exact, world.pages.alloc_pages_bulk):
        with pytest.raises(ValueError, match="no such zone"):
            call(1, zone=other.pages.zones[0])
    assert world.state() == before


@pytest.mark.parametrize("says", [NAN, INF, -INF, 1e300, 10**400, "now", None, [], Angry()])
def test_a_clock_that_says_nonsense_stands_still(says):
    clock = [1.0]
    world = World(hinting=False)
    world.pages.enable_hinting(world.callbacks, workqueue="manual", delay=1.0, clock=lambda: clock[0])
    clock[0] = says
    assert world.pages.run_pending() in (0, 1)
    assert world.pages.last_error is not None
    clock[0] = 100.0
    world.pages.run_pending()
    assert world.pages.stats().hints_pending == 0
    world.pages.disable_hinting()


# ---- arrays that are something else, too --------------------------------------------------------------------


@pytest.mark.parametrize(
    "like",
    [
        lambda pfns: pfns.astype(">u8"),
        lambda pfns: np.repeat(pfns, 2)[::2],
        lambda pfns: pfns[::-1],
        readonly,
        list,
        tuple,
        lambda pfns: pfns.astype(object),
        lambda pfns: pfns.view(np.ma.MaskedArray),
        lambda pfns: pfns.view(np.recarray),
        lambda pfns: pfns.astype(np.uint16),
        memoryview,
    ],
)
def test_blocks_in_any_array_of_whole_numbers_are_freed(like):
    world = World()
    before = world.pages.stats().allocated_pages
    world.pages.free_pages_bulk(like(world.bulk), 2)
    assert before - world.pages.stats().allocated_pages == 5 << 2
    world.pages.verify()


def test_pfns_and_orders_in_the_same_memory():
    pages = ph.PageAllocator("64MiB", pcp=False)
    both = np.array([pages.alloc_pages_at(4, 0), pages.alloc_pages_at(2, 0), pages.alloc_pages_at(0, 0)], np.uint64)
    with pytest.raises(ph.BadPageError):
        pages.free_pages_bulk(both, both)
    assert pages.stats().allocated_pages == 3
    pages.verify()


def test_a_trace_in_the_memory_of_its_table():
    """The operations are read before the first of them writes to the table."""
    world = World()
    table = np.zeros(8, np.uint64)
    ops = table.view(ph.OP_DTYPE)
    ops[:] = [(slot, slot % 3, ph.OP_ALLOC) for slot in range(4)] + [(slot, slot % 3, ph.OP_FREE) for slot in range(4)]
    before = world.pages.stats().allocated_pages
    world.pages.run_ops(ops, table)
    world.pages.verify()
    assert world.pages.stats().allocated_pages == before


@pytest.mark.parametrize("pcp", [True, False])
def test_a_table_that_another_thread_scribbles_on(pcp):
    """Whatever is read there is checked as if it had been passed: refused, or a block that is freed."""
    pages = ph.PageAllocator("64MiB", pcp=pcp)
    table = np.zeros(64, np.uint64)
    ops = np.zeros(5000, ph.OP_DTYPE)
    ops["slot"] = np.arange(5000) % 64
    ops["op"] = np.arange(5000) // 64 % 2
    stop = threading.Event()

    def scribble():
        rng = np.random.default_rng(1)
        while not stop.is_set():
            table[rng.integers(0, 64, 8)] = rng.integers(0, 1 << 15, 8)
            ops["order"][rng.integers(0, 5000, 8)] = rng.integers(0, 1 << 16, 8)

    thread = threading.Thread(target=scribble)
    thread.start()
    refused = 0
    try:
        for _ in range(300):
            try:
                pages.run_ops(ops, table)
            except ph.PageHintError:
                refused += 1
    finally:
        stop.set()
        thread.join()
    assert refused
    pages.drain_pcp()
    pages.verify()
    stats = pages.stats()
    assert stats.managed_pages == stats.free_pages + stats.allocated_pages


# ---- what went wrong ----------------------------------------------------------------------------------------


def test_a_table_that_is_not_aligned_was_taken():
    with pytest.raises(TypeError, match="aligned"):
        World().pages.run_ops(np.zeros(1, ph.OP_DTYPE), misaligned())


def test_no_table_at_all_was_asked_for_its_dtype():
    with pytest.raises(TypeError, match="pfns must be"):
        World().pages.run_ops(np.zeros(1, ph.OP_DTYPE), None)


def test_max_pages_could_be_set_to_none_and_was_not():
    with pytest.raises(TypeError):
        World().pages.max_pages = None


def test_a_delay_in_letters_was_read():
    with pytest.raises(TypeError):
        World().pages.delay = "0.5"


def test_a_clock_that_cannot_be_called_was_a_failed_report():
    world = World(hinting=False)
    with pytest.raises(TypeError, match="clock must be callable"):
        world.pages.enable_hinting(world.callbacks, workqueue="manual", clock=5)
    assert not world.pages.hinting_enabled


def test_a_billion_nodes_were_laid_out_one_by_one():
    with pytest.raises(ValueError, match="from one node to 1024, not 1000000000"):
        ph.PageAllocator.x86_64("16GiB", 10**9)


def test_a_number_too_long_to_write_hid_what_was_wrong():
    with pytest.raises(ph.BadPageError, match="outside every zone"):
        World().pages.free_pages(10**5000)
