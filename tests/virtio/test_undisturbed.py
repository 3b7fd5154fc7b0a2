"""Work that no interrupt tears."""

from __future__ import annotations

import ctypes
import os
import signal
from functools import partial

import pytest
from processes import survives
from storm import Storm
from waiting import wait_for

from pagehint.virtio.undisturbed import interrupted, undisturbed


def test_work_that_is_waited_for_ends_before_its_interrupt_is_raised():
    steps = []

    def work():
        steps.append("begun")
        os.kill(os.getpid(), signal.SIGUSR1)
        wait_for(interrupted, "the interrupt")
        steps.append("ended")

    with Storm(5) as storm:
        storm.left = 3
        with pytest.raises(KeyboardInterrupt):
            undisturbed(work)
    assert steps == ["begun", "ended"]
    assert not interrupted()
    assert undisturbed(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        undisturbed(divmod, 7, 0)


def test_an_interrupt_just_before_the_wait_was_not_noticed_until_the_work_had_ended():
    """Its handler is called when the wait for the work is interrupted, which that one did not do any more."""
    steps = []

    def work(_):
        wait_for(interrupted, "the interrupt")
        steps.append("ended")

    with Storm(6) as storm:
        storm.left = 1
        with pytest.raises(KeyboardInterrupt):
            undisturbed(work, obtain=partial(ctypes.CDLL(None).kill, os.getpid(), signal.SIGUSR1))
    assert steps == ["ended"]


def test_a_limit_on_address_space_leaves_no_thread_that_no_interrupt_may_tear():
    """There is no address space for its stack: nothing has been done then."""
    survives("""
        import resource
        from pagehint.virtio.undisturbed import undisturbed
        done = []
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 20), -1))
        try:
            undisturbed(done.append, 1)
        except RuntimeError as error:
            assert "start new thread" in str(error)
        else:
            raise AssertionError("there was a thread")
        assert not done
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        undisturbed(done.append, 1)
        assert done == [1]
    """)
