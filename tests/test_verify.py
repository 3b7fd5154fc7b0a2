"""verify() finds each invariant broken: a compiled module (corrupt.pyx) breaks one number, and puts it right again."""

from __future__ import annotations

from pathlib import Path

import pytest

import pagehint as ph
from benchmarks.build import build_module

ONES = (1 << 64) - 1


@pytest.fixture(scope="module")
def corrupt(tmp_path_factory):
    return build_module(Path(__file__).parent / "corrupt.pyx", tmp_path_factory.mktemp("corrupt"))


def plain():
    """Leaf 0 in parts, its first page in use; free from leaf 1 on, in blocks of order 6, 7, 8, 9, 10, 10 …"""
    pages = ph.PageAllocator("64MiB", pcp=False)
    pages.alloc_pages_at(0)
    return pages


def hinted():
    pages = plain()
    pages.alloc_pages_at(1024, 9)  # granule 2 is in use as a whole
    pages.enable_hinting(ph.PageHintingCallbacks(print), workqueue="manual", threshold=1000, delay=None)
    return pages


def with_holes():
    return ph.PageAllocator([ph.ZoneSpec("Normal", 0, 4096, holes=[(10, 5), (128, 64)])], pcp=False)


# What verify() says, what to start from, and what to break: (field, index, what becomes of what was there).
BROKEN = {
    "a wholly free leaf is not merged": (plain, lambda c: [("free", 0, ONES), ("head", 0, 0)]),
    "a page set's own leaf has free pages, or no owner": (plain, lambda c: [("kind", 0, c.KINDS["OWNED"])]),
    "a leaf's kind is not its largest free order": (plain, lambda c: [("kind", 0, c.KINDS["SPLIT"] + 3)]),
    "inside a block that does not begin": (plain, lambda c: [("kind", 16, c.KINDS["TAIL"])]),
    "a block's order is out of range": (plain, lambda c: [("kind", 16, c.KINDS["FREE"] | 11)]),
    "a block is not aligned or crosses the zone's end": (plain, lambda c: [("kind", 1, c.KINDS["FREE"] | 7)]),
    "a block begins inside another": (plain, lambda c: [("kind", 17, c.KINDS["FREE"] | 6)]),
    "two free buddies are not merged": (plain, lambda c: [("kind", 0, c.KINDS["FREE"] | 6)]),
    "a free block is isolated in part": (plain, lambda c: [("type", 3, c.ISOLATE)]),
    "an unknown kind of leaf": (plain, lambda c: [("kind", 0, 0x20)]),
    "nr_free is not the number of free blocks": (plain, lambda c: [("nr_free", c.MOVABLE * 33 + 10, 3)]),
    "a leaf is on the wrong free list": (plain, lambda c: [("next", c.head_of_list(c.MOVABLE, 9), 16)]),
    "a free list is not linked both ways": (plain, lambda c: [("prev", 8, 16)]),
    "a free block is on no list": (plain, lambda c: [("nonempty", c.MOVABLE, 0)]),
    "a hint for a granule that is not free": (hinted, lambda c: [("hints", 0, ONES >> 32)]),
    "a hint for a granule that is": (hinted, lambda c: [("hints", 0, lambda old: old | 1 << 2)]),  # in use as a whole
    "the second level of the hints is not in step": (hinted, lambda c: [("hint_words", 0, 0)]),
    "the hint count is not the number of bits": (hinted, lambda c: [("hint_count", 0, 12)]),
    "hints while hinting is off": (
        plain,
        lambda c: [("hints", 0, 1 << 4), ("hint_words", 0, 1), ("hint_count", 0, 1)],
    ),
    "an absent page is in use": (with_holes, lambda c: [("free", 0, lambda old: old & ~(1 << 10))]),
    "an absent leaf is in use": (with_holes, lambda c: [("kind", 2, c.KINDS["EXACT"])]),
    "managed pages are not what is left": (plain, lambda c: [("managed_pages", 0, 17)]),
    "free_pages is not the number of free pages": (plain, lambda c: [("free_pages", 0, 17)]),
    "pages are withheld, but neither absent": (plain, lambda c: [("free", 0, ONES)]),
    "more pages are held than are out for reporting": (
        hinted,
        lambda c: [("kind", 16, c.KINDS["HELD"] | 9), ("isolated_pages", 0, 1)],
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


@pytest.mark.parametrize("words", BROKEN)
def test_verify_finds(corrupt, words):
    make, changes = BROKEN[words]
    pages = make()
    pages.verify()
    undo = break_it(corrupt, pages, changes(corrupt))
    with pytest.raises(ph.PageHintError, match=f"zone Normal .node 0. is inconsistent at PFN 0x[0-9a-f]+: {words}"):
        pages.verify()
    break_it(corrupt, pages, undo)
    pages.verify()


@pytest.mark.parametrize("words", ["is not withheld", "is in a leaf that another owns"])
def test_verify_finds_a_block_in_a_page_set_that(corrupt, words):
    pages = ph.PageAllocator("256MiB")  # the set will own the leaves that it is filled from
    for pfn in [pages.alloc_pages() for _ in range(100)]:
        pages.free_pages(pfn)
    cpu, _, _, leaf = corrupt.stacked(pages)[0]
    pages.verify()
    if words == "is not withheld":
        undo = break_it(corrupt, pages, [("stacked", 0, 64 * 100)])
    else:
        undo = break_it(corrupt, pages, [("next", leaf, corrupt.OWNER_MARK | (cpu + 1))])
    with pytest.raises(ph.PageHintError, match=f"a block in a per-CPU page set {words}"):
        pages.verify()
    break_it(corrupt, pages, undo)
    pages.verify()
