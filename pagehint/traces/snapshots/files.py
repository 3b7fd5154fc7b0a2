"""Snapshots from and to files: the /proc files of a machine in a folder, a recording's .npz files, and one of our own.

A folder has copies of ``/proc``: zoneinfo and buddyinfo, and, if there are any, pagetypeinfo, iomem, meminfo, uptime
and kpageflags. ``/proc`` itself is such a folder. In a recording, a folder with ``before/`` and ``after/``, two more
files lie beside these: ``kpageflags_before.npz`` (array ``raw``, uint64: one a page), and ``buddy_before.npz``, from a
look into the kernel's memory:

- ``lists`` (uint32, six columns): zone, order, migratetype, position from the list's head, PFN, reported;
- ``pcp`` (uint32, seven columns): zone, cpu, index of the list, order, migratetype, position, PFN;
- ``pageblock_mt`` (uint8): migratetype of every 512 pages, 255 where there is no memory;
- ``pfn_state`` (uint8): 0 in use or a hole, 1 in the buddy system, 2 in a per-CPU list, 3 reserved;
- ``host_resident`` (uint8), if the host was asked: 1 where it had memory behind the page.

Whatever is in these files is a stranger's. Nothing is allocated by what a file says, beyond the bytes that it has.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagehint.errors import SnapshotError
from pagehint.layout import Watermarks
from pagehint.traces.snapshots.npz import read_npz
from pagehint.traces.snapshots.proc_files import (
    PageTypes,
    SnapshotZone,
    read_buddyinfo,
    read_iomem,
    read_pagetypeinfo,
    read_zoneinfo,
)
from pagehint.traces.snapshots.snapshot import (
    ARRAYS,
    FREE_LIST_DTYPE,
    PAGE_ABSENT,
    PAGE_FREE,
    PAGE_OFFLINE,
    PAGE_PCP,
    PAGE_RESERVED,
    PAGE_USED,
    PCP_LIST_DTYPE,
    Snapshot,
)

VERSION = 1
MOST_TEXT = 64 << 20  # bytes of one of /proc's texts
CHUNK = 1 << 20  # pages whose flags are read at a time

# Bits of a page's flags, as in the kernel's documentation of /proc/kpageflags.
KPF_BUDDY, KPF_NOPAGE, KPF_OFFLINE, KPF_RESERVED = 10, 20, 23, 32

_RECORDED = {
    "lists": (np.uint32, 2),
    "pcp": (np.uint32, 2),
    "pageblock_mt": (np.uint8, 1),
    "pfn_state": (np.uint8, 1),
    "host_resident": (np.uint8, 1),
}


def read_snapshot(path: str | os.PathLike[str], page_size: int | None = None) -> Snapshot:
    """Read a snapshot.

    Parameters
    ----------
    path : path
        A folder with copies of /proc files, such as ``before/`` of a recording, whose .npz files beside it are read,
        too; or a file that `write_snapshot` has written.
    page_size : int, optional
        Bytes in a page of that machine. By default what meminfo or iomem come to, which tell sizes in bytes, or 4096
        where neither does. A file of `write_snapshot` knows it.

    Raises
    ------
    SnapshotError
        If a file is cut, of another kind, or of a machine that cannot be. What merely contradicts is no error:
        `check_snapshot` names it.
    OSError
        If a file cannot be read.
    """
    place = Path(path)
    if place.is_dir():
        return _read_folder(place, page_size)
    return _read_own(place)


def live_snapshot() -> Snapshot:
    """Take a snapshot of this machine, from /proc.

    Raises
    ------
    SnapshotError
        If the kernel does not let this process read its page flags, which takes root, and a /proc that has them.

    Notes
    -----
    The kernel goes on meanwhile, so that pages may change between two reads: `check_snapshot` says how many did.
    """
    try:
        snapshot = read_snapshot("/proc", mmap.PAGESIZE)
    except OSError as error:
        raise SnapshotError(f"{error.filename}: {error.strerror}; a snapshot of this machine takes root") from None
    if snapshot.pages is None:
        raise SnapshotError("/proc/kpageflags: there is none; a container or a sandbox may hide it, also from root")
    return snapshot


# ---- a folder


def _read_folder(folder: Path, page_size: int | None) -> Snapshot:
    if page_size is not None and (page_size < 512 or page_size & (page_size - 1)):
        raise ValueError(f"page_size must be a power of two, 512 or more, not {page_size}")
    texts = {name: _text(folder / name) for name in ("zoneinfo", "buddyinfo", "pagetypeinfo", "iomem", "uptime")}
    for name in ("zoneinfo", "buddyinfo"):
        if texts[name] is None:
            hint = "; a recording has two snapshots, before/ and after/" if (folder / "before").is_dir() else ""
            raise SnapshotError(f"{folder}: there is no {name} in it{hint}")
    zones = tuple(read_zoneinfo(texts["zoneinfo"] or "", str(folder / "zoneinfo")))
    page_size = page_size or _page_size(_text(folder / "meminfo"), texts["iomem"], zones, folder)
    counts = read_buddyinfo(texts["buddyinfo"] or "", str(folder / "buddyinfo"))
    lacking = [zone for zone in zones if (zone.node, zone.name) not in counts]
    if lacking:
        raise SnapshotError(f"{folder / 'buddyinfo'}: {lacking[0].place} of zoneinfo is not there")
    buddyinfo = np.array([counts[zone.node, zone.name] for zone in zones], np.int64)
    found: dict[str, Any] = {"buddyinfo": buddyinfo, "max_page_order": buddyinfo.shape[1] - 1}
    if texts["pagetypeinfo"] is not None:
        types = read_pagetypeinfo(texts["pagetypeinfo"], str(folder / "pagetypeinfo"))
        found |= _by_type(types, zones, buddyinfo.shape[1], folder)
    if texts["iomem"] is not None:
        found["ram"] = read_iomem(texts["iomem"], page_size, str(folder / "iomem"))
    if texts["uptime"] is not None:
        found["uptime"] = _uptime(texts["uptime"], folder / "uptime")
    found |= _states(_page_flags(folder), _recorded(folder))
    _leave_holes(found["pages"], found.get("ram", ()))
    if found["pageblocks"] is not None and "migratetype_names" not in found:
        raise SnapshotError(
            f"{folder}: buddy.npz has numbers of migratetypes, whose names are in pagetypeinfo: there is none"
        )
    return Snapshot(zones, page_size=page_size, **found)


def _text(path: Path) -> str | None:
    """A file's text; None if there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        data = file.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise SnapshotError(f"{path}: longer than {MOST_TEXT >> 20} MiB, which no such file of /proc is")
    try:
        return data.decode("ascii", "strict")
    except UnicodeDecodeError as error:
        raise SnapshotError(f"{path}: not text, from byte {error.start} on") from None


