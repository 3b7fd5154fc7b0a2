"""The process's memory at a moment, and who claims which of it.

A claim gets only what nobody has claimed before it, and what is resident of each mapping is divided among the claims in
it, and the rest. So no byte is counted twice, and the parts always come to what the kernel counts.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator

import numpy as np

from pagehint.memory.contents import resident_before
from pagehint.memory.vmas import Vma, read_vmas

Range = tuple[int, int]


class AddressSpace:
    """The mappings of this process as they are now, of which nothing has been claimed.

    Attributes
    ----------
    vmas : list of Vma
        By address.
    """

    def __init__(self) -> None:
        self.vmas = read_vmas()
        self._claims: list[tuple[int, int, int]] = []  # start, end, number of the claim; by address, apart
        self._nr_claims = 0

    @property
    def anonymous(self) -> int:
        """Bytes of anonymous memory in all mappings."""
        return sum(vma.anonymous for vma in self.vmas)

    def libraries(self) -> list[str]:
        """Return the files of which code is mapped."""
        return sorted({vma.path for vma in self.vmas if vma.path.startswith("/") and "x" in vma.permissions})

    def claim(self, ranges: Iterable[Range]) -> int:
        """Claim what is free of these ranges; returns the number of the claim."""
        number = self._nr_claims
        self._nr_claims += 1
        new = [(*piece, number) for start, end in ranges for piece in self._free_of(start, end)]
        self._claims = sorted(self._claims + new)
        return number

    def _free_of(self, start: int, end: int) -> Iterator[Range]:
        """Yield what nobody has claimed of a range."""
        index = max(bisect.bisect_right(self._claims, (start, end, self._nr_claims)) - 1, 0)
        for first, last, _ in self._claims[index:]:
            if first >= end:
                break
            if start < first:
                yield start, first
            start = max(start, last)
        if start < end:
            yield start, end

    def vma_at(self, address: int) -> Vma | None:
        """Return the mapping at an address, if there was one."""
        index = bisect.bisect_right(self.vmas, address, key=lambda vma: vma.start) - 1
        return self.vmas[index] if index >= 0 and address < self.vmas[index].end else None

    def unclaimed(self) -> list[Range]:
        """Return what nobody has claimed of plain memory that is resident in part; neighbours are one range."""
        joined: list[Range] = []
        for vma in self.vmas:
            if vma.plain and (vma.anonymous or (joined and joined[-1][1] == vma.start)):
                begin = joined.pop()[0] if joined and joined[-1][1] == vma.start else vma.start
                joined.append((begin, vma.end))
        return [piece for start, end in joined for piece in self._free_of(start, end)]

    def resident(self) -> list[int]:
        """Return the resident bytes of each claim. What is not in their sum is nobody's."""
        shares = [0] * self._nr_claims
        for vma in self.vmas:
            if vma.anonymous:
                self._divide(vma, shares)
        return shares

    def _divide(self, vma: Vma, shares: list[int]) -> None:
        """Add to the claims what they have of a mapping: in proportion to their resident pages, and to all that are.

        These may be more than the kernel counts: pages of zeroes that were only read. A file's are where nobody has
        written.
        """
        index = max(bisect.bisect_right(self._claims, (vma.start, 1 << 64, 0)) - 1, 0)
        pieces = []
        for start, end, number in self._claims[index:]:
            if start >= vma.end:
                break
            if end > vma.start:
                pieces.append((max(start, vma.start), min(end, vma.end), number))
        if len(pieces) == 1 and pieces[0][:2] == (vma.start, vma.end):
            shares[pieces[0][2]] += vma.anonymous
        elif pieces:
            cuts = np.array([*(cut for start, end, _ in pieces for cut in (start, end)), vma.end], np.int64)
            before = resident_before(vma.start, cuts)
            counts = before[1:-1:2] - before[:-1:2]
            for (_, _, number), count in zip(pieces, counts, strict=True):
                shares[number] += vma.anonymous * int(count) // max(int(before[-1]), 1)
