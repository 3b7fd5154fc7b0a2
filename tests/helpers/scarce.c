/* Loaded before the C library (LD_PRELOAD): makes the n-th allocation that a pagehint module asks for fail.
 *
 * An allocation is malloc, calloc, aligned_alloc, mmap or mprotect, called from an address that `scarce_watch` was told of:
 * those of others, Python's above all, are none of our business. What those modules have, and have not given back, is
 * counted, too. The blocks of others go through here without the least change.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

enum { MODULES = 64 };
static uintptr_t first[MODULES], last[MODULES];
static int modules;
static long left = -1;          /* allocations until one fails; negative: none does */
static long blocks, bytes;      /* what is held */

/* The addresses of the blocks, by a few of their bits: whose a block is cannot be told from who frees it, as a function whose
 * last act is to free is gone by then. */
enum { PLACES = 1 << 14, GONE = 1 };
static uintptr_t held[PLACES];

void scarce_watch(uintptr_t from, uintptr_t to)
{
    if (modules == MODULES)
        abort();                /* else those after it would not be watched */
    first[modules] = from;
    last[modules++] = to;
}

void scarce_fail(long n) { __atomic_store_n(&left, n, __ATOMIC_SEQ_CST); }
long scarce_left(void) { return __atomic_load_n(&left, __ATOMIC_SEQ_CST); }
long scarce_blocks(void) { return __atomic_load_n(&blocks, __ATOMIC_SEQ_CST); }
long scarce_bytes(void) { return __atomic_load_n(&bytes, __ATOMIC_SEQ_CST); }

static int watched(const void *caller)
{
    for (int i = 0; i < modules; i++)
        if (first[i] <= (uintptr_t)caller && (uintptr_t)caller < last[i])
            return 1;
    return 0;
}

static int fails(void)
{
    return scarce_left() > 0 && __atomic_sub_fetch(&left, 1, __ATOMIC_SEQ_CST) == 0;
}

static void *count(void *p)
{
    uintptr_t i = (uintptr_t)p >> 4, empty, gone;
    if (!p)
        return p;
    for (;; i++) {
        empty = 0, gone = GONE;
        if (__atomic_compare_exchange_n(&held[i % PLACES], &empty, (uintptr_t)p, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)
            || __atomic_compare_exchange_n(&held[i % PLACES], &gone, (uintptr_t)p, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            break;
    }
    __atomic_add_fetch(&blocks, 1, __ATOMIC_SEQ_CST);
    return p;
}

static void uncount(void *p)
{
    uintptr_t i = (uintptr_t)p >> 4, known;
    while ((known = __atomic_load_n(&held[i % PLACES], __ATOMIC_SEQ_CST)) && known != (uintptr_t)p)
        i++;
    if (known) {
        __atomic_store_n(&held[i % PLACES], GONE, __ATOMIC_SEQ_CST);
        __atomic_sub_fetch(&blocks, 1, __ATOMIC_SEQ_CST);
    }
}

/* glibc's own names for the functions that are replaced here. */
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

#define CALLER __builtin_extract_return_addr(__builtin_return_address(0))
#define OURS(call) (!watched(CALLER) ? (call) : fails() ? (errno = ENOMEM, NULL) : count(call))

void *malloc(size_t n) { return OURS(__libc_malloc(n)); }
void *calloc(size_t n, size_t size) { return OURS(__libc_calloc(n, size)); }
void *aligned_alloc(size_t alignment, size_t n) { return OURS(__libc_memalign(alignment, n)); }

void free(void *p)
{
    if (p)
        uncount(p);
    __libc_free(p);
}

void *mmap(void *at, size_t n, int protection, int flags, int fd, off_t offset)
{
    static void *(*next)(void *, size_t, int, int, int, off_t);
    int ours = watched(CALLER);
    if (!next)
        next = dlsym(RTLD_NEXT, "mmap");
    if (ours && fails()) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    void *p = next(at, n, protection, flags, fd, offset);
    if (ours && p != MAP_FAILED && !(flags & MAP_FIXED)) /* which takes the place of a mapping that is counted */
        __atomic_add_fetch(&bytes, n, __ATOMIC_SEQ_CST);
    return p;
}

void *mmap64(void *, size_t, int, int, int, off_t) __attribute__((alias("mmap")));

int munmap(void *at, size_t n)
{
    static int (*next)(void *, size_t);
    if (!next)
        next = dlsym(RTLD_NEXT, "munmap");
    if (watched(CALLER))
        __atomic_sub_fetch(&bytes, n, __ATOMIC_SEQ_CST);
    return next(at, n);
}

int mprotect(void *at, size_t n, int protection)
{
    static int (*next)(void *, size_t, int);
    if (!next)
        next = dlsym(RTLD_NEXT, "mprotect");
    if (watched(CALLER) && fails()) {
        errno = ENOMEM;
        return -1;
    }
    return next(at, n, protection);
}
