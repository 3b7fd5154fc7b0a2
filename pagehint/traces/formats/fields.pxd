"""What the fields of an event mean: a name and a number, as text and binary recordings have them, go into a row.

A number that has no place in its column, such as an order of 64, makes the row invalid: recordings come from outside.
"""
from libc.stdint cimport INT32_MAX, INT32_MIN, uint64_t
from libc.string cimport memcmp
from pagehint.sync.atomic cimport likely
from pagehint.traces.events cimport (
    EVENT_ALLOC, EVENT_ALLOC_FAILED, EVENT_BULK_ALLOC, EVENT_EXTFRAG, EVENT_FREE, EVENT_FREE_BATCHED,
    EVENT_FREE_DIRECT, EVENT_ISOLATE, EVENT_ISOLATE_RET, EVENT_MARK, EVENT_MOVE_BLOCK, EVENT_PCPU_DRAIN, EVENT_PUTBACK,
    EVENT_REPORT_CALL, EVENT_REPORT_CALL_END, EVENT_REPORT_NOTIFY, EVENT_REPORT_PASS, EVENT_REPORT_PASS_END,
    EVENT_STEAL, EVENT_ZONE_LOCKED, FLAG_BY_COMPACTION, FLAG_BY_OTHER, FLAG_BY_REPORTING, FLAG_CHANGE_OWNERSHIP,
    FLAG_FRAGMENTING, FLAG_PERCPU_REFILL, FLAG_WHOLE_BLOCK, NO_ORDER, NO_PFN, NO_TYPE, EventRow)

cdef enum:                      # fields, as bits of a set
    FIELD_PFN = 1 << 0
    FIELD_ORDER = 1 << 1
    FIELD_TYPE = 1 << 2
    FIELD_FALLBACK_ORDER = 1 << 3
    FIELD_FALLBACK_TYPE = 1 << 4
    FIELD_VALUE = 1 << 5
    FIELD_PERCPU_REFILL = 1 << 6
    FIELD_CHANGE_OWNERSHIP = 1 << 7
    FIELD_FRAGMENTING = 1 << 8
    FIELD_WHOLE_BLOCK = 1 << 9
    FIELD_PAGE = 1 << 10        # a pointer, which tells only whether it is NULL

cdef enum:
    PFN_BITS = 52               # a byte's address has 64
    MAX_ORDER = 63
    MAX_TYPE = 127


cdef inline bint is_text(const char *text, size_t length, const char *other, size_t size) noexcept nogil:
    return length == size and memcmp(text, other, size) == 0


cdef inline int event_named(const char *name, size_t length) noexcept nogil:
    """The event of this name, or 0. The frequent ones come first."""
    if is_text(name, length, b"mm_page_alloc", 13):
        return EVENT_ALLOC
    if is_text(name, length, b"mm_page_free", 12):
        return EVENT_FREE
    if is_text(name, length, b"mm_page_free_batched", 20):
        return EVENT_FREE_BATCHED
    if is_text(name, length, b"mm_page_alloc_zone_locked", 25):
        return EVENT_ZONE_LOCKED
    if is_text(name, length, b"mm_page_pcpu_drain", 18):
        return EVENT_PCPU_DRAIN
    if is_text(name, length, b"mm_page_alloc_extfrag", 21):
        return EVENT_EXTFRAG
    if is_text(name, length, b"tracing_mark_write", 18) or is_text(name, length, b"print", 5):
        return EVENT_MARK
    return probe_named(name, length)


cdef inline int probe_named(const char *name, size_t length) noexcept nogil:
    """The kprobe of ours of this name, or 0."""
    if length < 3 or memcmp(name, b"kp_", 3) != 0:
        return 0
    if is_text(name, length, b"kp_isolate", 10):
        return EVENT_ISOLATE
    if is_text(name, length, b"kp_isolate_ret", 14):
        return EVENT_ISOLATE_RET
    if is_text(name, length, b"kp_putback", 10):
        return EVENT_PUTBACK
    if is_text(name, length, b"kp_bulk_alloc", 13):
        return EVENT_BULK_ALLOC
    if is_text(name, length, b"kp_free_direct", 14):
        return EVENT_FREE_DIRECT
    if is_text(name, length, b"kp_steal", 8):
        return EVENT_STEAL
    if is_text(name, length, b"kp_move_block", 13):
        return EVENT_MOVE_BLOCK
    if is_text(name, length, b"kp_report_notify", 16):
        return EVENT_REPORT_NOTIFY
    if is_text(name, length, b"kp_report_pass", 14):
        return EVENT_REPORT_PASS
    if is_text(name, length, b"kp_report_pass_end", 18):
        return EVENT_REPORT_PASS_END
    if is_text(name, length, b"kp_report_call", 14):
        return EVENT_REPORT_CALL
    if is_text(name, length, b"kp_report_call_end", 18):
        return EVENT_REPORT_CALL_END
    return 0


