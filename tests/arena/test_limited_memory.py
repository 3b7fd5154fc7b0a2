"""Under the limits of a cgroup or of the process: an arena's size, and that nothing is populated which others need.

Each case is run in a process of its own, most of them in a real cgroup of 300 MiB.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from cgroups import cgroup, run_inside
from processes import run_code, survives

import pagehint as ph

MIB = 1 << 20
LIMIT = 300 * MIB

needs_another_cpu = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="it takes another CPU")

# An arena that NumPy's arrays are in, one of which has been written to: the next is populated ahead at once.
TRUSTED = """
import os, time
import numpy as np
import pagehint as ph
MIB = 1 << 20
arena = ph.Arena("1GiB")
ph.numpy.install(arena)

def write(nr_bytes, most):
    "An array, the first part of which is written to."
    array = np.empty(most, "u1")
    for start in range(0, nr_bytes, MIB):
        array[start : min(start + MIB, nr_bytes)] = 7
    return array

def ends_well(array, nr_bytes):
    time.sleep(0.2)  # whoever populates ahead does it meanwhile
    assert array[:nr_bytes].min() == array[:nr_bytes].max() == 7
    print("fine", arena.populated_bytes // MIB, flush=True)
    os._exit(0)  # at once, whatever state the process is in

write(60 * MIB, 60 * MIB)
time.sleep(0.05)
arena.trim()
"""


def ran_well(result: tuple[int, str, str]) -> int:
    """MiB populated ahead in a process that was not killed."""
    status, out, err = result
    assert status == 0, (status, out, err)
    assert out.startswith("fine "), (out, err)
    return int(out.split()[1])


@pytest.fixture
def inside():
    with cgroup(LIMIT) as folder:
        yield folder


@needs_another_cpu
def test_a_large_array_of_which_less_than_the_limit_is_written(inside):
    """It was killed: what came ahead of the writing went over the limit."""
    ran_well(run_inside(inside, TRUSTED + "ends_well(write(200 * MIB, 1 << 30), 200 * MIB)"))


@pytest.mark.parametrize("left", [20, 5, 3])
def test_writing_to_just_under_the_limit(inside, left):
    """What the kernel needs for page tables comes on top. The last huge pages do not fit: small ones come instead."""
    file = next(file for name in ("current", "usage_in_bytes") if (file := inside.parent / f"memory.{name}").exists())
    code = f"""
nr_bytes = {LIMIT} - int(open({str(file)!r}).read()) - {left} * MIB
ends_well(write(nr_bytes, 1 << 30), nr_bytes)
"""
    ran_well(run_inside(inside, TRUSTED + code))


@needs_another_cpu
def test_a_process_that_is_moved_into_a_cgroup_when_it_populates_already(inside):
    code = f"""
array = write(20 * MIB, 1 << 30)
open({str(inside / "cgroup.procs")!r}, "w").write("0")
for start in range(20 * MIB, 200 * MIB, MIB):
    array[start : start + MIB] = 7
ends_well(array, 200 * MIB)
"""
    ran_well(run_code(TRUSTED + code))


@needs_another_cpu
def test_several_processes_that_share_a_limit(inside):
    """Three, each of which has 80 MiB of its own for a moment: four of them would be over the limit by themselves."""
    code = f"open({str(inside / 'cgroup.procs')!r}, 'w').write('0')\n" + TRUSTED
    code += "ends_well(write(15 * MIB, 1 << 30), 15 * MIB)"
    processes = [
        subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert all(out.startswith("fine ") for out in said)


@needs_another_cpu
def test_a_high_mark_is_not_passed():
    with cgroup(LIMIT, "memory.high") as folder:
        ran_well(run_inside(folder, TRUSTED + "ends_well(write(200 * MIB, 1 << 30), 200 * MIB)"))
        events = dict(line.split() for line in (folder.parent / "memory.events").read_text().splitlines())
        assert events["high"] == "0"


@needs_another_cpu
def test_an_array_in_a_wide_cgroup_is_populated_ahead_as_ever():
    with cgroup(4 << 30) as folder:
        code = TRUSTED + "while arena.populated_bytes < 100 * MIB: write(200 * MIB, 200 * MIB); arena.trim()\n"
        assert ran_well(run_inside(folder, code + "ends_well(write(MIB, MIB), MIB)")) >= 100


@needs_another_cpu
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change its root directory")
def test_without_proc_nothing_is_populated(tmp_path):
    code = f"""
before = arena.populated_bytes
os.chroot({str(tmp_path)!r})
array = write(100 * MIB, 200 * MIB)
time.sleep(0.1)
assert arena.populated_bytes == before
"""
    survives(TRUSTED + code)


@needs_another_cpu
def test_no_descriptor_is_kept_or_used_for_populating():
    """No pipe that the process closes is kept open, and one that closes all descriptors and opens others loses none."""
    survives(
        TRUSTED
        + """
import threading
read, write_end = os.pipe()
write(100 * MIB, 100 * MIB)
ours = [task for task in os.listdir("/proc/self/task")
        if open(f"/proc/self/task/{task}/comm").read() == "pagehint-ahead\\n"]
if arena.populated_bytes:
    assert len(ours) == 1
os.close(write_end)
assert os.read(read, 1) == b""  # the end of the pipe, unless somebody else has it open
arena.trim()
for _ in range(50):
    before = set(os.listdir("/proc/self/fd"))
    array = write(60 * MIB, 60 * MIB)
    assert set(os.listdir("/proc/self/fd")) == before
    os.closerange(3, 100)
    pipes = [os.pipe() for _ in range(5)]
    del array
    arena.trim()
    for one, other in pipes:
        os.write(other, b"x")
        assert os.read(one, 1) == b"x"
        os.close(one)
        os.close(other)
"""
    )


def test_the_default_size_is_that_of_the_cgroup(inside):
    status, out, err = run_inside(inside, "import pagehint as ph\nprint(ph.Arena().size)")
    assert (status, out, err) == (0, f"{LIMIT}\n", "")
    status, out, err = run_inside(inside, "import pagehint as ph\nprint(ph.numpy.install().size)")
    assert (status, out, err) == (0, f"{LIMIT}\n", "")


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_the_default_size_leaves_room_under_the_limits_of_the_process(kind):
    survives(f"""
        import resource
        import numpy as np
        import pagehint as ph
        limit = 8 << 30
        resource.setrlimit(resource.{kind}, (limit, limit))
        arena = ph.numpy.install()
        assert (1 << 30) < arena.size <= limit // 2, arena.size
        array = np.ones(64 << 20, "u1")
        assert arena.numpy_counts.arena == 1
        others = bytearray(1 << 30)
    """)


def test_the_default_size_is_the_machines_memory_where_nothing_is_limited():
    assert ph.Arena().size <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")
