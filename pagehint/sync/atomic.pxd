"""Atomic operations, bit operations and assertions, as GCC and Clang offer them on every architecture.

`load64`, `store64` and their like take a memory order, as in C11. `peek64`, `add64` and `sub64` take none: they are for
counters that one thread at a time writes, under a lock, and that other threads read without it.
"""
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdio.h>
    #include <stdlib.h>
    #if defined(__x86_64__) || defined(__i386__)
    #define PH_CPU_RELAX() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define PH_CPU_RELAX() __asm__ __volatile__("yield" ::: "memory")
    #else
    #define PH_CPU_RELAX() __asm__ __volatile__("" ::: "memory")
    #endif
    #ifdef PAGEHINT_DEBUG
    #define PH_DEBUG 1
    #define PH_ASSERT(c) \\
        do { \\
            if (!(c)) { \\
                fprintf(stderr, "pagehint: assertion failed: %s (%s:%d)\\n", #c, __FILE__, __LINE__); \\
                abort(); \\
            } \\
        } while (0)
    #else
    #define PH_DEBUG 0
    #define PH_ASSERT(c) ((void)0)
    #endif
    /* A reader without the lock may get a value from before the latest change, but never a part of one: an aligned
     * 64-bit word is read and written as a whole. Plain accesses do that, and GCC makes fewer instructions of them than
     * of relaxed atomic ones. Only ThreadSanitizer has to be told that they are meant so. */
    #ifdef __SANITIZE_THREAD__
    #define PH_PEEK64(p) __atomic_load_n(p, __ATOMIC_RELAXED)
    #define PH_ADD64(p, n) __atomic_store_n(p, *(p) + (n), __ATOMIC_RELAXED)
    #define PH_SUB64(p, n) __atomic_store_n(p, *(p) - (n), __ATOMIC_RELAXED)
    #else
    #define PH_PEEK64(p) (*(p))
    #define PH_ADD64(p, n) (*(p) += (n))
    #define PH_SUB64(p, n) (*(p) -= (n))
    #endif
    /* The condition is expected to hold 999 times in 1000, so the compiler moves the other path out of line. */
    #define PH_LIKELY(c) __builtin_expect_with_probability(!!(c), 1, 0.999)
    #define PH_UNLIKELY(c) __builtin_expect_with_probability(!!(c), 0, 0.999)
    #define PH_RELAXED __ATOMIC_RELAXED
    #define PH_ACQUIRE __ATOMIC_ACQUIRE
    #define PH_RELEASE __ATOMIC_RELEASE
    #define PH_ACQ_REL __ATOMIC_ACQ_REL
    #define PH_SEQ_CST __ATOMIC_SEQ_CST
    static inline int ph_swap_i32_if(int32_t *p, int32_t expected, int32_t value)
    {
        return __atomic_compare_exchange_n(p, &expected, value, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
    }
    static inline int ph_swap64_if(uint64_t *p, uint64_t expected, uint64_t value)
    {
        return __atomic_compare_exchange_n(p, &expected, value, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
    }
    """
    bint PH_DEBUG
    void PH_ASSERT(bint condition) noexcept nogil
    bint likely "PH_LIKELY" (bint condition) noexcept nogil
    bint unlikely "PH_UNLIKELY" (bint condition) noexcept nogil
    void fence "__atomic_thread_fence" (int order) noexcept nogil
    void cpu_relax "PH_CPU_RELAX" () noexcept nogil
    int RELAXED "PH_RELAXED"
    int ACQUIRE "PH_ACQUIRE"
    int RELEASE "PH_RELEASE"
    int ACQ_REL "PH_ACQ_REL"
    int SEQ_CST "PH_SEQ_CST"

    # For fields that are written under a lock and read by other threads without it, and so seldom used that every
    # access may be sequentially consistent: that is what a plain read or write of an _Atomic type is.
    ctypedef int32_t atomic_i32 "_Atomic int32_t"
    ctypedef int64_t atomic_i64 "_Atomic int64_t"
    ctypedef uint64_t atomic_u64 "_Atomic uint64_t"

    # `swap_i32_if` and `swap64_if` compare and exchange: they store `value` if the word is `expected`, and say whether.
    uint64_t peek64 "PH_PEEK64" (const uint64_t *p) noexcept nogil
    void add64 "PH_ADD64" (uint64_t *p, uint64_t n) noexcept nogil
    void sub64 "PH_SUB64" (uint64_t *p, uint64_t n) noexcept nogil
    uint64_t load64 "__atomic_load_n" (const uint64_t *p, int order) noexcept nogil
    void store64 "__atomic_store_n" (uint64_t *p, uint64_t value, int order) noexcept nogil
    uint64_t fetch_or64 "__atomic_fetch_or" (uint64_t *p, uint64_t mask, int order) noexcept nogil
    uint64_t fetch_and64 "__atomic_fetch_and" (uint64_t *p, uint64_t mask, int order) noexcept nogil
    uint32_t load32 "__atomic_load_n" (const uint32_t *p, int order) noexcept nogil
    void store32 "__atomic_store_n" (uint32_t *p, uint32_t value, int order) noexcept nogil
    uint16_t load16 "__atomic_load_n" (const uint16_t *p, int order) noexcept nogil
    void store16 "__atomic_store_n" (uint16_t *p, uint16_t value, int order) noexcept nogil
    int32_t load_i32 "__atomic_load_n" (const int32_t *p, int order) noexcept nogil
    void store_i32 "__atomic_store_n" (int32_t *p, int32_t value, int order) noexcept nogil
    int32_t fetch_add_i32 "__atomic_fetch_add" (int32_t *p, int32_t value, int order) noexcept nogil
    bint swap_i32_if "ph_swap_i32_if" (int32_t *p, int32_t expected, int32_t value) noexcept nogil
    bint swap64_if "ph_swap64_if" (uint64_t *p, uint64_t expected, uint64_t value) noexcept nogil
    uint64_t fetch_add64 "__atomic_fetch_add" (uint64_t *p, uint64_t value, int order) noexcept nogil
    uint16_t load16 "__atomic_load_n" (const uint16_t *p, int order) noexcept nogil
    void store16 "__atomic_store_n" (uint16_t *p, uint16_t value, int order) noexcept nogil
    uint8_t load8 "__atomic_load_n" (const uint8_t *p, int order) noexcept nogil
    void store8 "__atomic_store_n" (uint8_t *p, uint8_t value, int order) noexcept nogil

    # Zeros below the lowest one (ctz) and above the highest one (clz) of a word; undefined for 0.
    int ctz64 "__builtin_ctzll" (uint64_t x) noexcept nogil
    int clz32 "__builtin_clz" (unsigned int x) noexcept nogil
    int clz64 "__builtin_clzll" (uint64_t x) noexcept nogil
    int popcount64 "__builtin_popcountll" (uint64_t x) noexcept nogil
    # Safe with any address: a prefetch never faults.
    void prefetch "__builtin_prefetch" (const void *p) noexcept nogil
