"""Files as pieces of plain bytes, whatever they are compressed with; what is cut or damaged says where."""

from __future__ import annotations

import io
import lzma
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Protocol

from pagehint.extras import require

PIECE = 1 << 20
"""Bytes that are given at a time. A megabyte of a file may be a gigabyte of text."""

_STEP = 1 << 16
"""Bytes that are decompressed at a time. Those of the step in which damage is found are lost."""


class Decoder(Protocol):
    """Decompresses one stream."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    def decode(self, raw: bytes) -> tuple[bytes, bytes]:
        """Return up to `_STEP` bytes of plain text, and what is left of `raw`."""


class Gzip:
    """A `Decoder`."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        """As in `Decoder`."""
        return self._decoder.eof

    def decode(self, raw: bytes) -> tuple[bytes, bytes]:
        """As in `Decoder`."""
        plain = self._decoder.decompress(raw, _STEP)
        return plain, self._decoder.unused_data if self.eof else self._decoder.unconsumed_tail


class Xz:
    """A `Decoder`. `lzma` keeps input of its own; it is given more when that is used up."""

    def __init__(self) -> None:
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ)

    @property
    def eof(self) -> bool:
        """As in `Decoder`."""
        return self._decoder.eof

    def decode(self, raw: bytes) -> tuple[bytes, bytes]:
        """As in `Decoder`."""
        fed = raw if self._decoder.needs_input else b""
        plain = self._decoder.decompress(fed, _STEP)
        return plain, self._decoder.unused_data + raw[len(fed) :]


class PlainFile:
    """The bytes of a file, decompressed, in pieces of up to `PIECE`; to be iterated once.

    The next piece is decompressed in a thread while the caller works on the one before. What is in memory at a time is
    a few pieces. gzip, xz and zstd are known by how the file begins, whatever it is called; several compressed streams
    one after the other are one file.

    Parameters
    ----------
    path : path-like
        A file, or a pipe.

    Attributes
    ----------
    compression : str
        ``"gzip"``, ``"xz"``, ``"zstd"`` or ``""``.
    damage : str or None
        Once iterated, where and why the compressed file ends before its time, if it does.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.damage: str | None = None
        self._file: BinaryIO = self.path.open("rb")
        self._raw = _RawFile(self._file)
        known = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
        self.compression = next((name for magic, name in known.items() if self.begins(magic)), "")
        self._pieces_left = self._pieces()

    def begins(self, magic: bytes) -> bool:
        """Whether the file itself begins so, before it is decompressed."""
        return self._raw.begin.startswith(magic)

    def peek(self) -> bytes:
        """Return the first piece, and leave it where it is. Before iterating only."""
        first = next(self._pieces_left, b"")
        self._pieces_left = chain([first] if first else [], self._pieces_left)
        return first

    def __enter__(self) -> PlainFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        pieces = self._pieces_left
        with ThreadPoolExecutor(1, "pagehint-read") as thread:
            ahead = thread.submit(next, pieces, b"")
            while plain := ahead.result():
                ahead = thread.submit(next, pieces, b"")
                yield plain

    def _pieces(self) -> Iterator[bytes]:
        match self.compression:
            case "gzip":
                return _joined(self._decoded(Gzip))
            case "xz":
                return _joined(self._decoded(Xz))
            case "zstd":
                return _joined(self._zstd())
        return iter(lambda: self._raw.read(PIECE), b"")

    def _decoded(self, new: type[Gzip] | type[Xz]) -> Iterator[bytes]:
        decoder: Decoder = new()
        rest = b""
        while True:
            if decoder.eof:
                rest = rest.lstrip(b"\0")  # what pads a file on a tape
                if not rest and not (rest := self._raw.read(_STEP).lstrip(b"\0")):
                    return
                decoder = new()
            raw = rest or self._raw.read(_STEP)
            try:
                plain, rest = decoder.decode(raw)
            except (zlib.error, lzma.LZMAError) as error:
                self.damage = f"the {self.compression} stream is damaged before byte {self._raw.tell()}: {error}"
                return
            if plain:
                yield plain
            elif not raw:
                self.damage = f"the {self.compression} stream is cut: the file ends inside it, at {self._raw.tell()}"
                return

    def _zstd(self) -> Iterator[bytes]:
        pa = require("pyarrow", f"{self.path}, which is compressed with zstd,", "traces")
        try:
            with pa.CompressedInputStream(pa.PythonFile(self._raw, "r"), "zstd") as stream:
                while plain := stream.read(_STEP):
                    yield plain
        except OSError as error:
            self.damage = f"the zstd stream is cut or damaged before byte {self._raw.tell()}: {error}"


def _joined(steps: Iterator[bytes]) -> Iterator[bytes]:
    """Steps, joined to pieces."""
    while step := [*islice(steps, PIECE // _STEP)]:
        yield b"".join(step)


class _RawFile(io.RawIOBase):
    """A file of which the first bytes have been looked at; also a pipe, which cannot be read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._offset = 0
        self.begin = file.read(PIECE)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data, self.begin = self.begin[:size], self.begin[size:]
        data = data or self._file.read(size)
        self._offset += len(data)
        return data

    def tell(self) -> int:
        """How far the file has been read."""
        return self._offset
