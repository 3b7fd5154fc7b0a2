"""The mechanism: one zone's pages and metadata, merging and splitting, and all zones of a machine. No hinting.

Begin with `leaf.pxd` and `zone.pxd`, the layout, then `buddy.pxd`; `page_alloc.pxd` is the door. Uses `sync`.
"""
