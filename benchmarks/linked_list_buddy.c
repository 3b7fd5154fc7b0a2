/* The yardstick: a buddy allocator as kernels keep it, one list link pair and one byte of state for each page.
 * Twelve bytes a page, largest order 10, no locks, no checks. */
#include <stdint.h>
#include <stdlib.h>

enum { TOP = 10, FREE_HEAD = 0x80 };
#define NIL UINT32_MAX

struct page { uint32_t next, prev; uint8_t state, unused[3]; };
struct buddy { struct page *pages; uint64_t nr_pages; uint32_t first[TOP + 1]; };

static void push(struct buddy *b, uint32_t page, int order)
{
    uint32_t old = b->first[order];
    b->pages[page] = (struct page){old, NIL, (uint8_t)(FREE_HEAD | order), {0}};
    if (old != NIL)
        b->pages[old].prev = page;
    b->first[order] = page;
}

static void unlink_page(struct buddy *b, uint32_t page, int order)
{
    struct page *p = &b->pages[page];
    if (p->prev == NIL)
        b->first[order] = p->next;
    else
        b->pages[p->prev].next = p->next;
    if (p->next != NIL)
        b->pages[p->next].prev = p->prev;
    p->state = 0;
}

struct buddy *buddy_create(uint64_t nr_pages)
{
    struct buddy *b = malloc(sizeof *b);
    b->pages = calloc(nr_pages, sizeof *b->pages);
    b->nr_pages = nr_pages;
    for (int order = 0; order <= TOP; order++)
        b->first[order] = NIL;
    for (uint64_t page = nr_pages; page > 0; page -= 1 << TOP)
        push(b, (uint32_t)(page - (1 << TOP)), TOP);
    return b;
}

void buddy_destroy(struct buddy *b)
{
    free(b->pages);
    free(b);
}

void buddy_alloc(struct buddy *b, uint64_t *out, uint64_t n, int order)
{
    for (uint64_t i = 0; i < n; i++) {
        int from = order;
        while (b->first[from] == NIL)
            from++;
        uint32_t page = b->first[from];
        unlink_page(b, page, from);
        while (from > order) {
            from--;
            push(b, page + (1u << from), from);
        }
        out[i] = page;
    }
}

void buddy_free(struct buddy *b, const uint64_t *pfns, uint64_t n, int order)
{
    for (uint64_t i = 0; i < n; i++) {
        uint32_t page = (uint32_t)pfns[i];
        int o = order;
        while (o < TOP) {
            uint32_t other = page ^ (1u << o);
            if (b->pages[other].state != (FREE_HEAD | o))
                break;
            unlink_page(b, other, o);
            page &= other;
            o++;
        }
        push(b, page, o);
    }
}

uint64_t buddy_free_blocks(const struct buddy *b, int order)
{
    uint64_t n = 0;
    for (uint32_t page = b->first[order]; page != NIL; page = b->pages[page].next)
        n++;
    return n;
}
