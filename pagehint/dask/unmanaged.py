"""What of a worker's memory Dask does not know: in use, warm, kept by whom."""

from __future__ import annotations

from typing import Any

from pagehint.memory import owners
from pagehint.memory.owners_of.arenas import NAME as ARENAS


def unmanaged(process: int, managed: int) -> dict[str, Any]:
    """Return the parts of a process's unmanaged memory, in bytes.

    Parameters
    ----------
    process : int
        Bytes that are resident.
    managed : int
        Bytes of data in memory, as Dask counts them: by what each says of its size, which may be more than it has.

    Returns
    -------
    dict
        "unmanaged", and its parts "in_use", "warm", "kept", "files", which come to that; "kept_by", the parts of
        "kept" by owner; "returned".

    Raises
    ------
    PageHintError
        If /proc/self/smaps cannot be read.
    """
    found = owners()
    kept_by = {name: owner.kept for name, owner in found.owners.items() if owner.kept and name != ARENAS}
    arenas = found.owners.get(ARENAS)
    warm = arenas.kept if arenas is not None else 0
    kept = sum(kept_by.values())
    in_use = max(found.anonymous_rss - warm - kept - managed, 0)
    files = max(process - found.anonymous_rss, 0)
    return {
        "unmanaged": in_use + warm + kept + files,
        "in_use": in_use,
        "warm": warm,
        "kept": kept,
        "kept_by": kept_by,
        "files": files,
        "returned": arenas.returned if arenas is not None else 0,
    }
