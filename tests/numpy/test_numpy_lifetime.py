"""How long arrays live, and the arena with them: past the context, the thread, a close, the interpreter."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from numpy_arrays import MIB, inside, mapped
from processes import survives

import pagehint as ph


def test_arrays_outlive_the_context_the_arena_and_the_thread():
    def work():
        arena = ph.Arena("64MiB")
        with arena.numpy():
            array = np.arange(MIB)
        made.append((array, arena.address(0)))

    made = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gc.collect()
    array, start = made.pop()
    view = array[1:]
    del array
    assert mapped(start)
    assert (view == np.arange(1, MIB)).all()
    view[:] = 3
    del view
    gc.collect()
    assert not mapped(start)


def test_the_arena_is_freed_though_a_context_has_used_it():
    arena = ph.Arena("64MiB")
    start = arena.address(0)
    with arena.numpy():
        pass
    assert mapped(start)
    del arena
    gc.collect()
    assert not mapped(start)


def test_closing_is_refused_while_numpy_has_arrays_there():
    arena = ph.Arena("64MiB")
    with arena.numpy():
        array = np.ones(MIB, "u1")
        with pytest.raises(ph.PageHintError, match="1 array in the arena"):
            arena.close()
        assert not arena.closed
        again = np.ones(MIB, "u1")
        assert inside(again, arena)
        del array, again
        arena.close()
        array = np.ones(MIB, "u1")  # the C heap's
    assert arena.closed
    assert arena.numpy_counts.full == 1
    assert array.all()


def test_an_interrupted_close_leaves_the_arena_open_or_closed_and_not_half():
    """Once its memory has gone back, no interrupt may have NumPy's requests served from it again.

    It sleeps until the interrupt comes: CPython before 3.13, whose flag for signals is made of several others
    (python/cpython#109369), overlooks one that comes just as it takes the GIL, until it takes the GIL again.
    """
    survives("""
        import signal, time
        import numpy as np
        import pagehint as ph
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        for n in range(3000):
            arena = ph.Arena("2MiB")
            try:
                with arena.numpy():
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + n % 100))
                        arena.close()
                        while True:
                            time.sleep(1e-3)
                    except KeyboardInterrupt:
                        pass
                    array = np.ones(1 << 16)
                    served = 0 <= array.__array_interface__["data"][0] - arena._mapping.address < arena.size
                    assert served == (not arena.closed)
                    assert array.all()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    """)


def test_arrays_made_and_dropped_while_the_arena_closes():
    survives("""
        import sys, threading
        import numpy as np
        import pagehint as ph
        sys.setswitchinterval(1e-6)
        def work(arena, go):
            with arena.numpy():
                go.set()
                while not arena.closed:
                    np.ones(1 << 17, "u1")
                    [np.ones(10) for _ in range(50)]  # else there would hardly be a moment without an array
                np.ones(1 << 17, "u1")
        for _ in range(10):
            arena, go = ph.Arena("16MiB"), threading.Event()
            worker = threading.Thread(target=work, args=(arena, go))
            arena.enable_hinting(delay=0.0)
            worker.start()
            go.wait()
            while not arena.closed:
                try:
                    arena.close()
                except ph.PageHintError:
                    pass
            worker.join()
            arena.pages.verify()
            assert arena.pages.stats().allocated_pages == 0
    """)


@pytest.mark.parametrize("kept", ["array", "array, arena", "array, arena, context"])
def test_the_interpreter_ends_cleanly_with_live_arrays(kept):
    survives(f"""
        import numpy as np
        import pagehint as ph
        def make():
            arena = ph.Arena("64MiB")
            context = arena.numpy()
            context.__enter__()
            arena.enable_hinting(delay=0.0)
            array = np.ones(1 << 20)
            return {kept},
        kept = make()
        class Late:
            array = np.ones(1 << 20)
            def __del__(self):
                self.array[:] = 2
                self.array = None
        late = Late()
    """)


@pytest.mark.parametrize("last", ["pass", "ph.numpy.uninstall()", "del arena; ph.numpy.uninstall()"])
def test_the_interpreter_ends_cleanly_with_an_installed_arena(last):
    survives(f"""
        import threading
        import numpy as np
        import pagehint as ph
        arena = ph.Arena("64MiB")
        ph.numpy.install(arena)
        arena.enable_hinting(delay=0.0)
        arrays = [np.ones(1 << 18) for _ in range(8)]
        class Late:
            array = np.ones(1 << 20)
            def __del__(self):
                self.array[:] = 2
                self.array = None
        late = Late()
        def work():
            while True:
                np.ones(1 << 18)
        threading.Thread(target=work, daemon=True).start()
        {last}
    """)
