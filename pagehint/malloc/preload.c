/* malloc and its kind for a whole process, by LD_PRELOAD: what `pagehint run --malloc` has every program load.
 *
 * A request goes on to the C heap. Once pagehint has been loaded and has registered an arena (`serving.pyx`), large
 * requests go there. What is freed is known by its address.
 *
 * A thread that is inside of the arena is never let in again: its zone's lock may be held. So it is with a signal handler
 * that comes in between, and with what the arena itself may call. While a thread forks none is let in: then that thread
 * has the arena's locks (allocator/fork.pyx), and waits for locks of others, such as libc's of its files, whose holders
 * may want memory. Meanwhile the C heap serves requests, and what is freed of the arena is kept in a list, for the next
 * thread that goes in.
 */
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "preload.h"

#define EXPORT __attribute__((visibility("default")))
#define UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* ---- the C heap ----------------------------------------------------------------------------------------- */

static void *first_malloc(size_t size);
static void *first_calloc(size_t n, size_t size);
static void *first_realloc(void *p, size_t size);
static void first_free(void *p);
static void *first_memalign(size_t alignment, size_t size);
static void *first_aligned_alloc(size_t alignment, size_t size);
static int first_posix_memalign(void **p, size_t alignment, size_t size);
static size_t first_usable_size(void *p);

typedef struct c_heap {
    void *(*malloc)(size_t size);
    void *(*calloc)(size_t n, size_t size);
    void *(*realloc)(void *p, size_t size);
    void (*free)(void *p);
    void *(*memalign)(size_t alignment, size_t size);
    void *(*aligned_alloc)(size_t alignment, size_t size);
    int (*posix_memalign)(void **p, size_t alignment, size_t size);
    size_t (*usable_size)(void *p);
} c_heap;

/* The first call of any of them, which is long before main, looks up all. */
static c_heap rest = {first_malloc,   first_calloc,        first_realloc,        first_free,
                      first_memalign, first_aligned_alloc, first_posix_memalign, first_usable_size};
static __thread int looking __attribute__((tls_model("initial-exec")));

static void *next_function(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        static const char said[] = "pagehint: there is no C heap behind the preloaded library\n";
        (void)!write(2, said, sizeof(said) - 1);
        abort();
    }
    return found;
}

/* Look up the C heap; 0 if this thread is at it. What the look-up itself asks for it can do without. */
static int look_up(void)
{
    c_heap found;
    if (looking) {
        errno = ENOMEM;
        return 0;
    }
    looking = 1;
    found.malloc = (void *(*)(size_t))next_function("malloc");
    found.calloc = (void *(*)(size_t, size_t))next_function("calloc");
    found.realloc = (void *(*)(void *, size_t))next_function("realloc");
    found.free = (void (*)(void *))next_function("free");
    found.memalign = (void *(*)(size_t, size_t))next_function("memalign");
    found.aligned_alloc = (void *(*)(size_t, size_t))next_function("aligned_alloc");
    found.posix_memalign = (int (*)(void **, size_t, size_t))next_function("posix_memalign");
    found.usable_size = (size_t(*)(void *))next_function("malloc_usable_size");
    rest = found;
    looking = 0;
    return 1;
}

static void *first_malloc(size_t size) { return look_up() ? rest.malloc(size) : NULL; }
static void *first_calloc(size_t n, size_t size) { return look_up() ? rest.calloc(n, size) : NULL; }
static void *first_realloc(void *p, size_t size) { return look_up() ? rest.realloc(p, size) : NULL; }
static void *first_memalign(size_t alignment, size_t size) { return look_up() ? rest.memalign(alignment, size) : NULL; }
static size_t first_usable_size(void *p) { return p && look_up() ? rest.usable_size(p) : 0; }

static void *first_aligned_alloc(size_t alignment, size_t size)
{
    return look_up() ? rest.aligned_alloc(alignment, size) : NULL;
}

static int first_posix_memalign(void **p, size_t alignment, size_t size)
{
    return look_up() ? rest.posix_memalign(p, alignment, size) : ENOMEM;
}

static void first_free(void *p)
{
    if (p && look_up())
        rest.free(p);
}

/* ---- the arena ------------------------------------------------------------------------------------------ */

/* Nothing is large, and nothing is the arena's, until one is registered. What is registered stays. */
static const uint64_t nothing;
static size_t threshold = SIZE_MAX;
static uintptr_t base;
static const uint64_t *reached = &nothing;
static pagehint_malloc_server server;

