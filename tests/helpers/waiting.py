"""Waiting for another thread or process."""

from __future__ import annotations

import time


def wait_for(condition, what="the worker", every=0.001):
    """Wait for another thread, as long as it may ever take."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not get there"
        time.sleep(every)
