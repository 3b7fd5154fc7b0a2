"""A short run for valgrind: `.ci/sanitize memcheck`. Everything once, with threads, in a minute."""

import logging
import threading

import numpy as np

import pagehint as ph

logging.disable()  # the host fails on purpose

for pcp in (True, False):
    pages = ph.PageAllocator(
        [ph.ZoneSpec("DMA", 1, 4095), ph.ZoneSpec("Normal", 4096, 61440, holes=[(9000, 700)])], pcp=pcp
    )
    failing = iter([None, False, RuntimeError("host")])

    def hint_pages(blocks, failing=failing):
        answer = next(failing, None)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pages.hinting(ph.PageHintingCallbacks(hint_pages, 4), delay=0.01, threshold=1):

        def churn(pages=pages):
            for order in (0, 3, 5, 6, 9, 10):
                one = pages.alloc_pages(order)
                many = pages.alloc_pages_bulk(500 >> order, order)
                pages.free_pages_bulk(many, order)
                pages.free_pages(one, order)
            pages.free_pages_exact(pages.alloc_pages_exact(1234), 1234)

        threads = [threading.Thread(target=churn) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        pages.offline(32768, 32768)
        pages.set_migratetype(8192, 512, "isolate")
        pages.online(32768, 32768)
        pages.online(131072, 32768)
        pages.flush_hinting()
    ops = np.zeros(64, ph.OP_DTYPE)
    ops["slot"], ops["op"] = np.arange(64) % 32, np.arange(64) // 32
    pages.run_ops(ops, np.zeros(32, np.uint64))
    pages.drain_pcp()
    pages.verify()
    assert pages.stats().allocated_pages == 0
    pages.explain(), pages.buddyinfo(), pages.zoneinfo(), pages.pagetypeinfo()
with ph.Arena("16MiB") as arena, arena.hinting(delay=0.0):
    array = arena.empty((1000, 1000))
    array[:] = 1.0
    del array
    arena.pages.flush_hinting()
with ph.Arena("16MiB") as arena, arena.hinting(delay=0.0, min_age=0.01), arena.numpy():
    arena.limit = "8MiB"
    for _ in range(3):
        array = np.zeros(1 << 17)
        array += 1.0
        array.resize(1 << 18, refcheck=False)
        array.resize(1 << 14, refcheck=False)
        del array
        arena.trim()
    arena.status()
    repr(arena.pages.explain())