cdef inline int field_named(const char *name, size_t length) noexcept nogil:
    """The field of this name, or 0 for one that no row keeps."""
    if is_text(name, length, b"pfn", 3):
        return FIELD_PFN
    if is_text(name, length, b"order", 5) or is_text(name, length, b"alloc_order", 11):
        return FIELD_ORDER
    if is_text(name, length, b"page", 4):
        return FIELD_PAGE
    if is_text(name, length, b"migratetype", 11) or is_text(name, length, b"alloc_migratetype", 17):
        return FIELD_TYPE
    if is_text(name, length, b"percpu_refill", 13):
        return FIELD_PERCPU_REFILL
    if is_text(name, length, b"mt", 2) or is_text(name, length, b"new_mt", 6) or is_text(name, length, b"start_type", 10):
        return FIELD_TYPE
    if is_text(name, length, b"fallback_migratetype", 20) or is_text(name, length, b"old_mt", 6):
        return FIELD_FALLBACK_TYPE
    if is_text(name, length, b"fallback_order", 14):
        return FIELD_FALLBACK_ORDER
    if is_text(name, length, b"change_ownership", 16):
        return FIELD_CHANGE_OWNERSHIP
    if is_text(name, length, b"fragmenting", 11):
        return FIELD_FRAGMENTING
    if is_text(name, length, b"whole_block", 11):
        return FIELD_WHOLE_BLOCK
    if (is_text(name, length, b"ret", 3) or is_text(name, length, b"nents", 5) or is_text(name, length, b"fpi", 3)
            or is_text(name, length, b"alloc_flags", 11) or is_text(name, length, b"pageblock_order", 15)):
        return FIELD_VALUE
    return 0


cdef inline int fields_of(int event) noexcept nogil:
    """The fields that this event may have, in every kernel."""
    if event == EVENT_ALLOC or event == EVENT_PCPU_DRAIN or event == EVENT_PUTBACK:
        return FIELD_PFN | FIELD_ORDER | FIELD_TYPE
    if event == EVENT_FREE or event == EVENT_FREE_BATCHED or event == EVENT_ISOLATE:
        return FIELD_PFN | FIELD_ORDER
    if event == EVENT_ZONE_LOCKED:
        return FIELD_PFN | FIELD_ORDER | FIELD_TYPE | FIELD_PERCPU_REFILL
    if event == EVENT_EXTFRAG:
        return (FIELD_PFN | FIELD_ORDER | FIELD_TYPE | FIELD_FALLBACK_ORDER | FIELD_FALLBACK_TYPE | FIELD_VALUE
                | FIELD_CHANGE_OWNERSHIP | FIELD_FRAGMENTING)
    if event == EVENT_FREE_DIRECT:
        return FIELD_PFN | FIELD_ORDER | FIELD_TYPE | FIELD_VALUE
    if event == EVENT_BULK_ALLOC:
        return FIELD_PFN
    if event == EVENT_STEAL:
        return FIELD_PFN | FIELD_TYPE | FIELD_VALUE | FIELD_WHOLE_BLOCK
    if event == EVENT_MOVE_BLOCK:
        return FIELD_PFN | FIELD_TYPE | FIELD_FALLBACK_TYPE
    if event == EVENT_ISOLATE_RET or event == EVENT_REPORT_CALL or event == EVENT_REPORT_CALL_END:
        return FIELD_VALUE
    return 0


cdef inline int fields_needed(int event) noexcept nogil:
    """The fields without which a row of this event would mislead. Kernels differ in the others."""
    if event == EVENT_FREE_DIRECT:
        return FIELD_PFN | FIELD_ORDER
    if event == EVENT_EXTFRAG:
        return FIELD_PFN | FIELD_ORDER | FIELD_TYPE | FIELD_FALLBACK_ORDER | FIELD_FALLBACK_TYPE
    if event == EVENT_FREE_BATCHED:
        return FIELD_PFN
    if event == EVENT_STEAL or event == EVENT_MOVE_BLOCK:
        return FIELD_PFN | FIELD_TYPE
    return fields_of(event) & ~FIELD_PERCPU_REFILL


