"""The memory of a machine: its zones as one object, their hotplug, what a fork does to them, why a call is refused.

Begin with `memory.pyx`. `PageAllocator`, its front, is in `pagehint/_core.pyx`. Uses `hinting`, `zone` and `sync`.
"""
