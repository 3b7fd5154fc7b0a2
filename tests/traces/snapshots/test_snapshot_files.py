"""Snapshots from files, also from cut and hostile ones: a clear error, and no memory by what a file says."""

from __future__ import annotations

import io
import json
import os
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recordings import DATA, SNAPSHOTS, change_npz, change_text, copy_of, made_by_hand

import pagehint as ph
from pagehint.errors import SnapshotError
from pagehint.traces import check_snapshot, live_snapshot, read_snapshot, write_snapshot
from pagehint.traces.snapshots.files import VERSION
from pagehint.traces.snapshots.npz import read_npz

SMALL = "tmpfs-512m-smp1/before"


def same(a, b):
    assert a.zones == b.zones
    assert (a.page_size, a.max_page_order, a.pageblock_order) == (b.page_size, b.max_page_order, b.pageblock_order)
    assert (a.migratetype_names, a.ram, a.uptime, a.disagreements) == (
        b.migratetype_names,
        b.ram,
        b.uptime,
        b.disagreements,
    )
    assert a.arrays().keys() == b.arrays().keys()
    assert all(np.array_equal(a.arrays()[name], b.arrays()[name]) for name in a.arrays())


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_what_is_written_is_read(name, tmp_path):
    snapshot = read_snapshot(DATA / name)
    write_snapshot(snapshot, tmp_path / "it.npz")
    same(read_snapshot(tmp_path / "it.npz"), snapshot)


def test_what_is_known_of_a_recording():
    snapshot = read_snapshot(DATA / SMALL)
    assert snapshot.uptime == 6.84
    assert snapshot.ram == ((1, 159), (256, 131034))
    assert snapshot.migratetype_names == ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate")
    assert [(zone.name, zone.rank, zone.start_pfn, zone.end_pfn) for zone in snapshot.zones] == [
        ("DMA", 0, 1, 4096),
        ("DMA32", 1, 4096, 131034),
    ]
    assert snapshot.zones[1].watermarks == (653, 816, 979)
    assert snapshot.free_lists.dtype.names == ("pfn", "order", "migratetype", "position", "reported")
    assert snapshot.free_lists[0].tolist() == (288, 5, 0, 0, False)
    assert snapshot.pcp_lists[0].tolist() == (35437, 0, 0, 0, 0)
    assert snapshot.resident.sum() > 0
    assert repr(snapshot).startswith("<Snapshot of DMA, DMA32: 117098 pages of 4096 bytes managed; pages, pageblocks,")


def test_page_flags_as_the_kernel_gives_them(tmp_path):
    flags = np.full(4096, 1 << 10, np.uint64)
    flags[100:200], flags[300] = 0, 1 << 20
    snapshot = read_snapshot(made_by_hand(tmp_path / "proc", flags))
    pages = ph.PageAllocator.from_snapshot(snapshot)
    assert pages.stats().free_pages == 4096 - 101
    assert pages.zones[0].managed_pages == 4095
    with (tmp_path / "proc" / "kpageflags").open("ab") as file:
        file.write(b"\0" * 3)
    with pytest.raises(SnapshotError, match="cut: 3 bytes"):
        read_snapshot(tmp_path / "proc")
    (tmp_path / "proc" / "kpageflags").write_bytes(flags[:2000].tobytes())
    with pytest.raises(SnapshotError, match="the file is cut"):
        read_snapshot(tmp_path / "proc")


def test_page_frames_in_a_hole_that_have_no_flag_at_all(tmp_path):
    """As in Linux 6.18: the hole below 4 GiB has page frames, neither free nor reserved nor without a page."""
    flags = np.full(4096, 1 << 10, np.uint64)
    flags[1024:2048] = 0
    place = made_by_hand(tmp_path / "proc", flags)
    (place / "iomem").write_text(
        "00000000-003fffff : System RAM\n00400000-007fffff : PCI Bus\n00800000-00ffffff : System RAM\n"
    )
    for figure in ("present", "managed"):
        change_text(place / "zoneinfo", f"{figure}  4096", f"{figure}  3072")
    snapshot = read_snapshot(place)
    assert check_snapshot(snapshot) == ()
    assert ph.PageAllocator.from_snapshot(snapshot).zones[0].managed_pages == 3072


