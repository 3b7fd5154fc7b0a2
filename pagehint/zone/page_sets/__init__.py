"""What stands in front of a zone: blocks and runs that were freed, for the next requests of their size.

Begin with `page_set.pxd`, the sets of each CPU, with `owned_leaf.pxd`, leaves that one of them has alone; `run_set.pxd`
is an arena's, for runs. Uses `sync` and the rest of `pagehint/zone/`.
"""
