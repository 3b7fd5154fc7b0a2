"""NumPy's .npz files from strangers: arrays of known names and dtypes, and no memory by what a header says.

An .npz is a zip archive of .npy files. `numpy.load` allocates an array by the shape in its header before it has read a
byte of it. Here the shape must agree with the length of the member, and the length with what so many compressed bytes
can become, before anything is allocated; and a member must have the dtype that is wanted, so nothing is unpickled.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pagehint.errors import SnapshotError

MOST_DEFLATE = 1040  # bytes that a compressed byte can become, at most: deflate's limit is 1032
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    struct.error,
    ValueError,
    NotImplementedError,
    RuntimeError,
    KeyError,
)

Wanted = Mapping[str, tuple[Any, int]]  # by name: dtype, and number of dimensions


def read_npz(path: Path, wanted: Wanted, data: bytes | None = None) -> dict[str, NDArray[Any]]:
    """Return those of the wanted arrays that are in the file.

    Parameters
    ----------
    path : Path
        The file.
    wanted : mapping of str to (dtype, int)
        The arrays that it may hold: their dtypes, and how many dimensions they have. Others are not looked at.
    data : bytes, optional
        The file's content, if it is not there to be read; `path` is what it is called in messages then.

    Raises
    ------
    SnapshotError
        If it is no .npz file, is cut, or an array is not as wanted.
    OSError
        If it cannot be read.
    """
    found: dict[str, NDArray[Any]] = {}
    try:
        with path.open("rb") if data is None else io.BytesIO(data) as file, zipfile.ZipFile(file) as archive:
            length = file.seek(0, os.SEEK_END)
            for name, (dtype, ndim) in wanted.items():
                if f"{name}.npy" in archive.namelist():
                    found[name] = _read_array(archive, archive.getinfo(f"{name}.npy"), np.dtype(dtype), ndim, length)
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from None
    except _BROKEN as error:
        raise SnapshotError(f"{path}: cut, or no .npz file: {error}") from None
    return found


def _read_array(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, dtype: np.dtype[Any], ndim: int, length: int
) -> NDArray[Any]:
    name = member.filename.removesuffix(".npy")
    if member.file_size > MOST_DEFLATE * min(member.compress_size, length):
        raise SnapshotError(f"array {name}: {member.file_size} bytes cannot be in {member.compress_size}")
    with archive.open(member) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise SnapshotError(f"array {name}: .npy version {version} is not known")
        shape, fortran, kind = _HEADERS[version](file)
        if kind != dtype or len(shape) != ndim or (fortran and ndim > 1):
            raise SnapshotError(f"array {name}: {ndim} dimensions of {dtype} were expected, not {shape} of {kind}")
        count = 1
        for extent in shape:
            count *= extent
        if min(shape, default=1) < 0 or count * dtype.itemsize != member.file_size - file.tell():
            raise SnapshotError(f"array {name}: of shape {shape}, but {member.file_size} bytes long")
        array = np.empty(shape, dtype)
        rest = array.reshape(-1).view(np.uint8).data if array.size else memoryview(b"")
        while rest:
            chunk = file.read(min(len(rest), 1 << 20))
            if not chunk:
                raise SnapshotError(f"array {name}: cut")
            rest[: len(chunk)] = chunk
            rest = rest[len(chunk) :]
        file.read(1)  # at the end the checksum is compared
        return array
