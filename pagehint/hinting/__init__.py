"""The policy: which free granules the host has not been told of, and how a pass reports them to it.

Begin with `hinted_zone.pxd` (data) and `watch.pxd` (hook); then `notify.pxd`, `queue.pxd`, `engine.pyx`, `look.pxd`,
`batch.pxd`, `report.pyx`. What decides is in `age.pxd`, `gate.pxd`, `limit.pxd`, and
`learning/`. `timed.pxd` is for clocks set by hand.
Uses `zone`, `sync`, `pagehint/errors.py` and `pagehint/numbers.pxd`.
"""
