"""Huge pages: said to be there only where the kernel gives them to this process, and used where they pay."""

from __future__ import annotations

import pytest
from processes import run_code, survives

import pagehint as ph
from pagehint.arena import mapping

LOOK = """
    import ctypes
    import pagehint as ph
    def given(arena):
        array = arena.empty(8 << 20, "u1")
        array[:] = 1
        with open("/proc/self/smaps") as maps:
            parts = maps.read().split("VmFlags")
        [part] = [p for p in parts if f"{arena.address(0):x}-" in p or any(
            int(a, 16) <= arena.address(0) < int(b, 16)
            for line in p.splitlines() if "-" in line.split(" ")[0]
            for a, b in [line.split(" ")[0].split("-")])]
        return "AnonHugePages:         0 kB" not in part
    prctl = ctypes.CDLL(None, use_errno=True).prctl
"""


def test_huge_pages_that_are_there_are_said_to_be():
    survives(f"""{LOOK}
    arena = ph.Arena("64MiB")
    assert arena.hugepages == given(arena), arena.hugepages
    assert not ph.Arena("64MiB", hugepages=False).hugepages
    """)


def test_huge_pages_were_said_to_be_there_in_a_process_that_gets_none():
    """PR_SET_THP_DISABLE, also of the process that started this one."""
    survives(f"""{LOOK}
    import os, subprocess, sys
    assert prctl(41, 1, 0, 0, 0) == 0
    arena = ph.Arena("64MiB")
    assert not arena.hugepages
    assert not given(arena)
    code = "import pagehint as ph; assert not ph.Arena('64MiB').hugepages"
    assert subprocess.run([sys.executable, "-P", "-c", code]).returncode == 0
    """)


def test_where_they_are_off_but_for_those_who_advise_them_they_are_there():
    """PR_THP_DISABLE_EXCEPT_ADVISED, of Linux 6.18."""
    status, out, err = run_code(f"""{LOOK}
    if prctl(41, 1, 2, 0, 0):
        print("no such flag")
    else:
        arena = ph.Arena("64MiB")
        assert arena.hugepages == given(arena), arena.hugepages
    """)
    if out:
        pytest.skip("this kernel does not know the flag")
    assert (status, err) == (0, "")


@pytest.mark.parametrize(
    ("machine", "size", "given"),
    [
        ("always [madvise] never", None, True),
        ("[always] madvise never", None, True),
        ("always madvise [never]", None, False),
        ("always madvise [never]", "always [inherit] madvise never", False),
        ("always [madvise] never", "always [inherit] madvise never", True),
        ("always madvise [never]", "always inherit [madvise] never", True),
        ("[always] madvise never", "always inherit madvise [never]", False),
        (None, None, True),  # no /sys here: the kernel's answer to madvise has to do
    ],
)
def test_the_machine_s_settings(machine, size, given, tmp_path, monkeypatch):
    """By the words that the kernel writes; what they do is the kernel's."""
    monkeypatch.setattr(mapping, "SETTINGS", str(tmp_path))
    if machine:
        (tmp_path / "enabled").write_text(f"{machine}\n")
    if size:
        (tmp_path / "hugepages-2048kB").mkdir()
        (tmp_path / "hugepages-2048kB" / "enabled").write_text(f"{size}\n")
    assert mapping.huge_pages_are_given() == given
    assert ph.Arena("4MiB").hugepages == (given and ph.Arena("4MiB").hugepages)


def test_a_user_namespace_is_refused_beside_the_worker_as_the_docstring_says():
    survives("""
        import os
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        import ctypes, errno, time
        import pagehint as ph
        libc = ctypes.CDLL(None, use_errno=True)
        def unshared():
            return ctypes.get_errno() if libc.unshare(0x10000000) else 0
        pid = os.fork()
        if pid == 0:
            os._exit(unshared())
        before = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        arena = ph.Arena("64MiB")
        arena.enable_hinting()
        assert unshared() == errno.EINVAL
        arena.disable_hinting()
        # As it was without hinting: 0, if this sandbox has user namespaces. A joined thread stays for a moment.
        for _ in range(1000):
            after = unshared()
            if after != errno.EINVAL:
                break
            time.sleep(0.001)
        assert after == before, (after, before)
    """)


# ---- which granules get them

SPARSE = """
    import time
    import numpy as np
    import pagehint as ph
    arena = ph.numpy.install()
    def huge():
        '''MiB in huge pages, of all mappings.'''
        with open("/proc/self/smaps_rollup") as file:
            return next(int(line.split()[1]) >> 10 for line in file if line.startswith("AnonHugePages"))
    def sparse(make, times=1024):
        '''What 1,024 arrays of 1 MiB keep with 100 bytes written in each, in MiB.'''
        before = arena.resident_bytes
        arrays = [make(1 << 20, "u1") for _ in range(times)]
        for array in arrays:
            array[:100] = 1
        return arena.resident_bytes - before >> 20
    def filled(nr_bytes, times):
        arrays = [np.ones(nr_bytes, "u1") for _ in range(times)]
        del arrays
        arena.trim()
"""


@pytest.mark.parametrize(
    ("before", "most"),
    [
        ("pass", 8),
        ("filled(64 << 20, 20)", 8),  # what had huge pages before
        ("filled(3 << 20, 200)", 40),  # what has led to expect that they are filled: a few granules tell otherwise
        ("filled(1 << 20, 500)", 40),
    ],
)
@pytest.mark.parametrize("make", ["np.empty", "np.zeros"])
def test_arrays_that_are_touched_in_part_being_resident_as_a_whole(before, most, make):
    code = SPARSE + f"    {before}\n    kept = sparse({make})\n    assert kept <= {most}, kept\n"
    assert run_code(code) == (0, "", "")


def test_huge_pages_for_large_arrays_and_for_small_ones_where_they_are_filled():
    code = (
        SPARSE
        + """
    if arena.hugepages:
        array = np.ones(64 << 20, "u1")
        assert huge() >= 60, huge()
        del array
        small = [np.ones(1 << 20, "u1") for _ in range(200)]
        assert huge() >= 100, huge()
    """
    )
    assert run_code(code) == (0, "", "")
