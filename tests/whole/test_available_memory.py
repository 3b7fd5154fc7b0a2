"""What a process may have of memory, in made-up trees of /proc and of cgroups; in real ones `test_limited_memory`."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from pagehint.available_memory import CgroupMemory, Look, most_memory

MIB, GIB = 1 << 20, 1 << 30
UNLIMITED_1 = str((1 << 63) - 4096)
V1 = "35 31 0:32 {part} {point} rw,relatime shared:9 - cgroup cgroup rw,memory"
V2 = "41 31 0:38 {part} {point} rw,relatime - cgroup2 cgroup2 rw,nsdelegate"
OTHERS = """31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu"""
NOTHING = CgroupMemory(None, None, True)
UNKNOWN = CgroupMemory(None, None, False)


@pytest.fixture
def root(tmp_path):
    return Root(tmp_path)


class Root:
    """A made-up root folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("/proc/meminfo", "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB")
        self.namespace(4026531835)

    def write(self, name: str, text: object) -> None:
        file = Path(f"{self.path}{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")

    def namespace(self, number: int) -> None:
        link = self.path / "proc/self/ns/cgroup"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(f"cgroup:[{number}]")

    def process(self, cgroup: str, mounts: str) -> None:
        self.write("/proc/self/cgroup", cgroup)
        self.write("/proc/self/mountinfo", f"{OTHERS}\n{mounts}")

    def level(self, folder: str, **numbers: object) -> None:
        for name, number in numbers.items():
            self.write(f"{folder}/memory.{name}", number)

    def look(self) -> CgroupMemory:
        return Look(self.path).cgroup_memory()


def unified(root: Root, path: str = "/a/b", part: str = "/", point: str = "/sys/fs/cgroup") -> None:
    root.process(f"0::{path}", V2.format(part=part, point=point))


def split(root: Root, path: str = "/a/b", part: str = "/", point: str = "/sys/fs/cgroup/memory") -> None:
    root.process(f"9:name=systemd:/\n4:memory:{path}\n1:cpu:/\n0::/", V1.format(part=part, point=point))


# ---- which limits count


