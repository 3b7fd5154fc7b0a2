"""The whole process: who holds its memory, in use or kept, and having all give back what they keep.

Begin with `owners.py`, then `address_space.py`, which divides memory among those who claim it, and `owners_of/`, with a
file for each kind of owner. Uses `errors`, `sizes`, `columns`, `process_memory` and `arena/`.
"""

from pagehint.memory.owners import Owner, Owners, owners
from pagehint.memory.release import Released, release
from pagehint.memory.watch import Watch, watch

__all__ = ["Owner", "Owners", "Released", "Watch", "owners", "release", "watch"]
