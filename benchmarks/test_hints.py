"""The rows on hinting: the bitmap, the worker's rounds, real memory given back."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from time import perf_counter_ns
from typing import Any

import numpy as np
import pytest
from bitarray import bitarray
from numpy.typing import NDArray
from pyroaring import BitMap

import pagehint as ph
from benchmarks.buddies import PAGES_PER_GIB, TOP
from benchmarks.conftest import Measure
from benchmarks.test_buddy import timed

MIB = 1 << 20
HUGE_ORDER = 9
ARENA = 512 * MIB
LOCK_TARGET = 5000  # nanoseconds


def little_endian(words: NDArray[np.uint64]) -> bitarray:
    bits = bitarray(endian="little")
    bits.frombytes(words.tobytes())
    return bits


def test_bitmap_empty(measure: Measure, consumer: Any, quick: bool) -> None:
    """The next bit in a bitmap without any, against reading it: the words are added up by a plain loop in C."""
    mib = 1 if quick else 64
    words = np.ones(mib * MIB // 8, np.uint64)
    words[:] = 0  # np.zeros would be one page of zeros, many times
    hints, bits = consumer.HintBits(words), little_endian(words)
    assert hints.next() == 64 * len(words)
    measure(
        "bitmap: next bit of an empty one",
        f"{mib} MiB",
        {
            "pagehint": lambda: timed(hints.next),
            "reading it": lambda: timed(consumer.read_words, words),
            "numpy any": lambda: timed(words.any),
            "bitarray find": lambda: timed(bits.find, 1),
        },
        ops=words.nbytes,
        unit="% of the read bandwidth",
        figure=lambda ns: 100 * ns["reading it"] / ns["pagehint"],
        target=80,
        at_least=True,
    )


@pytest.mark.parametrize("mib", [1, 64], ids="{}MiB".format)
@pytest.mark.parametrize(("density", "target"), [(1 / 1000, 3.0), (1 / 2, 1.5)], ids=["sparse", "dense"])
def test_bitmap_visit(measure: Measure, consumer: Any, quick: bool, mib: int, density: float, target: float) -> None:
    """Every bit that is set, by number. The other libraries list them for Python, each by its fastest way."""
    if quick and mib > 1:
        pytest.skip("only the smallest bitmap")
    bits = np.random.default_rng(5).random(mib * MIB * 8, np.float32) < density
    words = np.packbits(bits, bitorder="little").view(np.uint64)
    numbers = np.flatnonzero(bits)
    hints = consumer.HintBits(words)
    assert hints.visit() == (len(numbers), int(numbers.sum()))
    works: dict[str, Callable[[], int]] = {"pagehint": lambda: timed(hints.visit)}
    if mib == 1:
        octets, array, roaring = words.view(np.uint8), little_endian(words), BitMap(numbers.astype(np.uint32))
        works["numpy"] = lambda: timed(lambda: np.flatnonzero(np.unpackbits(octets, bitorder="little")))
        works["bitarray"] = lambda: timed(lambda: list(array.search(1)))
        works["pyroaring"] = lambda: timed(roaring.to_array)
    name = f"bitmap: all bits of a {'sparse' if density < 0.1 else 'dense'} one"
    if mib == 1:  # small enough to be in the cache when it is walked again, unless others had their turn between
        works = {who: lambda work=work: (work(), work())[1] for who, work in works.items()}
    measure(name, f"{mib} MiB{', in cache' if mib == 1 else ''}", works, ops=len(numbers), target=target)


def test_worker(measure: Measure, note: Callable[..., None], consumer: Any, gib: int) -> None:
    """All of a free zone reported, in blocks of order 10, to a compiled function that does nothing, on this thread.

    And how long the zone's lock was held by it: in the longest round, which is whatever interrupted it, and in nearly
    all. The histogram has powers of two.
    """
    pages = ph.PageAllocator(f"{gib}GiB", max_page_order=TOP, pcp=False)
    blocks = gib * PAGES_PER_GIB >> TOP
    callbacks = ph.PageHintingCallbacks(consumer.noop_callback())

    def work() -> int:
        pages.enable_hinting(callbacks, workqueue="manual")
        already = pages.stats().blocks_reported
        ns = timed(pages.flush_hinting)
        reported = pages.stats().blocks_reported - already
        pages.disable_hinting()
        assert reported == blocks
        return ns

    size = f"{gib} GiB"
    measure("worker: isolate + put back, a block", size, {"pagehint": work}, ops=blocks, target=60, gib=gib)
    locks = pages.stats(locks=True).locks
    assert locks is not None
    below = list(accumulate(count for _, count in locks.holds))
    limit = next(limit for (limit, _), count in zip(locks.holds, below, strict=True) if count >= 0.999 * below[-1])
    note("worker: zone lock held, 99.9 % of rounds below", size, limit, "ns", LOCK_TARGET)
    note("worker: zone lock held, longest", size, locks.longest_hold_ns, "ns", LOCK_TARGET)
    assert pages.last_error is None
    pages.verify()


@pytest.mark.parametrize("scattered", [True, False], ids=["scattered", "neighbours"])
def test_arena(measure: Measure, consumer: Any, scattered: bool) -> None:
    """Memory given back by `flush_hinting` in blocks of 2 MiB, against one `madvise` for each of them, in C.

    Scattered: every other block of the arena. The memory is touched before, outside the timing.
    """
    arena = ph.Arena(ARENA)
    pages = arena.pages
    page_size = pages.page_size
    blocks = pages.alloc_pages_bulk(ARENA // (2 * MIB), HUGE_ORDER)
    blocks.sort()
    chosen = np.ascontiguousarray(blocks[::2] if scattered else blocks)
    rest = blocks[1::2] if scattered else blocks[:0]
    base = arena.address(0)

    def touch() -> None:
        consumer.touch(base, chosen, 2 * MIB, page_size)

    def ours() -> int:
        touch()
        pages.free_pages_bulk(chosen, HUGE_ORDER)
        reported = pages.stats().pages_reported
        start = perf_counter_ns()
        pages.flush_hinting()
        ns = perf_counter_ns() - start
        assert pages.stats().pages_reported - reported == len(chosen) << HUGE_ORDER
        pages.alloc_pages_bulk(len(chosen), HUGE_ORDER)
        return ns

    def bare() -> int:
        touch()
        return timed(consumer.advise, base, chosen, 2 * MIB, page_size)

    with arena.hinting(workqueue="manual", max_report_order=HUGE_ORDER):
        measure(
            f"arena: 2 MiB blocks given back, {'scattered' if scattered else 'neighbours'}",
            "" if arena.hugepages else "no huge pages",
            {"pagehint": ours, "bare madvise": bare},
            ops=len(chosen),
            unit="% of a bare loop's bytes/s",
            figure=lambda ns: 100 * ns["bare madvise"] / ns["pagehint"],
            target=95,
            at_least=True,
        )
    assert arena.resident_bytes == 0 or scattered
    pages.free_pages_bulk(np.concatenate([chosen, rest]), HUGE_ORDER)
    pages.verify()
    arena.close()
