"""verify() finds each invariant broken: a compiled module (corrupt.pyx) breaks one number, and puts it right again.

Every condition in `zone/verify.pxd` has a case that fails without it: what it must find, and where, or what it
must allow.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import pagehint as ph
from benchmarks.build import build_module
from pagehint.arena.mapping import Mapping

ONES = (1 << 64) - 1
START = 0x4400  # of the zone that is broken: where a block of the largest order may begin, and not at 0
PAGES = 1 << 14  # in it: 256 leaves
MAPPED = os.sysconf("SC_PAGESIZE")  # so many leaves have a kind that can be written


@pytest.fixture(scope="module")
def corrupt(tmp_path_factory):
    return build_module(Path(__file__).parent / "corrupt.pyx", tmp_path_factory.mktemp("corrupt"))


def plain(**options):
    """Leaf 0 in parts, its first page in use; free from leaf 1 on, in blocks of order 6, 7, 8, 9, 10, 10 …"""
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", START, PAGES)], pcp=False, **options)
    pages.alloc_pages_at(START)
    return pages


def full():
    """As `plain`, with all of leaf 0 in use."""
    pages = plain()
    for order in range(6):
        pages.alloc_pages_at(START + (1 << order), order)
    return pages


def block():
    """As `plain`, with a block of order 10 in use: leaves 16 to 31."""
    pages = plain()
    pages.alloc_pages_at(START + 1024, 10)
    return pages


def full_end():
    """As `plain`, with the zone's last block of order 10 in use: leaves 240 to 255."""
    pages = plain()
    pages.alloc_pages_at(START + PAGES - 1024, 10)
    return pages


def hinted(**options):
    pages = plain(**options)
    pages.alloc_pages_at(START + 1024, 9)  # granule 2 is in use as a whole
    pages.enable_hinting(ph.PageHintingCallbacks(print), workqueue="manual", threshold=1000, delay=None)
    return pages


def hinted_leaves():
    """A granule is a leaf; leaves 6 and 7 are one block in use."""
    pages = hinted(min_order=6)
    pages.alloc_pages_at(START + 384, 7)
    return pages


def hinted_parts():
    """A granule is 8 pages; those of leaf 0 are free but the first and the fourth."""
    pages = hinted(min_order=3)
    pages.alloc_pages_at(START + 25)
    return pages


def with_holes():
    holes = [(START + 10, 5), (START + 128, 128)]
    return ph.PageAllocator([ph.ZoneSpec("Normal", START, 4096, holes=holes)], pcp=False)


def ragged():
    """A zone that begins and ends inside a leaf."""
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", START + 48, PAGES + 512 + 10 - 48)], pcp=False)
    pages.alloc_pages_at(START + 48)
    return pages


def short():
    """A zone whose last block is half of the largest one."""
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", START, PAGES + 512)], pcp=False)
    pages.alloc_pages_at(START)
    return pages


def isolated():
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", START, PAGES)], pcp=False)
    pages.set_migratetype(START, 512, "isolate")
    return pages


def second_zone():
    """As `plain`, but behind another zone, on another node."""
    pages = ph.PageAllocator([ph.ZoneSpec("DMA32", 1, 5000), ph.ZoneSpec("Normal", START, PAGES, node=1)], pcp=False)
    pages.alloc_pages_at(START)
    return pages


def small_blocks():
    return plain(max_page_order=3, min_order=3)


def run():
    """As `plain`, with a run of pages in use that is not a power of two."""
    pages = plain()
    pages.alloc_pages_exact(320)
    return pages


def extents():
    """As `plain`, where runs begin at any page. One extent, from page 1 to the end, in bin 319."""
    pages = plain()
    Mapping.adopt(pages)
    return pages


def crossing():
    """As `extents`, with a run in part of leaf 0, all of leaves 1 and 2, and part of leaf 3."""
    pages = extents()
    pages.alloc_pages_exact(200)
    return pages


def leaf_before():
    """As `extents`, with leaf 2 in use as a block, and the page after it."""
    pages = extents()
    pages.alloc_pages_at(START + 128, 6)
    pages.alloc_pages_at(START + 192)
    return pages


