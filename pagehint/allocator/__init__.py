"""The memory of a machine as one object: its zones, their hotplug, what a fork does to them, why a call is refused.

Begin with `memory.pyx`, then `fork.pyx`. `PageAllocator`, its public front, is in `pagehint/_core.pyx`.
Uses `hinting`, `zone`, `sync`, and from `pagehint/` `layout.py`, `errors.py`, `sizes.py` and `numbers.pxd`.
"""
