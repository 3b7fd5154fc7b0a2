# cython: language_level=3
"""For test_extents.py: makes runs longer and shorter in their place, as NumPy's arrays are."""
from libc.stdint cimport uint64_t

from pagehint._core cimport PageAllocator
from pagehint.zone.page_alloc cimport machine_resize_run
from pagehint.zone.status cimport OK


def resize(PageAllocator pages, uint64_t pfn, uint64_t n, uint64_t wanted):
    """Whether the run now has as many pages as are wanted."""
    return machine_resize_run(&pages.memory.m, pfn, n, wanted) == OK
