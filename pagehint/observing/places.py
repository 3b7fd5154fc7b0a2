"""Where the sockets of processes are: a folder of this user's, and nobody else's."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TEMPORARY = Path("/tmp")  # and not $TMPDIR, which differs from program to program


def _candidates() -> Iterator[Path]:
    """Yield the folders that there may be, the best first."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.path.isabs(runtime):  # noqa: PTH117
        yield Path(runtime, "pagehint")
    yield TEMPORARY / f"pagehint-{os.geteuid()}"


def require_own(folder: Path) -> None:
    """Raise an OSError unless this is a folder that only this user may enter. A link to one is none."""
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not a folder of this user alone")


def make_folder() -> Path:
    """Return the folder for a new socket, and make it.

    Raises
    ------
    OSError
        If none can be had, or the last one is somebody else's.
    """
    for folder in _candidates():
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            require_own(folder)
            return folder
        except OSError as error:
            last = error
    raise last


def folders() -> list[Path]:
    """Return the folders in which there may be sockets: $XDG_RUNTIME_DIR is not the same in each session of a user.

    One that others may enter is passed over: no process of ours has a socket there, and anybody may make such a one in
    /tmp.

    Raises
    ------
    PermissionError
        If that leaves none.
    """
    found = []
    refused: OSError | None = None
    for folder in _candidates():
        try:
            require_own(folder)
            found.append(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:
            refused = error
    if refused is not None and not found:
        raise refused
    return found
