"""Everything public, called with what nobody should call it with: a clear error, never a crash, and nothing changed.

What there is to call is found by introspection: a new callable needs a line in `CALLS`, a new parameter in `HOSTILE`.
"""

from __future__ import annotations

import datetime
import inspect
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hostile import (
    BUT_NONE,
    INF,
    NAN,
    NO_INTEGERS,
    NO_INTEGERS_AND_RANGE,
    NO_NAMES,
    NO_NUMBERS,
    NO_OPS,
    NO_PFNS,
    NO_SIZES,
    NO_TABLES,
    ONES,
    TOO_LARGE,
    TOO_SMALL,
    Angry,
    Index,
    LowLevelCallable,
    readonly,
)
from worlds import World

import pagehint as ph
from pagehint.allocator.machine_state import MachineState
from pagehint.traces import EVENT_DTYPE, OPERATION_DTYPE, Event, Trace


def entered(method):
    """A context manager does its work when it is entered."""

    def call(*args, **kwargs):
        with method(*args, **kwargs):
            pass

    return call


class Shown:
    """A snapshot of a machine of one zone, with one run in use."""

    def machine_state(self):
        zones, marks = (ph.ZoneSpec("Normal", 0, 1024),), (ph.Watermarks(0, 0, 0),)
        return MachineState(zones, marks, np.zeros((1, 1), np.uint64), np.array([7]), np.array([3]), None)


def recorded():
    """A recording of a page that was handed out and came back."""
    events = np.zeros(2, EVENT_DTYPE)
    events["event"], events["pfn"], events["time"] = (Event.ALLOC, Event.FREE), 5, (0, 10)
    return Trace(events)


def setter(name):
    return lambda w: lambda value: setattr(w.pages, name, value)


