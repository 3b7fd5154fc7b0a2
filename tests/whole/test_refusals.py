"""A call that the kernel or a sandbox refuses costs a feature, never the process: each one, from the start or later."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_code

HELPERS = Path(__file__).parents[1] / "helpers"
# An empty entry would be the folder that the tests are run in, with its sources.
PATH = os.pathsep.join(filter(None, [str(HELPERS), os.environ.get("PYTHONPATH")]))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH}
# What is said to be lost, by the call that is refused.
SAID = {
    "clone(THREAD)": {"hinting"},
    "madvise": {"madvise", "madvise(MADV_HUGEPAGE)"},
    "madvise(DONTNEED)": {"madvise"},
    "madvise(HUGEPAGE)": {"madvise(MADV_HUGEPAGE)"},
    "membarrier": {"membarrier"},
    "mincore": {"mincore"},
}


def sandboxed(code: str) -> tuple[int, str, str]:
    """Run code that imports `refuse`; return its exit status and its output."""
    return run_code("from sandbox import refuse\n" + code, env=ENVIRONMENT)


@pytest.fixture(scope="module", autouse=True)
def filters():
    """Skip where this machine has no filters of system calls."""
    status, _, said = sandboxed("refuse('sched_yield', 1)")
    if status:
        pytest.skip(said)


@pytest.mark.parametrize("code", ["EPERM", "ENOSYS"])
@pytest.mark.parametrize("when", ["start", "imported", "middle"])
def test_a_call_that_is_refused_ended_the_process(when: str, code: str) -> None:
    """Arrays keep their data, figures and `trim` work, it forks, closes and ends; and each loss is said once."""
    done = subprocess.run(
        [sys.executable, "-P", HELPERS / "sandboxed.py", when, code],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lives = dict(map(json.loads, done.stdout.splitlines()))
    assert len(lives) >= 20
    broken = {call: wrote for call, wrote in lives.items() if not wrote.startswith("fine") or "status" in wrote}
    assert not broken, "\n".join(f"{call}:\n{wrote}" for call, wrote in broken.items())
    for call, losses in SAID.items():
        said = {line.split(" is refused")[0] for line in lives[call].splitlines()[1:]}
        # With an arena installed already, its worker is there.
        assert losses <= said or (call, when) == ("clone(THREAD)", "middle"), call


def test_threads_that_have_locks_when_membarrier_is_refused():
    """Threads use page sets, and take them from each other, before, during and after. No page is handed out twice."""
    code = f"""
import threading, time
import numpy as np
import pagehint as ph
pages = ph.PageAllocator("256MiB")
owner = np.zeros(pages.stats().managed_pages, np.int64)
broken, stop = [], threading.Event()
def work(me):
    while not stop.is_set():
        taken = [pages.alloc_pages() for _ in range(50)]
        owner[taken] = me
        time.sleep(0)
        if not (owner[taken] == me).all():
            broken.append(me)
        for pfn in taken:
            pages.free_pages(pfn)
threads = [threading.Thread(target=work, args=(me,)) for me in range(1, 5)]
for thread in threads:
    thread.start()
