"""Real memory: a mapping whose pages are handed out as arrays, and given back to its host when they are free.

Begin with `base.py`, then `arena.py` and `mapping.pyx`. Uses `PageAllocator` (`pagehint/_core.pyx`) and the rooms below
it.
"""

from pagehint.arena.arena import Arena

__all__ = ["Arena"]
