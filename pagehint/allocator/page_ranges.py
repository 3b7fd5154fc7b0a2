"""Where a zone has no memory: ranges of page frames, (start, end), in sorted lists of disjoint ones.

No list changes: each function returns a new one, so that whoever reads the old one goes on with it. A search is
O(log ranges); a new list is a copy of the old one, a word a range.
"""

from __future__ import annotations

from bisect import bisect_left

Range = tuple[int, int]


def overlapping(ranges: list[Range], start: int, end: int) -> slice:
    """Which of the ranges have pages in [start, end)."""
    first = bisect_left(ranges, (start,))
    if first and ranges[first - 1][1] > start:
        first -= 1
    return slice(first, bisect_left(ranges, (end,), first))


def within(ranges: list[Range], start: int, end: int) -> list[Range]:
    """Return the parts of the ranges that are in [start, end)."""
    return [(max(first, start), min(last, end)) for first, last in ranges[overlapping(ranges, start, end)]]


def without(ranges: list[Range], start: int, end: int) -> list[Range]:
    """Return the parts of the ranges that are not in [start, end)."""
    cut = overlapping(ranges, start, end)
    rest = [part for first, last in ranges[cut] for part in ((first, min(last, start)), (max(first, end), last))]
    return ranges[: cut.start] + [(first, last) for first, last in rest if first < last] + ranges[cut.stop :]


def joined(ranges: list[Range], start: int, end: int) -> list[Range]:
    """Return the ranges with [start, end), which is one with those that it overlaps or touches."""
    cut = overlapping(ranges, start - 1, end + 1)
    start, end = min([start, *(first for first, _ in ranges[cut])]), max([end, *(last for _, last in ranges[cut])])
    return [*ranges[: cut.start], (start, end), *ranges[cut.stop :]]


def union(*lists: list[Range]) -> list[Range]:
    """Return what is in any of the lists. O(ranges * log ranges)."""
    merged: dict[int, int] = {}
    first = last = -1
    for start, end in sorted(each for ranges in lists for each in ranges):
        if start > last:
            first = start
        merged[first] = last = max(end, last)
    return list(merged.items())
