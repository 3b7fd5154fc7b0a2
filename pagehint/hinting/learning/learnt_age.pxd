"""The age at which to report, learnt from how long granules pause: from free until taken again.

Each pause is a ski rental: keep the granule's memory, which costs by the second, or report it, which costs as much as
keeping it for the *break-even age*. Whoever reports at an age pays the pause if that is shorter, else this age and the
break-even age. A histogram of pauses, which forgets, says what each age would cost.

**What is counted.** A pause is long if it is at least the break-even age, however it goes on: it is counted when it has
lasted so long, and nobody waits for its end. Others are counted when they end, in eighths of an octave. What is free
and younger is counted by its age, which its pause outlasts (the product-limit estimate; Kaplan and Meier, 1958).
Whether it has been reported makes no difference.

**What is forgotten.** Time has slots, 16 to 32 to the break-even age. What was counted `MEMORY_SLOTS` ago counts a
factor of e less; but no more than `MEMORY_SLOTS` / `MEMORY_GROUPS` slots are forgotten for one in which a pause was
counted, since who sees few pauses has to remember them longer.

**What has never been seen** has the weight of one group of pauses, half of it long, half short and of an unknown octave
(Jeffreys' prior). Granules come and go in groups, and a group is one observation: it is as many pauses as are counted
in one slot, for the mean pause. So who knows nothing keeps memory for a fifteenth of the break-even age.

**What is decided.** For each bin of ages whether to report now or to wait for the next bin costs less, from the
break-even age backwards. So when the age becomes lower, what has waited beyond it already is not reported if to wait on
costs less.

**The account** keeps the cost within twice the optimum's, whatever the pauses are. A report that was too soon adds what
it has cost beyond twice the optimum, or more; what was kept and was taken again, or was reported and stayed free, pays
off as much less as it cost, or less. The account is never below zero, so that it holds for any stretch of time. Above
one break-even age for each granule that was ever free at once, it puts a lower bound to the age, which is the
break-even age where it is above two: from then on no report costs more than twice the optimum. Granules that are with
the host at that moment may add a third. So over any stretch of time the cost is at most twice the optimum's, and three
break-even ages for each granule that was ever free at once. That twice cannot be improved, and that the break-even age
alone has it, is by Karlin, Manasse, Rudolph and Sleator (1988). (For a stretch that begins while granules are free, one
more for each, since these may pay off before and cost afterwards.)

An event takes a few operations and no division. To decide takes a pass over the bins; it is done when somebody asks, at
most 16 times in a slot. Bytes: `sizeof(LearntAge)`, under 6 KiB a zone. Times are nanoseconds, from 0 on, of a clock that
does not go back. Whoever calls holds the lock that protects the struct.
"""
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memset
from pagehint.sync.atomic cimport clz64
from pagehint.sync.clock cimport SECOND

cdef enum:
    LEAST_BREAK_EVEN = 1000         # nanoseconds
    MOST_BREAK_EVEN_S = 1000000000  # seconds
    OCTAVE_SHIFT = 3            # eight bins an octave: memory is kept at most 9 % too long
    BREAK_EVEN_BITS = 27        # of the break-even age in units of the first bin, at most: 24 octaves below it have bins
    NR_BINS = 200               # (BREAK_EVEN_BITS - OCTAVE_SHIFT + 1) * 8
    KEEP_WORDS = 4              # of 64 bins
    NR_SLOTS = 64               # a ring of those that are younger than the break-even age, which are 33 at most
    SLOT_BITS = 5               # the break-even age has so many bits in slots
    MEMORY_SLOTS = 128          # 4 to 8 break-even ages: long enough for pauses of one, and short for a new phase
    MEMORY_GROUPS = 32
    DECISION_SHIFT = 4          # of a slot: between two decisions

