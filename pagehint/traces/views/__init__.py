"""From what a recording's events say to what happened to the free lists; and how far to believe it.

Begin with `view.py`, which has `operations_of`; then `places.pxd`, where each page lies, `moves.pxd`, what an event
does to it, and `derive.pyx`, which goes through a recording. `compaction.py` dates what no event told, `checking.py`
says what to doubt. Uses the rest of `pagehint/traces/`.
"""