def test_a_live_snapshot_where_root_allows_else_a_clear_error():
    try:
        with open("/proc/kpageflags", "rb") as file:  # noqa: PTH123
            allowed = bool(file.read(8))
    except OSError:
        allowed = False
    if not allowed:
        with pytest.raises(SnapshotError, match=r"root|container"):
            live_snapshot()
        return
    snapshot = live_snapshot()
    assert snapshot.page_size == os.sysconf("SC_PAGESIZE")
    pages = ph.PageAllocator.from_snapshot(snapshot)
    pages.verify()
    assert np.array_equal(pages.free_bitmap(), snapshot.free_bitmap())
    for zone, shown in zip(pages.zones, snapshot.zones, strict=True):
        assert zone.free_blocks().tolist() == snapshot.free_blocks(shown).tolist()


# ---- what is missing


@pytest.mark.parametrize("name", ["zoneinfo", "buddyinfo"])
def test_a_folder_that_lacks_a_text(tmp_path, name):
    place = copy_of(SMALL, tmp_path)
    (place / name).unlink()
    with pytest.raises(SnapshotError, match=f"there is no {name}"):
        read_snapshot(place)
    with pytest.raises(SnapshotError, match="two snapshots, before/ and after/"):
        read_snapshot(place.parent)


def test_what_may_be_missing(tmp_path):
    place = copy_of(SMALL, tmp_path)
    (place.parent / "buddy_before.npz").unlink()
    for name in ("pagetypeinfo", "iomem", "uptime"):
        (place / name).unlink()
    snapshot = read_snapshot(place)
    assert (snapshot.ram, snapshot.uptime, snapshot.pageblock_counts) == ((), None, None)
    assert check_snapshot(snapshot) == ()
    with pytest.raises(OSError, match="nowhere"):
        read_snapshot(tmp_path / "nowhere")


def test_numbers_of_migratetypes_without_names(tmp_path):
    place = copy_of(SMALL, tmp_path)
    (place / "pagetypeinfo").unlink()
    with pytest.raises(SnapshotError, match="whose names are in pagetypeinfo"):
        read_snapshot(place)


def test_a_recording_s_file_given_for_a_snapshot():
    with pytest.raises(SnapshotError, match="name the folder, before/ or after/"):
        read_snapshot(DATA / "tmpfs-512m-smp1/buddy_before.npz")


@pytest.mark.parametrize("page_size", [0, 100, 4095, -4096])
def test_a_page_size_that_is_none(page_size):
    with pytest.raises(ValueError, match="power of two"):
        read_snapshot(DATA / SMALL, page_size)


@pytest.mark.parametrize("page_size", [4096, 16384, 65536])
@pytest.mark.parametrize("told_by", ["meminfo", "iomem"])
def test_pages_of_16_and_64_kib_were_taken_for_small_ones(tmp_path, page_size, told_by):
    place = made_by_hand(tmp_path / "proc", np.full(4096, 1 << 10, np.uint64))
    text = {
        "meminfo": f"MemTotal:       {4096 * page_size >> 10} kB\nMemFree:         1234 kB\n",
        "iomem": f"00000000-{4096 * page_size - 1:08x} : System RAM\n",
    }
    (place / told_by).write_text(text[told_by])
    snapshot = read_snapshot(place)
    assert snapshot.page_size == page_size
    assert ph.PageAllocator.from_snapshot(snapshot).page_size == page_size
    assert read_snapshot(place, 8192).page_size == 8192


