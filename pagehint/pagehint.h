/* The C side of pagehint: what a compiled reporting function looks like.
 *
 * Hand such a function to PageHintingCallbacks in a PyCapsule whose name is PAGEHINT_HINT_SIGNATURE and whose
 * context is passed on as `user_data`, or as a scipy.LowLevelCallable. It runs without the GIL, on the worker's
 * thread, with no lock held. The blocks are the caller's; they are not to be touched after it returns.
 */
#ifndef PAGEHINT_H
#define PAGEHINT_H

#include <stddef.h>
#include <stdint.h>

typedef struct pagehint_block {
    uint64_t pfn;   /* first page frame number */
    uint32_t order; /* 2**order pages */
    uint32_t zone;  /* index in PageAllocator.zones */
} pagehint_block;

/* Returns 0, or a negative errno when the whole batch failed. A block that failed alone is marked by a non-zero
 * byte in `failed`, which is all zero on entry. */
typedef int (*pagehint_hint_fn)(const pagehint_block *blocks, size_t n, uint8_t *failed, void *user_data);

#define PAGEHINT_HINT_SIGNATURE "int (const pagehint_block *, size_t, uint8_t *, void *)"

#endif
