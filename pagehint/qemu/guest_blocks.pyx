# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""Where blocks of the engine are in a guest: one loop over a batch, in less time than a huge page takes to be dropped."""
cimport numpy as cnp
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from collections import namedtuple

import numpy as np

from pagehint.hinting.batch cimport pagehint_block

from pagehint.hinting.callbacks import BLOCK_DTYPE

cnp.import_array()

cdef enum:
    PAGE_SHIFT = 12         # pages of 4 KiB, as an x86 guest has
    ADDRESS_BITS = 52       # of a guest-physical address, at most

cdef struct Part:
    uint64_t address        # guest-physical
    uint64_t offset         # in the file
    uint64_t nr_bytes

GuestBlocks = namedtuple("GuestBlocks", ["addresses", "lengths", "offsets", "sizes", "nr_pages"])


cdef class Places:
    """Places(parts)
--

    Which of a guest's addresses are RAM, and where in its file they are.

    Parameters
    ----------
    parts : sequence of (int, int, int)
        RAM in one piece each: its guest-physical address, its offset in the file, its bytes.
    """

    cdef Part *parts
    cdef int nr_parts

    def __cinit__(self, parts):
        self.parts = <Part *> calloc(max(len(parts), 1), sizeof(Part))
        if self.parts == NULL:
            raise MemoryError("no memory for the parts of a guest's RAM")
        for address, offset, nr_bytes in parts:
            self.parts[self.nr_parts] = Part(address, offset, nr_bytes)
            self.nr_parts += 1

    def __dealloc__(self):
        free(self.parts)

    def of(self, blocks):
        """of(blocks)
--

        Return where blocks are, each in one part.

        Parameters
        ----------
        blocks : ndarray of BLOCK_DTYPE
            PFNs of the guest, pages of 4 KiB.

        Returns
        -------
        GuestBlocks
            `addresses` and `lengths`, lists of int: guest-physical ranges in bytes, neighbours in one. `offsets` and
            `sizes`, arrays of uint64: each block in the file, in bytes. `nr_pages`: how many pages they have in all.

        Raises
        ------
        ValueError
            If one is not RAM.

        Notes
        -----
        O(blocks).
        """
        cdef cnp.ndarray given = np.ascontiguousarray(blocks, BLOCK_DTYPE)
        cdef cnp.npy_intp n = given.size, i
        cdef cnp.ndarray offsets = cnp.PyArray_EMPTY(1, &n, cnp.NPY_UINT64, 0)
        cdef cnp.ndarray sizes = cnp.PyArray_EMPTY(1, &n, cnp.NPY_UINT64, 0)
        cdef pagehint_block *block = <pagehint_block *> given.data
        cdef uint64_t *at = <uint64_t *> offsets.data
        cdef uint64_t *size = <uint64_t *> sizes.data
        cdef uint64_t first = 0, end = 0, total = 0, address
        cdef list addresses = [], lengths = []
        for i in range(n):
            if not self.place(&block[i], &at[i], &size[i]):
                raise ValueError(
                    f"PFN {block[i].pfn:#x}, order {block[i].order}, of zone {block[i].zone}: a block of another allocator"
                    " than this host's arena, and not in its RAM"
                )
            total += size[i]
            address = block[i].pfn << PAGE_SHIFT
            if i == 0 or address != end:
                if i:
                    addresses.append(first)
                    lengths.append(end - first)
                first = address
            end = address + size[i]
        if n:
            addresses.append(first)
            lengths.append(end - first)
        return GuestBlocks(addresses, lengths, offsets, sizes, total >> PAGE_SHIFT)

    cdef bint place(self, pagehint_block *block, uint64_t *offset, uint64_t *size) noexcept nogil:
        """Where in the file a block is, and how many bytes it has; false if it is not RAM."""
        cdef uint64_t into
        cdef int i
        if block.pfn >> (ADDRESS_BITS - PAGE_SHIFT) or block.order >= ADDRESS_BITS - PAGE_SHIFT:
            return False
        size[0] = <uint64_t>1 << (block.order + PAGE_SHIFT)
        for i in range(self.nr_parts):
            into = (block.pfn << PAGE_SHIFT) - self.parts[i].address    # huge if it is below
            if into < self.parts[i].nr_bytes and size[0] <= self.parts[i].nr_bytes - into:
                offset[0] = self.parts[i].offset + into
                return True
        return False