cdef struct Regret:                 # since the beginning, and not faded
    uint64_t short_pauses[NR_BINS]  # that have ended
    uint64_t too_soon[NR_BINS]      # of these, of granules that had been reported
    uint64_t long_pauses            # that have lasted for the break-even age, ended or not
    uint64_t reported               # granules
    double kept                     # nanoseconds of a granule: from free to the report, or to the end of a short pause

cdef struct LearntAge:
    int64_t break_even              # nanoseconds
    int64_t age                     # nanoseconds: a granule that has just become free is to be reported at this age
    int64_t least_age               # nanoseconds: the account's lower bound
    uint64_t keeps[KEEP_WORDS]      # a bit a bin of ages: to wait on costs less than to report
    int64_t decided_at              # nanoseconds
    bint changed                    # something was counted since
    int bin_shift                   # a pause's unit in the histogram, as a power of two of nanoseconds
    int slot_shift                  # a slot, likewise
    uint64_t slot                   # the slot of the latest time that is known
    uint64_t first_young            # what became free in the slots before this one has been counted
    uint64_t nr_free, most_free     # granules that are free, and at most
    double account                  # nanoseconds of a granule
    double fading                   # slots of time that nothing has faded for yet
    double weight                   # of a pause that is counted now
    double nr_counted               # pauses in this slot, not weighted
    double nr_all, nr_squared       # weight of all pauses, and of each times the pauses of its slot
    double nr_long                  # weight of the long pauses
    double bins[NR_BINS]            # weight of the short pauses
    Regret regret
    uint32_t young[NR_SLOTS]        # granules that are free and not counted, by the slot in which they became free
    double saved[NR_SLOTS]          # nanoseconds: what the reported ones of these pay off if their pause is long, or less


cdef inline bint is_break_even(int64_t age) noexcept nogil:
    """Whether an age, in nanoseconds, can be the break-even age."""
    return LEAST_BREAK_EVEN <= age <= <int64_t>MOST_BREAK_EVEN_S * SECOND


cdef inline int nr_bits(uint64_t n) noexcept nogil:
    return 64 - clz64(n) if n else 0


cdef inline int64_t later(int64_t time, int64_t by) noexcept nogil:
    """A time and a duration, added; INT64_MAX where that is too much."""
    return time + by if by <= INT64_MAX - time else INT64_MAX


cdef inline int bin_of(const LearntAge *l, int64_t pause) noexcept nogil:
    """The bin of a pause or an age that is less than the break-even age."""
    cdef uint64_t n = <uint64_t>pause >> l.bin_shift
    cdef int octave = nr_bits(n >> OCTAVE_SHIFT)
    if octave == 0:
        return <int>n
    return (octave << OCTAVE_SHIFT) + <int>((n >> (octave - 1)) & 7)


cdef inline int64_t begin_of_bin(const LearntAge *l, int bin) noexcept nogil:
    """The shortest pause of a bin, in nanoseconds."""
    cdef int octave = bin >> OCTAVE_SHIFT
    if octave == 0:
        return <int64_t>bin << l.bin_shift
    return (8 + (<int64_t>bin & 7)) << (octave - 1 + l.bin_shift)


cdef inline void decide(LearntAge *l, int64_t now) noexcept nogil:
    """Find the ages at which to report costs less than to wait for the next bin. O(bins)."""
    cdef double[NR_BINS] outlasted      # weight of young granules, by the age of the youngest of their slot
    cdef int bin, last = bin_of(l, l.break_even - 1)
    cdef double prior = 0.5 * l.weight * (l.nr_squared / l.nr_all if l.nr_all else 1), unknown = prior / (last + 1)
    cdef double at_risk = prior + l.nr_long, cost = l.break_even, staying, waiting
    cdef int64_t begin, end = l.break_even
    cdef uint64_t slot
    memset(outlasted, 0, sizeof(outlasted))
    for slot in range(l.first_young, l.slot):
        begin = min(now - <int64_t>((slot + 1) << l.slot_shift), l.break_even - 1)
        outlasted[bin_of(l, begin)] += l.weight * l.young[slot & (NR_SLOTS - 1)]
    memset(l.keeps, 0, sizeof(l.keeps))
    l.age = l.break_even
    for bin in range(last, -1, -1):
        begin = begin_of_bin(l, bin)
        at_risk += l.bins[bin] + unknown + outlasted[bin]
        staying = 1 - (l.bins[bin] + unknown) / at_risk
        waiting = (end - begin) * 0.5 * (1 + staying) + staying * cost
        if waiting < l.break_even:
            cost = waiting
            l.keeps[bin >> 6] |= <uint64_t>1 << (bin & 63)
        else:
            cost = l.break_even
            l.age = begin
        end = begin
    l.decided_at, l.changed = now, False