def _page_size(meminfo: str | None, iomem: str | None, zones: tuple[SnapshotZone, ...], folder: Path) -> int:
    """Bytes of a page, by how much memory so many pages are. 4096 if that is not known, or near no power of two."""
    total = re.match(r"MemTotal:\s+(\d{1,15}) kB\n", meminfo or "")
    if total:
        ratio = int(total[1]) * 1024 / sum(zone.managed_pages for zone in zones)
    else:
        ram = read_iomem(iomem, 1, str(folder / "iomem")) if iomem is not None else ()
        ratio = sum(end - start for start, end in ram) / sum(zone.present_pages for zone in zones)
    nearest = 1 << round(math.log2(max(ratio, 1)))
    return nearest if 4096 <= nearest <= 1 << 20 and abs(ratio / nearest - 1) < 0.05 else 4096


def _uptime(text: str, path: Path) -> float:
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        raise SnapshotError(f"{path}: {text[:40]!r} does not begin with a number of seconds") from None


def _by_type(types: PageTypes, zones: tuple[SnapshotZone, ...], nr_orders: int, folder: Path) -> dict[str, Any]:
    """What pagetypeinfo says of these zones, as arrays."""
    free = np.full((len(zones), len(types.names), nr_orders), -1, np.int64)
    blocks = np.zeros((len(zones), len(types.names)), np.int64)
    for i, zone in enumerate(zones):
        key = (zone.node, zone.name)
        if key not in types.free or key not in types.pageblocks:
            raise SnapshotError(f"{folder / 'pagetypeinfo'}: {zone.place} of zoneinfo is not there")
        for number, name in enumerate(types.names):
            counts = types.free[key][name]
            if len(counts) != nr_orders:
                raise SnapshotError(
                    f"{folder / 'pagetypeinfo'}: {zone.place}: {len(counts)} orders, buddyinfo {nr_orders}"
                )
            free[i, number] = [-1 if count is None else count for count in counts]
            blocks[i, number] = types.pageblocks[key][name]
    return {
        "pageblock_order": types.pageblock_order,
        "migratetype_names": types.names,
        "free_by_type": free,
        "pageblock_counts": blocks,
    }