def put(field, i, value):
    return lambda c: [(field, i, value)]


def kind(i, name, order=0):
    return lambda c: [("kind", i, c.KINDS[name] | order)]


def all_of(*changes):
    return lambda c: [change for each in changes for change in each(c)]


def off(*bits):
    """What `put` takes for clearing bits of what was there; `on` sets them."""
    return lambda old: old & ~sum(1 << bit for bit in bits)


def on(*bits):
    return lambda old: old | sum(1 << bit for bit in bits)


# What verify() says, at which page after START, what to start from, and what to break: (field, index, value), the value
# perhaps by what was there.
BROKEN = [
    ("an unknown migratetype", 3 * 512, plain, lambda c: [("type", 3, c.TYPES)]),
    ("a wholly free leaf is not merged", 0, plain, all_of(put("free", 0, ONES), put("head", 0, 0))),
    (
        "a page set's own leaf has free pages, or no owner",
        0,
        plain,
        lambda c: [("kind", 0, c.KINDS["OWNED"]), ("next", 0, c.OWNER_MARK)],
    ),
    ("a page set's own leaf has free pages, or no owner", 0, full, all_of(kind(0, "OWNED"), put("next", 0, 0))),
    ("a leaf's kind is not its largest free order", 0, plain, lambda c: [("kind", 0, c.KINDS["SPLIT"] + 3)]),
    ("a leaf's kind is not its largest free order", 0, plain, kind(0, "FULL")),
    ("a leaf's kind is not its largest free order", 0, full, kind(0, "SPLIT")),
    ("inside a block that does not begin", 1024, plain, kind(16, "TAIL")),
    ("a block's order is out of range", 1024, plain, kind(16, "FREE", 11)),
    ("a block's order is out of range", 1024, plain, kind(16, "FREE", 5)),
    ("a block is not aligned or crosses the zone's end", 64, plain, kind(1, "FREE", 7)),
    ("a block is not aligned or crosses the zone's end", PAGES, short, kind(256, "FREE", 10)),
    ("a block begins inside another", 17 * 64, plain, kind(17, "FREE", 6)),
    ("a block begins inside another", 31 * 64, plain, kind(31, "FREE", 6)),
    ("a block begins inside another", 17 * 64, plain, all_of(kind(17, "FREE", 6), put("bulk_blocks", 0, 1))),
    ("a block begins inside another", 17 * 64, block, all_of(kind(16, "WITHHELD", 10), kind(17, "USED", 6))),
    ("two free buddies are not merged", 0, plain, kind(0, "FREE", 6)),
    ("two free buddies are not merged", 0, isolated, lambda c: [("type", 1, c.ISOLATE)]),
    ("a free block is isolated in part", 3 * 512, plain, lambda c: [("type", 3, c.ISOLATE)]),
    ("a free block is isolated in part", 3 * 512, plain, lambda c: [("type", 2, c.ISOLATE)]),
    ("an unknown kind of leaf", 0, plain, put("kind", 0, 0x20)),
    ("nr_free is not the number of free blocks", 0, plain, lambda c: [("nr_free", c.MOVABLE * 33 + 10, 3)]),
    ("nr_free is not the number of free blocks", 48, ragged, lambda c: [("nr_free", c.MOVABLE * 33 + 10, 3)]),
    ("a free list begins outside the zone", 0, plain, lambda c: [("next", c.head_of_list(c.MOVABLE, 9), 256)]),
    ("a free list leads out of the zone", 512, plain, lambda c: [("next", 8, c.head_of_list(c.MOVABLE, 10))]),
    ("a leaf is on the wrong free list", 1024, plain, lambda c: [("next", c.head_of_list(c.MOVABLE, 9), 16)]),
    ("a leaf is on the wrong free list", 64, plain, lambda c: [("next", c.head_of_list(c.MOVABLE, 5), 1)]),
    (
        "a leaf is on the wrong free list",
        512,
        plain,
        lambda c: [("next", c.head_of_list(c.RECLAIMABLE, 9), 8), ("nonempty", c.RECLAIMABLE, 1 << 9)],
    ),
    ("a free list is not linked both ways", 512, plain, put("prev", 8, 16)),
    (
        "a free list is longer than there are blocks for it",
        64,
        block,  # a bulk free makes its large block many small ones, and somebody lists one too early
        lambda c: [
            ("bulk_blocks", 0, 1),
            ("kind", 16, c.KINDS["WITHHELD"] | 10),
            ("kind", 17, c.KINDS["FREE"] | 6),
            ("next", c.head_of_list(c.MOVABLE, 6), 17),
            ("prev", 17, c.head_of_list(c.MOVABLE, 6)),
            ("next", 17, 1),
            ("prev", 1, 17),
        ],
    ),
    ("a free block is on no list", 0, plain, lambda c: [("nonempty", c.MOVABLE, 0)]),
    ("a free block is on no list", 48, ragged, lambda c: [("nonempty", c.MOVABLE, 0)]),
    ("the end of a run that does not begin", 0, plain, put("head", 0, off(0))),
    ("the end of a run that does not begin", 192, leaf_before, put("head", 3, off(0))),
    ("the middle of a run that does not begin", 64, extents, kind(1, "MIDDLE")),  # behind a page that is free
    ("the middle of a run that does not begin", 1024, extents, kind(16, "MIDDLE")),  # behind a free block
    ("a run has not as many whole leaves as it says", 64, crossing, put("prev", 1, 3)),
    ("free pages are no extent", 1, extents, put("extent_pages", 0, 17)),
    ("free pages are no extent", 201, crossing, put("extent_pages", 12, 0)),
    ("the bit of a bin of extents is not in step", 0, extents, put("filled", 4, 0)),
    ("the bit of a bin of extents is not in step", 0, extents, put("filled", 0, 1)),
    ("a list of extents leads out of them", 0, extents, put("bins", 319, 1 << 20)),
    ("an extent is on the wrong list", 80, extents, put("bins", 319, 5)),
    ("an extent is on the wrong list", 0, extents, put("extent_prev", 0, 0)),
    ("an extent is on no list", 0, extents, all_of(put("bins", 319, 0xFFFFFFFF), put("filled", 4, 0))),
    ("a hint for a granule that is not free", 0, hinted, put("hints", 0, ONES >> 32)),  # in use in part
    ("a hint for a granule that is not free", 1024, hinted, put("hints", 0, on(2))),  # in use as a whole
    (
        "a hint for a granule that is not free",
        PAGES,
        hinted,  # behind the zone, whatever stands there
        all_of(put("hints", 0, on(32)), kind(256, "FREE", 9)),
    ),
    ("a hint for a granule that is not free", 7 * 64, hinted_leaves, put("hints", 0, on(7))),
    ("a hint for a granule that is not free", 0, hinted_parts, put("hints", 0, on(0))),
    ("a hint for a granule that is not free", 24, hinted_parts, put("hints", 0, on(3))),
    ("the second level of the hints is not in step", 0, hinted, put("hint_words", 0, 0)),
    ("the second level of the hints is not in step", 3 * 512, hinted_parts, put("hint_words", 0, off(3))),
    ("the second level of the hints is not in step", 2 * 512, hinted_parts, put("hint_words", 0, on(2))),  # all in use
    ("the hint count is not the number of bits", 0, hinted, put("hint_count", 0, 12)),
    (
        "hints while hinting is off",
        0,
        plain,
        all_of(put("hints", 0, 1 << 4), put("hint_words", 0, 1), put("hint_count", 0, 1)),
    ),
    (
        "hints while hinting is off",
        48,
        ragged,
        all_of(put("hints", 0, 1 << 4), put("hint_words", 0, 1), put("hint_count", 0, 1)),
    ),
    ("an absent page is in use", 10, with_holes, put("free", 0, off(10))),
    (
        "an absent page is in use",
        12,
        with_holes,  # taken for free, and counted as that
        lambda c: [("head", 0, off(12)), ("nr_free", c.MOVABLE * 33, lambda old: old + 1)],
    ),
    ("an absent page is in use", 47, ragged, put("free", 0, off(47))),  # before the zone, in its first leaf
    ("an absent page is in use", PAGES + 512 + 63, ragged, put("free", 264, off(63))),
    ("an absent leaf is in use", 128, with_holes, kind(2, "RUN")),
    ("an absent leaf is in use", 192, with_holes, kind(3, "RUN")),
    ("managed pages are not what is left", 0, plain, put("managed_pages", 0, 17)),
    ("managed pages are not what is left", 48, ragged, put("managed_pages", 0, 17)),
    ("free_pages is not the number of free pages", 0, plain, put("free_pages", 0, 17)),
    ("free_pages is not the number of free pages", 48, ragged, put("free_pages", 0, 17)),
    ("free_pages is not the number of free pages", 0, second_zone, put("free_pages", 0, 17)),
    ("pages are withheld, but neither absent", 0, plain, put("free", 0, ONES)),
    ("pages are withheld, but neither absent", 48, ragged, put("free", 0, on(48))),
    ("pages are withheld, but neither absent", 0, full, all_of(put("free", 0, on(0, 1)), put("bulk_blocks", 0, 1))),
    ("pages are withheld, but neither absent", 0, block, all_of(kind(16, "WITHHELD", 10), put("bulk_pages", 0, 1023))),
    (
        "more pages are withheld than are taken out of circulation",
        0,
        block,
        all_of(kind(16, "WITHHELD", 10), put("reporting_pages", 0, 1)),
    ),
    (
        "more pages are withheld than are taken out of circulation",
        0,
        block,
        all_of(kind(16, "WITHHELD", 10), put("reporting_pages", 0, 512), put("bulk_pages", 0, 511)),
    ),
]

