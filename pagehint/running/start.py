"""What a Python does that finds the variable, when NumPy has been imported: it installs the arena, also for malloc."""

from __future__ import annotations

from pathlib import Path

from pagehint.malloc.serving import serve
from pagehint.numpy.installation import give_way
from pagehint.observing.answering import answer
from pagehint.running.account import Account
from pagehint.running.settings import Settings


def start(text: str) -> None:
    """Install what the text says, answer `pagehint status`, and keep an account of it if one is wanted.

    Raises
    ------
    PageHintError, ValueError, MemoryError
        If the text is none, or there can be no such arena.
    """
    settings = Settings.from_text(text)
    arena = settings.install()
    give_way(arena)
    if settings.malloc is not None:
        serve(arena._numpy_heap(), arena, settings.malloc)
    answer()
    if settings.accounts is not None:
        Account(Path(settings.accounts), arena).keep()
