"""A recorded kernel's operations carried out on an allocator, with hinting by the recording's clock.

Begin with `replay.pyx`; `replayed.py` is what comes of it. Uses `traces`, `allocator`, `hinting` and the rooms below.
"""