# What looks broken and is not: what to start from, and what to change. `bulk_blocks` and `bulk_pages` are of a bulk
# call that has begun, `reporting_pages` of a batch that is out.
ALLOWED = {
    "a run of pages": (run, put("free", 1, ONES)),  # of a leaf that is not split, the words say nothing
    "no block larger than order 3": (small_blocks, put("free", 1, off())),
    "a free buddy that is isolated": (isolated, put("free", 1, ONES)),
    "what stands behind the zone, beside a free block": (short, kind(264, "FREE", 9)),
    "what stands behind the zone, after a run of pages, as far as there is memory": (
        full_end,
        lambda c: [("kind", 240, c.KINDS["RUN"])] + [("kind", i, c.KINDS["TAIL"]) for i in range(256, MAPPED)],
    ),
    "a page withheld in a bulk call": (plain, all_of(put("free", 0, ONES), put("bulk_blocks", 0, 1))),
    "a block held in a bulk call": (block, all_of(kind(16, "WITHHELD", 10), put("bulk_pages", 0, 1024))),
    "a block held by a bulk call that has yet to count it": (
        block,
        all_of(kind(16, "WITHHELD", 10), put("bulk_blocks", 0, 1)),
    ),
    "a block that a bulk call makes many of": (
        block,
        all_of(kind(16, "WITHHELD", 10), kind(17, "FULL"), put("bulk_blocks", 0, 1)),
    ),
    "a batch that is out": (block, all_of(kind(16, "WITHHELD", 10), put("reporting_pages", 0, 1024))),
    "a batch of small blocks that is out": (plain, all_of(put("free", 0, ONES), put("reporting_pages", 0, 8))),
    "a batch that is out beside a bulk call": (
        block,
        all_of(kind(16, "WITHHELD", 10), put("reporting_pages", 0, 512), put("bulk_pages", 0, 512)),
    ),
    "a batch that is out, and a bulk call that has yet to count its own": (
        block,
        all_of(kind(16, "WITHHELD", 10), put("reporting_pages", 0, 512), put("bulk_blocks", 0, 1)),
    ),
}


