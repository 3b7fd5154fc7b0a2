# cython: language_level=3, embedsignature=False, freethreading_compatible=False
"""Work that no interrupt may tear: Ctrl-C comes to the main thread between any two instructions of Python.

Compiled, since what waits here must have no instructions in between.
"""
import sys
import threading
from _thread import allocate_lock, get_ident, start_new_thread

_here = threading.local()


def undisturbed(work, *arguments, obtain=None):
    """undisturbed(work, *arguments, obtain=None)
--

    Call ``work(*arguments)`` where no KeyboardInterrupt comes, nor what else signal handlers raise.

    Parameters
    ----------
    work : callable
        It must end in a time that is known. It may ask `interrupted` whether it had better do so soon.
    obtain : callable, optional
        Called before, on this thread, and may be interrupted: what it returns is one more argument, the last. Compiled,
        so that it either returns that or raises.

    Returns
    -------
    object
        What it returns.

    Raises
    ------
    BaseException
        Whatever it raises; but what interrupted the wait for it comes first, when it has ended.
    RuntimeError
        If there can be no other thread; nothing has been done then.

    Notes
    -----
    On the main thread, where Python runs signal handlers, the work is done by a thread of its own: some 30 us. On any
    other it is called right here.
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

    # What is written in Python comes before anything is obtained: an interrupt may end it.
    here = get_ident() != threading.main_thread().ident or sys.is_finalizing()
    if obtain is not None:
        arguments = (*arguments, obtain())
    if here:
        return work(*arguments)
    done.acquire()
    try:
        start_new_thread(run, ())
    except RuntimeError as error:
        if "shutdown" in str(error):    # from Python 3.12 on: the interpreter is ending, and has no more threads
            return work(*arguments)
        raise
    while True:
        try:
            done.acquire()
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
        outcome.clear()         # it holds the exception, whose traceback holds it
        interrupts.clear()


def interrupted():
    """interrupted()
--

    Return whether the work that asks, begun by `undisturbed`, is waited for by somebody who wants to go on.
    """
    return bool(getattr(_here, "interrupts", None))
