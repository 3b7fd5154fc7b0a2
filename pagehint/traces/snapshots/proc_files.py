"""The texts of /proc about page frames: zoneinfo, buddyinfo, pagetypeinfo, iomem. Each function reads one of them.

A text that is cut or of another kind raises SnapshotError, with its name and the number of the line. Nothing is
allocated by what a text says, beyond what stands in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pagehint.errors import SnapshotError
from pagehint.layout import PFN_LIMIT, Watermarks

ZoneKey = tuple[int, str]  # node, name of the zone

_ZONE = re.compile(r"Node\s+(\d+), zone\s+(\S+)\s*(.*)")
_TYPE = re.compile(r"Node\s+(\d+), zone\s+(\S+), type\s+(\S+)\s+(.*)")
_RANGE = re.compile(r"\s*([0-9a-fA-F]+)-([0-9a-fA-F]+) : (.*)")
MOST_ORDERS = 64


class SnapshotZone(NamedTuple):
    """One zone as zoneinfo shows it. All figures are pages."""

    node: int
    """NUMA node."""
    name: str
    """DMA, DMA32, Normal, Movable, ..."""
    rank: int
    """Which zone of its node it is, those without memory included: what `protection` is indexed by."""
    start_pfn: int
    """First page frame number."""
    spanned_pages: int
    """From the first to the last, holes included."""
    present_pages: int
    """Not in holes."""
    managed_pages: int
    """Present, and not reserved: what the buddy system has, or has handed out."""
    free_pages: int
    """Free in the buddy system."""
    watermarks: Watermarks
    """Min, low and high."""
    protection: tuple[int, ...]
    """Lowmem reserve: what the zone keeps from requests that prefer the zone of each rank."""
    pcp_pages: int
    """In per-CPU lists."""

    @property
    def end_pfn(self) -> int:
        """The PFN after the last one."""
        return self.start_pfn + self.spanned_pages

    @property
    def place(self) -> str:
        """Name and node, for messages."""
        return f"zone {self.name} (node {self.node})"


class PageTypes(NamedTuple):
    """What pagetypeinfo says."""

    pageblock_order: int
    names: tuple[str, ...]  # of the migratetypes, each at the kernel's number for it
    free: dict[ZoneKey, dict[str, tuple[int | None, ...]]]  # blocks by type and order; None where the kernel stopped
    pageblocks: dict[ZoneKey, dict[str, int]]


def _number(text: str, name: str, line: int) -> int:
    if not text.isdecimal() or len(text) > 20 or int(text) > PFN_LIMIT:
        raise SnapshotError(f"{name}, line {line}: {text[:40]!r} is no number from 0 to 2**52")
    return int(text)


def _zone_lines(text: str, name: str) -> Iterator[tuple[int, ZoneKey, str]]:
    """The lines that begin with a node and a zone: their number, the zone, and the rest."""
    for number, line in enumerate(text.splitlines(), 1):
        found = _ZONE.match(line)
        if found:
            yield number, (_number(found[1], name, number), found[2].rstrip(",")), found[3]


# ---- zoneinfo

_WANTED = ("free", "min", "low", "high", "spanned", "present", "managed", "start_pfn:")


def read_zoneinfo(text: str, name: str = "zoneinfo") -> list[SnapshotZone]:
    """Return the zones that have memory, by address.

    Parameters
    ----------
    text : str
        As in ``/proc/zoneinfo``.
    name : str
        What it is called in messages.

    Raises
    ------
    SnapshotError
        If a zone lacks a figure, is twice there, is too large, or there is none.
    """
    lines = text.splitlines()
    begins = [(number, key) for number, key, _ in _zone_lines(text, name)]
    ends = [*(number for number, _ in begins), len(lines) + 1][1:]
    zones, ranks, seen = [], dict[int, int](), set[ZoneKey]()
    for (begin, key), end in zip(begins, ends, strict=True):
        if key in seen:
            raise SnapshotError(f"{name}, line {begin}: zone {key[1]} of node {key[0]} is there twice")
        seen.add(key)
        rank = ranks.setdefault(key[0], 0)
        ranks[key[0]] += 1
        zone = _zone(lines[begin : end - 1], key, rank, f"{name}, zone {key[1]} (node {key[0]})", begin)
        if zone is not None:
            zones.append(zone)
    if not zones:
        raise SnapshotError(f"{name}: no zone with memory; it is empty, or no zoneinfo")
    return sorted(zones, key=lambda zone: zone.start_pfn)


def _zone(lines: list[str], key: ZoneKey, rank: int, name: str, before: int) -> SnapshotZone | None:
    """The zone of these lines, which follow line `before`; None if it has no memory."""
    figures: dict[str, int] = {}
    protection: tuple[int, ...] = ()
    in_page_sets = 0
    for number, line in enumerate(lines, before + 1):
        words = line.replace("pages free", "free").split()
        if len(words) == 2 and words[0] in _WANTED:
            figures.setdefault(words[0], _number(words[1], name, number))
        elif len(words) == 2 and words[0] == "count:":
            in_page_sets += _number(words[1], name, number)
        elif words[:1] == ["protection:"]:
            listed = line.partition("(")[2].partition(")")[0].split(",")
            protection = tuple(_number(word.strip(), name, number) for word in listed)
    if figures.get("managed") == 0:
        return None
    missing = [word for word in _WANTED if word not in figures] + ([] if protection else ["protection"])
    if missing:
        raise SnapshotError(f"{name}: no {missing[0].rstrip(':')}; the text is cut, or of a kernel that is too old")
    start, spanned = figures["start_pfn:"], figures["spanned"]
    if spanned == 0 or start + spanned > PFN_LIMIT or not figures["managed"] <= figures["present"] <= spanned:
        raise SnapshotError(
            f"{name}: {spanned} pages spanned from PFN {start:#x} on, {figures['present']} present,"
            f" {figures['managed']} managed: this cannot be"
        )
    marks = Watermarks(figures["min"], figures["low"], figures["high"])
    if not marks.min <= marks.low <= marks.high:
        raise SnapshotError(f"{name}: watermarks min {marks.min}, low {marks.low}, high {marks.high} are not in order")
    pages = (figures["present"], figures["managed"], figures["free"])
    return SnapshotZone(*key, rank, start, spanned, *pages, marks, protection, in_page_sets)


# ---- buddyinfo and pagetypeinfo


def read_buddyinfo(text: str, name: str = "buddyinfo") -> dict[ZoneKey, tuple[int, ...]]:
    """Return the free blocks of each order, by zone: the text of ``/proc/buddyinfo``.

    Raises
    ------
    SnapshotError
        If there is no zone, or two do not have the same number of orders.
    """
    counts = {
        key: tuple(_number(word, name, number) for word in rest.split())
        for number, key, rest in _zone_lines(text, name)
    }
    if len({len(each) for each in counts.values()}) != 1 or not 1 <= len(next(iter(counts.values()))) <= MOST_ORDERS:
        raise SnapshotError(f"{name}: cut, or no buddyinfo: its zones do not have the same orders")
    return counts


def _count(word: str, name: str, number: int) -> int | None:
    """A number of blocks; None for ">100000", where the kernel stopped counting."""
    return None if word.startswith(">") else _number(word, name, number)


def read_pagetypeinfo(text: str, name: str = "pagetypeinfo") -> PageTypes:
    """Return free blocks by migratetype and order, and pageblocks by migratetype: the text of ``/proc/pagetypeinfo``.

    Raises
    ------
    SnapshotError
        If a part of it is missing.
    """
    order = re.match(r"Page block order: (\d{1,2})\n", text)
    blocks = re.search(r"^Number of blocks type\s+(.*)$", text, re.MULTILINE)
    if not order or not blocks or int(order[1]) >= MOST_ORDERS:
        raise SnapshotError(f"{name}: cut, or no pagetypeinfo")
    names = tuple(blocks[1].split())
    free: dict[ZoneKey, dict[str, tuple[int | None, ...]]] = {}
    pageblocks: dict[ZoneKey, dict[str, int]] = {}
    last = text.count("\n", 0, blocks.start()) + 1
    for number, line in enumerate(text.splitlines(), 1):
        of_type, of_zone = _TYPE.match(line), _ZONE.match(line)
        if of_type and number < last:
            key = (_number(of_type[1], name, number), of_type[2])
            free.setdefault(key, {})[of_type[3]] = tuple(_count(word, name, number) for word in of_type[4].split())
        elif of_zone and number > last:
            key, counts = (_number(of_zone[1], name, number), of_zone[2]), of_zone[3].split()
            if len(counts) != len(names):
                raise SnapshotError(f"{name}, line {number}: {len(counts)} numbers for {len(names)} migratetypes")
            pageblocks.setdefault(key, dict(zip(names, (_number(word, name, number) for word in counts), strict=True)))
    if not free or not pageblocks or any(set(each) != set(names) for each in free.values()):
        raise SnapshotError(f"{name}: cut: not every zone has every migratetype of {', '.join(names)}")
    return PageTypes(int(order[1]), names, free, pageblocks)


# ---- iomem


def read_iomem(text: str, page_size: int, name: str = "iomem") -> tuple[tuple[int, int], ...]:
    """Return the whole pages of system RAM as (start, end) in PFNs: the text of ``/proc/iomem``.

    Nothing, if all addresses are zero: so it is shown to users other than root.

    Raises
    ------
    SnapshotError
        If no line is a range of addresses.
    """
    ranges, any_range = [], False
    for number, line in enumerate(text.splitlines(), 1):
        found = _RANGE.fullmatch(line)
        if not found:
            raise SnapshotError(f"{name}, line {number}: {line[:60]!r} is no range of addresses")
        any_range = True
        first, last = int(found[1], 16), int(found[2], 16)
        start, end = -(-first // page_size), (last + 1) // page_size
        if found[3].startswith("System RAM") and last > 0 and start < end <= PFN_LIMIT:
            ranges.append((start, end))
    if not any_range:
        raise SnapshotError(f"{name}: empty, or no iomem")
    return tuple(sorted(ranges))
