"""Whether the sources of a snapshot agree: what contradicts is named, so that nobody believes it unawares."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pagehint.traces.snapshots.proc_files import SnapshotZone
from pagehint.traces.snapshots.snapshot import NO_MEMORY, PAGE_FREE, PAGE_PCP, PAGE_USED, Snapshot


def check_snapshot(snapshot: Snapshot) -> tuple[str, ...]:
    """Say in sentences where the sources of a snapshot contradict each other or themselves.

    Parameters
    ----------
    snapshot : Snapshot
        As `read_snapshot` or `live_snapshot` return it.

    Returns
    -------
    tuple of str
        Empty if everything agrees. Of a machine that was running a few pages differ, since its files were read one
        after the other.

    Notes
    -----
    O(pages). Looked at are: free pages and blocks outside every zone or RAM; zones that overlap; listed blocks that are
    not aligned, not free, or in two lists; and the sums of each source against those of the others.
    """
    return (
        *snapshot.disagreements,
        *_zones_overlap(snapshot),
        *_counts_of_texts(snapshot),
        *([] if snapshot.pages is None else _pages(snapshot)),
        *_pageblocks(snapshot),
        *_lists(snapshot),
    )


def _at(pages: NDArray[np.bool_] | NDArray[np.uint64]) -> str:
    """The number of pages, and the first, of flags or PFNs."""
    pfns = np.flatnonzero(pages) if pages.dtype == np.bool_ else pages
    return f"{len(pfns)}, the first at PFN {int(pfns[0]):#x}"


def _zones_overlap(snapshot: Snapshot) -> Iterator[str]:
    for below, above in zip(snapshot.zones, snapshot.zones[1:], strict=False):
        if above.start_pfn < below.end_pfn:
            yield f"{below.place} and {above.place} overlap at PFN {above.start_pfn:#x}"


def _counts_of_texts(snapshot: Snapshot) -> Iterator[str]:
    """Check buddyinfo and pagetypeinfo against zoneinfo and each other."""
    sizes = 1 << np.arange(snapshot.max_page_order + 1)
    for i, zone in enumerate(snapshot.zones):
        if snapshot.buddyinfo is not None and (free := int(snapshot.buddyinfo[i] @ sizes)) != zone.free_pages:
            yield f"{zone.place}: {free} pages are free by buddyinfo, {zone.free_pages} by zoneinfo"
        if snapshot.free_by_type is None or snapshot.buddyinfo is None:
            continue
        for order, counts in enumerate(snapshot.free_by_type[i].T):
            if (counts >= 0).all() and counts.sum() != snapshot.buddyinfo[i, order]:
                yield (
                    f"{zone.place}: {counts.sum()} free blocks of order {order} by pagetypeinfo,"
                    f" {snapshot.buddyinfo[i, order]} by buddyinfo"
                )


def _pages(snapshot: Snapshot) -> Iterator[str]:
    """The state of each page against the zones, RAM, and the counts."""
    free = snapshot.known_pages() == PAGE_FREE
    outside = free.copy()
    for zone in snapshot.zones:
        outside[zone.start_pfn : zone.end_pfn] = False
    if outside.any():
        yield f"free pages are outside every zone: {_at(outside)}"
    if snapshot.ram:
        outside = free.copy()
        for start, end in snapshot.ram:
            outside[start:end] = False
        if outside.any():
            yield f"free pages are not in System RAM by iomem: {_at(outside)}"
    for i, zone in enumerate(snapshot.zones):
        yield from _pages_of_zone(snapshot, i, zone)


def _pages_of_zone(snapshot: Snapshot, i: int, zone: SnapshotZone) -> Iterator[str]:
    span = snapshot.span(zone)
    for what, here, by_zoneinfo in (
        ("managed", int((span >= PAGE_USED).sum()), zone.managed_pages),
        ("free", int((span == PAGE_FREE).sum()), zone.free_pages),
        ("in per-CPU lists", int((span == PAGE_PCP).sum()), zone.pcp_pages),
    ):
        if here != by_zoneinfo and (snapshot.pcp_lists is not None or what != "in per-CPU lists"):
            yield f"{zone.place}: {here} pages are {what} page by page, {by_zoneinfo} by zoneinfo"
    if snapshot.buddyinfo is None:
        return
    blocks = np.bincount(snapshot.free_blocks(zone)["order"], minlength=snapshot.max_page_order + 1)
    for order in np.flatnonzero(blocks != snapshot.buddyinfo[i]).tolist():
        yield (
            f"{zone.place}: {blocks[order]} free blocks of order {order} page by page,"
            f" {snapshot.buddyinfo[i, order]} by buddyinfo"
        )


def _pageblocks(snapshot: Snapshot) -> Iterator[str]:
    if snapshot.pageblocks is None or snapshot.pageblock_counts is None:
        return
    shift = snapshot.pageblock_order
    for i, zone in enumerate(snapshot.zones):
        # As the kernel counts: each pageblock once, for the zone that its first page in the span is in.
        types = snapshot.pageblocks[zone.start_pfn >> shift : -(-zone.end_pfn >> shift)]
        counts = np.bincount(types[types != NO_MEMORY], minlength=len(snapshot.migratetype_names))
        for number, name in enumerate(snapshot.migratetype_names):
            if counts[number] != snapshot.pageblock_counts[i, number]:
                yield (
                    f"{zone.place}: {counts[number]} pageblocks are {name} one by one,"
                    f" {snapshot.pageblock_counts[i, number]} by pagetypeinfo"
                )


def _lists(snapshot: Snapshot) -> Iterator[str]:
    """The free lists and the per-CPU lists against the pages, each other, and pagetypeinfo."""
    for name, blocks, state in (("free", snapshot.free_lists, PAGE_FREE), ("per-CPU", snapshot.pcp_lists, PAGE_PCP)):
        if blocks is None:
            continue
        sizes = np.uint64(1) << blocks["order"].astype(np.uint64)
        if (bad := (blocks["pfn"] & (sizes - np.uint64(1))) != 0).any():
            yield f"blocks in {name} lists are not aligned to their order: {_at(blocks['pfn'][bad])}"
        pages = snapshot.known_pages()
        edges = np.zeros(len(pages) + 1, np.int32)
        np.add.at(edges, blocks["pfn"], 1)
        np.add.at(edges, blocks["pfn"] + sizes, -1)
        times = np.cumsum(edges[:-1])
        if (bad := times > 1).any():
            yield f"pages are in {name} lists twice: {_at(bad)}"
        if (bad := (times > 0) & (pages != state)).any():
            yield f"pages in {name} lists are not so page by page: {_at(bad)}"
        if (bad := (times == 0) & (pages == state)).any():
            yield f"pages are in no list that are in {name} lists page by page: {_at(bad)}"
    if snapshot.free_lists is None:
        return
    for i, zone in enumerate(snapshot.zones):
        blocks = snapshot.free_lists
        blocks = blocks[(blocks["pfn"] >= zone.start_pfn) & (blocks["pfn"] < zone.end_pfn)]
        listed = np.sort(blocks[["pfn", "order"]], order="pfn")
        merged = snapshot.free_blocks(zone)
        if listed["pfn"].tolist() != merged["pfn"].tolist() or listed["order"].tolist() != merged["order"].tolist():
            yield f"{zone.place}: {len(listed)} listed free blocks are not the {len(merged)} that its free pages make"
        if snapshot.free_by_type is None:
            continue
        counts = np.zeros(snapshot.free_by_type.shape[1:], np.int64)
        np.add.at(counts, (blocks["migratetype"], blocks["order"]), 1)
        wrong = (counts != snapshot.free_by_type[i]) & (snapshot.free_by_type[i] >= 0)
        for number, order in np.argwhere(wrong).tolist():
            yield (
                f"{zone.place}: {counts[number, order]} listed free blocks of order {order} are"
                f" {snapshot.migratetype_names[number]}, {snapshot.free_by_type[i, number, order]} by pagetypeinfo"
            )
