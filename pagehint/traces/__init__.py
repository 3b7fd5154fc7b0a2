"""What a kernel did to its page frames, from files of it: snapshots of its allocator's state.

Begin with `snapshot.py`: what a snapshot holds. `snapshot_files.py` reads it, `snapshot_check.py` says where its parts
contradict each other. Uses `errors`, `layout`, and `MachineState` of `allocator/`.
"""

from pagehint.traces.snapshot import Snapshot
from pagehint.traces.snapshot_check import check_snapshot
from pagehint.traces.snapshot_files import live_snapshot, read_snapshot, write_snapshot

__all__ = ["Snapshot", "check_snapshot", "live_snapshot", "read_snapshot", "write_snapshot"]
