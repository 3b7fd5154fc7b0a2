"""Whether memory is short, in made-up trees of /proc and of cgroups; in real ones `test_pressure`."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagehint.pressure.watcher import shortage_in, sources_in

MIB = 1 << 20
SHORT, FINE = (False, True), (False, False)


class Tree:
    """A made-up root folder, with a cgroup /a/b of either version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.machine(total=8192, left=8192)

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def machine(self, total: int, left: int) -> None:
        self.write("proc/meminfo", f"MemTotal: {total} kB\nMemFree: 1 kB\nMemAvailable: {left} kB\n")

    def unified(self) -> None:
        self.write("proc/self/cgroup", "0::/a/b\n")
        self.write("proc/self/mountinfo", "41 31 0:38 / /cgroup rw - cgroup2 cgroup2 rw\n")
        for folder in ("cgroup/a", "cgroup/a/b"):
            self.level(folder, max="max", high="max", current=0)
            self.write(f"{folder}/memory.events.local", "low 0\nhigh 0\nmax 0\noom 0\n")

    def level(self, folder: str, **numbers: object) -> None:
        for name, number in numbers.items():
            self.write(f"{folder}/memory.{name}", f"{number}\n")

    def stat(self, folder: str, text: str) -> None:
        self.write(f"{folder}/memory.stat", text)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize("level", ["cgroup/a", "cgroup/a/b"])
@pytest.mark.parametrize("limit", ["max", "high"])
def test_version_2_an_eighth_is_left_under_any_limit_of_any_level(tree: Tree, level: str, limit: str) -> None:
    tree.unified()
    tree.level(level, **{limit: 80 * MIB, "current": 70 * MIB})
    assert shortage_in(tree.path) == FINE
    tree.level(level, current=70 * MIB + 4096)
    assert shortage_in(tree.path) == SHORT


def test_version_1(tree: Tree) -> None:
    tree.write("proc/self/cgroup", "4:memory:/a/b\n0::/\n")
    tree.write("proc/self/mountinfo", "35 31 0:32 / /cgroup rw - cgroup cgroup rw,memory\n")
    for folder in ("cgroup/a", "cgroup/a/b"):
        tree.level(folder, limit_in_bytes=(1 << 63) - 4096, usage_in_bytes=1 << 40)
    assert shortage_in(tree.path) == FINE
    tree.level("cgroup/a", limit_in_bytes=80 * MIB, usage_in_bytes=79 * MIB)
    assert shortage_in(tree.path) == SHORT
    tree.stat("cgroup/a", f"active_file 1\ntotal_inactive_file {5 * MIB}\ntotal_active_file {5 * MIB}\n")
    assert shortage_in(tree.path) == FINE


def test_a_cgroup_that_has_read_files_up_to_its_limit_was_taken_for_short(tree: Tree) -> None:
    tree.unified()
    tree.level("cgroup/a/b", max=80 * MIB, current=80 * MIB)
    tree.stat("cgroup/a/b", f"anon {70 * MIB}\nfile {20 * MIB}\ninactive_file {9 * MIB}\nactive_file {1 * MIB}\n")
    assert shortage_in(tree.path) == FINE
    tree.stat("cgroup/a/b", f"anon {72 * MIB}\nfile {20 * MIB}\ninactive_file {8 * MIB}\nactive_file {1 * MIB}\n")
    assert shortage_in(tree.path) == SHORT


def test_what_cannot_be_read_is_taken_for_short(tree: Tree) -> None:
    tree.unified()
    tree.level("cgroup/a/b", max="much")
    assert shortage_in(tree.path) == SHORT
    tree.level("cgroup/a/b", max=80 * MIB)
    (tree.path / "cgroup/a/b/memory.current").unlink()
    assert shortage_in(tree.path) == SHORT
    (tree.path / "proc/meminfo").unlink()
    assert shortage_in(tree.path) == (True, True)


def test_the_machine_is_short_with_less_than_an_eighth_of_its_memory(tree: Tree) -> None:
    tree.machine(total=8000, left=1000)
    assert shortage_in(tree.path) == FINE
    tree.machine(total=8000, left=999)
    assert shortage_in(tree.path) == (True, False)


def test_each_level_of_version_2_is_watched_and_stalls_of_the_own_cgroup(tree: Tree) -> None:
    tree.unified()
    tree.write("proc/pressure/memory", "")
    tree.write("cgroup/a/b/memory.pressure", "")
    # These are no files of the kernel's: they take the trigger as text, and nobody waits for them here.
    names = ("proc/pressure/memory", "cgroup/a/b/memory.pressure", "cgroup/a/b/memory.events.local")
    watched, refused = sources_in(tree.path)
    assert watched == tuple(f"{tree.path}/{name}" for name in (*names, "cgroup/a/memory.events.local"))
    assert refused == ()
    for name in names[:2]:
        assert (tree.path / name).read_bytes() == b"some 200000 2000000\0"
    (tree.path / "cgroup/a/b/memory.events.local").unlink()  # a cgroup without the memory controller has none
    assert len(sources_in(tree.path)[0]) == 3


def test_a_container_that_has_no_writable_cgroup_has_the_machines_stalls_and_its_own_events(tree: Tree) -> None:
    tree.unified()
    tree.write("proc/pressure/memory", "")
    (tree.path / "cgroup/a/b/memory.pressure").mkdir()  # who may write to anything cannot write to this
    watched, refused = sources_in(tree.path)
    assert [name.rsplit("/", 1)[1] for name in watched] == ["memory", "memory.events.local", "memory.events.local"]
    assert refused == (f"{tree.path}/cgroup/a/b/memory.pressure: not here: Is a directory",)
