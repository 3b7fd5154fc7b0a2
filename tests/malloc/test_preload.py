"""malloc's functions in a program that `pagehint run --malloc` has started."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import subprocess

import pytest
from preloaded import run_code
from started import python, run

from pagehint.errors import PageHintError
from pagehint.malloc import library
from pagehint.malloc.library import LIBRARY, with_library
from pagehint.malloc.serving import is_preloaded, serve


def succeeds(done, said=""):
    assert (done.stdout, done.stderr, done.returncode) == (said, "", 0)


def test_each_function_takes_large_requests_from_the_arena_and_frees_them_there(tmp_path):
    succeeds(
        run_code(
            tmp_path,
            """
            before = live()
            made = [c.malloc(32 * K), c.calloc(32, K), c.realloc(None, M), c.reallocarray(None, 1024, K),
                    c.memalign(64, M), c.aligned_alloc(4 * K, M), c.valloc(M), c.pvalloc(M - 1)]
            aligned = c_void_p()
            assert c.posix_memalign(byref(aligned), 64, M) == 0
            made.append(aligned.value)
            assert all(map(in_arena, made)), [*map(in_arena, made)]
            assert len({*made}) == len(made)
            assert not any(p % 4096 for p in made)
            assert live() == before + len(made)
            for p in made:
                size = c.malloc_usable_size(p)
                assert size >= 32 * K and size % 4096 == 0
                at(p, size)[0] = at(p, size)[size - 1] = b"x"
                c.free(p)
            assert live() == before
            """,
        )
    )


def test_small_requests_and_what_an_arena_cannot_do_are_the_c_heaps(tmp_path):
    succeeds(
        run_code(
            tmp_path,
            """
            before, aligned = live(), c_void_p()
            assert c.posix_memalign(byref(aligned), 1 << 16, M) == 0 and aligned.value % (1 << 16) == 0
            huge = c.malloc(2 << 30)        # more than the arena has
            made = [c.malloc(32 * K - 1), c.calloc(1, 100), c.memalign(1 << 20, M), huge, aligned.value,
                    c.malloc(0), c.realloc(None, 10)]
            assert all(made) and not any(map(in_arena, made))
            assert live() == before
            for p in made:
                c.free(p)
            c.free(None)
            """,
        )
    )


def test_what_no_heap_can_do_is_refused_as_ever(tmp_path):
    succeeds(
        run_code(
            tmp_path,
            """
            import errno
            most = 2**64 - 1
            for function, *arguments in [
                (c.malloc, most), (c.calloc, most, 2), (c.calloc, 2**33, 2**33), (c.reallocarray, None, most, 2),
                (c.realloc, None, most), (c.pvalloc, most), (c.valloc, most), (c.memalign, 64, most),
            ]:
                ctypes.set_errno(0)
                assert function(*arguments) is None, function
                assert ctypes.get_errno() == errno.ENOMEM, function
            aligned = c_void_p(7)
            for alignment in (0, 1, 4, 24, 3 << 12):
                assert c.posix_memalign(byref(aligned), alignment, M) == errno.EINVAL, alignment
            assert c.posix_memalign(byref(aligned), 64, most) == errno.ENOMEM
            assert aligned.value == 7
            block = c.malloc(M)
            at(block, M)[:3] = b"abc"
            assert c.realloc(block, most) is None and c.reallocarray(block, most, 2) is None
            assert at(block, M)[:3] == b"abc"       # it stays as it was
            c.free(block)
            """,
        )
    )


def test_zeros_are_zeros_also_where_something_was(tmp_path):
    succeeds(
        run_code(
            tmp_path,
            """
            for size in (128 * K, M, 3 * M + 5, 40 * M):
                for _ in range(3):
                    p = c.calloc(size, 1)
                    assert in_arena(p) and not any(bytes(at(p, size)))
                    ctypes.memset(p, 1, size)
                    c.free(p)
            """,
        )
    )


def test_realloc_keeps_the_contents_in_place_within_and_across_the_border(tmp_path):
    succeeds(
        run_code(
            tmp_path,
            """
            import random
            random.seed(1)
            before, content, p = live(), b"", None
            crossed = set()
            for _ in range(400):
                size = random.choice([1, 100, 20 * K, 32 * K, 200 * K, M, 5 * M]) + random.randrange(99)
                was = p is not None and in_arena(p)
                p = c.realloc(p, size)
                kept = min(size, len(content))
                assert at(p, size)[:kept] == content[:kept]
                assert in_arena(p) == (size >= 32 * K)
                crossed.add((was, in_arena(p)))
                content = random.randbytes(size)
                ctypes.memmove(p, content, size)
            assert len(crossed) == 4
            del content
            assert c.realloc(p, 0) is None
            assert live() == before
            a = c.malloc(M)
            grown = c.realloc(a, 64 * M)
            assert grown == a or c.malloc_usable_size(grown) >= 64 * M
            c.free(grown)
            """,
        )
    )


def test_what_was_large_before_the_arena_came_stays_in_the_c_heap(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import ctypes\n"
        "c = ctypes.CDLL(None)\n"
        "c.malloc.restype = c.realloc.restype = ctypes.c_void_p\n"
        "c.realloc.argtypes, c.free.argtypes = [ctypes.c_void_p, ctypes.c_size_t], [ctypes.c_void_p]\n"
        "p, q = c.malloc(1 << 20), c.malloc(1 << 20)\n"
        "import numpy, pagehint as ph\n"
        "arena = ph.numpy.installed()\n"
        "first = arena.address(0)\n"
        "c.free(q)\n"
        "p = c.realloc(p, 1 << 21)\n"
        "assert not first <= p < first + arena.size and first <= c.malloc(1 << 20) < first + arena.size\n"
        "c.free(p)\n"
    )
    succeeds(run("--malloc", "--size", "1GiB", program))


@pytest.mark.parametrize(
    "code",
    [
        "p = c.malloc(M); c.free(p); c.free(p)",
        "p = c.malloc(M); c.free(p + 16)",
        "p = c.malloc(M); c.free(p + 4096)",
        "p = c.malloc(M); c.realloc(p + 16, 2 * M)",
        "p = c.malloc(9 * M); c.free(p); c.realloc(p, 10 * M)",
    ],
)
def test_what_is_not_allocated_ends_the_program_in_words(tmp_path, code):
    """As the C heap does."""
    done = run_code(tmp_path, code)
    assert done.returncode == -6
    assert "pagehint: free or realloc of 0x" in done.stderr
    assert "which is not allocated: page " in done.stderr


def test_the_threshold_can_be_set(tmp_path):
    code = "assert in_arena(c.malloc(128 * K)) and not in_arena(c.malloc(128 * K - 1))"
    succeeds(run_code(tmp_path, code, "--malloc-threshold", "128KiB"))


def test_numpys_arrays_are_in_the_same_arena_whoever_frees_them(tmp_path):
    """C code may take over an array's memory, or hand over its own."""
    succeeds(
        run_code(
            tmp_path,
            """
            before = live()
            a = np.ones(M)
            assert in_arena(a.ctypes.data) and live() == before + 1
            del a
            ph.numpy.uninstall()        # NumPy asks malloc now
            a = np.ones(M)
            assert in_arena(a.ctypes.data) and live() == before + 1
            del a
            assert live() == before
            try:
                arena.close()
                sys.exit("closed")
            except ph.PageHintError as error:
                print(error)
            """,
        ),
        "1 array in the arena still alive; delete them, and then close it\n",
    )