@pytest.mark.parametrize("meminfo", ["MemTotal: 5 kB\n", "MemTotal: x kB\n", "", f"MemTotal: {'9' * 15} kB\n"])
def test_of_files_that_do_not_tell_the_size_of_a_page_it_is_4096(tmp_path, meminfo):
    place = made_by_hand(tmp_path / "proc", np.full(4096, 1 << 10, np.uint64))
    (place / "meminfo").write_text(meminfo)
    (place / "iomem").write_text("00000000-00000000 : System RAM\n")  # as others than root see it
    assert read_snapshot(place).page_size == 4096


def test_a_name_that_is_no_npz(tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.npz"):
        write_snapshot(read_snapshot(DATA / SMALL), tmp_path / "it.zip")


# ---- hostile .npz files


def archive_of(path, name, header, data, method=zipfile.ZIP_DEFLATED):
    """An archive of one array, whose header says what it likes."""
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(written, header)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{name}.npy", written.getvalue() + data)


@pytest.mark.parametrize("shape", [(1 << 40,), (1 << 62,), (-1,), (1 << 20, 1 << 20), ()])
def test_a_header_that_says_more_than_there_is_allocates_nothing(tmp_path, shape):
    archive_of(tmp_path / "a.npz", "pages", {"descr": "|u1", "fortran_order": False, "shape": shape}, b"abc")
    with pytest.raises(SnapshotError, match="array pages"):
        read_npz(tmp_path / "a.npz", {"pages": (np.uint8, 1)})


def test_a_directory_that_says_more_than_the_archive_has(tmp_path):
    path = tmp_path / "a.npz"
    archive_of(path, "pages", {"descr": "|u1", "fortran_order": False, "shape": (1 << 31,)}, b"abc", zipfile.ZIP_STORED)
    with zipfile.ZipFile(path) as archive:
        member = archive.getinfo("pages.npy")
    data = bytearray(path.read_bytes())
    claimed = ((1 << 31) + member.file_size - 3).to_bytes(4, "little")
    true = member.file_size.to_bytes(4, "little")
    at = data.rindex(true + true)  # compressed and uncompressed size in the directory
    data[at : at + 8] = claimed + claimed
    path.write_bytes(bytes(data))
    with pytest.raises(SnapshotError):
        read_npz(path, {"pages": (np.uint8, 1)})


@pytest.mark.parametrize("dtype", ["<u8", "|O", ">u4", "<f4", [("a", "<u4")], "|u1"])
def test_an_array_of_another_dtype(tmp_path, dtype):
    archive_of(tmp_path / "a.npz", "lists", {"descr": dtype, "fortran_order": False, "shape": (0, 6)}, b"")
    with pytest.raises(SnapshotError, match="2 dimensions of uint32 were expected"):
        read_npz(tmp_path / "a.npz", {"lists": (np.uint32, 2)})


def test_an_empty_array_is_one(tmp_path):
    np.savez(tmp_path / "a.npz", lists=np.zeros((0, 6), np.uint32))
    assert read_npz(tmp_path / "a.npz", {"lists": (np.uint32, 2)})["lists"].shape == (0, 6)


def test_an_array_whose_checksum_is_wrong(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, pages=np.arange(200, dtype=np.uint8))
    data = bytearray(path.read_bytes())
    data[data.index(bytes(range(50, 60)))] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SnapshotError, match="CRC"):
        read_npz(path, {"pages": (np.uint8, 1)})


