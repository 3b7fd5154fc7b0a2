/* What the preloaded library (`preload.c`) asks of the module that serves it (`serving.pyx`).
 *
 * The library is not linked with Python, and is in every process of a program, also in those that never load pagehint.
 */
#ifndef PAGEHINT_MALLOC_H
#define PAGEHINT_MALLOC_H

#include <stddef.h>
#include <stdint.h>

#define PAGEHINT_MALLOC_VERSION 1   /* of what follows; another one is refused */

/* An arena's heap, for as long as the process lives. No function takes the GIL, raises, or is called by a thread that is
 * inside of one of them already. */
typedef struct pagehint_malloc_server {
    unsigned version;
    size_t threshold;               /* bytes from which on a request is large */
    size_t page_size;               /* what is taken begins at a multiple of it */
    const char *base;               /* of the heap's addresses */
    const uint64_t *reached;        /* so many bytes from there on are the heap's; it grows, and is atomic */
    void *heap;                     /* the first argument of what follows */
    void *(*take)(void *heap, size_t size, int zeroed);     /* NULL: the C heap is to serve the request */
    size_t (*size)(void *heap, const void *p);              /* of what was taken, in bytes; else 0 */
    int (*resize)(void *heap, void *p, size_t size);        /* in its place; 0 if that cannot be */
    int (*give)(void *heap, void *p);                       /* free it; 0 if it is not what was taken */
} pagehint_malloc_server;

/* Have it serve large requests from now on. Returns 0, or EBUSY if another one does, EINVAL if it is of another version,
 * ENOTSUP if the C heap is not libc's, ENOMEM. */
typedef int (*pagehint_malloc_register_fn)(const pagehint_malloc_server *server);

#define PAGEHINT_MALLOC_REGISTER "pagehint_malloc_register"

#endif