cdef inline void learn_start(LearntAge *l, int64_t break_even, int64_t now) noexcept nogil:
    """Know nothing yet. The break-even age is one by `is_break_even`."""
    memset(l, 0, sizeof(l[0]))
    l.break_even, l.weight = break_even, 1
    l.bin_shift = max(0, nr_bits(break_even) - BREAK_EVEN_BITS)
    l.slot_shift = nr_bits(break_even) - SLOT_BITS
    l.slot = l.first_young = <uint64_t>now >> l.slot_shift
    decide(l, now)


cdef inline void pay_off(LearntAge *l, double saved) noexcept nogil:
    l.account = max(0.0, l.account - saved)


cdef inline void fade(LearntAge *l, uint64_t slots) noexcept nogil:
    """So many slots are over: what has been counted counts less than what will be, whose weight is larger."""
    cdef double step = 0
    cdef int i
    l.fading = min(<double>MEMORY_SLOTS, l.fading + slots)
    if l.nr_counted:
        step = min(l.fading, <double>MEMORY_SLOTS / MEMORY_GROUPS)
    l.nr_all += l.weight * l.nr_counted
    l.nr_squared += l.weight * l.nr_counted * l.nr_counted
    l.nr_counted = 0
    l.fading -= step
    l.weight *= 1 + step * (1.0 / MEMORY_SLOTS)
    if l.weight > 1e9:
        for i in range(NR_BINS):
            l.bins[i] *= 1e-9
        l.nr_long *= 1e-9
        l.nr_all *= 1e-9
        l.nr_squared *= 1e-9
        l.weight *= 1e-9


cdef inline void begin_slot(LearntAge *l, int64_t now) noexcept nogil:
    """Another slot has begun: what has been free for the break-even age by now has a long pause."""
    cdef uint64_t first_young = 0
    cdef int i
    if now > l.break_even:
        first_young = <uint64_t>(now - l.break_even) >> l.slot_shift
    while l.first_young < min(first_young, l.slot + 1):     # nothing became free after `slot`
        i = l.first_young & (NR_SLOTS - 1)
        l.nr_long += l.weight * l.young[i]
        l.nr_counted += l.young[i]
        l.regret.long_pauses += l.young[i]
        pay_off(l, l.saved[i])
        l.young[i], l.saved[i] = 0, 0
        l.first_young += 1
    l.first_young = max(l.first_young, first_young)
    fade(l, (<uint64_t>now >> l.slot_shift) - l.slot)
    l.slot, l.changed = <uint64_t>now >> l.slot_shift, True


cdef inline void learn_time(LearntAge *l, int64_t now) noexcept nogil:
    """It is so late."""
    if <uint64_t>now >> l.slot_shift > l.slot:
        begin_slot(l, now)


cdef inline void learn_free(LearntAge *l, int64_t now, uint32_t n) noexcept nogil:
    """So many granules have become free."""
    learn_time(l, now)
    l.young[l.slot & (NR_SLOTS - 1)] += n
    l.nr_free += n
    l.most_free = max(l.most_free, l.nr_free)