@pytest.mark.parametrize("level", ["", "/a", "/a/b"])
@pytest.mark.parametrize("name", ["max", "high"])
def test_version_2_every_level_counts(root, level, name):
    unified(root)
    for folder in ("/a", "/a/b"):
        root.level(f"/sys/fs/cgroup{folder}", max="max", high="max", current=MIB)
    root.level(f"/sys/fs/cgroup{level}", **{name: GIB, "current": GIB // 4})
    assert root.look() == CgroupMemory(GIB, GIB - GIB // 4, True)
    assert Look(root.path).memory_left() == GIB - GIB // 4


def test_version_2_the_least_of_limits_and_the_least_of_what_is_left_may_be_of_two_levels(root):
    unified(root)
    root.level("/sys/fs/cgroup/a", max=2 * GIB, current=2 * GIB - MIB)
    root.level("/sys/fs/cgroup/a/b", max=GIB, high=GIB // 2, current=GIB // 4)
    assert root.look() == CgroupMemory(GIB // 2, MIB, True)


def test_version_2_a_level_without_the_memory_controller_has_no_limit(root):
    unified(root)
    root.write("/sys/fs/cgroup/a/b/cgroup.procs", "")
    root.level("/sys/fs/cgroup/a", max=GIB, high="max", current=0)
    assert root.look() == CgroupMemory(GIB, GIB, True)


def test_more_in_use_than_the_limit_leaves_nothing(root):
    unified(root)
    root.level("/sys/fs/cgroup/a/b", max="max", high=GIB, current=GIB + MIB)
    assert root.look() == CgroupMemory(GIB, 0, True)
    assert Look(root.path).memory_left() == 0


@pytest.mark.parametrize("level", ["", "/a", "/a/b"])
def test_version_1_every_level_counts_but_not_the_soft_limit(root, level):
    split(root)
    for folder in ("", "/a", "/a/b"):
        root.level(f"/sys/fs/cgroup/memory{folder}", limit_in_bytes=UNLIMITED_1, soft_limit_in_bytes=MIB)
    root.level(f"/sys/fs/cgroup/memory{level}", limit_in_bytes=GIB, usage_in_bytes=MIB)
    assert root.look() == CgroupMemory(GIB, GIB - MIB, True)


def test_version_1_what_is_swapped_out_counts_for_the_limit_with_swap(root):
    split(root)
    names = {"limit_in_bytes": GIB, "usage_in_bytes": MIB}
    names |= {"memsw.limit_in_bytes": GIB + 2 * MIB, "memsw.usage_in_bytes": GIB}
    root.level("/sys/fs/cgroup/memory/a/b", **names)
    assert root.look() == CgroupMemory(GIB, 2 * MIB, True)


def test_hybrid_the_memory_controller_is_where_it_is(root):
    mounts = [V2.format(part="/", point="/sys/fs/cgroup/unified"), V1.format(part="/", point="/sys/fs/cgroup/memory")]
    root.process("4:cpu,memory:/one\n0::/two", "\n".join(mounts).replace("rw,memory", "rw,cpu,memory"))
    root.level("/sys/fs/cgroup/unified/two", max=MIB, current=0)
    root.level("/sys/fs/cgroup/memory/one", limit_in_bytes=GIB, usage_in_bytes=0)
    assert root.look() == CgroupMemory(GIB, GIB, True)
    root.process("4:cpu:/one\n0::/two", mounts[0])
    assert root.look() == CgroupMemory(MIB, MIB, True)


# ---- where the files are


@pytest.mark.parametrize(("path", "part"), [("/docker/x", "/docker/x"), ("/docker/x/y", "/docker/x"), ("/", "/")])
@pytest.mark.parametrize("version", [1, 2])
def test_a_container_sees_a_part_of_the_hierarchy(root, path, part, version):
    point = "/sys/fs/cgroup"
    (split if version == 1 else unified)(root, path, part, point)
    here = point + path.removeprefix(part)
    Path(f"{root.path}{here}").mkdir(parents=True, exist_ok=True)
    names = {"limit_in_bytes": GIB, "usage_in_bytes": 0} if version == 1 else {"max": GIB, "current": 0}
    root.namespace(4026532000)
    root.level(point, **names)
    assert root.look() == CgroupMemory(GIB, GIB, True)


@pytest.mark.parametrize(
    ("path", "part"),
    [("/docker/x", "/other"), ("/docker/xy", "/docker/x"), ("/", "/../.."), ("/../other", "/"), ("/gone", "/")],
)
def test_a_path_that_is_not_in_what_is_mounted_leaves_the_rest_unknown(root, path, part):
    """The limit at the top is heeded for an arena's size, but nothing is populated."""
    unified(root, path, part)
    root.namespace(4026532000)
    root.level("/sys/fs/cgroup", max=GIB, current=0)
    assert root.look() == CgroupMemory(GIB, GIB, False)
    assert Look(root.path).memory_left() == 0
    assert most_memory(root.path) <= GIB


def test_of_several_mounts_the_one_with_most_levels_counts(root):
    mounts = [V2.format(part=part, point=point) for part, point in (("/a/b", "/one"), ("/a", "/two"), ("/x", "/three"))]
    root.process("0::/a/b", "\n".join(mounts))
    for folder in ("/one", "/two/b", "/three"):
        root.level(folder, max=2 * GIB, current=0)
    root.level("/two", max=GIB, current=0)
    assert root.look() == CgroupMemory(GIB, GIB, True)


def test_blanks_in_names_are_written_in_octal(root):
    unified(root, "/a b/c", r"/a\040b", r"/sys/fs/c\040g\134")
    root.level("/sys/fs/c g\\/c", max=GIB, current=0)
    assert root.look() == CgroupMemory(GIB, GIB, True)


def test_very_long_lines_are_passed_over(root):
    layers = ":".join(f"/layer{number}" for number in range(2000))
    mounts = V2.format(part="/", point="/sys/fs/cgroup")
    overlay = f"20 1 0:9 / / rw - overlay overlay rw,lowerdir={layers}"
    root.process("0::/a", "\n".join([overlay, mounts, "9" * 8192, "9" * 8191]))
    root.level("/sys/fs/cgroup/a", max=GIB, current=0)
    assert root.look() == CgroupMemory(GIB, GIB, True)


def test_the_longest_paths(root):
    name = "/" + "x" * 200
    unified(root, name * 19)
    assert root.look() == UNKNOWN
    root.write("/proc/self/cgroup", "0::" + name * 30)
    assert not root.look().limit


# ---- what cannot be read


def test_a_machine_without_cgroups_has_no_limit(root):
    root.write("/proc/self/mountinfo", OTHERS)
    assert root.look() == NOTHING
    assert Look(root.path).memory_left() == 4 * GIB
    root.write("/proc/self/cgroup", "1:cpu:/")  # a kernel without the memory controller
    assert root.look() == NOTHING


def test_what_is_not_mounted_has_no_limit_only_at_the_top(root):
    root.process("0::/", "")
    assert root.look() == NOTHING
    root.namespace(4026532000)  # a container's top is below something
    assert root.look() == UNKNOWN
    root.namespace(4026531835)
    root.write("/proc/self/cgroup", "0::/user.slice")
    assert root.look() == UNKNOWN
    (root.path / "proc/self/mountinfo").unlink()
    assert root.look() == UNKNOWN


@pytest.mark.parametrize("text", ["", "what?", "-"])
@pytest.mark.parametrize("name", ["max", "current"])
def test_what_is_no_number_is_not_known(root, name, text):
    unified(root)
    root.level("/sys/fs/cgroup/a", max=GIB, current=0)
    root.level("/sys/fs/cgroup/a/b", **({"max": 2 * GIB, "current": 0} | {name: text}))
    assert root.look().limit == GIB
    assert not root.look().known


def test_what_may_not_be_read_is_not_known(root):
    unified(root)
    root.level("/sys/fs/cgroup/a", max=GIB, current=0)
    (root.path / "sys/fs/cgroup/a/b/memory.max").mkdir(parents=True)  # a folder cannot be read, by root neither
    assert root.look() == CgroupMemory(GIB, GIB, False)
    assert Look(root.path).memory_left() == 0


def test_lines_of_mounts_that_are_no_mounts_are_passed_over(root):
    mounts = ["", "35", "no mount", "few - x", "too few - fields", "41 31 0:38 / - cgroup2 x"]
    mounts += [V2.format(part="/", point=point) for point in ("/long" * 1000, "/sys/fs/cgroup")]
    root.process("0::/a/b", "\n".join(mounts))
    root.level("/sys/fs/cgroup/a/b", max=GIB, current=0)
    assert root.look() == CgroupMemory(GIB, GIB, True)


def test_without_proc_nothing_is_left(tmp_path):
    assert Look(tmp_path).memory_left() == 0
    assert most_memory(tmp_path) > 0


def test_without_proc_half_of_the_process_s_limits_is_the_most(tmp_path, monkeypatch):
    """What is mapped already cannot be known."""
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (GIB, GIB))
    assert most_memory(tmp_path) == GIB // 2


def test_limits_that_a_sandbox_keeps_secret_are_none(tmp_path, monkeypatch):
    def refused(kind):
        raise PermissionError

    most = most_memory(tmp_path)
    monkeypatch.setattr(resource, "getrlimit", refused)
    assert most_memory(tmp_path) >= most


def test_what_the_machine_has_left_is_the_most(root):
    unified(root)
    root.level("/sys/fs/cgroup/a/b", max=64 * GIB, current=0)
    assert Look(root.path).memory_left() == 4 * GIB
    root.write("/proc/meminfo", "MemTotal: 8388608 kB")
    assert Look(root.path).memory_left() == 0


# ---- what changes


def test_a_process_that_is_moved_and_limits_that_change(root):
    unified(root)
    root.level("/sys/fs/cgroup/a/b", max=GIB, current=0)
    root.level("/sys/fs/cgroup/c", max=2 * GIB, current=0)
    look = Look(root.path)
    assert look.cgroup_memory().limit == GIB
    root.level("/sys/fs/cgroup/a/b", max=GIB // 2, current=MIB)
    assert look.cgroup_memory() == CgroupMemory(GIB // 2, GIB // 2 - MIB, True)
    root.write("/proc/self/cgroup", "0::/c")
    assert look.cgroup_memory().limit == 2 * GIB
    (root.path / "sys/fs/cgroup").rename(root.path / "elsewhere")
    assert not look.cgroup_memory().known
    unified(root, "/c", "/", "/elsewhere")
    assert look.cgroup_memory() == CgroupMemory(2 * GIB, 2 * GIB, True)
