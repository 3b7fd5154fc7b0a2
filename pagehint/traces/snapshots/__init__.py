"""Snapshots of a kernel's page allocator: what each page is at one moment, from /proc and from files.

Begin with `snapshot.py`, which says what one holds; `files.py` reads it, `check.py` says where its parts contradict
each other. Uses `errors`, `layout`, and `MachineState` of `allocator/`.
"""
