"""The recordings of kernels in `tests/data/`, and folders of /proc files made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "data"
RECORDINGS = sorted(path.parent.name for path in DATA.glob("*/before"))
SNAPSHOTS = [f"{name}/{moment}" for name in RECORDINGS for moment in ("before", "after")]


def free_lists_of(name):
    """The kernel's own free blocks, (PFN, order), from its memory."""
    recording, moment = name.split("/")
    with np.load(DATA / recording / f"buddy_{moment}.npz") as arrays:
        lists = arrays["lists"]
    return sorted(zip(lists[:, 4].tolist(), lists[:, 1].tolist(), strict=True))


def copy_of(name, folder):
    """A recording that a test may change; returns the folder of the snapshot."""
    recording, moment = name.split("/")
    shutil.copytree(DATA / recording, folder / recording)
    return folder / recording / moment


def change_npz(path, **changes):
    """Write an .npz file again, with arrays changed: a function of the old one, or the new one; None leaves it out."""
    with np.load(path) as old:
        arrays = dict(old)
    for name, change in changes.items():
        arrays[name] = change(arrays[name].copy()) if callable(change) else change
    np.savez_compressed(path, **{name: array for name, array in arrays.items() if array is not None})


def change_text(path, old, new):
    """Replace what must be in a text."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


ZONEINFO = """\
Node 0, zone   Normal
  pages free     {free}
        boost    0
        min      10
        low      20
        high     30
        spanned  {pages}
        present  {pages}
        managed  {pages}
        protection: (0, 0, 0)
  pagesets
    cpu: 0
              count: 0
              high:  5
              batch: 1
  start_pfn:           0
"""


def made_by_hand(folder, flags, zoneinfo=None):
    """A folder like /proc, of a machine of one zone with these page flags."""
    folder.mkdir(exist_ok=True)
    (folder / "kpageflags").write_bytes(np.asarray(flags, np.uint64).tobytes())
    free = int(((np.asarray(flags, np.uint64) >> np.uint64(10)) & np.uint64(1)).sum())
    (folder / "zoneinfo").write_text(zoneinfo or ZONEINFO.format(free=free, pages=len(flags)))
    (folder / "buddyinfo").write_text(f"Node 0, zone   Normal {' 0' * 10} {free // 1024}\n")
    return folder
