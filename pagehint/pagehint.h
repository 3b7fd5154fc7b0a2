/* The C interface of a compiled reporting function.
 *
 * Give such a function to PageHintingCallbacks as a scipy.LowLevelCallable, or in a PyCapsule whose name is
 * PAGEHINT_HINT_SIGNATURE; the capsule's context is passed on as `user_data`. The function runs without the GIL and
 * with no lock held, on the worker's thread, or with workqueue="manual" on the thread that runs the work. `blocks` and
 * `failed` belong to the caller, and are valid until the function returns.
 */
#ifndef PAGEHINT_H
#define PAGEHINT_H

#include <stddef.h>
#include <stdint.h>

typedef struct pagehint_block {
    uint64_t pfn;   /* the block's first page frame number */
    uint32_t order; /* it has 2**order pages */
    uint32_t zone;  /* its zone's index in PageAllocator.zones */
} pagehint_block;

/* Report `n` blocks to the host. Returns 0, or a negative errno if the host has taken none of them. A single block that
 * it has not taken is marked by a byte other than 0 in `failed`, which has `n` bytes that are all 0 on entry. */
typedef int (*pagehint_hint_fn)(const pagehint_block *blocks, size_t n, uint8_t *failed, void *user_data);

#define PAGEHINT_HINT_SIGNATURE "int (const pagehint_block *, size_t, uint8_t *, void *)"

#endif
