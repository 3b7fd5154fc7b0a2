"""A machine's memory as one object. The algorithm is in `pagehint/zone/`, `PageAllocator` in `pagehint/_core.pyx`.

Here are its hotplug, what a fork does to it, and why a call is refused. Begin with `memory.pyx`, then `fork.pyx`.
Uses `hinting`, `zone`, `sync`, and from `pagehint/` `layout.py`, `errors.py`, `sizes.py` and `numbers.pxd`.
"""
