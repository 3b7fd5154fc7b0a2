import os
from typing import NamedTuple

from pagehint.allocator.memory import Memory

class Pressure(NamedTuple):
    heeded: bool
    short: bool
    times: int
    watched: tuple[str, ...]
    refused: tuple[str, ...]

def heed(memory: Memory, on: bool) -> None: ...
def pressure_of(memory: Memory) -> Pressure: ...
def sources_in(root: str | os.PathLike[str] = "") -> tuple[tuple[str, ...], tuple[str, ...]]: ...
def shortage_in(root: str | os.PathLike[str] = "") -> tuple[bool, bool]: ...
