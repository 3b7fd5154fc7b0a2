"""What threads meet at: atomic operations, barriers, clocks, locks, conditions; and where tests hold them.

Begin with `lock.pxd`, the zone lock, then `biased_lock.pxd`. Uses nothing of the rooms above.
"""
