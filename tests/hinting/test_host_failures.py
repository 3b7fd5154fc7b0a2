"""The host fails in every way it can: that is counted, kept and tried again later, and nothing is lost."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import threading

import numpy as np
import pytest
from allocators import real
from hosts import RecordingHost
from hypothesis import given
from hypothesis import strategies as st

import pagehint as ph

GRANULES = 8  # of 2 MiB
C = ctypes.CDLL(None, use_errno=True)


def ended(host, pages):
    """Everything is back and consistent; a host that works again takes what is left, each granule once."""
    assert pages.stats().reporting_pages == 0
    pages.verify()
    assert pages.stats().free_pages == GRANULES * 512
    left = pages.stats().hints_pending
    host.answer = host.prepare_answer = host.cleanup_answer = None
    host.take()
    pages.flush_hinting()
    again = [pfn + i for pfn, order in host.take() for i in range(0, 1 << order, 512)]
    assert len(again) == len(set(again)) == left
    assert pages.stats().hints_pending == 0


class FailingHost(RecordingHost):
    """A host whose cleanup can fail, too."""

    cleanup_answer = None

    def cleanup(self):
        super().cleanup()
        if self.cleanup_answer is not None:
            raise self.cleanup_answer


FAULTS = [None, RuntimeError, KeyboardInterrupt, SystemExit]


@pytest.mark.parametrize("kinds", list(itertools.product(FAULTS, repeat=3)))
@pytest.mark.parametrize("workqueue", ["manual", "thread"])
def test_every_combination_of_callbacks_that_raise(kinds, workqueue):
    prepare, hint_pages, cleanup = (kind and kind("host") for kind in kinds)
    pages, host = real("16MiB"), FailingHost(2)
    host.prepare_answer, host.answer, host.cleanup_answer = prepare, hint_pages, cleanup
    faults = [prepare] if prepare is not None else [error for error in (hint_pages, cleanup) if error is not None]
    interrupts = [error for error in faults if not isinstance(error, Exception)]
    with pages.hinting(host.callbacks, workqueue=workqueue, delay=None, threshold=1 << 20):
        if interrupts and workqueue == "manual":
            with pytest.raises(BaseException, match="host") as raised:
                pages.flush_hinting()
            assert raised.value is interrupts[-1]
        else:
            pages.flush_hinting()
        stats = pages.stats()
        assert pages.last_error is (faults[-1] if faults else None)
        assert stats.prepare_errors == (prepare is not None)
        if prepare is not None:
            assert host.calls == ["prepare"]
            assert (stats.hints_pending, stats.blocks_isolated) == (GRANULES, 0)
        else:
            assert (host.calls[0], host.calls[-1]) == ("prepare", "cleanup")
            assert host.calls.count("cleanup") == host.calls.count("prepare") == 1
            assert stats.blocks_failed == (len(host.blocks) if hint_pages is not None else 0)
            assert stats.report_errors == (len(host.batches) if hint_pages is not None else 0)
        ended(host, pages)


# What a callback may return by mistake; some of it is right, and says so.
answers = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.lists(st.one_of(st.booleans(), st.integers(), st.none()), max_size=4),
    st.builds(
        lambda n, dtype, step: np.ones(n * step, dtype)[::step],
        st.integers(0, 4),
        st.sampled_from(["?", "u1", "f8", "O", "S1", "M8[s]"]),
        st.integers(1, 2),
    ),
    st.builds(lambda rows, columns: np.zeros((rows, columns), bool), st.integers(0, 3), st.integers(0, 3)),
    st.sampled_from([object(), np.bool_(True), np.ma.masked, {}, [[True], [False, True]]]),
)


def right(answer, n):
    """Whether it says something about a batch of n blocks, and then, about each."""
    if answer is None:
        return [True] * n
    try:
        mask = np.asarray(answer)
    except ValueError:
        return None
    return np.broadcast_to(mask, n).tolist() if mask.dtype == bool and mask.shape in ((), (n,)) else None


@given(st.lists(answers, min_size=1, max_size=4))
def test_whatever_a_callback_returns(given_answers):
    """What is no answer is a failure of the batch, and told as TypeError or what NumPy says; the blocks wait."""
    pages, host = real("16MiB"), FailingHost(2)
    turn = iter(given_answers)
    said = []

    def answer(blocks):
        try:
            said.append((blocks["pfn"].tolist(), next(turn)))
        except StopIteration:
            return None
        return said[-1][1]

    host.answer = answer
    with pages.hinting(host.callbacks, workqueue="manual", delay=None, max_report_order=9):
        pages.flush_hinting()
        lost = set()
        for pfns, returned in said:
            taken = right(returned, len(pfns))
            lost.update(pfn for pfn, kept in zip(pfns, taken or [False] * len(pfns), strict=True) if not kept)
        stats = pages.stats()
        assert stats.blocks_failed == stats.hints_pending == len(lost)
        assert stats.blocks_reported == GRANULES - len(lost)
        assert (pages.last_error is None) == (not lost)
        if said and right(said[-1][1], len(said[-1][0])) is None:
            assert isinstance(pages.last_error, (TypeError, ValueError))
        ended(host, pages)


@pytest.mark.parametrize("answer", [-1, -(1 << 70), "x", 1.5, None, 0, True])
def test_whatever_prepare_returns(answer):
    pages, host = real("16MiB"), FailingHost(2)
    host.prepare_answer = answer
    with pages.hinting(host.callbacks, workqueue="manual", delay=None):
        pages.flush_hinting()
        good = answer is None or answer in (0, True)
        assert (pages.last_error is None) == good
        assert pages.stats().prepare_errors == (not good)
        assert pages.stats().hints_pending == (0 if good else GRANULES)
        ended(host, pages)


def test_a_host_that_blocks_for_long_holds_up_nobody_who_does_not_need_its_blocks():
    """Other memory can be had, settings and the texts read, the allocator checked; the batch is out all the while."""
    pages, host = real("16MiB"), FailingHost(2)
    begun, go_on = threading.Event(), threading.Event()
    host.answer = lambda blocks: (begun.set(), go_on.wait(60), None)[2]
    with pages.hinting(host.callbacks, delay=None, threshold=1):
        assert begun.wait(60)
        out = pages.stats().reporting_pages
        assert out == 1024  # one block, in a zone so small
        for _ in range(100):
            pages.free_pages(pages.alloc_pages(9), 9)
        pages.verify()
        pages.buddyinfo(), pages.zoneinfo(), pages.pagetypeinfo(), pages.explain()
        pages.threshold, pages.max_pages = 3, 1
        assert pages.stats().reporting_pages == out
        assert pages.stats().free_pages == GRANULES * 512 - out
        go_on.set()
        pages.flush_hinting()
        ended(host, pages)


# ---- the operating system refuses


def check(result):
    assert result == 0, os.strerror(ctypes.get_errno())


@pytest.fixture
def arena():
    made = ph.Arena("64MiB")
    yield made
    made.close()


@pytest.mark.parametrize("advice", ["dontneed", "free"])
def test_a_locked_range_that_the_kernel_will_not_drop(arena, clock, advice):
    """Advice about locked memory is EINVAL. Only those blocks fail, and they go when they are unlocked."""
    pages, size = arena.pages, 2 << 20
    address = arena.address(8 * 512)
    array = arena.empty(arena.size, np.uint8)
    array[:] = 7
    del array
    check(C.mlock(ctypes.c_void_p(address), ctypes.c_size_t(size)))
    with arena.hinting(
        advice, max_pages=4, workqueue="manual", delay=None, threshold=1, max_report_order=9, clock=clock
    ):
        assert pages.run_pending() == 1
        stats = pages.stats()
        # Neighbours of one batch are advised in one call, which is refused as a whole.
        assert stats.blocks_failed == 4
        assert stats.hints_pending == 4
        assert stats.report_errors == 1
        assert stats.blocks_reported == 28
        assert os.strerror(errno.EINVAL) in str(pages.last_error)
        assert (np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8) == 7).all()
        for pause in (0.1, 0.2, 0.4):  # with back-off
            clock.sleep(pause - 0.01)
            assert pages.run_pending() == 0
            clock.sleep(0.02)
            assert pages.run_pending() == 1
        assert pages.stats().report_errors == 4
        assert pages.stats().reporting_pages == 0
        pages.verify()
        assert len(pages.alloc_pages_bulk(32, 9)) == 32  # it is memory like any other meanwhile
        pages.free_pages_bulk(np.arange(32) * 512, 9)
        check(C.munlock(ctypes.c_void_p(address), ctypes.c_size_t(size)))
        pages.flush_hinting()
        assert pages.stats().hints_pending == 0
        if advice == "dontneed":
            assert arena.resident_bytes == 0
    pages.verify()


SYS_MSEAL = 462  # on every architecture; Linux 6.10


def test_a_sealed_range_that_the_kernel_will_not_drop(clock):
    """MADV_DONTNEED of a sealed, read-only range is EPERM; the arena is kept, as nothing unseals."""
    arena = ph.Arena("64MiB")
    pages = arena.pages
    address, size = arena.address(16 * 512), 2 << 20
    if C.syscall(SYS_MSEAL, ctypes.c_void_p(0), ctypes.c_size_t(0), ctypes.c_ulong(0)) != 0:
        assert ctypes.get_errno() == errno.ENOSYS
        pytest.skip("this kernel has no mseal")
    taken = pages.alloc_pages_at(16 * 512, 9)
    check(C.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), mmap.PROT_READ))
    check(C.syscall(SYS_MSEAL, ctypes.c_void_p(address), ctypes.c_size_t(size), ctypes.c_ulong(0)))
    pages.free_pages(taken, 9)
    with arena.hinting(max_pages=1, workqueue="manual", delay=None, threshold=1, max_report_order=9, clock=clock):
        pages.run_pending()
        stats = pages.stats()
        assert (stats.blocks_failed, stats.hints_pending, stats.blocks_reported) == (1, 1, 31)
        assert os.strerror(errno.EPERM) in str(pages.last_error)
        clock.sleep(1.0)
        assert pages.run_pending() == 1
        assert pages.stats().blocks_failed == 2
    pages.verify()
    KEPT.append(arena)  # it could not be unmapped


KEPT: list[ph.Arena] = []
