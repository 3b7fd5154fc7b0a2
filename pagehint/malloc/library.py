"""How a program comes to have the library that takes the place of malloc: by the dynamic linker's LD_PRELOAD."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pagehint.errors import PageHintError

LIBRARY: Final = Path(__file__).with_name("libpagehint_malloc.so.1")  # not for Python to import, as .so would say
# Bytes. glibc asks the kernel for each block of 128 KiB and more, at first, but keeps much of what is smaller: a
# quarter of a peak where Arrow reads CSV, into buffers a little under 64 and 128 KiB. From 32 KiB on whole pages waste
# an eighth at most.
THRESHOLD: Final = 32 << 10
LEAST_THRESHOLD: Final = 4 << 10  # what the arena's own threads ask for as they begin is less
VARIABLE: Final = "LD_PRELOAD"
_ARROWS_POOL: Final = "ARROW_DEFAULT_MEMORY_POOL"


def with_library(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which programs load the library, before what is in LD_PRELOAD already.

    Arrow has an allocator of its own, unless it is told to use malloc. So it is, if nothing else is said.

    Raises
    ------
    PageHintError
        If the library is not there, or its path has a blank or a colon, which end a path in LD_PRELOAD.
    """
    path = str(LIBRARY)
    if not LIBRARY.exists():
        raise PageHintError(f"{path} is not there: it comes with an installation of pagehint")
    if any(letter in path for letter in " \t\n:"):
        raise PageHintError(f"{VARIABLE} cannot name {path}: a blank or a colon ends a path there; move it")
    before = environment.get(VARIABLE, "").replace(":", " ").split()
    libraries = [path, *(library for library in before if library != path)]
    return {_ARROWS_POOL: "system", **environment, VARIABLE: ":".join(libraries)}
