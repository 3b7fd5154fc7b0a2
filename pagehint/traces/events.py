"""One row of a recording: what happened, when, where, and to which page. `events.pxd` has the same for compiled code.

A row has the same columns whatever the event is. What an event does not tell is `NO_PFN`, `NO_ORDER`, `NO_TYPE`,
`NO_PID` or `NO_CPU`, and 0 in ``value`` and ``flags``. Rows are in the order of the recording, which is that in which
the events happened: times may be equal, and among equal times the order still counts.

============================= ==== ===== =========== ============== =================== ===============================
event                         pfn  order migratetype fallback_order fallback_migratetype value, flags
============================= ==== ===== =========== ============== =================== ===============================
`Event.ALLOC`                 yes  yes   yes
`Event.ALLOC_FAILED`               yes   yes
`Event.FREE`                  yes  yes
`Event.FREE_BATCHED`          yes  as printed
`Event.ZONE_LOCKED`           yes  yes   of the list                                    `Flag.PERCPU_REFILL`
`Event.PCPU_DRAIN`            yes  yes   of the list
`Event.EXTFRAG`               yes  alloc alloc       fallback       fallback            value: pageblock_order.
                                                                                        `Flag.CHANGE_OWNERSHIP`,
                                                                                        `Flag.FRAGMENTING`
`Event.BULK_ALLOC`            yes  0
`Event.FREE_DIRECT`           yes  yes   6.1 only                                       value: fpi
`Event.ISOLATE`               yes  yes
`Event.ISOLATE_RET`                                                                     value: ret, 0 if refused.
                                                                                        `Flag.BY_REPORTING`,
                                                                                        `Flag.BY_COMPACTION`,
                                                                                        `Flag.BY_OTHER`
`Event.PUTBACK`               yes  yes   mt
`Event.STEAL`                 yes        start_type                                     value: alloc_flags.
                                                                                        `Flag.WHOLE_BLOCK`
`Event.MOVE_BLOCK`            yes        new_mt                     old_mt, 6.12 only
`Event.REPORT_NOTIFY`
`Event.REPORT_PASS`
`Event.REPORT_PASS_END`
`Event.REPORT_CALL`                                                                     value: nents
`Event.REPORT_CALL_END`                                                                 value: ret
`Event.MARK`                                                                            value: index into `Trace.marks`
`Event.LOST`                                                                            value: how many, or 0 if that
                                                                                        is not known
============================= ==== ===== =========== ============== =================== ===============================
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

import numpy as np

NO_PFN = 2**64 - 1
"""The ``pfn`` of an event without a page."""

NO_ORDER = -1
"""The ``order`` or ``fallback_order`` of an event that does not tell it."""

NO_TYPE = -1
"""The ``migratetype`` or ``fallback_migratetype`` of an event that does not tell it."""

NO_PID = -1
"""The ``pid`` of an event of no known process."""

NO_CPU = 2**16 - 1
"""The ``cpu`` of an event of no known processor."""


class Event(IntEnum):
    """What happened: the column ``event``.

    The first seven are the events of the kernel's own that every recording can have. The buddy lists change at
    `ZONE_LOCKED` (and `EXTFRAG`, in some kernels) and `PCPU_DRAIN`; what users have, at `ALLOC` and `FREE`; pages on
    the lists of the CPUs lie between the two. From `BULK_ALLOC` to `REPORT_CALL_END` they are our own kprobes
    (``kp_*``), of which a recording from elsewhere has none.
    """

    ALLOC = 1
    """``mm_page_alloc``: a block was handed out."""
    ALLOC_FAILED = 2
    """``mm_page_alloc`` of a NULL page: there was no memory."""
    FREE = 3
    """``mm_page_free``: a block came back from its user. It need not have reached the buddy lists."""
    FREE_BATCHED = 4
    """``mm_page_free_batched``: a second line for a `FREE` that came before it; from 6.12 on its order may be wrong."""
    ZONE_LOCKED = 5
    """``mm_page_alloc_zone_locked``: a block was taken off the buddy lists."""
    PCPU_DRAIN = 6
    """``mm_page_pcpu_drain``: a block of a CPU's list was put on the buddy lists."""
    EXTFRAG = 7
    """``mm_page_alloc_extfrag``: a request takes a block of another migratetype.

    Linux 6.1: its `ZONE_LOCKED` follows. Linux 6.12: it is the removal, unless the row before it of that CPU is the
    `ZONE_LOCKED` of the same page.
    """
    BULK_ALLOC = 8
    """``kp_bulk_alloc``: a page was handed out by the bulk allocator, which has no event of its own."""
    FREE_DIRECT = 9
    """``kp_free_direct``: a block goes to the buddy lists past the CPUs' lists."""
    ISOLATE = 10
    """``kp_isolate``: a block is about to be taken off the lists, by free page reporting or by compaction."""
    ISOLATE_RET = 11
    """``kp_isolate_ret``: how the `ISOLATE` of this CPU ended, and who had asked for it."""
    PUTBACK = 12
    """``kp_putback``: a reported block goes back to the buddy lists."""
    STEAL = 13
    """``kp_steal``: a pageblock is about to be taken over for another migratetype (6.1)."""
    MOVE_BLOCK = 14
    """``kp_move_block``: the free pages of a pageblock are about to move to another migratetype's lists.

    Between `ISOLATE` and `ISOLATE_RET` of Linux 6.12 nothing moves: the block is off the lists by then.
    """
    REPORT_NOTIFY = 15
    """``kp_report_notify``: free page reporting was asked for a pass."""
    REPORT_PASS = 16
    """``kp_report_pass``: a pass of the reporting worker begins."""
    REPORT_PASS_END = 17
    """``kp_report_pass_end``: the pass is over."""
    REPORT_CALL = 18
    """``kp_report_call``: the host is told of ``value`` blocks: those isolated last, the latest first."""
    REPORT_CALL_END = 19
    """``kp_report_call_end``: the host has answered."""
    MARK = 20
    """A line written into the recording by a program (``tracing_mark_write``), such as ``REC SNAP0``."""
    LOST = 21
    """Events are missing before this row: of this CPU, or of any if ``cpu`` is `NO_CPU`."""


