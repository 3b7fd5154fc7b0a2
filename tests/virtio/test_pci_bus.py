"""Functions on PCI buses that nobody has numbered: all are found, and a hostile tree of them has an end."""

from __future__ import annotations

import struct

from pagehint.virtio.pci_bus import PciBus


class Tree:
    """The wire of a machine with functions on buses: `{(slot, function): device ID, or a tree behind a bridge}`."""

    def __init__(self, tree):
        self.spaces = {}
        self.root = self.grown(tree)
        self.selected = self.accesses = 0

    def grown(self, tree):
        functions = {}
        for (slot, function), what in tree.items():
            space = bytearray(256)
            behind = self.grown(what) if isinstance(what, dict) else None
            struct.pack_into("<HH", space, 0, 0x1AF4, what if behind is None else 0x0001)
            several = 0x80 if any(other[0] == slot and other[1] for other in tree) else 0
            space[0x0E] = several | (behind is not None)
            space[0x0A:0x0C] = b"\x04\x06" if behind is not None else b"\xff\x00"
            functions[slot, function] = (space, behind)
        return functions

    def space(self):
        """Return the configuration space that is selected, found as a machine finds it: bridge by bridge."""
        bus, slot, function = self.selected >> 16 & 255, self.selected >> 11 & 31, self.selected >> 8 & 7
        here, at = self.root, 0
        while here is not None and at != bus:
            at, here = next(
                ((space[0x19], behind) for space, behind in here.values()
                 if behind is not None and 0 < space[0x19] <= bus <= space[0x1A]), (0, None)
            )  # fmt: skip
        return None if here is None else here.get((slot, function), (None,))[0]

    def write_port(self, port, nr_bytes, value):
        self.accesses += 1
        if port == 0xCF8:
            self.selected = value
        elif (space := self.space()) is not None:
            at = (self.selected & 0xFC) + port - 0xCFC
            space[at : at + nr_bytes] = value.to_bytes(nr_bytes, "little")

    def read_port(self, port, nr_bytes):
        self.accesses += 1
        space = self.space()
        at = (self.selected & 0xFC) + port - 0xCFC
        return (1 << 8 * nr_bytes) - 1 if space is None else int.from_bytes(space[at : at + nr_bytes], "little")


def found(tree):
    """Return the device IDs that are found, each with the number of its bridges; those of bridges are 1."""
    wire = Tree(tree)
    bus = PciBus(wire)
    return [(bus.read(place.function, 2, 2), len(place.bridges)) for place in bus.places()], wire


def test_functions_of_a_slot_are_found_where_function_0_says_that_there_are_some():
    assert found({(3, 0): 10, (3, 1): 11, (3, 7): 17, (31, 0): 99})[0] == [(10, 0), (11, 0), (17, 0), (99, 0)]
    assert found({(3, 1): 11})[0] == [], "a slot without a function 0 is empty"


def test_buses_behind_bridges_are_numbered_so_that_each_stays_reachable():
    tree = {
        (1, 0): {(2, 0): 20, (3, 0): {(0, 0): 30}, (4, 0): {(31, 0): 40}},
        (5, 0): 50,
        (6, 0): {},
        (7, 0): {(7, 0): 70, (7, 3): 73},
    }
    devices, wire = found(tree)
    assert devices == [(1, 0), (20, 1), (1, 1), (30, 2), (1, 1), (40, 2), (50, 0), (1, 0), (1, 0), (70, 1), (73, 1)]
    bus = PciBus(wire)
    selectors = [place.function for place in bus.places()]
    assert [bus.read(selector, 2, 2) for selector in selectors] == [device for device, _ in devices]
    assert [wire.root[slot, 0][0][0x18:0x1B] for slot in (1, 6, 7)] == [b"\0\1\3", b"\0\4\4", b"\0\5\5"]


def test_a_machine_of_nothing_but_bridges_has_an_end():
    tree = {}
    for depth in range(40):
        tree = {(slot, 0): tree for slot in range(1 + (depth < 6))}
    devices, wire = found(tree)
    assert {device for device, _ in devices} == {1}
    assert wire.accesses < 32 * 32 * 8 * 8


def test_a_bridge_forwards_whole_mebibytes():
    devices, wire = found({(1, 0): {(2, 0): 20}})
    assert devices
    bus = PciBus(wire)
    bridge = 0x8000_0000 | 1 << 11
    registers = bus.forward(bridge, 0xE000_0000, 0xE010_4000)
    assert struct.unpack_from("<HH", wire.root[1, 0][0], 0x20) == (0xE000, 0xE010)
    assert struct.unpack_from("<H", wire.root[1, 0][0], 4) == (6,)
    assert all(bus.read(*register) == value for register, value in registers.items())
