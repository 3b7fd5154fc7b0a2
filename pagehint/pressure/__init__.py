"""Memory pressure: who is told that memory is short, how that is judged, and what goes back then.

Begin with `watcher.pyx`, the thread, then `sources.pxd`, what wakes it, and `shortage.pxd`.
Uses `allocator/`, `hinting/`, `sync/` and `available_memory.pxd`.
"""