# For each callable what to call in a world, and arguments with which the call is right.
CALLS = {
    "get_include": (lambda w: ph.get_include, lambda w: {}),
    "replay": (lambda w: ph.replay, lambda w: {"trace": recorded(), "policies": "age:1s"}),
    "ZoneSpec": (lambda w: ph.ZoneSpec, lambda w: {"name": "Normal", "start_pfn": 0, "spanned_pages": 100}),
    "PageHintingCallbacks": (lambda w: ph.PageHintingCallbacks, lambda w: {"hint_pages": print}),
    "PageAllocator": (lambda w: ph.PageAllocator, lambda w: {"memory": "4MiB"}),
    "PageAllocator.x86_64": (lambda w: ph.PageAllocator.x86_64, lambda w: {"memory": "1GiB"}),
    "PageAllocator.from_snapshot": (lambda w: ph.PageAllocator.from_snapshot, lambda w: {"snapshot": Shown()}),
    "PageAllocator.alloc_pages": (lambda w: w.pages.alloc_pages, lambda w: {}),
    "PageAllocator.free_pages": (lambda w: w.pages.free_pages, lambda w: {"pfn": w.block, "order": 3}),
    "PageAllocator.split_pages": (lambda w: w.pages.split_pages, lambda w: {"pfn": w.block, "order": 3}),
    "PageAllocator.alloc_pages_bulk": (lambda w: w.pages.alloc_pages_bulk, lambda w: {"count": 3}),
    "PageAllocator.free_pages_bulk": (lambda w: w.pages.free_pages_bulk, lambda w: {"pfns": w.bulk, "order": 2}),
    "PageAllocator.run_ops": (lambda w: w.pages.run_ops, lambda w: {"ops": w.ops, "pfns": w.table}),
    "PageAllocator.alloc_pages_at": (lambda w: w.pages.alloc_pages_at, lambda w: {"pfn": 512, "order": 4}),
    "PageAllocator.alloc_pages_at_bulk": (
        lambda w: w.pages.alloc_pages_at_bulk,
        lambda w: {"pfns": [512, 600, 560], "nr_pages": [4, 8, 2]},
    ),
    "PageAllocator.alloc_pages_exact": (lambda w: w.pages.alloc_pages_exact, lambda w: {"nr_pages": 3}),
    "PageAllocator.free_pages_exact": (lambda w: w.pages.free_pages_exact, lambda w: {"pfn": w.run, "nr_pages": 70}),
    "PageAllocator.drain_pcp": (lambda w: w.pages.drain_pcp, lambda w: {}),
    "PageAllocator.offline": (lambda w: w.pages.offline, lambda w: {"pfn": 1792, "nr_pages": 128}),
    "PageAllocator.online": (lambda w: w.pages.online, lambda w: {"pfn": 1536, "nr_pages": 128}),
    "PageAllocator.set_migratetype": (
        lambda w: w.pages.set_migratetype,
        lambda w: {"pfn": 1024, "nr_pages": 512, "migratetype": "isolate"},
    ),
    "PageAllocator.set_watermarks": (
        lambda w: w.pages.set_watermarks,
        lambda w: {"zone": "DMA", "watermarks": (1, 2, 3)},
    ),
    "PageAllocator.enable_hinting": (lambda w: w.pages.enable_hinting, lambda w: {"callbacks": w.callbacks}),
    "PageAllocator.hinting": (lambda w: entered(w.pages.hinting), lambda w: {"callbacks": w.callbacks}),
    "PageAllocator.disable_hinting": (lambda w: w.pages.disable_hinting, lambda w: {}),
    "PageAllocator.flush_hinting": (lambda w: w.pages.flush_hinting, lambda w: {}),
    "PageAllocator.mark_free": (lambda w: w.pages.mark_free, lambda w: {"pfn": 1024, "nr_pages": 512}),
    "PageAllocator.run_pending": (lambda w: w.pages.run_pending, lambda w: {}),
    "PageAllocator.run_until": (lambda w: w.pages.run_until, lambda w: {"seconds": 1.5}),
    "PageAllocator.replay": (lambda w: w.pages.replay, lambda w: {"operations": w.operations}),
    "PageAllocator.max_pages=": (setter("max_pages"), lambda w: {"value": 2}),
    "PageAllocator.threshold=": (setter("threshold"), lambda w: {"value": 2}),
    "PageAllocator.delay=": (setter("delay"), lambda w: {"value": 2}),
    "PageAllocator.min_age=": (setter("min_age"), lambda w: {"value": 2}),
    "PageAllocator.cost=": (setter("cost"), lambda w: {"value": 2}),
    "PageAllocator.reserve=": (setter("reserve"), lambda w: {"value": "4MiB"}),
    "PageAllocator.reserve_age=": (setter("reserve_age"), lambda w: {"value": 2}),
    "PageAllocator.stats": (lambda w: w.pages.stats, lambda w: {}),
    "PageAllocator.explain": (lambda w: w.pages.explain, lambda w: {}),
    "PageAllocator.free_bitmap": (lambda w: w.pages.free_bitmap, lambda w: {}),
    "PageAllocator.free_block_at": (lambda w: w.pages.free_block_at, lambda w: {"pfn": 512}),
    "PageAllocator.buddyinfo": (lambda w: w.pages.buddyinfo, lambda w: {}),
    "PageAllocator.pagetypeinfo": (lambda w: w.pages.pagetypeinfo, lambda w: {}),
    "PageAllocator.zoneinfo": (lambda w: w.pages.zoneinfo, lambda w: {}),
    "PageAllocator.verify": (lambda w: w.pages.verify, lambda w: {}),
    "Zone.reported_bitmap": (lambda w: w.pages.zones[0].reported_bitmap, lambda w: {}),
    "Zone.free_blocks": (lambda w: w.pages.zones[0].free_blocks, lambda w: {}),
    "Zone.free_bitmap": (lambda w: w.pages.zones[0].free_bitmap, lambda w: {}),
    "Zone.figures": (lambda w: w.pages.zones[0].figures, lambda w: {}),
    "Stats.to_dict": (lambda w: w.pages.stats().to_dict, lambda w: {}),
    "Regret.to_dict": (lambda w: w.pages.stats().regret.to_dict, lambda w: {}),
    "Regret.cost_of": (lambda w: w.pages.stats().regret.cost_of, lambda w: {"age": 0.5}),
    "Regret.within": (lambda w: w.pages.stats().regret.within, lambda w: {"seconds": 0.5}),
    "Explanation.to_dict": (lambda w: w.pages.explain().to_dict, lambda w: {}),
    "Arena": (lambda w: ph.Arena, lambda w: {"size": "2MiB"}),
    "Arena.address": (lambda w: w.arena.address, lambda w: {"pfn": 1}),
    "Arena.empty": (lambda w: w.arena.empty, lambda w: {"shape": (3, 4)}),
    "Arena.hinting": (lambda w: entered(w.arena.hinting), lambda w: {}),
    "Arena.enable_hinting": (lambda w: w.arena.enable_hinting, lambda w: {}),
    "Arena.disable_hinting": (lambda w: w.arena.disable_hinting, lambda w: {}),
    "Arena.numpy": (lambda w: entered(w.arena.numpy), lambda w: {}),
    "Arena.trim": (lambda w: w.arena.trim, lambda w: {}),
    "Arena.limit=": (lambda w: lambda value: setattr(w.arena, "limit", value), lambda w: {"value": "1MiB"}),
    "Arena.status": (lambda w: w.arena.status, lambda w: {}),
    "Arena.close": (lambda w: ph.Arena("2MiB").close, lambda w: {}),
}


