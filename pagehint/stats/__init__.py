"""How counts are presented: `Stats`, `PageAllocator.explain`, and the texts of the /proc files. No mechanism.

Begin with `stats.py`, then `explain.py` and `regret.py`. `_core.pyx` takes the counts from the zones.
Uses `pagehint/sizes.py` only.
"""