@pytest.mark.parametrize("file", ["buddy_before.npz", "kpageflags_before.npz"])
@settings(max_examples=25)
@given(data=st.data())
def test_a_recording_that_is_cut_or_changed_anywhere(file, data, tmp_path_factory):
    place = copy_of(SMALL, tmp_path_factory.mktemp("cut"))
    path = place.parent / file
    whole = path.read_bytes()
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
        with pytest.raises(SnapshotError):
            read_snapshot(place)
        return
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(changed))
    try:
        snapshot = read_snapshot(place)
    except SnapshotError:
        return
    # What the archive does not protect: a date, a name of an array that nobody wants.
    assert check_snapshot(snapshot) == ()


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("kpageflags_before.npz", {"raw": None}, "no array raw"),
        ("kpageflags_before.npz", {"raw": lambda raw: raw[:1000]}, "kpageflags has 1000 pages"),
        ("kpageflags_before.npz", {"raw": lambda raw: raw.astype(np.int64)}, "were expected"),
        ("buddy_before.npz", {"lists": None}, "no array lists"),
        ("buddy_before.npz", {"lists": lambda rows: rows[:, :5]}, "lists has 5 columns, not 6"),
        ("buddy_before.npz", {"pcp": lambda rows: rows[:, :6]}, "pcp has 6 columns, not 7"),
        ("buddy_before.npz", {"pfn_state": lambda states: states + np.uint8(1)}, "pfn_state 4 is none"),
        ("buddy_before.npz", {"lists": lambda rows: rows + np.uint32(40)}, "order"),
        ("buddy_before.npz", {"lists": lambda rows: rows * np.array([1, 1, 1, 1, 1000, 1], np.uint32)}, "out of range"),
        ("buddy_before.npz", {"lists": lambda rows: rows + np.array([0, 0, 9, 0, 0, 0], np.uint32)}, "out of range"),
        ("buddy_before.npz", {"pageblock_mt": lambda types: types[:9]}, "9 pageblocks"),
        ("buddy_before.npz", {"pageblock_mt": lambda types: types + np.uint8(9)}, "migratetype"),
        ("buddy_before.npz", {"host_resident": lambda pages: pages[:9]}, "residency is known of 9 pages"),
    ],
)
def test_arrays_that_cannot_be(tmp_path, file, changes, words):
    place = copy_of(SMALL, tmp_path)
    change_npz(place.parent / file, **changes)
    with pytest.raises(SnapshotError, match=words):
        read_snapshot(place)


# ---- our own format


def head_of(path):
    with np.load(path) as arrays:
        return json.loads(arrays["head"].tobytes())


def with_head(path, **changes):
    head = {**head_of(path), **changes}
    change_npz(path, head=np.frombuffer(json.dumps(head).encode(), np.uint8))


def test_the_version_stands_in_the_file(tmp_path):
    path = tmp_path / "it.npz"
    write_snapshot(read_snapshot(DATA / SMALL), path)
    assert head_of(path)["version"] == VERSION == 1
    with_head(path, version=2)
    with pytest.raises(SnapshotError, match="version 2; this pagehint reads version 1"):
        read_snapshot(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "another"}, {"format": None}, {"zones": []}, {"zones": 5}, {"zones": [{}]}, {"page_size": "4096"},
        {"max_page_order": 1 << 60}, {"max_page_order": -1}, {"max_page_order": 10.0}, {"max_page_order": True},
        {"pageblock_order": 64}, {"ram": [[1]]}, {"ram": [1, 2]}, {"uptime": "soon"}, {"migratetype_names": None},
        {"migratetype_names": []}, {"disagreements": 3},
    ],
)  # fmt: skip
def test_a_head_that_cannot_be(tmp_path, changes):
    path = tmp_path / "it.npz"
    write_snapshot(read_snapshot(DATA / SMALL), path)
    with_head(path, **changes)
    with pytest.raises(SnapshotError):
        read_snapshot(path)


@pytest.mark.parametrize(
    "change", [{"start_pfn": 1 << 51}, {"spanned_pages": 1 << 52}, {"watermarks": [1, 2]}, {"node": -1}]
)
def test_a_zone_that_cannot_be(tmp_path, change):
    path = tmp_path / "it.npz"
    write_snapshot(read_snapshot(DATA / SMALL), path)
    zones = head_of(path)["zones"]
    with_head(path, zones=[zones[0], {**zones[1], **change}])
    with pytest.raises(SnapshotError):
        read_snapshot(path)


def test_no_archive_at_all(tmp_path):
    for data in (b"", b"PK", b"hello", os.urandom(1000)):
        (tmp_path / "it.npz").write_bytes(data)
        with pytest.raises(SnapshotError, match=r"cut, or no \.npz file"):
            read_snapshot(tmp_path / "it.npz")
