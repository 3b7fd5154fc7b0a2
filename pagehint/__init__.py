"""Free page hinting in user space: a page allocator that tells the host what it does not need.

`PageAllocator` manages page frames, either those of a modelled machine or those of an `Arena`, which is real memory.
Hinting reports large free blocks to a host, in small batches: while a block is reported no caller can get it.
"""

import importlib
import typing
from importlib.metadata import version
from pathlib import Path

try:
    from pagehint import numpy as numpy  # not in `__all__`: a star import must not rebind NumPy's name
    from pagehint import qemu, virtio
    from pagehint._core import BLOCK_DTYPE, OP_ALLOC, OP_DTYPE, OP_FREE, PageAllocator, PageHintingCallbacks, Zone
    from pagehint.arena.arena import Arena
    from pagehint.errors import (
        ArenaClosedError,
        BadPageError,
        HintingActiveError,
        HintingInactiveError,
        HostError,
        HostTimeoutError,
        OutOfMemoryError,
        PageHintError,
        SnapshotError,
    )
    from pagehint.layout import Watermarks, ZoneSpec
    from pagehint.stats.explain import Explanation
    from pagehint.stats.regret import Regret
    from pagehint.stats.stats import LockStats, Stats
except (ImportError, ValueError):  # ValueError: an editable install has put in modules of another build
    from pagehint.errors import refuse_what_is_not_compiled

    refuse_what_is_not_compiled(Path(__file__).parent)
    raise

if typing.TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from pagehint import memory as memory
    from pagehint import policies as policies
    from pagehint import traces as traces
    from pagehint.policies import replay as replay

__version__ = version("pagehint")

__all__ = [
    "BLOCK_DTYPE",
    "OP_ALLOC",
    "OP_DTYPE",
    "OP_FREE",
    "Arena",
    "ArenaClosedError",
    "BadPageError",
    "Explanation",
    "HintingActiveError",
    "HintingInactiveError",
    "HostError",
    "HostTimeoutError",
    "LockStats",
    "OutOfMemoryError",
    "PageAllocator",
    "PageHintError",
    "PageHintingCallbacks",
    "Regret",
    "SnapshotError",
    "Stats",
    "Watermarks",
    "Zone",
    "ZoneSpec",
    "get_include",
    "memory",
    "policies",
    "qemu",
    "replay",
    "traces",
    "virtio",
]


def __getattr__(name: str) -> object:
    """Import what most programs never use when it is asked for: `memory`, `traces`, `policies` and its `replay`."""
    if name == "replay":
        return importlib.import_module("pagehint.policies").replay
    if name not in ("memory", "policies", "traces"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"pagehint.{name}")


def get_include() -> str:
    """Return the directory of ``pagehint.h``, for the compiler of a compiled callback."""
    return str(Path(__file__).parent)


def load_ipython_extension(ipython: "InteractiveShell") -> None:
    """Register the magic ``%pagehint``; IPython calls this for ``%load_ext pagehint``."""
    from pagehint.notebook.magic import load  # IPython is optional

    load(ipython)
