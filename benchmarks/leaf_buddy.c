/* The second yardstick: the layout that pagehint has, with nothing around it. A leaf is 64 pages, whose free ones are the
 * bits of a word; it stands in the list of its largest free block. A block of whole leaves stands in the list of its
 * order by its first leaf. 17 bytes a leaf: 0.27 a page. No zones, migratetypes, statistics or hints, and no check of
 * what is freed.
 *
 * LOCK: each call takes a spinlock. CACHE: each thread has the last pages that it freed, up to 128, in front of that. */
#include <stdint.h>
#include <stdlib.h>

enum { TOP = 10, LEAF = 6, FULL = 255, CACHED = 128 };
#define NONE UINT32_MAX

struct leaf {
    uint64_t free;
    uint32_t next, prev;                /* leaves; NONE at the ends */
};

struct buddy {
    struct leaf *leaves;
    uint8_t *kinds;                     /* the list that the leaf is in, or FULL */
    uint64_t nr_leaves;
    uint32_t first[TOP + 1], nonempty;  /* by order, and a bit for each list that has any */
    int lock;
    struct cache {
        _Alignas(64) uint32_t pages[CACHED];
        int n;
    } caches[2];                        /* one a thread */
};

static const uint64_t aligned[LEAF + 1] = {
    0xffffffffffffffffULL, 0x5555555555555555ULL, 0x1111111111111111ULL, 0x0101010101010101ULL,
    0x0001000100010001ULL, 0x0000000100000001ULL, 0x0000000000000001ULL};

static inline void lock(struct buddy *b)
{
#ifdef LOCK
    while (__atomic_exchange_n(&b->lock, 1, __ATOMIC_ACQUIRE))
        while (__atomic_load_n(&b->lock, __ATOMIC_RELAXED))
            ;
#else
    (void)b;
#endif
}

static inline void unlock(struct buddy *b)
{
#ifdef LOCK
    __atomic_store_n(&b->lock, 0, __ATOMIC_RELEASE);
#else
    (void)b;
#endif
}

static inline void list_push(struct buddy *b, uint32_t i, int kind)
{
    struct leaf *l = &b->leaves[i];
    b->kinds[i] = (uint8_t)kind;
    l->next = b->first[kind];
    l->prev = NONE;
    if (l->next != NONE)
        b->leaves[l->next].prev = i;
    b->first[kind] = i;
    b->nonempty |= 1u << kind;
}

static inline void list_remove(struct buddy *b, uint32_t i, int kind)
{
    struct leaf *l = &b->leaves[i];
    if (l->next != NONE)
        b->leaves[l->next].prev = l->prev;
    if (l->prev != NONE)
        b->leaves[l->prev].next = l->next;
    else if ((b->first[kind] = l->next) == NONE)
        b->nonempty &= ~(1u << kind);
}

/* From the first pages of the free blocks of an order, those of the next. */
static inline uint64_t wider(uint64_t starts, int order)
{
    return starts & starts >> (1 << order) & aligned[order + 1];
}

/* Of the largest free block in a leaf that is neither free as a whole nor full: without a branch. */
static inline int largest_order(uint64_t free)
{
    int largest = -1;
    for (int order = 0; order < LEAF; order++) {
        largest += free != 0;
        free = wider(free, order);
    }
    return largest;
}

/* The first page of a smallest free block of at least the order. There is one. */
static inline int smallest_block(uint64_t free, int order)
{
    uint64_t starts = free, next, alone;
    for (int o = 0; o < order; o++)
        starts = wider(starts, o);
    for (;; order++) {
        next = order < LEAF ? wider(starts, order) : 0;
        alone = starts & ~(next | next << (1 << order));
        if (alone)
            return __builtin_ctzll(alone);
        starts = next;
    }
}

static inline uint64_t take(struct buddy *b, int order)
{
    uint32_t lists = b->nonempty >> order << order;
    if (lists == 0)
        return NONE;
    int from = __builtin_ctz(lists), kind;
    uint32_t i = b->first[from];
    if (from >= LEAF) {
        list_remove(b, i, from);
        while (from > order && from > LEAF) {   /* keep the front, give back the halves behind it */
            from--;
            list_push(b, i + (1u << (from - LEAF)), from);
        }
        b->kinds[i] = FULL;
        if (order >= LEAF)
            return (uint64_t)i << LEAF;
        b->leaves[i].free = ~0ULL;
    }
    uint64_t free = b->leaves[i].free;
    int at = smallest_block(free, order);
    free &= ~((~0ULL >> (64 - (1 << order))) << at);
    b->leaves[i].free = free;
    kind = free ? largest_order(free) : FULL;
    if (kind != from) {
        if (from < LEAF)
            list_remove(b, i, from);
        if (kind != FULL)
            list_push(b, i, kind);
        else
            b->kinds[i] = FULL;
    }
    return (uint64_t)i << LEAF | (uint64_t)at;
}

