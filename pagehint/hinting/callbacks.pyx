# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""The callbacks of a session: the reporting function, in Python or compiled, and `prepare` and `cleanup` around it."""
import numpy as np

from cpython.pycapsule cimport PyCapsule_CheckExact, PyCapsule_GetContext, PyCapsule_GetName, PyCapsule_GetPointer

from pagehint.numbers cimport as_positive

FOREIGN = ("_ctypes", "_cffi_backend")      # the modules of C functions that can be called, but not with an array
BLOCK_DTYPE = np.dtype([("pfn", np.uint64), ("order", np.uint32), ("zone", np.uint32)])


cdef class PageHintingCallbacks:
    """PageHintingCallbacks(hint_pages, max_pages=16, prepare=None, cleanup=None, is_dropped=None)
--

    What hinting calls to report free blocks to a host.

    A *pass* is one look at the hinted blocks of the zones: `prepare`, then `hint_pages` for one batch after the other,
    then `cleanup`.

    Parameters
    ----------
    hint_pages : callable, PyCapsule or scipy.LowLevelCallable
        A Python callable gets a read-only structured array of shape (n,) and dtype `BLOCK_DTYPE`: ``pfn`` (uint64), a
        block's first page frame number; ``order`` (uint32), it has ``2**order`` pages; ``zone`` (uint32), its index in
        `PageAllocator.zones`. The array is the callable's to keep. It returns None, or a boolean for each block: False
        means that the host did not take the block, which is hinted again. One boolean stands for all blocks. An
        exception means that no block was taken.
        A capsule holds a compiled function of the signature in ``pagehint.h`` (see `get_include`); it runs
        without the GIL. A bare function of ctypes or cffi is refused: what it takes cannot be known.
    max_pages : int, default 16
        Most blocks that are out with the host at once, from 1 to 2**20. It counts blocks of any order, not pages.
    prepare : callable, optional
        Called without arguments before the first batch of a pass. If it raises or returns a negative number, no block
        is taken out of circulation, and the pass is tried again later.
    cleanup : callable, optional
        Called without arguments after the last batch of every pass whose `prepare` succeeded, whatever happened in
        between.
    is_dropped : callable, optional
        Says whether the host still has no memory for what it has taken. A dump, a migration, or whoever else reads that
        memory may make it resident again, which no allocation shows. A flush calls it, with a read-only structured
        array like that of `hint_pages`: up to 4096 blocks of one granule each, which are free and were reported. It
        returns a boolean for each, or one for all. False means that the host has memory for the block again, which is
        then hinted again, and reported by the same flush. None means that it cannot be said: nothing changes, and the
        zone is not asked about any further. Nor is it after an exception, which is kept as
        `PageAllocator.last_error`, and does not make a report fail.
        The blocks are not taken out of circulation meanwhile, so it must only look.

    Raises
    ------
    TypeError
        If a callback is not callable, a capsule's name is not the signature, or `hint_pages` is a bare C function.
    ValueError
        If `max_pages` is out of range.

    Notes
    -----
    The names, `max_pages` for a number of blocks among them, and the cycle are those of Linux's page hinting series
    (v10, June 2019). No lock is held during a call.
    """

    def __cinit__(self, hint_pages, max_pages=16, prepare=None, cleanup=None, is_dropped=None):
        capsule = hint_pages[0] if type(hint_pages).__name__ == "LowLevelCallable" and len(hint_pages) else hint_pages
        if PyCapsule_CheckExact(capsule):
            self.compiled = <pagehint_hint_fn> PyCapsule_GetPointer(capsule, self.capsule_name(capsule))
            self.user_data = PyCapsule_GetContext(capsule)
        elif not callable(hint_pages):
            raise TypeError(f"hint_pages must be callable or a capsule, not {type(hint_pages).__name__}")
        elif any([kind.__module__ in FOREIGN for kind in type(hint_pages).__mro__]):
            raise TypeError(
                f"hint_pages is a bare C function ({hint_pages!r}), which would be called with an array; put it into a"
                f" scipy.LowLevelCallable or a capsule with the signature {PAGEHINT_HINT_SIGNATURE.decode()!r}, or call it"
                f" from a Python function"
            )
        for name, function in (("prepare", prepare), ("cleanup", cleanup), ("is_dropped", is_dropped)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable or None, not {type(function).__name__}")
        self.hint_pages = hint_pages
        self.most = as_positive(max_pages, "max_pages")
        self.prepare = prepare
        self.cleanup = cleanup
        self.is_dropped = is_dropped

    cdef const char *capsule_name(self, object capsule) except NULL:
        """Return the capsule's name, having checked that it is the signature. Spaces and `const` do not count."""
        cdef const char *name = PyCapsule_GetName(capsule)
        given = "" if name == NULL else "".join(name.decode().split()).replace("const", "")
        # scipy, which builds a signature from ctypes, has only `void *` for a pointer to the structure.
        wanted = "".join(PAGEHINT_HINT_SIGNATURE.decode().split()).replace("const", "")
        if given not in (wanted, wanted.replace("pagehint_block*", "void*")):
            raise TypeError(
                f"a compiled hint_pages must have the signature {PAGEHINT_HINT_SIGNATURE.decode()!r} as its capsule's name,"
                f" not {'' if name == NULL else name.decode()!r}"
            )
        return name

    @property
    def max_pages(self):
        """Most blocks, of any order, that are out with the host at once, as given."""
        return self.most

    def __repr__(self):
        return f"PageHintingCallbacks({self.hint_pages!r}, max_pages={self.most})"
