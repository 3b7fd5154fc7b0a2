"""The first step of every free that does not hold the zone lock: an allocated block becomes nobody's.

One bit, set atomically, decides between two threads that free the same block: the second finds it set. From then on
nobody may free or allocate the block but whoever set the bit.
"""
from libc.stdint cimport uint64_t
from pagehint._atomic cimport ACQ_REL, fetch_and64, fetch_or64
from pagehint._check cimport are_blocks
from pagehint._zone cimport PageZone


cdef inline bint withhold(PageZone *z, uint64_t i, uint64_t starts, int order) noexcept nogil:
    """Withhold the allocated blocks that begin at `starts` in leaf `i`, all or none; False if one is not such a block.

    Without the zone lock False means no more than "take it and ask again": a neighbour may have been changing.
    """
    cdef uint64_t old
    if not are_blocks(z, i, starts, order, 0):
        return False
    if not z.atomic_words:
        z.leaves[i].free |= starts
        return True
    old = fetch_or64(&z.leaves[i].free, starts, ACQ_REL) & starts
    # Looked at again: the block may have been freed, wrongly, by two, and be another by now. Now it stays what it is.
    if old == 0 and are_blocks(z, i, starts, order, starts):
        return True
    fetch_and64(&z.leaves[i].free, ~(starts & ~old), ACQ_REL)
    return False


cdef inline void unwithhold(PageZone *z, uint64_t i, uint64_t starts) noexcept nogil:
    """Back to allocated."""
    if z.atomic_words:
        fetch_and64(&z.leaves[i].free, ~starts, ACQ_REL)
    else:
        z.leaves[i].free &= ~starts
