import os
from typing import NamedTuple

from typing_extensions import disjoint_base

class CgroupMemory(NamedTuple):
    limit: int | None
    left: int | None
    known: bool

@disjoint_base
class Look:
    def __new__(cls, root: str | os.PathLike[str] = "") -> Look: ...
    def cgroup_memory(self) -> CgroupMemory: ...
    def memory_left(self) -> int: ...

def most_memory(root: str | os.PathLike[str] = "") -> int: ...
