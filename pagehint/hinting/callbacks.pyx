# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""What to call: the reporting function, in Python or compiled, and what goes around it."""
import numpy as np

from cpython.pycapsule cimport PyCapsule_CheckExact, PyCapsule_GetContext, PyCapsule_GetName, PyCapsule_GetPointer

from pagehint.numbers cimport as_positive

BLOCK_DTYPE = np.dtype([("pfn", np.uint64), ("order", np.uint32), ("zone", np.uint32)])


cdef class PageHintingCallbacks:
    """PageHintingCallbacks(hint_pages, max_pages=16, prepare=None, cleanup=None)
--

    What the engine calls to report free blocks.

    Parameters
    ----------
    hint_pages : callable, PyCapsule or scipy.LowLevelCallable
        A Python callable gets a read-only structured array of dtype `BLOCK_DTYPE` (``pfn``, ``order``, ``zone``),
        its own to keep, and returns None, or a boolean per block: False means that the host did not take it, and
        it is hinted again. One boolean stands for all blocks. An exception means that none was taken.
        A capsule holds a compiled function of the signature in ``pagehint.h`` (see `get_include`); it runs
        without the GIL.
    max_pages : int, default 16
        Most blocks that are out at once.
    prepare : callable, optional
        Called before the first batch of a run. If it raises or returns a negative number, nothing is taken out, and the
        run is tried again later.
    cleanup : callable, optional
        Called after the last batch of every run whose `prepare` succeeded, whatever happened in between.

    Notes
    -----
    The names and the cycle are those of Linux's page hinting series (v10, June 2019). No lock is held during a call.
    """

    def __cinit__(self, hint_pages, max_pages=16, prepare=None, cleanup=None):
        capsule = hint_pages[0] if type(hint_pages).__name__ == "LowLevelCallable" and len(hint_pages) else hint_pages
        if PyCapsule_CheckExact(capsule):
            self.compiled = <pagehint_hint_fn> PyCapsule_GetPointer(capsule, self.capsule_name(capsule))
            self.user_data = PyCapsule_GetContext(capsule)
        elif not callable(hint_pages):
            raise TypeError(f"hint_pages must be callable or a capsule, not {type(hint_pages).__name__}")
        for name, function in (("prepare", prepare), ("cleanup", cleanup)):
            if function is not None and not callable(function):
                raise TypeError(f"{name} must be callable or None, not {type(function).__name__}")
        self.hint_pages = hint_pages
        self.most = as_positive(max_pages, "max_pages")
        self.prepare = prepare
        self.cleanup = cleanup

    cdef const char *capsule_name(self, object capsule) except NULL:
        """The capsule's name, which is the signature of what it holds, if it is the one we call."""
        cdef const char *name = PyCapsule_GetName(capsule)
        given = "" if name == NULL else "".join(name.decode().split()).replace("const", "")
        # scipy, building one from ctypes, knows the structure only as void.
        wanted = "".join(PAGEHINT_HINT_SIGNATURE.decode().split()).replace("const", "")
        if given not in (wanted, wanted.replace("pagehint_block*", "void*")):
            raise TypeError(
                f"a compiled hint_pages must have the signature {PAGEHINT_HINT_SIGNATURE.decode()!r} as its capsule's name,"
                f" not {'' if name == NULL else name.decode()!r}"
            )
        return name

    @property
    def max_pages(self):
        """Most blocks that are out at once."""
        return self.most

    def __repr__(self):
        return f"PageHintingCallbacks({self.hint_pages!r}, max_pages={self.most})"
