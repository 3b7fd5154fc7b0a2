"""Code that may crash, hang, fork or be interrupted, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

# From 3.12 on Python warns of a fork beside threads. The tests have both on purpose.
PYTHON = [sys.executable, "-P", "-X", "faulthandler", "-W", "ignore:This process:DeprecationWarning"]


def survives(code: str) -> None:
    """Run code that may crash or hang; it must end well, and say nothing. Of one that hangs, the stacks are shown."""
    process = subprocess.Popen(
        [*PYTHON, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler writes the stack of every thread
        _, said = process.communicate()
        raise AssertionError(f"it hangs:\n{said}") from None
    assert (process.returncode, said) == (0, ""), said


def run_code(code, *, interrupt=False, **options):
    """Run code; return its exit status and its output. With `interrupt` Ctrl-C comes after it has said "ready"."""
    process = subprocess.Popen(
        [*PYTHON, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )
    if interrupt:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    finally:
        if process.returncode is None:  # it hangs, perhaps with children
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, out, err


def in_child(function):
    """Run in a forked child; its assertion errors fail the test here."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not pytest-timeout's handler, which comes to no hung thread
        signal.alarm(60)  # ends it if it hangs
        try:
            function()
            os.write(write, b"fine")
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    assert said == b"fine", said