cdef inline void learn_reported(LearntAge *l, int64_t since, int64_t now) noexcept nogil:
    """A granule is reported for the first time in its pause, which began at `since`."""
    cdef uint64_t slot = <uint64_t>since >> l.slot_shift
    learn_time(l, now)
    l.regret.reported += 1
    l.regret.kept += now - since
    if slot >= l.first_young:
        l.saved[slot & (NR_SLOTS - 1)] += max(<int64_t>0, l.break_even - (now - since))


cdef inline bint learn_taken(LearntAge *l, int64_t since, int64_t now, bint reported) noexcept nogil:
    """A granule is taken for use, which became free at `since` and was reported meanwhile, or not.

    False, and nothing is counted, if none is left that became free in that slot, as far as can be known.
    """
    cdef uint64_t slot = <uint64_t>since >> l.slot_shift
    cdef int i = slot & (NR_SLOTS - 1)
    cdef int64_t pause = now - since
    learn_time(l, now)
    if l.nr_free == 0 or slot >= l.first_young and l.young[i] == 0:
        return False
    l.nr_free -= 1
    if slot < l.first_young:
        return True                 # it has been counted: its pause is long
    l.young[i] -= 1
    l.nr_counted += 1
    l.changed = True
    if pause >= l.break_even:
        l.nr_long += l.weight
        l.regret.long_pauses += 1
        return True
    l.bins[bin_of(l, pause)] += l.weight
    l.regret.short_pauses[bin_of(l, pause)] += 1
    if reported:                    # at an age of `pause` at most
        l.regret.too_soon[bin_of(l, pause)] += 1
        l.saved[i] = max(0.0, l.saved[i] - l.break_even)
        l.account += l.break_even - pause
    else:
        l.regret.kept += pause
        pay_off(l, pause)
    return True


cdef inline void learn_lost(LearntAge *l, int64_t since) noexcept nogil:
    """Forget a granule that became free at `since` and has been reported: what follows is another pause of it."""
    cdef uint64_t slot = <uint64_t>since >> l.slot_shift
    cdef int i = slot & (NR_SLOTS - 1)
    l.nr_free -= l.nr_free > 0
    if slot >= l.first_young and l.young[i]:
        l.young[i] -= 1
        l.saved[i] = max(0.0, l.saved[i] - l.break_even)


cdef inline int64_t least_age(const LearntAge *l) noexcept nogil:
    """The lower bound that the account puts to the age."""
    cdef double one_each = <double>l.most_free * l.break_even
    if l.account <= one_each:
        return 0
    if l.account >= 2 * one_each:
        return l.break_even
    return <int64_t>((l.account / one_each - 1) * l.break_even)


cdef inline int64_t learnt_age(LearntAge *l, int64_t now) noexcept nogil:
    """The age, in nanoseconds, at which to report what has just become free; `is_old_enough` knows of other ages."""
    learn_time(l, now)
    if l.changed and now - l.decided_at >= <int64_t>1 << l.slot_shift >> DECISION_SHIFT:
        decide(l, now)
    l.least_age = least_age(l)
    return max(l.age, l.least_age)


cdef inline bint is_old_enough(const LearntAge *l, int64_t age) noexcept nogil:
    """Whether a granule that has been free for so long is to be reported. Without the zone lock, a guess.

    Whoever makes the zone begin to learn anew may be changing all of it then.
    """
    cdef int bin
    if age >= l.break_even or age < l.least_age:
        return age >= l.break_even
    bin = min(bin_of(l, age), <int>NR_BINS - 1)
    return not l.keeps[bin >> 6] >> (bin & 63) & 1


cdef inline int64_t next_old_enough(const LearntAge *l, int64_t age) noexcept nogil:
    """The least age from this one on that is old enough; the break-even age at most. O(bins)."""
    age = max(age, l.least_age)
    while age < l.break_even and not is_old_enough(l, age):
        age = begin_of_bin(l, bin_of(l, age) + 1)
    return min(age, l.break_even)