# ---- the state of each page


def states_of(flags: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return what each page is, as in `Snapshot.pages`, from its flags in /proc/kpageflags."""

    def has(bit: int) -> NDArray[np.bool_]:
        return np.asarray(flags & np.uint64(1 << bit), bool)

    states = np.full(len(flags), PAGE_USED, np.uint8)
    states[has(KPF_OFFLINE)] = PAGE_OFFLINE
    states[has(KPF_RESERVED)] = PAGE_RESERVED
    states[has(KPF_BUDDY)] = PAGE_FREE
    states[has(KPF_NOPAGE)] = PAGE_ABSENT
    return states


def _beside(folder: Path, name: str) -> Path | None:
    """The .npz file of this name in the folder, or beside it with the folder's name at its end."""
    places = (folder / f"{name}.npz", folder.resolve().parent / f"{name}_{folder.resolve().name}.npz")
    return next((place for place in places if place.is_file()), None)


def _page_flags(folder: Path) -> NDArray[np.uint8] | None:
    """The state of each page by kpageflags, in the kernel's format or as .npz; None if there is neither."""
    path = folder / "kpageflags"
    if path.is_file():
        parts = []
        with path.open("rb") as file:
            while data := file.read(CHUNK * 8):
                if len(data) % 8:
                    raise SnapshotError(f"{path}: cut: {len(data) % 8} bytes are behind the last whole page")
                parts.append(states_of(np.frombuffer(data, np.uint64)))
        if not parts:
            raise SnapshotError(f"{path}: empty")
        return np.concatenate(parts)
    archive = _beside(folder, "kpageflags")
    if archive is None:
        return None
    raw = read_npz(archive, {"raw": (np.uint64, 1)}).get("raw")
    if raw is None:
        raise SnapshotError(f"{archive}: there is no array raw in it")
    return states_of(raw)


def _recorded(folder: Path) -> dict[str, NDArray[Any]]:
    """What a look into the kernel's memory has found; nothing if there was none."""
    path = _beside(folder, "buddy")
    if path is None:
        return {}
    arrays = read_npz(path, _RECORDED)
    lacking = [name for name in _RECORDED if name not in arrays and name != "host_resident"]
    if lacking:
        raise SnapshotError(f"{path}: there is no array {lacking[0]} in it")
    for name, columns in (("lists", 6), ("pcp", 7)):
        if arrays[name].shape[1] != columns:
            raise SnapshotError(f"{path}: {name} has {arrays[name].shape[1]} columns, not {columns}")
    for name, most in (("lists", 32), ("pcp", 32)):
        orders = arrays[name][:, 1 if name == "lists" else 3]
        if len(orders) and orders.max() > most:
            raise SnapshotError(f"{path}: {name}: order {orders.max()}")
    if len(arrays["pfn_state"]) and arrays["pfn_state"].max() > 3:
        raise SnapshotError(f"{path}: pfn_state {arrays['pfn_state'].max()} is none")
    return arrays


def _states(flags: NDArray[np.uint8] | None, recorded: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The state of each page by both sources, with what only a look into the kernel's memory can tell."""
    if not recorded:
        return {"pages": flags, "pageblocks": None}
    looked = np.array([PAGE_USED, PAGE_FREE, PAGE_PCP, PAGE_RESERVED], np.uint8)[recorded["pfn_state"]]
    disagreements: list[str] = []
    if flags is not None:
        if len(flags) != len(looked):
            raise SnapshotError(f"kpageflags has {len(flags)} pages, pfn_state of buddy.npz {len(looked)}")
        unlike = (flags == PAGE_ABSENT) | (flags == PAGE_OFFLINE)  # which pfn_state does not tell from pages in use
        looked[unlike] = np.where(looked[unlike] == PAGE_USED, flags[unlike], looked[unlike])
        for state, name in ((PAGE_FREE, "free"), (PAGE_RESERVED, "reserved")):
            wrong = np.flatnonzero((flags == state) != (looked == state))
            if len(wrong):
                disagreements.append(
                    f"kpageflags and buddy.npz do not agree on which pages are {name}: {len(wrong)}, the first at PFN"
                    f" {wrong[0]:#x}"
                )
    lists, pcp = recorded["lists"], recorded["pcp"]
    return {
        "pages": looked,
        "pageblocks": recorded["pageblock_mt"],
        "free_lists": _records(
            lists, FREE_LIST_DTYPE, {"pfn": 4, "order": 1, "migratetype": 2, "position": 3, "reported": 5}
        ),
        "pcp_lists": _records(pcp, PCP_LIST_DTYPE, {"pfn": 6, "cpu": 1, "order": 3, "migratetype": 4, "position": 5}),
        "resident": recorded.get("host_resident"),
        "disagreements": tuple(disagreements),
    }


def _leave_holes(pages: NDArray[np.uint8] | None, ram: tuple[tuple[int, int], ...]) -> None:
    """Make absent what would be in use and is no RAM: new kernels have page frames without a flag in a hole."""
    if pages is None or not ram:
        return
    no_ram = np.ones(len(pages), bool)
    for start, end in ram:
        no_ram[start:end] = False
    pages[no_ram & (pages == PAGE_USED)] = PAGE_ABSENT


def _records(rows: NDArray[Any], dtype: np.dtype[Any], columns: dict[str, int]) -> NDArray[np.void]:
    records = np.empty(len(rows), dtype)
    for name, column in columns.items():
        records[name] = rows[:, column]
    return records


# ---- a file of our own


def write_snapshot(snapshot: Snapshot, path: str | os.PathLike[str]) -> None:
    """Write a snapshot to one .npz file, which `read_snapshot` reads.

    Parameters
    ----------
    snapshot : Snapshot
        It.
    path : path
        The file. It ends in ``.npz``.

    Raises
    ------
    ValueError
        If the name does not end so.
    OSError
        If it cannot be written.
    """
    place = Path(path)
    if place.suffix != ".npz":
        raise ValueError(f"{place}: the name of a snapshot's file ends in .npz")
    data = snapshot_bytes(snapshot)
    with place.open("wb") as file:
        file.write(data)


def snapshot_bytes(snapshot: Snapshot) -> bytes:
    """Return what `write_snapshot` writes, such as for `Trace.snapshots`."""
    head = {
        "format": "pagehint snapshot",
        "version": VERSION,
        "page_size": snapshot.page_size,
        "max_page_order": snapshot.max_page_order,
        "pageblock_order": snapshot.pageblock_order,
        "migratetype_names": snapshot.migratetype_names,
        "ram": snapshot.ram,
        "uptime": snapshot.uptime,
        "disagreements": snapshot.disagreements,
        "zones": [zone._asdict() for zone in snapshot.zones],
    }
    text = np.frombuffer(json.dumps(head).encode(), np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, head=text, allow_pickle=False, **snapshot.arrays())
    return file.getvalue()


def snapshot_of(data: bytes, name: str) -> Snapshot:
    """Return the snapshot of such bytes; `name` is what they are called in the message of a SnapshotError."""
    return _read_own(Path(name), data)


def _read_own(path: Path, data: bytes | None = None) -> Snapshot:
    arrays = read_npz(path, {"head": (np.uint8, 1), **ARRAYS}, data)
    if "head" not in arrays:
        raise SnapshotError(
            f"{path}: no snapshot that pagehint has written; of a recording name the folder, before/ or after/"
        )
    try:
        head = json.loads(arrays.pop("head").tobytes())
        if head["format"] != "pagehint snapshot":
            raise SnapshotError(f"{path}: a file of another kind")
        if head["version"] != VERSION:
            raise SnapshotError(f"{path}: version {head['version']!r}; this pagehint reads version {VERSION}")
        return Snapshot(
            tuple(_own_zone(zone) for zone in head["zones"]),
            page_size=_whole(head["page_size"]),
            max_page_order=_whole(head["max_page_order"]),
            pageblock_order=_whole(head["pageblock_order"]),
            migratetype_names=tuple(str(name) for name in head["migratetype_names"]),
            ram=tuple((_whole(start), _whole(end)) for start, end in head["ram"]),
            uptime=None if head["uptime"] is None else float(head["uptime"]),
            disagreements=tuple(str(sentence) for sentence in head["disagreements"]),
            **arrays,
        )
    except SnapshotError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SnapshotError(f"{path}: its head is broken: {error!r}") from None


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number <= 1 << 52:
        raise SnapshotError(f"{number!r:.40} is no number from 0 to 2**52")
    return number


def _own_zone(head: dict[str, Any]) -> SnapshotZone:
    numbers = {
        name: _whole(head[name]) for name in SnapshotZone._fields if name not in ("name", "watermarks", "protection")
    }
    return SnapshotZone(
        name=str(head["name"]),
        watermarks=Watermarks(*map(_whole, head["watermarks"])),
        protection=tuple(map(_whole, head["protection"])),
        **numbers,
    )
