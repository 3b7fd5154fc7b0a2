# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, freethreading_compatible=False
"""The calls to a host: report a batch, ask what came back. Keeps and logs their failures. No lock is held during a call."""
import logging
import operator
import os

import numpy as np

cimport numpy as cnp
from libc.errno cimport ENOSYS, EPERM
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy, memset
from pagehint.hinting.batch cimport pagehint_block
from pagehint.hinting.callbacks cimport PageHintingCallbacks
from pagehint.hinting.hinted_zone cimport hints_of
from pagehint.hinting.hold_times cimport end_round, note_hold
from pagehint.hinting.reported cimport GROUP_GRANULES, GROUP_WORDS, granules_to_ask_for, mark_granules
from pagehint.sync.atomic cimport RELAXED, ctz64, load64
from pagehint.sync.clock cimport monotonic_ns
from pagehint.sync.lock cimport lock_acquire, thread_id
from pagehint.zone.zone cimport PageZone

from pagehint import errors
from pagehint.hinting import callbacks as _callbacks
from pagehint.refusals import say_once

cnp.import_array()

_log = logging.getLogger("pagehint")


cdef cnp.ndarray as_answers(object result, uint64_t n, str what):
    """A boolean for each of `n` blocks, from what a callback has returned."""
    cdef cnp.ndarray given
    if isinstance(result, np.ndarray):
        given = result
        if given.ndim == 1 and <uint64_t>given.shape[0] == n and cnp.PyArray_TYPE(given) == cnp.NPY_BOOL:
            if cnp.PyArray_IS_C_CONTIGUOUS(given):
                return given
    answers = np.asarray(result)
    if answers.dtype != bool or np.shape(answers) not in ((), (n,)):
        raise TypeError(
            f"{what} must return None or a boolean for each of {n} blocks,"
            f" not {answers.dtype} of shape {np.shape(answers)}"
        )
    return np.ascontiguousarray(np.broadcast_to(answers, (n,)))


cdef class Reporter:
    """Calls prepare, hint_pages, cleanup and is_dropped for one engine; keeps and logs what they fail with."""

    def __cinit__(self):
        self.interrupts = {}

    cdef void set_callbacks(self, PageHintingCallbacks callbacks):
        self.callbacks = callbacks
        self.no_prepare = callbacks is None or callbacks.prepare is None
        self.no_cleanup = callbacks is None or callbacks.cleanup is None
        self.cannot_say = callbacks is None or callbacks.is_dropped is None

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
            taken = as_answers(result, n, "hint_pages")
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

    cdef bint ask(self, PageZone *z, uint64_t session) noexcept nogil:
        """Have the host say what it has again of what it took, and hint that again; returns whether the pass goes on.

        A group of granules at a time, in two short holds of the zone lock; none is out of circulation meanwhile. What is
        taken for use, or freed, while the host is asked is hinted by its free, and here only if it is free.
        """
        cdef uint64_t[GROUP_WORDS] back
        cdef uint64_t first = 0, n
        cdef int64_t began
        cdef bint known = not self.cannot_say
        while known and first < load64(&z.nr_granules, RELAXED) and not (self.queue.stopping or self.interrupted):
            lock_acquire(&z.lock, True)
            began = monotonic_ns()
            n = granules_to_ask_for(z, first, back)
            note_hold(hints_of(z), began)
            end_round(z)
            if n:
                with gil:
                    n = self.call_is_dropped(z, first, back, n, session, &known)
                if self.queue.session != session:
                    return False
            if n:
                lock_acquire(&z.lock, True)
                began = monotonic_ns()
                mark_granules(z, first, back)
                note_hold(hints_of(z), began)
                end_round(z)
            first += GROUP_GRANULES
        return not (self.queue.stopping or self.interrupted)

    cdef uint64_t call_is_dropped(self, PageZone *z, uint64_t first, uint64_t *back, uint64_t n, uint64_t session,
                                  bint *known) noexcept:
        """Call `is_dropped` for the `n` granules that `back` has, from `first` on, and leave there those that came back.

        Returns how many did; `known` turns false if the host does not say it.
        """
        cdef cnp.ndarray blocks
        cdef cnp.ndarray dropped
        cdef pagehint_block *block
        cdef uint64_t i, bits, left = 0
        try:
            blocks = np.empty(n, _callbacks.BLOCK_DTYPE)
            block = <pagehint_block *> blocks.data
            for i in range(<uint64_t>GROUP_WORDS):
                bits = back[i]
                while bits:
                    block.pfn = z.base_pfn + ((first + (i << 6) + <uint64_t>ctz64(bits)) << z.min_order)
                    block.order, block.zone = z.min_order, z.index
                    bits &= bits - 1
                    block += 1
            blocks.flags.writeable = False
            result = self.callbacks.is_dropped(blocks)
            known[0] = result is not None
            if result is None or result is True or self.queue.session != session:
                return 0
            dropped = as_answers(result, n, "is_dropped")
            n = 0
            for i in range(<uint64_t>GROUP_WORDS):
                bits = back[i]
                while bits:
                    if (<uint8_t *> dropped.data)[n]:
                        back[i] &= ~(bits & -bits)
                    else:
                        left += 1
                    bits &= bits - 1
                    n += 1
        except BaseException as error:
            known[0] = False
            left = 0
            self.failure(error, "the host did not say what it has, so nothing that came back is hinted again")
        return left

    cdef void failure(self, object error, str what="reporting failed, will be tried again") noexcept:
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
                _log.warning("%s: %s", what, error, exc_info=error)
        except BaseException:
            pass        # a logging handler that raises must not end the worker
