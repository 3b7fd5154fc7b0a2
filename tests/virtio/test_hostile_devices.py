"""Devices that lie: a request to one ends in time, with an error that says why, and touches nothing but its rings."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from contextlib import suppress

import hypothesis.strategies as st
import pytest
from balloon_model import ADDRESS, BAR_BYTES, COMMON, BalloonModel, driven
from hypothesis import given

import pagehint as ph
from pagehint.virtio import Qtest, SplitQueue, VirtioPci

RING = 0x40  # the first capability of the model
GUARD = 4096


class Guarded(BalloonModel):
    """A model that writes down what its driver does outside the places that are its own."""

    def __init__(self, *arguments, **options):
        self.outside = []
        super().__init__(*arguments, **options)

    def write_port(self, port, nr_bytes, value):
        if port not in (0xCF8, 0xCFC, 0xCFE) or (port == 0xCF8 and value >> 8 & 7):
            self.outside.append((port, value))
        super().write_port(port, nr_bytes, value)

    def write(self, address, nr_bytes, value):
        bar = self._bar()
        if not bar <= address <= bar + BAR_BYTES - nr_bytes:
            self.outside.append((address, value))
        super().write(address, nr_bytes, value)


def patched(model, offset, layout, *values):
    struct.pack_into("<" + layout, model.configuration, offset, *values)
    return model


@pytest.mark.parametrize(
    ("offset", "layout", "values", "words"),
    [
        (RING + 1, "B", [RING], "a list of capabilities that goes on after 48, as a ring does"),
        (RING + 0x18 * 3 + 1, "B", [RING], "as a ring does"),
        (0x34, "B", [0x10], "a capability at 0x10, where none can be"),
        (0x34, "B", [0xFF], "virtio device 5 (lacks|has)"),
        (0x34, "B", [0], "lacks one of the structures"),
        (RING + 8, "I", [BAR_BYTES - 8], "a structure 1 of 0x38 bytes from 0x3ff8, in BAR 0 of 0x4000 bytes"),
        (RING + 8, "II", [0, 55], "a structure 1 of 0x37 bytes from 0x0"),
        (RING + 8, "II", [0xFFFF_FFFF, 0xFFFF_FFFF], "a structure 1 of 0xffffffff bytes"),
        (RING + 4, "B", [5], "lacks one of the structures"),
    ],
)
def test_a_list_of_capabilities_that_is_a_ring_was_followed_for_ever(offset, layout, values, words):
    with pytest.raises(ph.HostError, match=words):
        VirtioPci(patched(Guarded(), offset, layout, *values), 5)


def test_a_capability_at_the_end_of_configuration_space_was_read_beyond_it():
    """There, another function's registers come next."""
    model = patched(Guarded(), 0x34, "B", 0xF4)
    patched(model, 0xF4, "BBBBB", 9, 0, 20, 2, 0)
    with pytest.raises(ph.HostError, match="a capability at 0xf4 that goes beyond its configuration space"):
        VirtioPci(model, 5)
    assert not model.outside


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({0x10: 0x0000_0008}, "a BAR 0 of 0x100000000 bytes, for which there is no room"),
        ({0x10: 0x8000_0000}, "a BAR 0 of 0x80000000 bytes, for which there is no room"),
        ({0x10: 0xFF0F_F000}, "a BAR 0 of 0xf01000 bytes, for which there is no room"),
        ({0x10: 0, 0x24: 0xFFFF_0004}, "a BAR of 64 bits that is the last one"),
        ({0x10: 0xFFFF_FFFF}, "has no BAR in memory"),
        ({0x10: 0}, "has no BAR in memory"),
    ],
)
def test_a_bar_of_a_size_that_cannot_be_was_placed(masks, words):
    model = Guarded()
    read = model.read_port
    model.read_port = lambda port, nr_bytes: masks.get(model.selected & 0xFC, read(port, nr_bytes))
    with pytest.raises(ph.HostError, match=words):
        VirtioPci(model, 5)
    assert not model.outside


@pytest.mark.parametrize("value", [0, -1])
def test_a_device_that_reads_as_all_zeros_or_all_ones(value):
    model = Guarded()
    model.register = lambda offset: value
    start = time.monotonic()
    with pytest.raises(
        ph.HostError, match=r"was not reset in 0\.1 s|older than virtio 1\.0: it offers the features 0x0"
    ):
        driven(model, timeout=0.1)
    assert time.monotonic() - start < 30
    model.read_port = lambda port, nr_bytes: value & (1 << 8 * nr_bytes) - 1
    with pytest.raises(ph.HostError, match="no virtio device 5"):
        driven(model)
    assert not model.outside


@pytest.mark.parametrize("size", [3, 0xFFFF])
def test_a_queue_of_a_size_that_cannot_be_is_named(size):
    with pytest.raises(ph.HostError, match=f"queue 0 of the device, for inflate, cannot have {size} descriptors"):
        driven(BalloonModel(queue_size=size))


def test_queues_longer_than_the_drivers_memory_are_used_in_part():
    model = BalloonModel(queue_size=1 << 15)
    balloon = driven(model)
    balloon.report([0] * 5000, [4096] * 5000)
    assert [len(buffers) for name, buffers, _ in model.sent if name == "reporting"] == [4096, 904]


