"""A balloon of a real QEMU in other places and of other kinds than the usual: found, or refused in words."""

from __future__ import annotations

import pytest
from guests import MIB, filled, is_whole, without_qemu
from test_qemu_resets import reset, unplug

import pagehint as ph
from pagehint.qemu.ram import FREE

pytestmark = without_qemu

BRIDGES = ["-device", "pci-bridge,id=far,chassis_nr=1,addr=6", "-device", "pci-bridge,id=farther,bus=far,chassis_nr=2"]


def is_in_order(host):
    """Report, inflate and deflate; what is in use stays."""
    arena = host.arena()
    kept = filled(arena, 20 * MIB)
    filled(arena, 20 * MIB, 2)
    with arena.hinting(delay=None, workqueue="manual"):
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None
    assert host.resident_bytes <= 20 * MIB + FREE
    host.balloon.inflate(1000)
    assert host.balloon.follow() == -1000
    assert is_whole(kept)
    arena.pages.verify()


@pytest.mark.parametrize(
    "options",
    [
        ["-set", "device.balloon.disable-legacy=off"],
        ["-set", "device.balloon.addr=7.5", "-device", "virtio-rng-pci,addr=7,multifunction=on"],
        ["-set", "device.balloon.addr=0x1f"],
    ],
    ids=["transitional", "function 5", "the last slot"],
)
def test_a_device_that_is_not_a_modern_function_0_was_not_found(options):
    with ph.qemu.Host("64MiB", options=options) as host:
        is_in_order(host)
        reset(host)
        is_in_order(host)
        host.restart()
        is_in_order(host)


@pytest.mark.parametrize("bus", ["far", "farther"])
def test_a_device_behind_bridges_was_not_found(bus):
    """It is reset together with the bridges, after which nobody knows where it is."""
    with ph.qemu.Host("64MiB", options=BRIDGES) as host:
        host.balloon.inflate(500)
        unplug(host)
        host.qmp(
            "device_add", driver="virtio-balloon-pci", id="balloon", bus=bus, addr="0x4", disable_legacy="on",
            free_page_reporting=True,
        )  # fmt: skip
        assert host.balloon.follow() == -500
        is_in_order(host)
        assert len(host.balloon._transport._bridges) == ["far", "farther"].index(bus) + 1
        reset(host)
        is_in_order(host)
        assert host.running


def test_a_device_older_than_virtio_1_is_refused_in_words():
    with pytest.raises(ph.HostError, match="has no BAR in memory, as devices older than virtio"):
        ph.qemu.Host("64MiB", options=["-set", "device.balloon.disable-legacy=off",
                                       "-set", "device.balloon.disable-modern=on"])  # fmt: skip


def test_a_device_behind_an_iommu_is_refused_in_words():
    with pytest.raises(ph.HostError, match=r"translates addresses \(iommu_platform=on\)"):
        ph.qemu.Host("64MiB", options=["-set", "device.balloon.iommu_platform=on"])


@pytest.mark.parametrize("driver", ["pc-dimm", "nvdimm", "virtio-mem-pci"])
def test_memory_that_is_added_later_is_refused_in_words(driver):
    with ph.qemu.Host("64MiB", options=["-m", "64M,slots=2,maxmem=1G"]) as host:
        host.qmp("object-add", qom_type="memory-backend-ram", id="more", size=64 * MIB)
        with pytest.raises(ph.HostError, match=rf"{driver}: the arena is the RAM that the guest began with"):
            host.qmp("device_add", driver=driver, memdev="more", id="dimm")
        assert host.qmp("query-memory-devices") == []
        is_in_order(host)


def test_memory_that_is_added_at_the_start_is_refused_in_words():
    options = ["-m", "64M,slots=2,maxmem=1G", "-object", "memory-backend-ram,id=more,size=64M"]
    with pytest.raises(ph.HostError, match="dimm: the arena is the RAM that the guest began with"):
        ph.qemu.Host("64MiB", options=[*options, "-device", "pc-dimm,memdev=more"])
