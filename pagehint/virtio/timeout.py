"""What a timeout may be."""

from __future__ import annotations

import threading


def require_timeout(timeout: float) -> None:
    """Raise ValueError unless a timeout is a number of seconds that everything here can wait for."""
    if not 0 < timeout < threading.TIMEOUT_MAX / 4:  # QEMU's monitor waits for twice as long
        raise ValueError(f"timeout must be a positive number of seconds, not {timeout!r}")