@pytest.mark.parametrize("first", ["", "ph.numpy.uninstall(); del arena", "del arena; ph.numpy.install('64MiB')"])
def test_freed_memory_goes_back_also_when_numpy_uses_another_arena(tmp_path, first):
    done = run_code(
        tmp_path,
        f"""
        import gc, time
        from pagehint.arena.arena import living
        {first}
        gc.collect()
        arena = next(arena for _, arena in living() if arena.size == 1 << 30)
        made = [c.malloc(M) for _ in range(300)]
        for p in made:
            ctypes.memset(p, 1, M)
        peak = arena.resident_bytes
        for p in made:
            c.free(p)
        end = time.monotonic() + 20
        while arena.resident_bytes > 8 * M and time.monotonic() < end:
            time.sleep(0.05)
        assert peak >= 300 * M and arena.resident_bytes <= 8 * M, (peak, arena.resident_bytes)
        """,
        "--min-age",
        "0.2",
    )
    succeeds(done)


def test_a_forked_child_has_it_too(tmp_path):
    succeeds(
        run_code(
            tmp_path,
            """
            p = c.malloc(M)
            at(p, M)[:3] = b"abc"
            child = os.fork()
            if child == 0:
                assert at(p, M)[:3] == b"abc"
                c.free(p)
                q = c.calloc(1, M)
                assert in_arena(q) and not any(bytes(at(q, M)))
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert at(p, M)[:3] == b"abc"
            """,
        )
    )


