"""What an operation on a zone or a machine returns: OK, or why it was refused, having changed nothing."""

cdef enum:
    OK = 0
    E_AGAIN = 1             # the lock is contended and the caller holds the GIL
    E_NOMEM = 2
    E_NO_ZONE = 3           # outside every zone
    E_ABSENT = 4            # in a hole or an offline section, or crossing into one
    E_ALIGN = 5
    E_FREE = 6              # already free, in a page set or in the buddy: a double free
    E_SIZE = 7              # allocated, with another size
    E_INSIDE = 8            # not the first page of its block
    E_BUSY = 9              # asked for exactly this block, and part of it is in use
    E_ISOLATE = 10
    E_WITHHELD = 11         # nobody's: in a per-CPU page set, or taken out for a while
    E_SLOT = 12             # an operation of a trace with a slot, order or kind out of range
    E_OWNED = 13            # allocated, but in a leaf that a page set owns, or did just now: ask again when it is shared
