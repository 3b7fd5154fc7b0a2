"""Arguments of an allocator's methods as C numbers: orders, durations, and the settings of a session.

What is not of its type or out of range is refused, before anything has changed. Inline, since every call goes through
some of these, as in `pagehint/numbers.pxd`.
"""
from cpython.number cimport PyNumber_Index
from libc.stdint cimport int64_t, uint64_t
from pagehint.allocator.memory cimport Memory
from pagehint.allocator.refusal cimport order_refusal
from pagehint.hinting.learning.learnt_age cimport is_break_even
from pagehint.hinting.queue cimport Settings
from pagehint.numbers cimport as_positive, small_int
from pagehint.sync.clock cimport NEVER, SECOND

cdef enum:
    DEFAULT_COST = 1            # seconds, of a granule: `PageAllocator.enable_hinting` says why


cdef inline int as_order_at(Memory memory, object order, object pfn) except -1:
    """An order. A refusal names the block's first page `pfn`, which is None where there is no block yet."""
    cdef long number = small_int(order)
    if number < 0 and type(order) is not int:
        order = PyNumber_Index(order)
        number = small_int(order)
    if not 0 <= number <= memory.max_page_order:
        raise order_refusal(memory, order, pfn)
    return <int>number


cdef inline int as_order(Memory memory, object order) except -1:
    return as_order_at(memory, order, None)


cdef inline int64_t as_duration(object duration, str what) except -2:
    """Seconds as nanoseconds, or NEVER for None."""
    cdef double seconds
    if duration is None:
        return NEVER
    seconds = duration          # refuses text, which `float` would read
    if not 0 <= seconds <= 1e9:
        raise ValueError(f"{what} must be None or from 0 to 1e9 seconds, not {duration!r}")
    return <int64_t>(seconds * SECOND)


cdef inline int64_t as_moment(object moment, str what) except? -1:
    """Seconds of a clock as nanoseconds, rounded: a moment that was nanoseconds is the same again, within 26 days."""
    cdef double seconds = moment
    if not 0 <= seconds <= 4e9:
        raise ValueError(f"{what} must be from 0 to 4e9 seconds, not {moment!r}")
    return <int64_t>(seconds * SECOND + 0.5)


cdef inline uint64_t as_reserve(Memory memory, object reserve) except? -1:
    """A size as granules, rounded up; 0 for None."""
    cdef object granule = <uint64_t>memory.page_size << memory.min_order
    if reserve is None:
        return 0
    from pagehint.sizes import parse_size
    return min(-(-parse_size(reserve) // granule), 1 << 52)


cdef inline int64_t as_reserve_age(object reserve_age) except -2:
    """Seconds as nanoseconds."""
    if reserve_age is None:
        raise TypeError("reserve_age must be from 0 to 1e9 seconds, not None")
    return as_duration(reserve_age, "reserve_age")


cdef inline int set_min_age(Settings *settings, object min_age, object cost) except -1:
    """Take over an age, or "auto" and what a report costs, in seconds: it is what the age is learnt by."""
    cdef bint learns = isinstance(min_age, str) and min_age == "auto"
    settings.min_age, settings.break_even = NEVER, 0
    if isinstance(min_age, str) and not learns:
        raise TypeError(f"min_age must be 'auto', None, or from 0 to 1e9 seconds, not {min_age!r}")
    if not learns:
        if cost is not None:
            raise ValueError(f"cost={cost!r} is for min_age='auto', and not for min_age={min_age!r}")
        settings.min_age = as_duration(min_age, "min_age")
        return 0
    settings.break_even = as_duration(DEFAULT_COST if cost is None else cost, "cost")
    if not is_break_even(settings.break_even):
        raise ValueError(f"cost must be from 1e-6 to 1e9 seconds, not {cost!r}")
    return 0


cdef inline Settings as_settings(Memory memory, uint64_t max_pages, object workqueue, object threshold, object delay,
                                 object max_report_order, object min_age, object cost, object reserve,
                                 object reserve_age, object clock) except *:
    """The settings of a session, from the arguments of `PageAllocator.enable_hinting`."""
    cdef Settings settings
    settings.max_pages = max_pages
    settings.delay = as_duration(delay, "delay")
    set_min_age(&settings, min_age, cost)
    settings.reserve = as_reserve(memory, reserve)
    settings.reserve_age = as_reserve_age(reserve_age)
    settings.threshold = settings.break_even > 0        # each granule has an age of its own, whatever their number
    if threshold is not None:
        settings.threshold = as_positive(threshold, "threshold")
    settings.max_report_order = max(memory.min_order, min(10, memory.max_page_order))
    if max_report_order is not None:
        settings.max_report_order = as_order(memory, max_report_order)
        if settings.max_report_order < memory.min_order:
            raise ValueError(
                f"max_report_order {settings.max_report_order} is under min_order {memory.min_order}, the granule"
            )
    if workqueue not in ("thread", "manual"):
        raise ValueError(f"workqueue must be 'thread' or 'manual', not {workqueue!r}")
    settings.manual = workqueue == "manual"
    settings.injected_clock = clock is not None
    if settings.injected_clock and not callable(clock) and not hasattr(clock, "__float__"):
        raise TypeError(f"clock must be callable, a number of seconds, or None, not {type(clock).__name__}")
    settings.set_clock = NEVER if clock is None or callable(clock) else as_moment(clock, "clock")
    if settings.injected_clock and not settings.manual:
        raise ValueError("a clock can be injected with workqueue='manual' only; the worker sleeps by the real one")
    return settings