static inline void give(struct buddy *b, uint64_t page, int order)
{
    uint32_t i = (uint32_t)(page >> LEAF);
    if (order < LEAF) {
        uint64_t mask = (~0ULL >> (64 - (1 << order))) << (page & 63), free = b->leaves[i].free;
        int old = b->kinds[i];
        b->leaves[i].free = free |= mask;
        if (~free) {
            int kind = largest_order(free);
            if (kind != old) {
                if (old != FULL)
                    list_remove(b, i, old);
                list_push(b, i, kind);
            }
            return;
        }
        if (old != FULL)
            list_remove(b, i, old);
        order = LEAF;
    }
    for (; order < TOP; order++) {
        uint32_t mate = i ^ 1u << (order - LEAF);
        if (b->kinds[mate] != order)
            break;
        list_remove(b, mate, order);
        b->kinds[mate] = FULL;
        i &= ~(1u << (order - LEAF));
    }
    list_push(b, i, order);
}

/* ---- one call a block: not inlined, as a compiler would make next to nothing of a page that is taken and given back */

static __attribute__((noinline)) uint64_t take_one(struct buddy *b, struct cache *c, int order)
{
    uint64_t page;
#ifdef CACHE
    if (order == 0) {
        if (c->n == 0) {
            lock(b);
            while (c->n < CACHED / 2 && (page = take(b, 0)) != NONE)
                c->pages[c->n++] = (uint32_t)page;
            unlock(b);
        }
        return c->n ? c->pages[--c->n] : NONE;
    }
#else
    (void)c;
#endif
    lock(b);
    page = take(b, order);
    unlock(b);
    return page;
}

static __attribute__((noinline)) void give_one(struct buddy *b, struct cache *c, uint64_t page, int order)
{
#ifdef CACHE
    if (order == 0) {
        if (c->n == CACHED) {
            lock(b);
            for (int i = 0; i < CACHED / 2; i++)
                give(b, c->pages[i], 0);
            unlock(b);
            for (int i = 0; i < CACHED / 2; i++)
                c->pages[i] = c->pages[i + CACHED / 2];
            c->n = CACHED / 2;
        }
        c->pages[c->n++] = (uint32_t)page;
        return;
    }
#else
    (void)c;
#endif
    lock(b);
    give(b, page, order);
    unlock(b);
}

/* ---- what Python calls, as of linked_list_buddy.c; `me` is the thread, 0 or 1 */

void buddy_destroy(struct buddy *b)
{
    if (b != NULL) {
        free(b->leaves);
        free(b->kinds);
    }
    free(b);
}

struct buddy *buddy_create(uint64_t nr_pages)
{
    struct buddy *b = aligned_alloc(64, sizeof *b);
    if (b == NULL)
        return NULL;
    *b = (struct buddy){.nr_leaves = nr_pages >> LEAF};
    b->leaves = calloc(b->nr_leaves, sizeof *b->leaves);
    b->kinds = malloc(b->nr_leaves);
    if (b->leaves == NULL || b->kinds == NULL) {
        buddy_destroy(b);
        return NULL;
    }
    for (uint64_t i = 0; i < b->nr_leaves; i++)
        b->kinds[i] = FULL;
    for (int order = 0; order <= TOP; order++)
        b->first[order] = NONE;
    for (uint64_t end = b->nr_leaves; end > 0; end -= 1u << (TOP - LEAF))
        list_push(b, (uint32_t)(end - (1u << (TOP - LEAF))), TOP);
    return b;
}

uint64_t buddy_alloc(struct buddy *b, int me, int order, uint64_t *pfns, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if ((pfns[i] = take_one(b, &b->caches[me], order)) == NONE)
            return i;
    return n;
}

void buddy_free(struct buddy *b, int me, int order, const uint64_t *pfns, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        give_one(b, &b->caches[me], pfns[i], order);
}

uint64_t buddy_pairs(struct buddy *b, int me, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint64_t page = take_one(b, &b->caches[me], 0);
        if (page == NONE)
            return i;
        give_one(b, &b->caches[me], page, 0);
    }
    return n;
}

struct op {
    uint32_t slot;
    uint16_t order, op;
};

uint64_t buddy_run_ops(struct buddy *b, int me, const struct op *ops, uint64_t n, uint64_t *table)
{
    for (uint64_t i = 0; i < n; i++) {
        if (ops[i].op)
            give_one(b, &b->caches[me], table[ops[i].slot], ops[i].order);
        else if ((table[ops[i].slot] = take_one(b, &b->caches[me], ops[i].order)) == NONE)
            return i;
    }
    return n;
}

/* Empty the caches. */
void buddy_drain(struct buddy *b)
{
    for (int me = 0; me < 2; me++)
        while (b->caches[me].n)
            give(b, b->caches[me].pages[--b->caches[me].n], 0);
}

/* Whether all of it is free, in blocks of the largest order. */
int buddy_is_whole(const struct buddy *b)
{
    uint64_t n = 0;
    for (uint32_t i = b->first[TOP]; i != NONE; i = b->leaves[i].next)
        n++;
    return n << (TOP - LEAF) == b->nr_leaves;
}
