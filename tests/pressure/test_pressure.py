"""While memory is short nothing stays warm: in real cgroups near their limit, under real stalls, in forked children.

Where this machine has no version 1 with a memory limit, the limit is a high mark of version 2.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from cgroups import cgroup, gone, own_folder, run_inside
from processes import run_code, survives
from waiting import wait_for

import pagehint as ph
from pagehint.pressure.watcher import sources_in

MIB = 1 << 20
# An eighth is 50 MiB. A process has about 30 MiB of its own. What a test takes ends below the limit with what is warm,
# since the kernel kills at the limit, and a busy machine may run the watcher late.
LIMIT = 400 * MIB

# An installed arena whose memory stays warm for ten minutes, and what takes memory beside it.
WARM = """
import mmap, os, time
import numpy as np
import pagehint as ph
MIB = 1 << 20

def take(nr_bytes):
    "Memory that is in use, and no arena's."
    taken = mmap.mmap(-1, nr_bytes)
    for page in range(0, nr_bytes, mmap.PAGESIZE):
        taken[page] = 1
    return taken

def warm(arena, nr_bytes=200 * MIB):
    array = np.ones(nr_bytes, "u1")
    del array
    time.sleep(0.2)
    return resident(arena)

def resident(arena):
    return arena.resident_bytes // MIB

def comes(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(condition())
"""


@pytest.fixture
def limited() -> Iterator[Path]:
    """A cgroup that gives the alarm at 350 MiB in use: by a high mark there, or as an eighth of a limit is left."""
    with cgroup(LIMIT - LIMIT // 8, "memory.high") if unified() else cgroup(LIMIT) as folder:
        yield folder


def unified() -> bool:
    try:
        return own_folder()[1]
    except (OSError, StopIteration):
        return True  # `cgroup` says that there is none


def said(result: tuple[int, str, str]) -> list[str]:
    status, out, err = result
    assert (status, err) == (0, ""), (status, out, err)
    return out.split()


# ---- near a limit


@pytest.mark.parametrize("pressure", [True, False])
def test_warm_memory_goes_at_once_near_the_limit_of_the_cgroup(limited: Path, pressure: bool) -> None:
    """Without the watch it stays, for the ten minutes that were asked for."""
    if not pressure and unified():
        pytest.skip(
            "version 2 of cgroups slows a process over its high mark until it gives memory back, and it does not"
        )
    code = f"""
arena = ph.numpy.install(min_age=600, reserve="64MiB", reserve_age=600, pressure={pressure})
print(warm(arena) >= 190)
taken = take(150 * MIB)
print(comes(lambda: arena.pressure.short and resident(arena) < 8, 3 if {not pressure} else 30))
print(arena.pressure.times)
"""
    assert said(run_inside(limited, WARM + code)) == ["True", str(pressure), "1" if pressure else "0"]


def test_the_kernel_killed_a_process_beside_its_own_warm_memory() -> None:
    if unified():
        pytest.skip("version 2 of cgroups says that a limit was reached, and not that one is near")
    code = """
arena = ph.numpy.install(min_age=600, pressure={pressure})
warm(arena)
first = take(150 * MIB)
time.sleep(1)
second = take(150 * MIB)
print("lives", flush=True)
os._exit(0)
"""
    with cgroup(LIMIT) as folder:
        assert run_inside(folder, WARM + code.format(pressure=False))[0] == -9
        assert said(run_inside(folder, WARM + code.format(pressure=True))) == ["lives"]


def test_when_it_is_quiet_again_the_ages_count_again(limited: Path) -> None:
    code = """
arena = ph.numpy.install(min_age=600, reserve_age=600)
warm(arena)
taken = take(150 * MIB)
print(comes(lambda: resident(arena) < 8))
small = np.ones(40 * MIB, "u1")
del small
print(comes(lambda: resident(arena) < 8, 1))  # while memory is short nothing is kept, though it could be a run
taken.close()
print(comes(lambda: not arena.pressure.short))
print(warm(arena) >= 190, arena.limit, arena.pages.min_age, arena.pressure.times)
"""
    assert said(run_inside(limited, WARM + code)) == ["True", "True", "True", "True", "None", "600.0", "1"]


def test_a_limit_of_the_arena_is_as_it_was_afterwards(limited: Path) -> None:
    code = """
arena = ph.Arena("600MiB")
arena.limit = "16MiB"
def freed():
    array = arena.empty(32 * MIB, "u1")
    array[:] = 1
    del array
    time.sleep(0.2)
    return resident(arena)
with arena.hinting(min_age=600, pressure=True):
    print(10 <= freed() <= 16)
    taken = take(320 * MIB)
    print(comes(lambda: resident(arena) < 8))
    arena.limit = "24MiB"
    print(freed() < 8)
    taken.close()
    print(comes(lambda: not arena.pressure.short), 18 <= freed() <= 24)
    print(arena.pressure.heeded)
print(arena.pressure.heeded)
"""
    assert said(run_inside(limited, WARM + code)) == ["True"] * 6 + ["False"]


def test_a_daemon_that_closed_every_descriptor_was_not_told(limited: Path) -> None:
    code = """
before = os.listdir("/proc/self/fd")
arena = ph.numpy.install(min_age=600)
print(os.listdir("/proc/self/fd") == before)
os.closerange(3, 1024)
warm(arena)
taken = take(150 * MIB)
print(comes(lambda: resident(arena) < 8))
"""
    assert said(run_inside(limited, WARM + code)) == ["True", "True"]


@pytest.mark.parametrize("cached", [20, 120])
def test_files_that_were_cached_hid_the_shortage_that_came_after_them(
    limited: Path, tmp_path: Path, cached: int
) -> None:
    """They are used memory that the kernel drops: with them the alarm comes too early, and must come again."""
    file = tmp_path / "file"
    file.write_bytes(os.urandom(cached * MIB))
    os.sync()
    code = f"""
arena = ph.numpy.install(min_age=600)
warm(arena)
file = os.open({str(file)!r}, os.O_RDONLY)
os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)  # whoever reads it first is charged
while os.read(file, MIB):
    pass