def break_it(corrupt, pages, changes):
    undo = []
    for field, i, value in changes:
        if callable(value):
            old = corrupt.swap(pages, field, i, 0)
            corrupt.swap(pages, field, i, value(old))
        else:
            old = corrupt.swap(pages, field, i, value)
        undo.append((field, i, old))
    return undo[::-1]


def finds(corrupt, pages, changes, where, words):
    """verify() says just this of the broken zone, and nothing before and after."""
    pages.verify()
    undo = break_it(corrupt, pages, changes)
    node = pages.zones[-1].node
    with pytest.raises(ph.PageHintError) as raised:
        pages.verify()
    break_it(corrupt, pages, undo)
    assert str(raised.value).startswith(f"zone Normal (node {node}) is inconsistent at PFN {where:#x}: {words}")
    pages.verify()


@pytest.mark.parametrize(("words", "page", "make", "changes"), BROKEN)
def test_verify_finds(corrupt, words, page, make, changes):
    finds(corrupt, make(), changes(corrupt), START + page, words)


@pytest.mark.parametrize("what", ALLOWED)
def test_verify_allows(corrupt, what):
    make, changes = ALLOWED[what]
    pages = make()
    pages.verify()
    undo = break_it(corrupt, pages, changes(corrupt))
    pages.verify()
    break_it(corrupt, pages, undo)


