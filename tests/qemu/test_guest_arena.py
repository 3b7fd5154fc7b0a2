"""The RAM of a guest as an arena."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from guests import MIB, filled, is_whole, small_host, without_qemu
from threads import in_threads, keeper_of_canaries

import pagehint as ph
from pagehint.qemu.ram import FREE, HIGH, PCI_HOLE

pytestmark = without_qemu
host = pytest.fixture(small_host)


def test_guest_physical_addresses_are_those_of_qemu_below_and_above_the_hole():
    """What QEMU reads at a guest-physical address is what we wrote there."""
    with ph.qemu.Host("3200MiB") as host:
        arena = host.arena()
        assert [(z.name, z.start_pfn * 4096) for z in arena.pages.zones] == [("DMA32", FREE), ("Normal", HIGH)]
        assert arena.pages.zones[0].spanned_pages * 4096 + FREE == PCI_HOLE
        high = arena.empty(100 * MIB, np.uint8)
        low = arena.empty(100 * MIB, np.uint8)  # there are only 128 MiB above
        for array, zone in ((high, 1), (low, 0)):
            array[-8:] = np.arange(1, 9)
            pfn = (array.ctypes.data - arena.address(FREE // 4096)) // 4096 + FREE // 4096
            assert arena.pages.zones[zone].start_pfn <= pfn
            assert arena.address(pfn) == array.ctypes.data
            assert host.balloon._transport._wire.read(pfn * 4096 + 100 * MIB - 8, 8) == 0x0807060504030201
        for pfn in (0, 511, PCI_HOLE // 4096, HIGH // 4096 - 1, HIGH // 4096 + (128 << 8), -1):
            with pytest.raises(ValueError, match="is not RAM of this guest"):
                arena.address(pfn)
        before = host.resident_bytes
        del high, low
        with arena.hinting(delay=None):
            arena.pages.flush_hinting()
        assert host.resident_bytes <= min(before, FREE)


def test_a_closed_arena_leaves_the_host_and_its_memory_alone(host):
    arena = host.arena()
    array = filled(arena, 4 * MIB)
    with pytest.raises(ph.PageHintError, match="1 array in the arena"):
        arena.close()
    del array
    arena.close()
    assert arena.closed
    for call in (lambda: arena.empty(1), lambda: arena.resident_bytes, lambda: arena.address(1024), arena.hinting):
        with pytest.raises(ValueError, match="the arena is closed"):
            call()
    assert host.running


def test_a_guests_arena_has_everything_that_an_arena_has(host):
    arena = host.arena()
    with ph.Arena("2MiB") as other:
        names = [name for name in dir(other) if not name.startswith("_")]
        for name in names:
            if callable(value := getattr(arena, name)) and name != "numpy":
                assert inspect.signature(value) == inspect.signature(getattr(other, name)), name
        assert sorted(names) == [name for name in dir(arena) if not name.startswith("_")]
    assert (arena.limit, arena.hugepages, arena.populated_bytes, arena.numpy_counts) == (None, False, 0, (0,) * 6)
    assert arena.size == 254 * MIB
    array = filled(arena, 30 * MIB)
    assert arena.status().used_bytes == 30 * MIB
    del array
    assert arena.trim() == 30 * MIB
    assert repr(arena).startswith("<GuestArena of 254 MiB: 254 MiB free")


def test_advice_that_qemu_does_not_follow_is_refused(host):
    with pytest.raises(ValueError, match="advice 'free' is for memory of this process: QEMU drops"):
        host.arena().hinting("free")
    with pytest.raises(ValueError, match="advice must be one of dontneed, free, not 'maybe'"):
        host.arena().hinting("maybe")
    assert not host.arena().pages.hinting_enabled


def test_a_limit_bound_one_zone_of_two(clock):
    """The sum is bound, wherever the memory is that is in use when the limit is set."""
    with ph.qemu.Host("3200MiB") as host:
        arena = host.arena()
        options = {"workqueue": "manual", "delay": None, "min_age": 1000.0, "clock": clock}
        with arena.hinting(max_pages=4, **options) as pages:
            pages.flush_hinting()
            for limit, kept in ((150, 20), (64, 20), (64, 60), (20, 60), (5000, 20)):
                high, low, used = filled(arena, 100 * MIB), filled(arena, 60 * MIB), filled(arena, kept * MIB, 3)
                in_use = [(zone.managed_pages - zone.free_pages) * 4096 // MIB for zone in pages.zones]
                assert in_use == ([60, 120] if kept == 20 else [120, 100])
                del high, low
                pages.run_pending()
                before = host.resident_bytes
                assert before >= (160 + kept) * MIB
                arena.limit = f"{limit}MiB"
                assert arena.limit == limit * MIB
                pages.run_pending()
                assert host.resident_bytes <= min(max(limit, kept) * MIB + FREE, before)
                assert limit != 5000 or host.resident_bytes == before
                assert is_whole(used, 3)
                arena.limit = None
                del used
        with pytest.raises(ValueError, match="positive"):
            arena.limit = 0
        assert pages.memory.reporting_pages == 0
        pages.verify()


def test_canaries_in_the_guests_ram(host):
    """What a thread has written is there when it looks again, while all the rest goes to the host and comes back."""
    arena = host.arena()
    checked = []

    def balloon(stop, rng):
        while not stop.wait(0.02):
            try:
                host.balloon.inflate(rng.randrange(2000))
            except ph.OutOfMemoryError:
                continue
            host.balloon.deflate(rng.randrange(host.balloon.actual + 1))
            host.balloon.send_statistics()

    def on_and_off(stop, rng):
        while not stop.is_set():
            with arena.hinting(max_pages=rng.choice([1, 8, 32, 64]), threshold=1, delay=0.0):
                stop.wait(rng.random() / 5)
                arena.pages.flush_hinting()

    in_threads([keeper_of_canaries(arena, 12, checked)] * 3 + [balloon, on_and_off])
    assert arena.pages.last_error is None
    stats = arena.pages.stats()
    assert stats.blocks_failed == 0
    assert stats.pages_reported > 0
    assert checked
    host.balloon.deflate(host.balloon.actual)
    arena.pages.verify()
    assert host.discards.calls > 0