def drain_for(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pages.drain_pcp()
drain_for(0.3)
refuse("membarrier", {errno.EPERM})
drain_for(0.7)
stop.set()
for thread in threads:
    thread.join()
pages.verify()
pages.stats()
pages.stats()
print(broken, pages.stats().allocated_pages)
"""
    status, out, said = sandboxed(code)
    assert (status, out) == (0, "[] 0\n"), said
    assert said.count("membarrier is refused") == 1, said


def test_figures_where_the_kernel_does_not_say_what_is_resident():
    """They are what may be resident, and are marked; `trim` gives back what it can, and says what may have been."""
    code = f"""
import numpy as np
import pagehint as ph
refuse("mincore", {errno.EPERM})
arena = ph.Arena("1GiB", hugepages=False)
assert arena.resident_bytes == 0
kept, dropped = arena.empty(6 << 20, "u1"), arena.empty(10 << 20, "u1")
kept[:] = 1
del dropped
assert arena.resident_bytes == 16 << 20
status = arena.status()
assert status.estimated
assert (status.used_bytes, status.warm_bytes, status.resident_bytes) == (6 << 20, 10 << 20, 16 << 20)
assert "estimated" in repr(status)
assert arena.pages.explain().warm.bytes == status.warm_bytes
assert arena.trim() == 10 << 20
assert arena.resident_bytes == 6 << 20
assert arena.trim() == 0
print(kept.sum())
"""
    status, out, said = sandboxed(code)
    assert (status, out) == (0, f"{6 << 20}\n"), said
    assert said.count("mincore is refused") == 1, said


@pytest.mark.parametrize("when", ["from the start", "from one day on"])
def test_a_kernel_that_does_not_say_costs_the_question_and_not_the_trim(when):
    code = f"""
import pagehint as ph
if {when == "from the start"}:
    refuse("mincore", {errno.EPERM})
arena = ph.Arena("64MiB", hugepages=False)
with arena.hinting(delay=None) as pages:
    for seed in range(3):
        array = arena.empty(16 << 20, "u1")
        array[:] = 1
        del array
        assert arena.trim() == 16 << 20
        if seed == 0 and {when != "from the start"}:
            refuse("mincore", {errno.EPERM})
        reported = pages.stats().pages_reported
        arena.trim()
        assert pages.stats().pages_reported == reported
        assert pages.explain()["came back"].pages == 0
    assert pages.last_error is None
print("whole")
"""
    status, out, said = sandboxed(code)
    assert (status, out) == (0, "whole\n"), said
    assert said.count("mincore is refused") == 1, said


def test_an_installed_arena_where_no_thread_can_be_made():
    """Hinting is off, which is said once; what is free goes with `trim`."""
    code = f"""
import numpy as np
import pagehint as ph
refuse("clone(THREAD)", {errno.EPERM})
arena = ph.numpy.install()
assert not arena.pages.hinting_enabled
np.ones(1 << 21)
print(arena.trim() >> 20)
ph.numpy.uninstall()
ph.numpy.install()
"""
    status, out, said = sandboxed(code)
    assert (status, out) == (0, "16\n"), said
    assert said.count("hinting is refused") == 1, said


def test_a_flush_of_what_was_never_used_asks_the_kernel_for_nothing():
    code = f"""
import pagehint as ph
refuse("madvise", {errno.EPERM})
arena = ph.Arena("64MiB", hugepages=False)
assert arena.trim() == 0
with arena.hinting(delay=None, workqueue="manual", max_pages=2) as pages:
    pages.flush_hinting()
    print(pages.stats().blocks_failed, pages.stats().pages_reported, arena.status().given_back)
"""
    status, out, said = sandboxed(code)
    assert (status, out, said) == (0, f"0 {2 * (64 << 8)} 0\n", "")


def test_an_arena_whose_mapping_cannot_be_removed_kept_its_memory():
    code = f"""
from pathlib import Path
import pagehint as ph
def resident():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").open() if line.startswith("RssAnon"))
refuse("munmap", {errno.EPERM})
arena = ph.Arena("256MiB")
arena.empty(100 << 20, "u1")[:] = 1
with_it = resident()
del arena
print(with_it - resident() >= 100 << 10)
"""
    status, out, said = sandboxed(code)
    assert status == 0, said
    assert out.startswith("True\n")  # after it, NumPy's own libraries complain at their end


def test_an_arena_that_cannot_be_mapped_where_limits_cannot_be_read():
    code = f"""
import pagehint as ph
refuse("prlimit64", {errno.EPERM})
refuse("mmap", {errno.EPERM})
try:
    ph.Arena("1GiB")
except MemoryError as error:
    print(error)
"""
    status, out, _ = sandboxed(code)
    assert status == 0
    assert "Operation not permitted" in out


def test_the_machines_memory_where_it_cannot_be_read():
    code = f"""
import pagehint as ph
refuse("sysinfo", {errno.EPERM})
refuse("openat", {errno.EPERM})
print(ph.Arena().size >> 30)
"""
    status, out, said = sandboxed(code)
    assert (status, said) == (0, "")
    assert 1 <= int(out) <= 16 << 10


def test_an_allocator_that_is_made_without_a_barrier():
    """That is said once, and each lock has barriers of its own."""
    code = f"""
refuse("membarrier", {errno.EPERM})
import pagehint as ph
for pages in [ph.PageAllocator("64MiB"), ph.PageAllocator("64MiB")]:
    pages.free_pages(pages.alloc_pages())
    pages.verify()
"""
    status, _, said = sandboxed(code)
    assert (status, said.count("membarrier is refused"), len(said.splitlines())) == (0, 1, 1), said


def test_an_allocator_without_memory_for_its_metadata():
    code = f"""
import pagehint as ph
refuse("mmap", {errno.ENOMEM})
try:
    ph.PageAllocator("64MiB")
except MemoryError as error:
    print(error)
"""
    status, out, said = sandboxed(code)
    assert (status, said) == (0, "")
    assert "no metadata for zone Normal of 16384 pages" in out


def test_an_arena_that_gets_no_huge_pages():
    code = f"""
import pagehint as ph
refuse("madvise(HUGEPAGE)", {errno.EPERM})
for arena in [ph.Arena("64MiB"), ph.Arena("64MiB")]:
    arena.empty(8 << 20, "u1")[:] = 1
    print(arena._mapping.hugepages)
"""
    status, out, said = sandboxed(code)
    assert (status, out) == (0, "False\nFalse\n"), said
    assert said.count("madvise(MADV_HUGEPAGE) is refused") == 1, said


def test_a_step_without_memory_for_its_metadata_is_closed_again():
    """The arena is as full as a smaller one."""
    code = f"""
import pagehint as ph
arena = ph.Arena("1GiB", hugepages=False)
refuse("mprotect", {errno.ENOMEM})
try:
    arena.empty(100 << 20, "u1")
except ph.OutOfMemoryError:
    print(arena._mapping.open_bytes)
with open("/proc/self/maps") as maps:
    ends = [int(line.split()[0].split("-")[1], 16) - arena.address(0) for line in maps]
print(2 << 20 in ends, [end for end in ends if 2 << 20 < end <= 1 << 30])
arena.empty(1 << 20, "u1")[:] = 1
arena.pages.verify()
"""
    status, out, said = sandboxed(code)
    assert (status, out, said) == (0, f"{2 << 20}\nTrue []\n", "")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it takes another CPU")
def test_memory_that_may_not_be_populated_ahead():
    """That is said once, by the next figure that is asked for; the owner faults it in."""
    code = f"""
import time
import numpy as np
import pagehint as ph
arena = ph.numpy.install(ph.Arena("1GiB"))
refuse("madvise(POPULATE_WRITE)", {errno.EPERM})
for _ in range(20):
    assert np.ones(60 << 20, "u1").all()
    time.sleep(0.05)
    arena.trim()
arena.status()
assert arena.populated_bytes == 0
"""
    status, _, said = sandboxed(code)
    assert status == 0, said
    assert said.count("populating is refused") == 1, said
