"""The mechanism: the zones of a machine, their metadata, splitting and merging, and the page sets. No hinting.

Begin with `leaf.pxd` and `zone.pxd`, the layout of one zone, then `buddy.pxd`. `page_sets/` is in front of a zone,
`page_alloc.pxd` has all zones of a machine, and is the door. Uses `sync`.
"""
