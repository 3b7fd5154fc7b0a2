/* Threads that ask an arena's heap for memory as the preloaded library does, where that cannot be preloaded: a sanitizer
 * has to be the first that sees malloc. Loaded for all to see, it has the library's door. Every block has a canary. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "preload.h"

enum { OWN = 24, SHARED = 16, PAGE = 4096 };

typedef struct block {
    unsigned char *p;
    size_t size;
    unsigned char mark;
} block;

static pagehint_malloc_server server;
static block shared[SHARED];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int wrong;
static double until;

int pagehint_malloc_register(const pagehint_malloc_server *it)
{
    if (server.version)
        return EBUSY;
    server = *it;
    return 0;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static void expect(int condition)
{
    if (!condition)
        __atomic_add_fetch(&wrong, 1, __ATOMIC_RELAXED);
}

static void mark(block *b, unsigned char mark)
{
    size_t at;
    b->mark = mark;
    for (at = 0; at < b->size; at += 512)
        b->p[at] = mark;
}

static void check(const block *b, size_t size)
{
    size_t at;
    for (at = 0; at < size; at += PAGE)
        expect(b->p[at] == b->mark);
}

static void make(block *b, unsigned *seed)
{
    int zeroed = rand_r(seed) % 4 == 0;
    size_t at;
    b->size = 1 + (size_t)rand_r(seed) % (rand_r(seed) % 8 ? 256 << 10 : 4 << 20);
    b->p = server.take(server.heap, b->size, zeroed);
    expect(b->p != NULL);
    if (!b->p)
        return;
    expect((uint64_t)((char *)b->p - server.base) + b->size <= __atomic_load_n(server.reached, __ATOMIC_ACQUIRE));
    expect(server.size(server.heap, b->p) >= b->size);
    for (at = 0; zeroed && at < b->size; at += 512)
        expect(b->p[at] == 0);
    mark(b, (unsigned char)rand_r(seed));
}

static void end(block *b)
{
    check(b, b->size);
    expect(server.give(server.heap, b->p));
    b->p = NULL;
}

static void change(block *b, unsigned *seed)
{
    size_t size = 1 + (size_t)rand_r(seed) % (512 << 10);
    if (!server.resize(server.heap, b->p, size))
        return;
    check(b, size < b->size ? size : b->size);
    b->size = size;
    mark(b, (unsigned char)rand_r(seed));
}

static void exchange(block *b, unsigned *seed)
{
    block *other = &shared[rand_r(seed) % SHARED], mine = *b;
    pthread_mutex_lock(&lock);
    *b = *other;
    *other = mine;
    pthread_mutex_unlock(&lock);
}

static void *run(void *argument)
{
    unsigned seed = (unsigned)(uintptr_t)argument;
    block own[OWN];
    int i;
    memset(own, 0, sizeof(own));
    while (now() < until) {
        block *b = &own[rand_r(&seed) % OWN];
        if (!b->p)
            make(b, &seed);
        else if (rand_r(&seed) % 4 == 0)
            change(b, &seed);
        else if (rand_r(&seed) % 4 == 0)
            exchange(b, &seed);
        else
            end(b);
    }
    for (i = 0; i < OWN; i++)
        if (own[i].p)
            end(&own[i]);
    return NULL;
}

/* So many threads, for some seconds. Returns how often something was wrong. */
int direct(int threads, double seconds)
{
    pthread_t started[16];
    int i;
    until = now() + seconds;
    for (i = 0; i < threads; i++)
        pthread_create(&started[i], NULL, run, (void *)(uintptr_t)(i + 1));
    for (i = 0; i < threads; i++)
        pthread_join(started[i], NULL);
    for (i = 0; i < SHARED; i++)
        if (shared[i].p)
            end(&shared[i]);
    return wrong;
}

/* Whether what was not taken is refused: what was given already, and an address within what was. */
int refusals(void)
{
    char *p = server.take(server.heap, 3 * PAGE, 0);
    int refused = !server.give(server.heap, p + PAGE) && server.size(server.heap, p + PAGE) == 0;
    refused = refused && server.give(server.heap, p) && server.size(server.heap, p) == 0;
    return refused && !server.give(server.heap, p);
}
