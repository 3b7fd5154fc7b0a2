# cython: language_level=3, embedsignature=False, freethreading_compatible=False
"""Work that an interrupt must not end half-way: Ctrl-C may come between any two bytecode instructions of the main thread.

This is compiled, so that there are no such instructions in the code that waits.
"""
from cpython.exc cimport PyErr_CheckSignals

import sys
import threading
from _thread import allocate_lock, get_ident, start_new_thread

_LOOK = 0.05            # seconds between looks for an interrupt, which need not end a wait if it came just before it

_here = threading.local()


def undisturbed(work, *arguments, obtain=None):
    """undisturbed(work, *arguments, obtain=None)
--

    Call ``work(*arguments)`` where neither KeyboardInterrupt nor another exception of a signal handler comes.

    Parameters
    ----------
    work : callable
        It must end in bounded time. It may ask `interrupted` whether to end early.
    obtain : callable, optional
        Called first, on this thread; an interrupt may end it. What it returns is one more argument, the last. It must be
        compiled, so that it either returns or raises, and is not interrupted in between.

    Returns
    -------
    object
        What the work returns.

    Raises
    ------
    BaseException
        What the work raises. If the wait for it was interrupted, that exception instead, after the work has ended.
    RuntimeError
        If no thread can be started; nothing has been done then.

    Notes
    -----
    Python runs signal handlers on the main thread. So when this is called there, another thread does the work, which takes
    about 30 us more. On any other thread the work is called directly.
    """
    outcome = []
    interrupts = []
    done = allocate_lock()

    def run():
        _here.interrupts = interrupts
        try:
            outcome.append((work(*arguments), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            done.release()

    # These are Python functions, which an interrupt may end: they are called before anything is obtained.
    here = get_ident() != threading.main_thread().ident or sys.is_finalizing()
    if obtain is not None:
        arguments = (*arguments, obtain())
    if here:
        return work(*arguments)
    done.acquire()
    try:
        start_new_thread(run, ())
    except RuntimeError as error:
        if "shutdown" in str(error):    # from Python 3.12 on: an interpreter that is ending starts no threads
            return work(*arguments)
        raise
    while True:
        try:
            while not done.acquire(True, _LOOK):
                PyErr_CheckSignals()
            break
        except BaseException as error:
            interrupts.append(error)
    result, error = outcome[0]
    try:
        if interrupts:
            raise interrupts[0]
        if error is not None:
            raise error
        return result
    finally:
        outcome.clear()         # else it and the exception in it refer to each other, by the traceback
        interrupts.clear()


def interrupted():
    """interrupted()
--

    Return whether an interrupt waits for the end of the work that asks, which `undisturbed` has begun.
    """
    return bool(getattr(_here, "interrupts", None))
