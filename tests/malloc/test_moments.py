"""malloc at difficult moments: in threads that end, in handlers of forks and exits, beside threads and signals."""

from __future__ import annotations

import os

import pytest
from preloaded import STRESS, compile_c, run_code

SECONDS = float(os.environ.get("PAGEHINT_STRESS_SECONDS", "3"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    library = compile_c(STRESS, tmp_path_factory.mktemp("stress") / "libstress.so")
    return f"s = ctypes.CDLL({str(library)!r})\n"


def run_moment(folder, loaded, code, **more):
    program = "\n".join(line.removeprefix(" " * 8) for line in code.splitlines())
    return run_code(folder, loaded + program, **more)


def succeeds(done, said=""):
    assert (done.stdout, done.stderr, done.returncode) == (said, "", 0)


def test_a_thread_that_ends(tmp_path, loaded):
    code = "before = live()\nfor _ in range(50):\n    s.end_thread()\nassert live() == before"
    succeeds(run_moment(tmp_path, loaded, code))


def test_fork_handlers_of_others(tmp_path, loaded):
    """They run while the arena's locks are taken."""
    code = """
        s.use_malloc_at_forks()
        before = None
        for _ in range(30):
            child = os.fork()
            if child == 0:
                p = c.malloc(M)
                assert in_arena(p)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            p = c.malloc(M)     # what they have freed meanwhile is free now
            assert in_arena(p)
            c.free(p)
            before = before or live()
            assert live() <= before + 3, (live(), before)
        """
    succeeds(run_moment(tmp_path, loaded, code))


BEFORE = "import ctypes\n{loaded}s.{function}()\n"  # their handlers come when the arena's locks are taken


def test_fork_handlers_that_were_there_before(tmp_path, loaded):
    """What they free meanwhile is kept, and then freed."""
    code = """
        p = c.malloc(M)
        c.free(p)
        before = live()
        for _ in range(30):
            child = os.fork()
            if child == 0:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        c.free(c.malloc(M))
        assert live() <= before, (live(), before)
        """
    before = BEFORE.format(loaded=loaded, function="use_malloc_at_forks")
    succeeds(run_moment(tmp_path, loaded, code, before=before))


def test_a_fork_handler_that_waits_for_a_thread_that_uses_malloc(tmp_path, loaded):
    """It waited for ever: the thread waited for the arena's lock, which the fork had."""
    code = """
        for _ in range(30):
            child = os.fork()
            if child == 0:
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        """
    before = BEFORE.format(loaded=loaded, function="wait_for_a_thread_at_forks")
    succeeds(run_moment(tmp_path, loaded, code, before=before))


def test_a_fork_beside_threads_that_read_and_flush_files(tmp_path, loaded):
    """Three threads waited for one another: for the arena's lock, for a file, and for the list of files."""
    succeeds(run_moment(tmp_path, loaded, "assert s.fork_beside_files(200) == 0"))


def test_a_thread_was_cancelled_inside_of_free(tmp_path, loaded):
    """It waited for memory that was just being populated, and left the populator's mutex locked."""
    code = """
        arena.disable_hinting()
        arena.enable_hinting(min_age=0.0001, threshold=1, delay=None)
        before = live()
        assert s.cancel(300) == 0
        assert live() == before
        np.ones(8 * M)
        """
    succeeds(run_moment(tmp_path, loaded, code))


def test_after_python_has_ended(tmp_path, loaded):
    succeeds(run_moment(tmp_path, loaded, "s.use_malloc_at_exit()"), "destroyed\n")


@pytest.mark.parametrize("reserve", ["reserve='64MiB', reserve_age=0.2", "reserve_age=0"], ids=["kept", "none kept"])
@pytest.mark.parametrize(("advice", "forks"), [("dontneed", True), ("dontneed", False), ("free", True)])
def test_threads_beside_forks_and_exits_or_signals_with_canaries(tmp_path, loaded, advice, reserve, forks):
    """With a reserve what was freed is kept for the next request of its length."""
    code = f"""
        arena.disable_hinting()
        arena.enable_hinting({advice!r}, min_age=0.001, threshold=1, delay=None, {reserve})
        forked, before = c_int(), live()
        wrong = s.stress(4, ctypes.c_double({SECONDS}), {len(advice)}, {forks}, byref(forked))
        p = c.malloc(M)     # frees what was kept
        c.free(p)
        print(wrong, (forked.value > 0) == {forks}, live() - before, arena.pages.stats().reports > 0)
        arena.pages.verify()
        """
    succeeds(run_moment(tmp_path, loaded, code, timeout=SECONDS + 120), "0 True 0 True\n")
