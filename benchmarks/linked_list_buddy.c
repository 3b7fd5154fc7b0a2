/* The yardstick: a buddy allocator the way kernels keep one. Twelve bytes for every page, hold the links of the free
 * list its block is on, and whether it heads a free block and of which order. One list per order, the last freed first.
 * One zone, no lock, no migratetypes, and no check of what is freed: what it costs is what a buddy cannot do without. */
#include <stdint.h>
#include <stdlib.h>

enum { TOP = 10 };
#define NONE UINT32_MAX

struct page {
    uint32_t next, prev;        /* page numbers, NONE at the ends */
    uint8_t head;               /* 1 + order of the free block that begins here, else 0 */
};
_Static_assert(sizeof(struct page) == 12, "the yardstick has twelve bytes a page");

struct buddy {
    struct page *pages;
    uint64_t nr_pages;
    uint32_t first[TOP + 1];
};

static inline void list_push(struct buddy *b, uint32_t page, int order)
{
    struct page *p = &b->pages[page];
    p->next = b->first[order];
    p->prev = NONE;
    p->head = (uint8_t)(order + 1);
    if (p->next != NONE)
        b->pages[p->next].prev = page;
    b->first[order] = page;
}

static inline void list_remove(struct buddy *b, uint32_t page, int order)
{
    struct page *p = &b->pages[page];
    if (p->next != NONE)
        b->pages[p->next].prev = p->prev;
    if (p->prev != NONE)
        b->pages[p->prev].next = p->next;
    else
        b->first[order] = p->next;
    p->head = 0;
}

static inline uint32_t take(struct buddy *b, int order)
{
    int from = order;
    while (b->first[from] == NONE)
        if (++from > TOP)
            return NONE;
    uint32_t page = b->first[from];
    list_remove(b, page, from);
    while (from-- > order)      /* keep the front, give back the halves behind it */
        list_push(b, page + (1u << from), from);
    return page;
}

static inline void give(struct buddy *b, uint32_t page, int order)
{
    for (; order < TOP; order++) {
        uint32_t mate = page ^ 1u << order;
        if (b->pages[mate].head != order + 1)
            break;
        list_remove(b, mate, order);
        page &= ~(1u << order);
    }
    list_push(b, page, order);
}

void buddy_destroy(struct buddy *b)
{
    if (b != NULL)
        free(b->pages);
    free(b);
}

/* `nr_pages` is a multiple of the largest block, and below NONE. */
struct buddy *buddy_create(uint64_t nr_pages)
{
    struct buddy *b = calloc(1, sizeof *b);
    if (b == NULL || (b->pages = calloc(nr_pages, sizeof *b->pages)) == NULL) {
        buddy_destroy(b);
        return NULL;
    }
    b->nr_pages = nr_pages;
    for (int order = 0; order <= TOP; order++)
        b->first[order] = NONE;
    for (uint64_t end = nr_pages; end > 0; end -= 1u << TOP)    /* so that the list begins with low addresses */
        list_push(b, (uint32_t)(end - (1u << TOP)), TOP);
    return b;
}

/* Up to `n` blocks of an order; returns how many there were. */
uint64_t buddy_alloc(struct buddy *b, int order, uint64_t *pfns, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint32_t page = take(b, order);
        if (page == NONE)
            return i;
        pfns[i] = page;
    }
    return n;
}

void buddy_free(struct buddy *b, const uint64_t *pfns, int order, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        give(b, (uint32_t)pfns[i], order);
}

/* One page allocated and freed, `n` times. Returns how often there was one. */
uint64_t buddy_pairs(struct buddy *b, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        uint32_t page = take(b, 0);
        if (page == NONE)
            return i;
        give(b, page, 0);
    }
    return n;
}

/* The operations of `PageAllocator.run_ops`, in the same format: an allocation (0) puts the block's first page into a
 * slot of the table, a free (1) takes it from there. Returns how many were done before one found no memory. */
struct op {
    uint32_t slot;
    uint16_t order, op;
};

uint64_t buddy_run_ops(struct buddy *b, const struct op *ops, uint64_t n, uint64_t *table)
{
    for (uint64_t i = 0; i < n; i++) {
        if (ops[i].op) {
            give(b, (uint32_t)table[ops[i].slot], ops[i].order);
            continue;
        }
        uint32_t page = take(b, ops[i].order);
        if (page == NONE)
            return i;
        table[ops[i].slot] = page;
    }
    return n;
}

/* The free blocks by address, as far as there is room; returns how many there are. */
uint64_t buddy_list_free(const struct buddy *b, uint64_t *pfns, uint32_t *orders, uint64_t room)
{
    uint64_t n = 0;
    for (uint64_t page = 0; page < b->nr_pages; page++) {
        if (b->pages[page].head == 0)
            continue;
        if (n < room) {
            pfns[n] = page;
            orders[n] = b->pages[page].head - 1u;
        }
        n++;
    }
    return n;
}
