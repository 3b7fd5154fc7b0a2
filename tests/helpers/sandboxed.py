"""A process's life with pagehint in a sandbox that refuses one system call; a line for each call, in JSON.

``python sandboxed.py WHEN ERRNO [CALL ...]``. WHEN is "start", before the import; "imported", after it; or "middle",
with an arena installed and used.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import threading
import traceback

import numpy as np
from sandbox import calls, refuse

MIB = 1 << 20
SECONDS = 60
# Without these Python loads no module.
NEEDED_TO_IMPORT = {"mmap", "mprotect", "openat", "read", "close"}
# The C library itself aborts without these: in a lock, as a thread begins (rseq), or after it has ended (munmap).
NEEDED_ALWAYS = {"futex", "rseq", "munmap"}
said: list[str] = []


class Listener(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        said.append(record.getMessage())


def crowd(ph) -> None:
    """Threads at the locks that have barriers: those of page sets, which they take from each other, and the zone's."""
    pages = ph.PageAllocator("256MiB")
    wrong = []

    def work(seed: int) -> None:
        try:
            for i in range(150):
                taken = [pages.alloc_pages(order % 4) for order in range(seed, seed + 16)]
                if len(set(taken)) != len(taken):
                    wrong.append(taken)
                for order, pfn in enumerate(taken, seed):
                    pages.free_pages(pfn, order % 4)
                if i % 50 == 0:
                    pages.drain_pcp()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    started = []
    for thread in threads:
        try:
            thread.start()
        except RuntimeError:  # no thread can be made here
            work(0)
        else:
            started.append(thread)
    for thread in started:
        thread.join()
    assert not wrong, wrong
    pages.verify()
    assert pages.stats().allocated_pages == 0


def look(arena) -> None:
    """Everything that is shown of an arena."""
    status = arena.status()
    assert status.resident_bytes >= 0
    assert status.warm_bytes >= 0
    assert repr(status)
    assert repr(arena)
    assert arena.resident_bytes >= 0
    assert repr(arena.pages.explain())
    assert arena.pages.stats().managed_pages > 0


def trim(ph, arena) -> None:
    with contextlib.suppress(ph.PageHintError):  # not everything was given back, as documented
        assert arena.trim() >= 0


def use(ph, arena, kept: np.ndarray) -> None:
    """Make arrays, in NumPy's way and the arena's, and drop them; look, trim, fork, close."""
    for seed in range(3):
        array = np.full(3 * MIB, seed, np.uint8)
        zeros = np.zeros(5 * MIB, np.uint8)
        assert not zeros.any()
        assert (array == seed).all()
        del array, zeros
    look(arena)
    trim(ph, arena)
    assert not np.zeros(9 * MIB, np.uint8).any()
    crowd(ph)
    with ph.Arena("64MiB") as other:
        for advice in ("dontneed", "free"):
            array = other.empty(20 * MIB, np.uint8)
            array[:] = 7
            assert (array == 7).all()
            del array
            with other.hinting(advice, workqueue="manual") as pages:
                pages.flush_hinting()
            trim(ph, other)
        look(other)
    pid = os.fork()
    if pid == 0:
        try:
            assert kept.sum() == kept.size
            assert (np.full(3 * MIB, 3, np.uint8) == 3).all()
            trim(ph, arena)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert kept.sum() == kept.size


def live(when: str, call: str, code: int) -> None:
    """One life; what it raises is a fault."""
    if when == "start":
        refuse(call, code)
    import pagehint as ph

    logging.getLogger("pagehint").addHandler(Listener())
    if when == "imported":
        refuse(call, code)
    try:
        arena = ph.numpy.install()
    except MemoryError:
        assert call == "mmap" or call == "mprotect"  # no arena can be had
        assert np.ones(MIB).sum() == MIB
        return
    kept = np.ones(4 * MIB)
    if when == "middle":
        use(ph, arena, kept)
        said.clear()
        refuse(call, code)
    try:
        use(ph, arena, kept)
    except MemoryError:
        if call not in ("mmap", "mprotect"):
            raise
    look(arena)
    ph.numpy.uninstall()
    assert kept.sum() == kept.size
    del kept
    arena.close()
    assert len(set(said)) == len(said), said


def report(when: str, call: str, code: int) -> str:
    """Live in a forked child; returns what it wrote, and how it ended if it did not end well."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(SECONDS)
        os.dup2(writing, 2)
        try:
            live(when, call, code)
            os.write(writing, "\n".join(["fine", *said]).encode())
            os._exit(0)
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        wrote = pipe.read().decode()
    status = os.waitpid(pid, 0)[1]
    return wrote if status == 0 else f"{wrote}\nstatus {os.waitstatus_to_exitcode(status)}"


def main() -> None:
    when, code, *chosen = sys.argv[1:]
    for call in chosen or calls():
        if call not in NEEDED_ALWAYS and not (when == "start" and call in NEEDED_TO_IMPORT):
            print(json.dumps([call, report(when, call, getattr(errno, code))]), flush=True)


if __name__ == "__main__":
    main()
