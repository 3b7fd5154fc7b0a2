"""What an operation on a zone or a machine returns: OK, or why it was refused; then nothing has changed."""

cdef enum:
    OK = 0
    E_AGAIN = 1             # a lock is contended and the caller must not wait, because it holds the GIL
    E_NOMEM = 2
    E_NO_ZONE = 3           # outside every zone
    E_ABSENT = 4            # in a hole or an offline section, or crossing into one
    E_ALIGN = 5
    E_FREE = 6              # free in the buddy system: a double free
    E_SIZE = 7              # allocated, with another size
    E_INSIDE = 8            # not the first page of its block
    E_BUSY = 9              # the very pages that were asked for are not all free
    E_ISOLATE = 10          # in a pageblock of type isolate
    E_WITHHELD = 11         # in a page set, being freed in bulk, out of circulation; or absent, in a split leaf
    E_SLOT = 12             # an operation of a trace with a slot, order or kind out of range
    E_OWNED = 13            # allocated, but in a leaf that a page set owns, or did just now: share it and ask again
    E_TWICE = 14            # overlaps another block or run of the same call
