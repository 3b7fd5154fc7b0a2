# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""Reporting a batch to the host: calls the callbacks, keeps and logs their failures. No lock is held during a call."""
import logging
import operator
import os

import numpy as np

cimport numpy as cnp
from libc.errno cimport ENOSYS, EPERM
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset
from pagehint.hinting.batch cimport pagehint_block
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.sync.lock cimport thread_id

from pagehint import errors
from pagehint.hinting import callbacks as _callbacks
from pagehint.refusals import say_once

cnp.import_array()

_log = logging.getLogger("pagehint")


cdef class Reporter:
    """Calls prepare, hint_pages and cleanup for one engine; keeps and logs what they fail with."""

    def __cinit__(self):
        self.interrupts = {}

    cdef void set_callbacks(self, PageHintingCallbacks callbacks):
        self.callbacks = callbacks
        self.no_prepare = callbacks is None or callbacks.prepare is None
        self.no_cleanup = callbacks is None or callbacks.cleanup is None

    cdef bint prepare(self) noexcept nogil:
        """Call `prepare`; False if it raises or returns a negative number, so that no block may be isolated."""
        if self.no_prepare:
            return True
        with gil:
            try:
                result = self.callbacks.prepare()
                if result is not None and operator.index(result) < 0:
                    raise errors.PageHintError(f"prepare returned {result}")
                return True
            except BaseException as error:
                self.queue.prepare_errors += 1
                self.failure(error)
                return False

    cdef bint report(self, uint64_t n, uint64_t session) noexcept nogil:
        """Hand the batch of `n` blocks to the host, and mark in `batch.failed` those that failed; whether any did.

        A callback may fork. In the child the session is another one, and then nothing here is touched any more.
        """
        cdef uint64_t i, lost = 0
        cdef int rc = 0
        if self.callbacks.compiled != NULL:
            rc = self.callbacks.compiled(self.batch.blocks, n, self.batch.failed, self.callbacks.user_data)
        else:
            with gil:
                self.call_hint_pages(n, session)
        if self.queue.session != session:
            return False
        if rc < 0:
            memset(self.batch.failed, 1, n)
        for i in range(n):
            lost += self.batch.failed[i] != 0
        if lost and self.callbacks.compiled != NULL:
            with gil:
                self.refused_blocks(n, lost, rc)
        return lost > 0

    cdef void call_hint_pages(self, uint64_t n, uint64_t session) noexcept:
        """As `report`, by a Python callable."""
        cdef cnp.ndarray blocks
        cdef cnp.ndarray taken
        cdef uint64_t i, lost = 0
        try:
            blocks = np.empty(n, _callbacks.BLOCK_DTYPE)
            memcpy(blocks.data, self.batch.blocks, n * sizeof(pagehint_block))
            blocks.flags.writeable = False
            result = self.callbacks.hint_pages(blocks)
            if result is None or result is True or self.queue.session != session:
                return
            taken = np.asarray(result)
            if taken.dtype != bool or np.shape(taken) not in ((), (n,)):
                raise TypeError(
                    f"hint_pages must return None or a boolean for each of {n} blocks,"
                    f" not {taken.dtype} of shape {np.shape(taken)}"
                )
            taken = np.ascontiguousarray(np.broadcast_to(taken, (n,)))
            for i in range(n):
                self.batch.failed[i] = not (<uint8_t *> taken.data)[i]
                lost += self.batch.failed[i]
            if lost:
                self.refused_blocks(n, lost, 0)
        except BaseException as error:
            if self.queue.session == session:
                memset(self.batch.failed, 1, n)
            self.failure(error)

    cdef void refused_blocks(self, uint64_t n, uint64_t lost, int rc) noexcept:
        """Note that `lost` of `n` blocks were not taken; `rc` is a negative errno if the host gave one."""
        cdef uint64_t i = 0
        while not self.batch.failed[i]:
            i += 1
        why = f": {os.strerror(-rc)}" if rc < 0 else ""
        if self.callbacks.of_system and rc in (-EPERM, -ENOSYS):
            say_once("madvise", -rc, "what is free is not given back")
            self.burst_logged = True
        self.failure(errors.PageHintError(
            f"{lost} of {n} blocks were not taken, the first at PFN {self.batch.blocks[i].pfn:#x}"
            f" (order {self.batch.blocks[i].order}, zone {self.specs[self.batch.blocks[i].zone].name}){why}"
        ))

    cdef void cleanup(self) noexcept nogil:
        if self.no_cleanup:
            return
        with gil:
            try:
                self.callbacks.cleanup()
            except BaseException as error:
                self.failure(error)

    cdef void failure(self, object error) noexcept:
        """Keep an error as `last_error`, and log it, but once only until a pass is clean again.

        What is no Exception, as KeyboardInterrupt, ends a pass on a caller's thread, and is raised there at its end.
        """
        try:
            self.last_error = error
            if not isinstance(error, Exception) and self.queue.manual:
                self.interrupts[thread_id()] = error
                self.interrupted = True
            if not self.burst_logged:
                self.burst_logged = True
                _log.warning("reporting failed, will be tried again: %s", error, exc_info=error)
        except BaseException:
            pass        # a logging handler that raises must not end the worker