@pytest.fixture
def sets():
    """A page set with blocks in leaves of its own and in leaf 1000, which is nobody's; of both, a block is in use."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})  # else there may be two sets, and a block of the one freed to the other
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", START, 1 << 16)])
    pfns = [pages.alloc_pages() for _ in range(100)]
    shared = START + 64000
    pages.alloc_pages_at(shared)
    pages.free_pages(pages.alloc_pages_at(shared + 1))
    for pfn in pfns[1:]:
        pages.free_pages(pfn)
    yield pages, pfns[0], shared
    os.sched_setaffinity(0, cpus)


@pytest.mark.parametrize("which", ["in use", "in use in a shared leaf", "free", "of a large block", "outside the zone"])
def test_verify_finds_a_block_in_a_page_set_that_is_not_withheld(corrupt, sets, which):
    pages, used, shared = sets
    where = {
        "in use": used,
        "in use in a shared leaf": shared,
        "free": shared + 2,
        "of a large block": START + 50000,
        "outside the zone": START + (1 << 31),
    }[which]
    changes = [("stacked", 0, where - START)]
    if which == "of a large block":  # whose leaf's words say nothing
        changes += [(word, (where - START) >> 6, ONES) for word in ("free", "head")]
    finds(corrupt, pages, changes, where, "a block in a per-CPU page set is not withheld")


def test_verify_finds_a_block_in_a_page_set_that_is_in_a_leaf_that_another_owns(corrupt, sets):
    cpu, _, _, page = corrupt.stacked(sets[0])[0]
    change = ("next", page >> 6, corrupt.OWNER_MARK | (cpu + 1))
    words = "a block in a per-CPU page set is in a leaf that another owns"
    finds(corrupt, sets[0], [change], START + page, words)


@pytest.mark.parametrize("which", ["free", "in use in another length", "beyond the zone", "twice"])
def test_verify_finds_a_kept_run_that_is_not_allocated_just_so(corrupt, which, clock):
    with ph.Arena("64MiB") as arena, arena.numpy():
        arena.enable_hinting(workqueue="manual", clock=clock, threshold=1, reserve="16MiB")
        np.empty(100 << 10, "u1")
        np.empty(100 << 10, "u1")
        kept = np.empty(50 * 4096, "u1")
        page = (kept.ctypes.data - arena.address(0)) // 4096
        there = {
            "free": (page + 200) << 32 | 7,
            "in use in another length": page << 32 | 49,
            "beyond the zone": 1 << 60 | 7,
            "twice": page << 32 | 50,
        }[which]
        if which == "twice":
            kept = None
        words = "twice" if which == "twice" else "not allocated"
        arena.pages.verify()
        there = corrupt.swap(arena.pages, "kept_run", 0, there)
        assert there == 0
        with pytest.raises(ph.PageHintError, match=f"a run .*in the page set for runs.* {words}"):
            arena.pages.verify()
        corrupt.swap(arena.pages, "kept_run", 0, 0)
        kept = None
        arena.pages.verify()
        arena.disable_hinting()