taken = [take((130 - {cached}) * MIB)] if {cached} < 100 else []
time.sleep(0.3)
print(arena.pressure.short)
taken.append(take((150 - sum(map(len, taken)) // MIB) * MIB))
print(comes(lambda: arena.pressure.short and resident(arena) < 8))
"""
    assert said(run_inside(limited, WARM + code)) == ["False", "True"]


# ---- forks


def test_a_child_of_an_installed_arena_kept_its_memory_warm_under_pressure(limited: Path) -> None:
    """It has a watcher of its own, from the time on when it has a worker; also one that was forked under pressure."""
    code = """
arena = ph.numpy.install(min_age=600)
def in_child():
    pid = os.fork()
    if pid == 0:
        print(arena.pressure.short, len(os.listdir("/proc/self/task")) == 1, flush=True)
        warm(arena)
        print(comes(lambda: arena.pressure.watched), arena.pressure.refused, flush=True)
        taken = take(150 * MIB)
        print(comes(lambda: arena.pressure.short and resident(arena) < 8), arena.pressure.times, flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
in_child()
taken = take(340 * MIB)
print(comes(lambda: arena.pressure.short))
taken.close()
in_child()
"""
    child = ["False", "True", "True", "()", "True", "1"]
    assert said(run_inside(limited, WARM + code)) == [*child, "True", *child]


def test_forks_while_it_becomes_short_leave_every_process_usable(limited: Path) -> None:
    code = """
arena = ph.numpy.install(min_age=600)
np.ones(20 * MIB, "u1")
for seed in range(30):
    taken = take(330 * MIB) if seed % 3 == 0 else None
    pid = os.fork()
    if pid == 0:
        array = np.full(8 * MIB, seed, "u1")
        ok = array.min() == array.max() == seed
        del array
        arena.pages.verify()
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0, seed
    if taken is not None:
        taken.close()
arena.pages.verify()
print("whole")
"""
    assert said(run_inside(limited, WARM + code)) == ["whole"]


# ---- stalls


@contextmanager
def stalls_of_its_own(folder: Path) -> Iterator[Path]:
    """The cgroup of version 2 in which the stalls of what runs in `folder` are counted: itself, or one that is made."""
    if (folder / "memory.pressure").exists():
        yield folder
        return
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    points = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"]
    if not points or not (points[0] / "memory.pressure").exists():
        pytest.skip("this machine counts no stalls of cgroups: no version 2 with PSI is mounted")
    path = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    made = Path(f"{points[0]}{path}") / f"pagehint-test-{os.getpid()}"
    made.mkdir()
    try:
        yield made
    finally:
        wait_for(partial(gone, made), "the last process of a cgroup")


THRASH = """
import mmap, os, sys
for folder in sys.argv[2:]:
    open(folder + "/cgroup.procs", "w").write("0")
with open(sys.argv[1], "rb") as file:
    # What is cached is charged to whoever has read it first: that is to be this process.
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
while True:
    for page in range(0, len(pages), mmap.PAGESIZE):
        pages[page]
"""


def test_warm_memory_goes_while_tasks_of_the_cgroup_wait_for_memory(tmp_path: Path) -> None:
    """A task reads a file that does not fit under a limit: its own, or, where stalls and limits are in one hierarchy,
    that of the arena, too, which is not near it without the file. The machine has enough.
    """
    limit = 300 * MIB if unified() else 40 * MIB
    file = tmp_path / "file"
    file.write_bytes(os.urandom(200 * MIB))
    os.sync()
    code = """
arena = ph.numpy.install(min_age=600)
print(any(name.endswith("/memory.pressure") for name in arena.pressure.watched))
print(warm(arena) >= 190, flush=True)
print(comes(lambda: arena.pressure.short and resident(arena) < 8, 50))
"""
    with cgroup(limit) as folder, stalls_of_its_own(folder) as stalls:
        thrash = subprocess.Popen([sys.executable, "-c", THRASH, str(file), str(folder), str(stalls)])
        try:
            assert said(run_inside(stalls, WARM + code)) == ["True", "True", "True"]
        finally:
            thrash.kill()
            thrash.wait()


def test_nothing_runs_while_memory_is_not_short() -> None:
    survives("""
        import os, time
        import pagehint as ph
        arena = ph.numpy.install()
        def switches():
            "Of the watcher's thread, by the kernel's count."
            for task in os.listdir("/proc/self/task"):
                with open(f"/proc/self/task/{task}/status") as file:
                    lines = dict(line.split(":", 1) for line in file)
                if lines["Name"].strip() == "pagehint-watch":
                    return [int(lines[kind + "voluntary_ctxt_switches"]) for kind in ("", "non")]
        seconds = 0
        while arena.pressure.watched:  # a second without an alarm, which the machine may give
            before = switches()
            assert before is not None
            time.sleep(1)
            if switches() == before:
                break
            seconds += 1
            assert seconds < 20, (before, switches())
        else:
            assert switches() is None
    """)


# ---- what is refused, in words


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOENT, "this kernel counts no stalls (PSI), or hides them"),
        (errno.EOPNOTSUPP, "unless it is started with psi=1"),
        (errno.EPERM, "takes triggers from CAP_SYS_RESOURCE only"),
        (errno.EACCES, "may not be written to"),
        (errno.EROFS, "is mounted read-only"),
        (errno.EMFILE, os.strerror(errno.EMFILE)),
    ],
)
def test_what_the_kernel_refuses_is_said_in_words(code: int, words: str) -> None:
    """Once, and the arena is as good as without."""
    status, out, err = sandboxed(f"""
import pagehint as ph
import numpy as np
refuse("openat", {code})
arena = ph.numpy.install(size="64MiB")
print(arena.pages.hinting_enabled, arena.pressure.watched, arena.pressure.refused)
with ph.Arena("4MiB").hinting(pressure=True):
    np.ones(1 << 20)
""")
    assert status == 0, err
    assert out.startswith("True () ('/proc/pressure/memory: not here: ")
    assert words in out
    assert err.count("the watch for memory pressure is refused (/proc/pressure/memory: not here") == 1, err


@pytest.mark.parametrize("call", ["clone(THREAD)", "close_range", "poll"])
def test_a_call_that_the_watch_needs_is_refused(call: str) -> None:
    """No thread, no descriptors of its own, or no wait: it costs the watch, and is said once."""
    status, out, err = sandboxed(f"""
import time
import pagehint as ph
refuse({call!r}, {errno.EPERM})
arena = ph.Arena("64MiB", hugepages=False)
for _ in range(2):
    with arena.hinting(workqueue="manual", pressure=True):
        time.sleep(0.1)
        print(arena.pressure.watched, arena.pressure.refused)
        assert arena.trim() == 0
""")
    name = call.split("(", maxsplit=1)[0]
    refused = f"() ('nothing is watched: {name} is refused ({os.strerror(errno.EPERM)})',)\n"
    assert (status, out) == (0, 2 * refused), err
    assert err.count("the watch for memory pressure is refused") == 1 or call == "poll", err


def sandboxed(code: str) -> tuple[int, str, str]:
    helpers = Path(__file__).parents[1] / "helpers"
    path = os.pathsep.join(filter(None, [str(helpers), os.environ.get("PYTHONPATH")]))
    status, _, why = result = run_code("from sandbox import refuse\n" + code, env={**os.environ, "PYTHONPATH": path})
    if status and "sandbox" in why:
        pytest.skip(f"this machine has no filters of system calls: {why}")
    return result


def test_a_kernel_without_stalls_or_cgroups(tmp_path: Path) -> None:
    watched, refused = sources_in(tmp_path)
    assert watched == ()
    assert refused == (f"{tmp_path}/proc/pressure/memory: not here: this kernel counts no stalls (PSI), or hides them",)


# ---- the option


def test_it_is_for_memory_of_this_process_and_for_arenas_made_by_install() -> None:
    arena = ph.Arena("4MiB")
    assert not arena.pressure.heeded
    try:
        with pytest.raises(ValueError, match="pressure can be set for an arena that is made here"):
            ph.numpy.install(arena, pressure=False)
        assert ph.numpy.installed() is None
        made = ph.numpy.install(size="64MiB")
        assert made.pressure.heeded
        assert ph.numpy.install(pressure=False) is made
        assert not made.pressure.heeded
        assert made.pages.min_age == ph.numpy.MIN_AGE
        made.disable_hinting()
        assert ph.numpy.install(pressure=True).pressure.heeded
        assert made.pages.hinting_enabled
        made.disable_hinting()
        assert not made.pressure.heeded
    finally:
        ph.numpy.uninstall()