cdef inline void row_clear(EventRow *row, int event) noexcept nogil:
    """Begin a row: nothing is known of it but the event."""
    row.event = event
    row.pfn = NO_PFN
    row.value = 0
    row.flags = 0
    row.order = row.fallback_order = NO_ORDER
    row.migratetype = row.fallback_migratetype = NO_TYPE
    if event == EVENT_BULK_ALLOC or event == EVENT_FREE_BATCHED:
        row.order = 0           # it is of single pages; the kernel prints that, and does not keep it


cdef inline bint row_set(EventRow *row, int field, uint64_t number, bint negative) noexcept nogil:
    """Put the number, `-number` if it is negative, where it belongs. False if it has no place there."""
    if field == FIELD_PFN:
        row.pfn = NO_PFN if negative else number        # -1 is how the kernel keeps a NULL page
        return row.pfn >> PFN_BITS == 0 or row.pfn == NO_PFN
    if field == FIELD_VALUE:
        if negative:
            row.value = INT32_MIN if number > INT32_MAX else -<int>number
        else:
            row.value = INT32_MAX if number > INT32_MAX else <int>number
        return True
    if negative:
        return False
    if field == FIELD_ORDER or field == FIELD_FALLBACK_ORDER:
        if field == FIELD_ORDER:
            row.order = <int>number & MAX_ORDER
        else:
            row.fallback_order = <int>number & MAX_ORDER
        return number <= MAX_ORDER
    if field == FIELD_TYPE or field == FIELD_FALLBACK_TYPE:
        if field == FIELD_TYPE:
            row.migratetype = <int>number & MAX_TYPE
        else:
            row.fallback_migratetype = <int>number & MAX_TYPE
        return number <= MAX_TYPE
    if number != 0:
        row.flags |= (FLAG_PERCPU_REFILL if field == FIELD_PERCPU_REFILL else
                      FLAG_CHANGE_OWNERSHIP if field == FIELD_CHANGE_OWNERSHIP else
                      FLAG_FRAGMENTING if field == FIELD_FRAGMENTING else FLAG_WHOLE_BLOCK)
    return True


cdef inline bint row_end(EventRow *row, int seen, bint null_page) noexcept nogil:
    """Finish a row of which these fields have been seen. False if it lacks one that it needs.

    Text of the kernel's own has PFN 0 for a NULL page; where it prints the pointer, that tells the two apart.
    """
    cdef int needed = fields_needed(row.event)
    if seen & needed != needed:
        return False
    if likely(not needed & FIELD_PFN or (row.pfn != NO_PFN and not (null_page and row.pfn == 0))):
        return True
    if row.event != EVENT_ALLOC:
        return False
    row.event = EVENT_ALLOC_FAILED
    row.pfn = NO_PFN
    return True


cdef inline bint begins(const char *text, size_t length, const char *other, size_t size) noexcept nogil:
    return length >= size and memcmp(text, other, size) == 0


cdef inline bint contains(const char *text, size_t length, const char *other, size_t size) noexcept nogil:
    cdef size_t i
    for i in range(length):
        if begins(text + i, length - i, other, size):
            return True
    return False


cdef inline int caller_flag(const char *name, size_t length) noexcept nogil:
    """Who called __isolate_free_page, by the function's name. Compilers inline it: in Debian's 6.12 half the calls of
    compaction come from isolate_freepages_block, and half from compaction_alloc. `isolate_freepages_range` serves
    allocations of contiguous memory. An address is no name.
    """
    cdef size_t i
    if begins(name, length, b"page_reporting", 14):
        return FLAG_BY_REPORTING
    if not begins(name, length, b"isolate_freepages_range", 23) and (
            contains(name, length, b"compact", 7) or contains(name, length, b"isolate_freepages", 17)):
        return FLAG_BY_COMPACTION
    for i in range(length):
        if not (c'0' <= name[i] <= c'9' or c'a' <= name[i] <= c'f' or name[i] == c'x'):
            return FLAG_BY_OTHER
    return 0