static __thread int inside __attribute__((tls_model("initial-exec")));
static int nr_inside; /* threads that are, or are about to see that they must not */
static int nr_forks;  /* under way */

typedef struct freed { struct freed *next; } freed;
static freed *kept; /* of the arena, freed by threads that could not go in */

static int is_large(size_t size) { return UNLIKELY(size >= __atomic_load_n(&threshold, __ATOMIC_ACQUIRE)); }

/* `base` is written first and read last: with the bytes that were reached there is their base. */
static int is_arenas(const void *p)
{
    uint64_t bytes = __atomic_load_n(__atomic_load_n(&reached, __ATOMIC_ACQUIRE), __ATOMIC_ACQUIRE);
    return (uintptr_t)p - __atomic_load_n(&base, __ATOMIC_RELAXED) < bytes;
}

/* As the C heap does with what cannot be its own. */
static void refuse(const void *p)
{
    char said[160];
    int n = snprintf(said, sizeof(said), "pagehint: free or realloc of %p, which is not allocated: page %zu of the arena\n",
                     p, (size_t)((uintptr_t)p - base) / server.page_size);
    (void)!write(2, said, (size_t)n);
    abort();
}

static void keep(void *p)
{
    freed *f = p;
    f->next = __atomic_load_n(&kept, __ATOMIC_RELAXED);
    while (!__atomic_compare_exchange_n(&kept, &f->next, f, 1, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
        ;
}

/* This thread is inside. */
static void give_kept(void)
{
    freed *f, *next;
    for (f = __atomic_exchange_n(&kept, NULL, __ATOMIC_ACQUIRE); f; f = next) {
        next = f->next;
        if (!server.give(server.heap, f))
            refuse(f);
    }
}

static void leave(void)
{
    __atomic_sub_fetch(&nr_inside, 1, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    inside = 0;
}

/* Go in, or return 0 if this thread is inside, or one forks. A signal handler sees either. */
static int enter(void)
{
    if (inside)
        return 0;
    inside = 1;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    __atomic_add_fetch(&nr_inside, 1, __ATOMIC_SEQ_CST);
    if (UNLIKELY(__atomic_load_n(&nr_forks, __ATOMIC_SEQ_CST))) {
        leave();
        return 0;
    }
    if (UNLIKELY(__atomic_load_n(&kept, __ATOMIC_RELAXED) != NULL))
        give_kept();
    return 1;
}

static void *take(size_t size, int zeroed)
{
    void *p = NULL;
    if (enter()) {
        p = server.take(server.heap, size, zeroed);
        leave();
    }
    return p;
}

/* Of an address of the arena. `errno` stays as it is, as free promises. */
static void give(void *p)
{
    int error = errno, known = 1;
    if ((uintptr_t)p % server.page_size)
        refuse(p);
    if (enter()) {
        known = server.give(server.heap, p);
        leave();
    } else
        keep(p);
    if (!known)
        refuse(p);
    errno = error;
}

static int resize(void *p, size_t size)
{
    int done = 0;
    if (enter()) {
        done = server.resize(server.heap, p, size);
        leave();
    }
    return done;
}

/* Every machine's pages have as many bytes, or a multiple. */
enum { LEAST_PAGE = 4096 };

static void *take_aligned(size_t alignment, size_t size)
{
    return (alignment & (alignment - 1)) == 0 && alignment <= LEAST_PAGE ? take(size, 0) : NULL;
}

/* ---- what programs call --------------------------------------------------------------------------------- */

EXPORT void *malloc(size_t size)
{
    void *p = is_large(size) ? take(size, 0) : NULL;
    return p ? p : rest.malloc(size);
}

EXPORT void *calloc(size_t n, size_t size)
{
    size_t all;
    void *p = !__builtin_mul_overflow(n, size, &all) && is_large(all) ? take(all, 1) : NULL;
    return p ? p : rest.calloc(n, size);
}

EXPORT void free(void *p)
{
    if (UNLIKELY(is_arenas(p)))
        give(p);
    else
        rest.free(p);
}

/* From the C heap into the arena when it becomes large. What is large there stays there: moving it costs a copy. */
static void *move_in(void *p, size_t size)
{
    size_t old = rest.usable_size(p);
    void *moved = old < threshold ? take(size, 0) : NULL;
    if (!moved)
        return rest.realloc(p, size);
    memcpy(moved, p, old);
    rest.free(p);
    return moved;
}

/* In the arena, or out of it if it becomes small. */
static void *move(void *p, size_t size)
{
    size_t old = (uintptr_t)p % server.page_size ? 0 : server.size(server.heap, p);
    void *moved = NULL;
    if (!old)
        refuse(p);
    if (is_large(size)) {
        if (resize(p, size))
            return p;
        moved = take(size, 0);
    }
    if (!moved)
        moved = rest.malloc(size);
    if (!moved)
        return size <= old ? p : NULL;
    memcpy(moved, p, size < old ? size : old);
    give(p);
    return moved;
}

EXPORT void *realloc(void *p, size_t size)
{
    if (!p)
        return malloc(size);
    if (!is_arenas(p))
        return is_large(size) ? move_in(p, size) : rest.realloc(p, size);
    if (size)
        return move(p, size);
    give(p);
    return NULL;
}

EXPORT void *reallocarray(void *p, size_t n, size_t size)
{
    size_t all;
    if (!__builtin_mul_overflow(n, size, &all))
        return realloc(p, all);
    errno = ENOMEM;
    return NULL;
}

EXPORT void *memalign(size_t alignment, size_t size)
{
    void *p = is_large(size) ? take_aligned(alignment, size) : NULL;
    return p ? p : rest.memalign(alignment, size);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    void *p = is_large(size) && alignment ? take_aligned(alignment, size) : NULL;
    return p ? p : rest.aligned_alloc(alignment, size);
}

EXPORT int posix_memalign(void **result, size_t alignment, size_t size)
{
    void *p = is_large(size) && alignment >= sizeof(void *) ? take_aligned(alignment, size) : NULL;
    if (!p)
        return rest.posix_memalign(result, alignment, size);
    *result = p;
    return 0;
}

EXPORT void *valloc(size_t size) { return memalign((size_t)sysconf(_SC_PAGESIZE), size); }

EXPORT void *pvalloc(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), all;
    if (!__builtin_add_overflow(size ? size : 1, page - 1, &all))
        return memalign(page, all & ~(page - 1));
    errno = ENOMEM;
    return NULL;
}

EXPORT size_t malloc_usable_size(void *p)
{
    return UNLIKELY(is_arenas(p)) ? server.size(server.heap, p) : rest.usable_size(p);
}

/* C23's, which libc's own versions would take to the C heap. */
EXPORT void free_sized(void *p, size_t size)
{
    (void)size;
    free(p);
}

EXPORT void free_aligned_sized(void *p, size_t alignment, size_t size)
{
    (void)alignment;
    (void)size;
    free(p);
}

/* ---- registration --------------------------------------------------------------------------------------- */

/* Comes before all else that a fork does but for handlers that were registered later. From here on no thread goes in, and
 * those that are inside come out, as they wait for none that may wait for them. */
static void before_fork(void)
{
    int own = inside != 0;
    inside++;
    __atomic_add_fetch(&nr_forks, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&nr_inside, __ATOMIC_SEQ_CST) > own)
        sched_yield();
}

static void after_fork(void)
{
    __atomic_sub_fetch(&nr_forks, 1, __ATOMIC_RELEASE);
    inside--;
}

/* There is this thread only. */
static void after_fork_in_child(void)
{
    inside--;
    nr_inside = inside != 0;
    nr_forks = 0;
}

/* Another allocator may have C++'s operators, too, and take what it did not make for its own: it keeps its requests. */
static int rest_is_libc(void)
{
    Dl_info rests, libcs;
    return dladdr((void *)(uintptr_t)rest.malloc, &rests) && dladdr((void *)(uintptr_t)getenv, &libcs) &&
           rests.dli_fbase == libcs.dli_fbase;
}

EXPORT int pagehint_malloc_register(const pagehint_malloc_server *it)
{
    int failed;
    if (it->version != PAGEHINT_MALLOC_VERSION)
        return EINVAL;
    if (server.version)
        return EBUSY;
    free(malloc(1)); /* it is looked up now at the latest */
    if (!rest_is_libc())
        return ENOTSUP;
    /* After the arena's own handlers were registered: so these come first before a fork, and last after it. */
    failed = pthread_atfork(before_fork, after_fork, after_fork_in_child);
    if (failed)
        return failed;
    /* Other threads take memory as soon as anything is large, and must find it to be the arena's. */
    server = *it;
    __atomic_store_n(&base, (uintptr_t)it->base, __ATOMIC_RELAXED);
    __atomic_store_n(&reached, it->reached, __ATOMIC_RELEASE);
    __atomic_store_n(&threshold, it->threshold, __ATOMIC_RELEASE);
    return 0;
}
