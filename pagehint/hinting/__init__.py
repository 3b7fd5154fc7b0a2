"""The policy: which free granules the host has not been told of, and how a pass reports them to it.

Begin with `hinted_zone.pxd` (data) and `watch.pxd` (hook); then `notify`, `queue`, `engine`, `batch`, `report`.
Uses `zone`, `sync`, `pagehint/errors.py` and `pagehint/numbers.pxd`.
"""
