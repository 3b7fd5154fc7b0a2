"""`Arena.numpy`: which contexts have the handler, and that it does not stay when one is left."""

from __future__ import annotations

import shutil
import threading

import numpy as np
import pytest
from numpy_arrays import MIB, empty_at_the_end, inside, nothing_left
from processes import survives

import pagehint as ph
from pagehint.qemu.process import BINARY

arena = pytest.fixture(empty_at_the_end)


def test_the_handler_is_the_context_s_only(arena):
    other = ph.Arena("16MiB")

    def work():
        arrays.append(np.empty(MIB, "u1"))

    arrays = []
    with arena.numpy():
        with other.numpy():
            arrays.append(np.empty(MIB, "u1"))
        arrays.append(np.empty(MIB, "u1"))
        with pytest.raises(ZeroDivisionError), other.numpy():
            arrays.append(np.empty(MIB // 0, "u1"))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        arrays.append(np.empty(MIB, "u1"))
    arrays.append(np.empty(MIB, "u1"))
    assert [inside(array, other) for array in arrays] == [True, False, False, False, False]
    assert [inside(array, arena) for array in arrays] == [False, True, False, True, False]
    arrays.clear()
    nothing_left(other)
    other.close()


def test_an_interrupt_leaves_no_handler_behind(arena):
    """Ctrl-C again and again, wherever it comes: what was before is there again."""
    survives("""
        import signal, warnings
        import numpy as np
        import pagehint as ph
        warnings.simplefilter("ignore")  # an interrupt before the entering leaves a context that was never entered
        name = np._core.multiarray.get_handler_name
        arena, came = ph.Arena("16MiB"), 0
        def interrupt(*_):
            raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, interrupt)
        while came < 2000:
            try:
                signal.setitimer(signal.ITIMER_REAL, 2e-5)
                while True:
                    with arena.numpy():
                        pass
            except KeyboardInterrupt:
                came += 1
                assert name() == "default_allocator", "the arena's handler stayed"
    """)


def test_a_context_is_entered_once(arena):
    context = arena.numpy()
    with context, pytest.raises(ph.PageHintError, match="entered before"), context:
        pass
    with pytest.raises(ph.PageHintError, match="entered before"), context:
        pass
    assert np._core.multiarray.get_handler_name() == "default_allocator"


def test_refused_arenas():
    closed = ph.Arena("2MiB")
    closed.close()
    with pytest.raises(ValueError, match="closed"), closed.numpy():
        pass
    with pytest.raises(ValueError, match="closed"):
        ph.numpy.install(closed)


@pytest.mark.skipif(shutil.which(BINARY) is None, reason=f"{BINARY} is not installed")
def test_a_guest_s_ram_is_refused():
    with ph.qemu.Host("256MiB", timeout=5) as host:
        with pytest.raises(ph.PageHintError, match="share"), host.arena().numpy():
            pass
        with pytest.raises(ph.PageHintError, match="share"):
            ph.numpy.install(host.arena())
        assert host.arena().live_arrays == 0
        assert host.arena().numpy_counts == (0, 0, 0, 0, 0, 0)
