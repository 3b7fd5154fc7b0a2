"""The split virtqueue against a device in plain Python that follows the specification to the letter."""

from __future__ import annotations

import struct

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from pagehint.virtio import SplitQueue

ADDRESS = 0x10000


class Device:
    """The other side (sections 2.7.5 to 2.7.14), reading and writing the memory and nothing else."""

    def __init__(self, memory, queue):
        self.memory = memory
        self.size = queue.size
        self.event_idx = queue.event_idx
        self.table = queue.descriptor_area - ADDRESS
        self.available = queue.driver_area - ADDRESS
        self.used = queue.device_area - ADDRESS
        self.seen = self.done = 0

    def read(self, layout, at):
        return struct.unpack_from("<" + layout, self.memory, at)

    def fetch(self):
        """Return the next chain that was made available as (head, [(address, length, for the device to write)])."""
        (index,) = self.read("H", self.available + 2)
        if index == self.seen:
            return None
        (head,) = self.read("H", self.available + 4 + 2 * (self.seen % self.size))
        self.seen = (self.seen + 1) % 65536
        chain, at, more = [], head, True
        while more:
            address, length, flags, following = self.read("QIHH", self.table + 16 * at)
            chain.append((address, length, bool(flags & 2)))
            more, at = flags & 1, following
            assert len(chain) <= self.size, "a chain without end"
        return head, chain

    def give_back(self, head, written):
        struct.pack_into("<II", self.memory, self.used + 4 + 8 * (self.done % self.size), head, written)
        self.done = (self.done + 1) % 65536
        struct.pack_into("<H", self.memory, self.used + 2, self.done)

    def want_no_notification(self, no):
        struct.pack_into("<H", self.memory, self.used, int(no))

    def want_notification_after(self, index):
        struct.pack_into("<H", self.memory, self.used + 4 + 8 * self.size, index % 65536)


def made(size, event_idx=False):
    memory = bytearray(np.full(SplitQueue.nr_bytes(size) + 16, 0xAB, np.uint8))
    shift = -np.frombuffer(memory, np.uint8).ctypes.data % 16
    part = memoryview(memory)[shift : shift + SplitQueue.nr_bytes(size)]
    queue = SplitQueue(part, ADDRESS, size, event_idx)
    return queue, Device(part, queue)


@given(
    st.sampled_from([1, 2, 4, 32, 128]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.randoms(use_true_random=False)), max_size=60),
)
def test_what_goes_in_comes_out_whole_and_in_any_order(size, event_idx, steps):
    queue, device = made(size, event_idx)
    there, at_device = {}, []
    for length, returned, rng in steps:
        buffers = [(rng.randrange(1 << 60), rng.randrange(1 << 32)) for _ in range(length)]
        readable = rng.randrange(length + 1)
        used = sum(len(chain) for chain in there.values())
        assert queue.nr_free == size - used
        if 0 < length <= queue.nr_free:
            head = queue.add([a for a, _ in buffers], [n for _, n in buffers], readable)
            assert head not in there
            there[head] = [(a, n, i >= readable) for i, (a, n) in enumerate(buffers)]
            assert device.fetch() == (head, there[head])
            at_device.append(head)
        else:
            with pytest.raises(ValueError, match=f"{length} buffers"):
                queue.add([a for a, _ in buffers], [n for _, n in buffers])
        assert device.fetch() is None
        for _ in range(min(returned, len(at_device))):
            head = at_device.pop(rng.randrange(len(at_device)))
            written = min(sum(n for _, n, write in there[head] if write), rng.randrange(1 << 32))
            assert queue.take() is None
            device.give_back(head, written)
            assert queue.take() == (head, written)
            del there[head]


@pytest.mark.parametrize("event_idx", [False, True])
def test_the_indices_wrap(event_idx):
    queue, device = made(4, event_idx)
    for turn in range(70_000):
        head = queue.add([turn, turn], [1, 2])
        assert device.fetch() == (head, [(turn, 1, True), (turn, 2, True)])
        device.want_notification_after(turn)
        assert queue.must_notify()
        device.give_back(head, turn % 4)
        assert queue.take() == (head, turn % 4)


def test_the_device_says_whether_it_wants_to_be_told():
    queue, device = made(8)
    queue.add([1], [1])
    assert queue.must_notify()
    device.want_no_notification(True)
    queue.add([1], [1])
    assert not queue.must_notify()


def test_the_device_says_when_it_wants_to_be_told():
    queue, device = made(8, event_idx=True)
    device.want_notification_after(2)
    told = []
    for _ in range(5):
        queue.add([1], [1])
        told.append(queue.must_notify())
    assert told == [False, False, True, False, False]
    device.want_notification_after(5)
    for _ in range(3):
        queue.add([1], [1])
    assert queue.must_notify()  # it is among the three


def test_we_do_not_want_to_be_interrupted():
    for event_idx in (False, True):
        queue, device = made(4, event_idx)
        for turn in range(100):
            (flags,) = device.read("H", device.available)
            (event,) = device.read("H", device.available + 4 + 2 * 4)
            if event_idx:
                assert (event - turn) % 65536 > 30_000
            else:
                assert flags & 1
            queue.add([1], [1])
            device.give_back(device.fetch()[0], 0)
            queue.take()


def test_a_device_that_gives_back_what_it_does_not_have_is_found_out():
    queue, device = made(4)
    head = queue.add([1, 2], [1, 1])
    device.give_back(head + 1, 0)  # in the middle of the chain
    with pytest.raises(ValueError, match="descriptor 1, which it did not have"):
        queue.take()
    queue, device = made(4)
    queue.add([1], [1])
    device.give_back(77, 0)
    with pytest.raises(ValueError, match="descriptor 77"):
        queue.take()


def test_bad_queues_are_refused():
    memory = bytearray(4096)
    for size in (0, -1, 3, 65536):
        with pytest.raises(ValueError, match="power of two"):
            SplitQueue(memory, ADDRESS, size)
    with pytest.raises(ValueError, match="writable"):
        SplitQueue(bytes(4096), ADDRESS, 8)
    with pytest.raises(ValueError, match="writable"):
        SplitQueue(memory, ADDRESS, 1024)
    with pytest.raises(ValueError, match="multiple of 16"):
        SplitQueue(memory, ADDRESS + 8, 8)
    queue, _ = made(4)
    for arguments in (([1], [1, 2]), ([1], [1 << 32]), ([-1], [1]), (["a"], [1]), ([1], [1], 2)):
        with pytest.raises((ValueError, OverflowError, TypeError)):
            queue.add(*arguments)
    assert queue.take() is None
    assert repr(queue) == "<SplitQueue of 4 at 0x10000: 4 descriptors free>"