class Flag(IntFlag):
    """The column ``flags``: bits, of which each belongs to one event."""

    PERCPU_REFILL = 1
    """`Event.ZONE_LOCKED`: order and migratetype could be a refill of a CPU's list. It does not prove one."""
    CHANGE_OWNERSHIP = 2
    """`Event.EXTFRAG`: the pageblock changes its migratetype."""
    FRAGMENTING = 4
    """`Event.EXTFRAG`: the block that was taken is smaller than a pageblock."""
    WHOLE_BLOCK = 8
    """`Event.STEAL`: the whole pageblock may be taken over."""
    BY_REPORTING = 16
    """`Event.ISOLATE_RET`: free page reporting had asked."""
    BY_COMPACTION = 32
    """`Event.ISOLATE_RET`: compaction had asked. With none of the three set the recording has no name of who did."""
    BY_OTHER = 64
    """`Event.ISOLATE_RET`: something else had asked, such as an allocation of contiguous pages."""


EVENT_DTYPE = np.dtype(
    [
        ("time", "<i8"),  # nanoseconds, by the clock of the recording
        ("pfn", "<u8"),
        ("pid", "<i4"),  # of the thread; its name is in `Trace.names`
        ("value", "<i4"),  # what it is depends on the event; a number that has no place here is the nearest that has
        ("cpu", "<u2"),
        ("event", "u1"),  # an `Event`
        ("flags", "u1"),  # of `Flag`
        ("order", "i1"),
        ("migratetype", "i1"),  # the kernel's: 0 unmovable, 1 movable, 2 reclaimable, 3 and more by its configuration
        ("fallback_order", "i1"),
        ("fallback_migratetype", "i1"),
    ]
)
"""The dtype of a row: 32 bytes, without padding."""

KERNEL_EVENTS = {
    "mm_page_alloc": Event.ALLOC,
    "mm_page_free": Event.FREE,
    "mm_page_free_batched": Event.FREE_BATCHED,
    "mm_page_alloc_zone_locked": Event.ZONE_LOCKED,
    "mm_page_pcpu_drain": Event.PCPU_DRAIN,
    "mm_page_alloc_extfrag": Event.EXTFRAG,
    "kp_bulk_alloc": Event.BULK_ALLOC,
    "kp_free_direct": Event.FREE_DIRECT,
    "kp_isolate": Event.ISOLATE,
    "kp_isolate_ret": Event.ISOLATE_RET,
    "kp_putback": Event.PUTBACK,
    "kp_steal": Event.STEAL,
    "kp_move_block": Event.MOVE_BLOCK,
    "kp_report_notify": Event.REPORT_NOTIFY,
    "kp_report_pass": Event.REPORT_PASS,
    "kp_report_pass_end": Event.REPORT_PASS_END,
    "kp_report_call": Event.REPORT_CALL,
    "kp_report_call_end": Event.REPORT_CALL_END,
    "tracing_mark_write": Event.MARK,
}
"""The names that kernels print, and what they mean. `Event.ALLOC_FAILED` is an ``mm_page_alloc``, `Event.LOST` a line
of the tracer's."""