# They hold what they are given, and do nothing with it; a zone can only be made by its allocator, and says so.
PLAIN = {ph.Stats, ph.LockStats, ph.Regret, ph.Watermarks, ph.Explanation, ph.Zone}


# Whoever needs it off; everybody else has it on.
OFF = {"PageAllocator.enable_hinting", "PageAllocator.hinting", "PageAllocator.replay"}


# For each parameter what is refused, and what may be taken for right.
HOSTILE = {
    "order": ([value for value in NO_INTEGERS_AND_RANGE if value is not None], ONES),
    "pfn": (NO_INTEGERS_AND_RANGE, ONES),
    "count": (NO_INTEGERS_AND_RANGE, [0, *ONES]),
    "nr_pages": ([0, *NO_INTEGERS_AND_RANGE], ONES),
    "migratetype": ([None, *NO_NAMES], ["unmovable", np.str_("movable")]),
    "zone": (NO_NAMES, [None, "DMA"]),
    "pfns": (NO_PFNS, []),
    "snapshot": ([None, 5, "x", object(), Angry(), ph.ZoneSpec("a", 0, 10)], []),
    "ops": (NO_OPS, []),
    "name": ([None, 1, b"Normal", [], object(), Angry(), NAN], ["", "\0", "x" * 10000, np.str_("x")]),
    "start_pfn": ([*NO_INTEGERS, *TOO_SMALL, *TOO_LARGE], [0, *ONES]),
    "span_limit": ([0, 99, *NO_INTEGERS, *TOO_SMALL], [100, 2**32, 2**64, *TOO_LARGE]),
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
    "is_dropped": ([5, "print", [], object(), NAN], [None, int, Angry()]),
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
    "pressure": ([Angry(), np.array([1, 2])], [None, "no", NAN]),
    "clock": ([-1, INF, 1e10, "time", [], object(), NAN], [None, 5, 2.5]),
    "seconds": (
        [None, -1, NAN, INF, 1e10, 2**200, *[value for value in NO_NUMBERS if value is not None]],
        [2, Decimal("2.5"), Fraction(7, 2), np.float32(4), 1e9],
    ),
    "operations": (
        [None, 5, "abc", [], [(0, 0, 0)], object(), Angry(), np.zeros(3), np.zeros((2, 2), OPERATION_DTYPE),
         np.zeros(2, OPERATION_DTYPE.newbyteorder()), np.zeros(2, ph.OP_DTYPE), np.zeros((), OPERATION_DTYPE)],
        [np.zeros(3, OPERATION_DTYPE), np.full(48, 255, np.uint8).view(OPERATION_DTYPE)],
    ),
    "strict": ([Angry(), np.array([1, 2])], [None, "no", NAN]),
    "progress": ([5, "bar", [], object(), NAN], [None, print, max]),
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


NO_SNAPSHOTS = [5, "x", [], object(), Angry(), NAN, Shown()]
HOSTILE |= {
    "trace": ([None, 5, "x", [], object(), Angry(), NAN, np.zeros(2, EVENT_DTYPE)], []),
    "policies": (
        [None, 5, "nothing", "", "age:soon", b"linux", object(), Angry(), NAN, ["nothing"], [5], ["age:1s"] * 2,
         ["recorded"], [Angry()]],
        [[], (), iter(["age:2s"]), {"v10", "delay"}],
    ),
    "before": (NO_SNAPSHOTS, [None]),
    "after": (NO_SNAPSHOTS, [None]),
    "events": (["", "All", b"all", 5, [], object(), Angry(), NAN], [None, "all", "kmem", "user"]),
    "begin": (["no such mark", b"x", 1.5, [], object(), Angry(), NAN, True], [None, 5]),
    "resident": ([Angry(), np.array([1, 2])], [None, "no", NAN]),
    "break_evens": (
        [None, 5, "x", [0], [-1], [NAN], [INF], [2**200], ["soon"], [None], object(), Angry(), [Angry()]],
        [[], (1,), iter([2.0]), np.array([0.5, 1])],
    ),
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
    ("PageAllocator.alloc_pages_at_bulk", "nr_pages"): (
        [0, *NO_INTEGERS_AND_RANGE, [2] * 2, [2] * 4, [1, 1, 0], [1, 1, -1], [1, 1, 2**200], [2.0] * 3, [[1] * 3]],
        [1, [2] * 3, np.full(3, 2, np.int8), readonly(np.full(3, 2, ">i4"))],
    ),
    ("PageAllocator.alloc_pages_bulk", "count"): (NO_INTEGERS_AND_RANGE, [0, *ONES]),
    ("PageAllocator.set_migratetype", "migratetype"): ([None, *NO_NAMES], ["movable", "unmovable"]),
    ("PageAllocator.max_pages=", "value"): ([0, 2**20 + 1, *NO_INTEGERS_AND_RANGE], ONES),
    ("PageAllocator.set_watermarks", "zone"): ([None, *NO_NAMES], ["DMA"]),
    ("Arena.hinting", "max_pages"): ([0, 2**20 + 1, *BUT_NONE], [None, *ONES]),
    ("Arena.enable_hinting", "max_pages"): ([0, 2**20 + 1, *BUT_NONE], [None, *ONES]),
    ("Arena.empty", "order"): ([1, "X", "K", "A", "", b"X", "CF", object(), Angry(), [], NAN], ["F", None]),
}  # fmt: skip


SPECIAL["PageAllocator.threshold=", "value"] = HOSTILE["threshold"]


SPECIAL["PageAllocator.min_age=", "value"] = HOSTILE["delay"]


HOSTILE["cost"] = ([0, 1, "1", *HOSTILE["delay"][0]], [None])  # only beside an age that is learnt


SPECIAL["PageAllocator.cost=", "value"] = (
    [0, 1e-7, *HOSTILE["delay"][0]],
    [value for value in HOSTILE["delay"][1] if value not in (0, 1e-300)],
)


HOSTILE["age"] = SPECIAL["Regret.within", "seconds"] = ([-1, NAN, *NO_NUMBERS], [0, 0.25, 1, Fraction(1, 3)])


SPECIAL["PageAllocator.delay=", "value"] = HOSTILE["min_age"] = HOSTILE["delay"]


SPECIAL["PageAllocator.reserve_age=", "value"] = HOSTILE["reserve_age"] = HOSTILE["host_latency"] = (
    [None, *HOSTILE["delay"][0]],
    [value for value in HOSTILE["delay"][1] if value is not None],
)


SPECIAL["Arena", "size"] = ([value for value in HOSTILE["size"][0] if value is not None], [None, *HOSTILE["size"][1]])


HOSTILE["reserve"] = HOSTILE["host_rate"] = (
    [0, -1, "", "0", "much", "-1GiB", b"1MiB", 1.5, NAN, [], object(), Angry()],
    [None, *ONES, "1KiB", 2**64, 2**200, 10**5000],
)


SPECIAL["Arena.limit=", "value"] = SPECIAL["PageAllocator.reserve=", "value"] = HOSTILE["reserve"]


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
            for member, what in members_of(value).items():
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


def members_of(kind):
    """What a class and its bases within pagehint define."""
    bases = [base for base in reversed(kind.__mro__) if base.__module__.startswith("pagehint")]
    return {name: what for base in bases for name, what in vars(base).items()}


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
        world.pages.enable_hinting(world.callbacks, workqueue="manual", clock="time")
    assert not world.pages.hinting_enabled


def test_a_billion_nodes_were_laid_out_one_by_one():
    with pytest.raises(ValueError, match="from one node to 1024, not 1000000000"):
        ph.PageAllocator.x86_64("16GiB", 10**9)


def test_a_number_too_long_to_write_hid_what_was_wrong():
    with pytest.raises(ph.BadPageError, match="outside every zone"):
        World().pages.free_pages(10**5000)