def test_a_doorbell_outside_its_structure_was_rung():
    model = Guarded()
    real = model.register
    model.register = lambda offset: 0xFFFF if offset == COMMON + 30 else real(offset)
    with pytest.raises(ph.HostError, match=r"a structure 2 of 4096 bytes, in which there are no 2 at 0x3fffc"):
        driven(model)


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize(
    ("entry", "written", "ahead", "words"),
    [
        (0, 0, 2, "2 chains, and had 1"),
        (0, 0, 32, "32 chains, and had 1"),
        (0, 0, 65535, "65535 chains, and had 1"),
        (31, 0, 1, "descriptor 31, which it did not have"),
        (0xFFFF_FFFF, 0, 1, "descriptor 4294967295, which it did not have"),
        (0x10000, 0, 1, "descriptor 65536, which it did not have"),
        (0, 101, 1, "101 bytes written to descriptor 0, whose buffers have 100"),
        (0, 0xFFFF_FFFF, 1, "4294967295 bytes written"),
    ],
)
def test_a_used_ring_that_lies_was_believed(event_idx, entry, written, ahead, words):
    model = BalloonModel()
    queue = SplitQueue(model.memory, ADDRESS, 32, event_idx)
    model.queues[0] = {24: 32, 48: queue.device_area, "used": 0}
    assert queue.add([1, 2, 3], [50, 60, 40], 1) == 0
    model.give_back(0, entry, written, ahead)
    for _ in range(2):
        with pytest.raises(ValueError, match=words):
            queue.take()
        assert queue.nr_free == 29, "the chain is still the device's"


def test_a_device_that_gave_all_back_and_gives_once_more():
    model = BalloonModel()
    queue = SplitQueue(model.memory, ADDRESS, 4)
    model.queues[0] = {24: 4, 48: queue.device_area, "used": 0}
    queue.add([1], [50])
    model.give_back(0, 0, 50)
    assert queue.take() == (0, 50)
    model.give_back(0, 0, 0)
    with pytest.raises(ValueError, match="1 chains, and had 0"):
        queue.take()


def test_a_driver_whose_used_ring_lies_resets_the_device_and_says_so():
    for written, ahead, words in ((1 << 20, 1, "1048576 bytes written"), (0, 7, "7 chains, and had 1")):
        model = BalloonModel()
        balloon = driven(model, pages=ph.PageAllocator([ph.ZoneSpec("Normal", 0, 4096)], pcp=False))
        real = model.give_back
        model.give_back = lambda number, head, w=written, a=ahead, real=real: real(number, head, w, a)
        with pytest.raises(ph.HostError, match=f"{words}.*the device has been reset"):
            balloon.report([0], [4096])
        model.give_back = real
        balloon.report([0], [4096])
        assert model.fenced == 0


class Random(Guarded):
    """A model whose every answer, and every byte of its used rings, may be another than it should."""

    def __init__(self, seed, often):
        self.rng = random.Random(seed)
        self.often = 0
        super().__init__()
        self.often = often

    def _or_any(self, value, nr_bytes):
        if self.rng.random() < self.often:
            return self.rng.choice([0, (1 << 8 * nr_bytes) - 1, self.rng.getrandbits(8 * nr_bytes)])
        return value

    def read_port(self, port, nr_bytes):
        return self._or_any(super().read_port(port, nr_bytes), nr_bytes)

    def read(self, address, nr_bytes):
        return self._or_any(super().read(address, nr_bytes), nr_bytes)

    def give_back(self, number, head, written=0, ahead=1):
        super().give_back(number, self._or_any(head, 4), self._or_any(written, 4), self._or_any(ahead, 2))


@given(st.integers(0, 1 << 32), st.sampled_from([0.001, 0.01, 0.1, 1.0]))
def test_a_device_of_random_answers_is_an_error_or_works(seed, often):
    model = Random(seed, often)
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 0, 4096)], pcp=False)
    whole = bytes([0xAB]) * GUARD
    model.memory[-GUARD:] = whole
    balloon = None
    start = time.monotonic()
    with suppress(ph.HostError):
        balloon = driven(model, pages=pages, timeout=0.02)
        model.target = 500
    for request in ("inflate", "report", "follow", "deflate", "send_statistics"):
        if balloon is not None:
            arguments = {"inflate": [100], "report": [[0], [4096]], "deflate": [10]}.get(request, [])
            with suppress(ph.HostError, ph.OutOfMemoryError, ValueError):
                getattr(balloon, request)(*arguments)
            assert pages.stats().allocated_pages == balloon.actual
    assert time.monotonic() - start < 60
    assert model.memory[-GUARD:] == whole
    pages.verify()


def test_an_answer_without_end_was_waited_for():
    for line in (b"IRQ raise 1\n", b"x" * 1024):
        ours, theirs = socket.socketpair()
        stop = threading.Event()

        def speak(theirs=theirs, line=line, stop=stop):
            with suppress(OSError):
                while not stop.is_set():
                    theirs.sendall(line)

        thread = threading.Thread(target=speak)
        thread.start()
        try:
            with pytest.raises(ph.HostError, match=r"did not answer 'readl 0x0' in 0\.2 s|an answer of over"):
                Qtest(ours, 0.2).read(0, 4)
        finally:
            stop.set()
            ours.close()
            thread.join()
            theirs.close()


@pytest.mark.parametrize("answer", [b"OK 0x100000000\n", b"OK -0x1\n", b"OK 0x\n", b"OK\n"])
def test_an_answer_that_is_no_number_of_its_width_was_taken_for_one(answer):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        with pytest.raises(ph.HostError, match="which is no number of 4 bytes"):
            Qtest(ours, 1.0).read(0, 4)