def test_a_forked_child_gives_back_also_when_numpy_uses_another_arena(tmp_path):
    code = """
        import time
        ph.numpy.uninstall()
        p = c.malloc(200 * M)
        ctypes.memset(p, 1, 200 * M)
        child = os.fork()
        if child == 0:
            ctypes.memset(p, 2, 200 * M)
            c.free(p)
            end = time.monotonic() + 20
            while arena.resident_bytes > 8 * M and time.monotonic() < end:
                time.sleep(0.05)
            os._exit(arena.resident_bytes > 8 * M)
        assert os.waitpid(child, 0)[1] == 0
    """
    succeeds(run_code(tmp_path, code, "--min-age", "0.2"))


# ---- programs that are not Python, or do without NumPy


@pytest.mark.parametrize("command", [["true"], ["sh", "-c", "echo $((1 + 1)) | cat"], ["sort", "/etc/passwd"]])
def test_other_programs_run_as_ever(command):
    environ = with_library(os.environ)
    plain = subprocess.run(command, capture_output=True, check=True, timeout=60)
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, env=environ)
    assert (done.stdout, done.stderr) == (plain.stdout, plain.stderr)


@pytest.mark.skipif(shutil.which("gdb") is None, reason="a large program in C and C++, with its own Python")
def test_a_large_program_runs_as_ever():
    environ = with_library({**os.environ, "PYTHONMALLOC": "malloc"})
    done = subprocess.run(
        ["gdb", "--batch", "-ex", "python print(sum([1] * 1_000_000))"], capture_output=True, timeout=60, env=environ
    )
    assert (done.stdout, done.returncode) == (b"1000000\n", 0)


@pytest.mark.parametrize("variables", [{"PYTHONMALLOC": "malloc"}, {"PYTHONMALLOC": "debug"}, {}], ids=str)
def test_a_python_that_is_not_told_of_an_arena_runs_as_ever(variables):
    environ = with_library({**os.environ, **variables})
    code = "x = bytearray(100 << 20); y = [*range(1 << 20)]; import sys; print('numpy' in sys.modules)"
    succeeds(python("-c", code, env=environ), "False\n")


# ---- what cannot be


def test_a_process_without_the_library(tmp_path):
    import pagehint as ph

    assert not is_preloaded()
    with ph.Arena("64MiB") as arena, pytest.raises(PageHintError, match="not preloaded in this process"):
        serve(arena._numpy_heap(), arena, 1 << 17)


def test_a_second_arena_is_refused(tmp_path):
    succeeds(
        run_code(
            tmp_path,
            """
            from pagehint.malloc.serving import is_preloaded, serve
            assert is_preloaded()
            serve(arena._numpy_heap(), arena, M)       # the same one: nothing happens
            with ph.Arena("64MiB") as other:
                try:
                    serve(other._numpy_heap(), other, M)
                except ph.PageHintError as error:
                    print(error)
                assert other.live_arrays == 0
            """,
        ),
        "malloc's large requests go to another arena already\n",
    )


@pytest.mark.parametrize("folder", ["my project", "a:b"])
def test_a_path_that_the_linker_cannot_read(tmp_path, monkeypatch, folder):
    path = tmp_path / folder / LIBRARY.name
    path.parent.mkdir()
    shutil.copy(LIBRARY, path)
    monkeypatch.setattr(library, "LIBRARY", path)
    with pytest.raises(PageHintError, match="blank or a colon ends a path there"):
        with_library({})


@pytest.mark.parametrize("name", ["libjemalloc.so.2", "libmimalloc.so.2"])
def test_another_allocator_keeps_its_requests(tmp_path, monkeypatch, name):
    """jemalloc's own operator new took memory from the arena, and its operator delete took that for its own."""
    path = ctypes.util.find_library(name.split(".")[0].removeprefix("lib"))
    if path is None:
        if "CI" in os.environ:
            pytest.fail(f"{name} is not installed")
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("LD_PRELOAD", path)
    done = run_code(
        tmp_path, "p = c.malloc(M); assert not in_arena(p); c.free(p); assert in_arena(np.ones(M).ctypes.data)"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert "malloc's requests stay with another allocator" in done.stderr


def test_a_library_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", tmp_path / LIBRARY.name)
    with pytest.raises(PageHintError, match="comes with an installation of pagehint"):
        with_library({})


def test_what_is_preloaded_already_comes_behind_and_arrow_is_told_unless_the_user_has():
    environ = with_library({"LD_PRELOAD": "liba.so /b/libb.so:libc.so", "ARROW_DEFAULT_MEMORY_POOL": "jemalloc"})
    assert environ == {
        "LD_PRELOAD": f"{LIBRARY}:liba.so:/b/libb.so:libc.so",
        "ARROW_DEFAULT_MEMORY_POOL": "jemalloc",
    }
    assert with_library(environ) == environ
    assert with_library({})["ARROW_DEFAULT_MEMORY_POOL"] == "system"
