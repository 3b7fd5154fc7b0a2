"""What leaves for the device fits where it is written; else nothing is sent."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from balloon_model import ADDRESS, BalloonModel, driven

import pagehint as ph
from pagehint.virtio import Qtest, SplitQueue
from pagehint.virtio.balloon import PAGE_POISON
from pagehint.virtio.pci import VERSION_1

LAST = 1 << 32


@pytest.fixture
def grown():
    """An allocator whose only free pages are beyond PFN 2**32, where its zone has grown to."""
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", LAST - 32768, 32768)], pcp=False)
    model = BalloonModel()
    balloon = driven(model, pages=pages)
    pages.alloc_pages_bulk(32768)
    pages.online(LAST, 32768)
    return pages, model, balloon


def test_a_page_beyond_pfn_2_to_the_32_was_inflated_as_page_0(grown):
    pages, model, balloon = grown
    free = pages.stats().free_pages
    with pytest.raises(ph.BadPageError, match=r"PFN 0x100000000, order 0, of zone Normal: .* 32 bits"):
        balloon.inflate(16)
    assert "inflate" not in model.names()
    assert model.status == 0xF, "it has been reset"
    assert (balloon.actual, pages.stats().free_pages) == (0, free)
    pages.verify()


def test_pages_below_pfn_2_to_the_32_are_still_inflated_after_the_zone_has_grown(grown):
    pages, model, balloon = grown
    pages.alloc_pages_bulk(32768)
    pages.free_pages(LAST - 1)
    balloon.inflate(1)
    assert [np.frombuffer(data, "<u4").tolist() for name, _, data in model.sent if name == "inflate"] == [[LAST - 1]]
    balloon.deflate(1)
    pages.verify()


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda wire: wire.write(0x1000, 4, LAST), r"0x100000000 does not fit into 4 bytes, at 0x1000"),
        (lambda wire: wire.write(0x1000, 1, -1), r"-0x1 does not fit into 1 bytes"),
        (lambda wire: wire.write_port(0xCFC, 2, 1 << 16), r"0x10000 does not fit into 2 bytes, at 0xcfc"),
        (lambda wire: wire.write((1 << 64) - 2, 4, 0), r"no 4 bytes at 0xfffffffffffffffe"),
        (lambda wire: wire.read(-4, 4), r"no 4 bytes at -0x4"),
        (lambda wire: wire.write_port(1 << 16, 1, 0), r"no 1 bytes at port 0x10000"),
        (lambda wire: wire.read_port(0xFFFF, 2), r"no 2 bytes at port 0xffff"),
    ],
)
def test_a_number_that_does_not_fit_was_cut_by_the_machine(write, words):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"OK 0x0\n")
        with pytest.raises(ValueError, match=words):
            write(Qtest(ours, 1.0))
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


@pytest.mark.parametrize("poison", [LAST, -1])
def test_a_poison_value_that_does_not_fit_was_told_as_another(poison):
    with pytest.raises(ValueError, match="poison value has 32 bits"):
        driven(BalloonModel(offered=VERSION_1 | PAGE_POISON), poison=poison)


def test_a_queue_at_the_end_of_the_address_space_had_its_rings_at_its_beginning():
    with pytest.raises(ValueError, match="beyond the address space"):
        SplitQueue(BalloonModel().memory, (1 << 64) - 256, 32)


@pytest.mark.parametrize("chain", [([1.5], [1]), ([1], [2.5]), ([np.float64(1)], [1]), ([1 << 64], [1]), ([1], [-1])])
def test_a_buffer_that_is_no_number_of_its_width_makes_nothing_available(chain):
    model = BalloonModel()
    queue = SplitQueue(model.memory, ADDRESS, 32)
    with pytest.raises((TypeError, OverflowError)):
        queue.add(*chain)
    assert queue.nr_free == 32
    assert queue.add([1], [1]) == 0


@pytest.mark.parametrize(
    ("addresses", "lengths", "words"),
    [
        ([0, 8192], [4096], "2 addresses and 1 lengths"),
        ([0], [0], "no range of guest-physical addresses: 0 bytes from 0x0"),
        ([-4096], [4096], "4096 bytes from -0x1000"),
        ([1 << 64], [4096], "4096 bytes from 0x10000000000000000"),
        ([(1 << 64) - 4096], [8192], "8192 bytes from 0xfffffffffffff000"),
        ([0], [2048], "2048 bytes from 0x0: the host drops whole 4096 bytes only"),
        ([2048], [4096], "4096 bytes from 0x800: the host drops whole 4096 bytes only"),
        ([ADDRESS - 4096], [8192], "the driver's own memory is in the 8192 bytes from 0xff000"),
    ],
)
def test_a_range_that_cannot_be_is_named_and_nothing_is_sent(addresses, lengths, words):
    model = BalloonModel()
    balloon = driven(model)
    for as_given in (list, lambda numbers: np.array(numbers, object)):
        with pytest.raises(ValueError, match=words):
            balloon.report(as_given(addresses), as_given(lengths))
    with pytest.raises(TypeError):
        balloon.report([0.5], [4096])
    assert "reporting" not in model.names()
    balloon.report([(1 << 64) - 4096], [4096])
