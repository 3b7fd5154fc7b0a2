"""Arguments: numbers and arrays of any integer type are taken, everything else is refused in words."""

from __future__ import annotations

import numpy as np
import pytest
from allocators import real

import pagehint as ph


@pytest.mark.parametrize("value", [1.5, "1", None, np.float64(2)])
def test_arguments_of_the_wrong_type(value):
    pages = real("16MiB")
    for call in (
        pages.free_pages,
        pages.alloc_pages_at,
        pages.alloc_pages_exact,
        pages.alloc_pages_bulk,
        pages.alloc_pages,
    ):
        with pytest.raises(TypeError):
            call(value)
    with pytest.raises(TypeError):
        pages.free_pages_bulk([value])


def test_bulk_arguments():
    pages = real("16MiB")
    pfns = pages.alloc_pages_bulk(64, 2)
    assert pfns.dtype == np.uint64
    assert len(set(pfns.tolist())) == 64
    with pytest.raises(ValueError, match="one-dimensional"):
        pages.free_pages_bulk(pfns.reshape(8, 8), 2)
    with pytest.raises(ValueError, match="orders for"):
        pages.free_pages_bulk(pfns, [2, 2])
    with pytest.raises(ph.BadPageError, match="negative"):
        pages.free_pages_bulk(np.array([-1]))
    with pytest.raises(ph.BadPageError):
        pages.free_pages_bulk([1 << 70])
    with pytest.raises(ph.BadPageError):
        pages.free_pages_bulk(pfns, np.full(64, 2**33))
    reversed_view = pfns[::-1][::2]
    reversed_view.flags.writeable = False
    pages.free_pages_bulk(reversed_view, 2)
    pages.free_pages_bulk(pfns[::2].astype(np.int32).tolist(), [2] * 32)
    pages.free_pages_bulk([], 0)
    assert len(pages.alloc_pages_bulk(0)) == 0
    assert pages.stats().allocated_pages == 0


def test_a_list_of_numpys_and_pythons_integers_was_taken_for_floats():
    pages = real("16MiB")
    pages.free_pages_bulk([*pages.alloc_pages_bulk(2), pages.alloc_pages()])
    pages.free_pages_bulk([np.uint64(pages.alloc_pages(1)), pages.alloc_pages(2)], [np.uint64(1), 2])
    pages.free_pages_bulk(np.array([pages.alloc_pages()], object))
    assert pages.stats().allocated_pages == 0
    for bad in ([np.uint64(1), 2.0], [1.0], [np.float64(1)], np.array([1.0]), ["1"], [None]):
        with pytest.raises(TypeError, match="pfns"):
            pages.free_pages_bulk(bad)
    for bad, number in (([1, 2**63, -3], "-3"), ([np.uint64(1), -1], "-1"), ([1 << 70], str(1 << 70))):
        with pytest.raises(ph.BadPageError, match=number):
            pages.free_pages_bulk(bad)
    for bad in (np.zeros((2, 2), np.uint64), [[1]], 3, "abc"):
        with pytest.raises(ValueError, match="one-dimensional"):
            pages.free_pages_bulk(bad)


def test_a_description_of_the_wrong_type_is_refused_in_words():
    for bad, error, words in (
        (1.5, TypeError, "memory must be"),
        (None, TypeError, "memory must be"),
        ([1, 2], TypeError, "ZoneSpec"),
    ):
        with pytest.raises(error, match=words):
            ph.PageAllocator(bad)
    for bad, error in (((1, 2), ValueError), ("foo", ValueError), (5, TypeError), ((1, 2, 3.5), TypeError)):
        with pytest.raises(error, match="watermarks must be"):
            ph.PageAllocator("1MiB", watermarks=bad)
    assert ph.PageAllocator("1MiB", watermarks=np.array([1, 2, 3])).zones[0].watermarks == (1, 2, 3)
    for bad in (("a", 0.5, 100), ("a", 0, 10.0), ("a", 0, 10, 0.5), (5, 0, 100), ("a", 0, 10, 0, [(1.5, 3)])):
        with pytest.raises(TypeError, match=r"zone|ZoneSpec"):
            ph.ZoneSpec(*bad)
    with pytest.raises(ValueError, match="hole"):
        ph.ZoneSpec("a", 0, 10, holes=[(1, 2, 3)])
    assert ph.ZoneSpec("a", np.int64(3), np.uint8(100)).end_pfn == 103


def test_two_zones_of_one_name_on_one_node_are_refused_and_named():
    zones = [ph.ZoneSpec("Normal", 0, 4096, node=1), ph.ZoneSpec("Normal", 8192, 4096, node=1)]
    with pytest.raises(ValueError, match="two zones of node 1 are named Normal: at PFN 0x0 and at PFN 0x2000"):
        ph.PageAllocator(zones)


def test_zones_of_one_name_on_several_nodes_are_told_apart():
    """By a name, the lowest node's is meant, wherever it lies; a Zone is itself; messages name the node."""
    pages = ph.PageAllocator(
        [ph.ZoneSpec("Normal", 0, 1 << 16, node=1), ph.ZoneSpec("Normal", 1 << 16, 1 << 16, node=0)], pcp=False
    )
    high, low = pages.zones
    assert (high.node, low.node) == (1, 0)
    assert pages.alloc_pages(zone="Normal") >= low.start_pfn
    assert pages.alloc_pages(zone=high) < low.start_pfn
    pages.offline(1 << 15, 1 << 15)
    for call, named in (
        (lambda: pages.offline(1 << 15, 1 << 15), "node 1"),
        (lambda: pages.free_pages(5), "node 1"),
        (lambda: pages.free_pages(low.start_pfn + 5), "node 0"),
        (lambda: pages.set_migratetype(low.start_pfn + 1, 1, "isolate"), "node 0"),
    ):
        with pytest.raises(ph.BadPageError, match=named):
            call()
