"""Work that no interrupt tears."""

from __future__ import annotations

import ctypes
import os
import signal
from functools import partial

import pytest
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
