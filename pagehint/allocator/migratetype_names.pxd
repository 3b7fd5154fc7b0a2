"""The names of the migratetypes, and the number that a name stands for."""
from pagehint.zone.zone cimport MT_MOVABLE


cdef inline tuple migratetypes():
    """The names of the migratetypes, each at its number in `zone/zone.pxd`."""
    return "unmovable", "movable", "reclaimable", "isolate"


cdef inline int as_type(object migratetype, int most) except -1:
    """The number of a migratetype, from 0 to `most`; ValueError for anything else."""
    cdef tuple names
    cdef int number
    if <void *>migratetype == <void *>"movable":        # the default: the same object, so no letters are compared
        return MT_MOVABLE
    names = migratetypes()
    if isinstance(migratetype, str):
        for number in range(most + 1):
            if migratetype == <str>names[number]:
                return number
    raise ValueError(f"migratetype must be one of {', '.join(names[:most + 1])}, not {migratetype!r}")
