"""When work is queued and run: the threshold, the delay, the back-off after a failure."""

from __future__ import annotations

from allocators import real


def test_work_is_queued_once_at_the_threshold(make, few_host):
    pages = make("64MiB")
    blocks = [pages.alloc_pages(9) for _ in range(20)]
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=5, delay=None):
        for i, block in enumerate(blocks[:10]):
            assert pages.stats().work_queued == (i >= 5)
            pages.free_pages(block, 9)
        assert few_host.blocks == []
        assert pages.run_pending() == 1
        assert pages.stats().hints_pending == 0
        assert pages.run_pending() == 0
        for block in blocks[10:]:
            pages.free_pages(block, 9)
        assert pages.stats().work_queued == 2


def test_a_free_during_a_run_makes_it_run_again(few_host):
    pages = real("64MiB")
    extra = [pages.alloc_pages_at(pfn, 9) for pfn in (0, 512)]
    last = pages.alloc_pages_at(8192, 9)
    few_host.answer = lambda blocks: pages.free_pages(extra.pop(), 9) if extra else None
    with pages.hinting(few_host.callbacks, workqueue="manual", mark_free=False, threshold=1, delay=None):
        pages.free_pages(last, 9)
        assert pages.run_pending() > 1  # the callback freed behind the cursor
        assert sorted(few_host.blocks) == [(0, 9), (512, 9), (8192, 9)]


def test_back_off_is_exponential(make, few_host, clock):
    pages = make("16MiB")
    few_host.answer = OSError("no")
    pages.enable_hinting(few_host.callbacks, workqueue="manual", clock=clock, delay=None)
    assert pages.run_pending() == 1
    for pause in (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0):
        clock.sleep(pause - 0.01)
        assert pages.run_pending() == 0
        clock.sleep(0.02)
        assert pages.run_pending() == 1
    few_host.answer = None
    clock.sleep(31)
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_settings_change_while_it_runs(make, few_host, clock):
    pages = make("128MiB")
    few_host.answer = lambda blocks: setattr(pages, "max_pages", 7)
    pages.enable_hinting(few_host.callbacks, workqueue="manual", clock=clock)
    assert (pages.max_pages, pages.threshold, pages.delay) == (2, 2, 2.0)
    pages.flush_hinting()
    assert [len(batch) for batch in few_host.batches][:3] == [2, 7, 7]
    pages.run_pending()
    few_host.take()
    assert pages.threshold == 7  # follows max_pages unless set
    pages.threshold, pages.delay = 50, None
    blocks = pages.alloc_pages_bulk(20, 9)
    pages.free_pages_bulk(blocks, 9)
    clock.sleep(1000)
    assert pages.run_pending() == 0
    pages.threshold = 10
    assert pages.run_pending() == 1
    pages.threshold, pages.delay = None, 5.0
    assert pages.threshold == 7
    pages.free_pages(pages.alloc_pages(9), 9)
    clock.sleep(5.1)
    assert pages.run_pending() == 1
    assert pages.stats().hints_pending == 0
    pages.disable_hinting()


def test_a_callback_that_frees_kept_run_pending_going_for_ever(make, few_host):
    """Each pass makes the next one due. A call ends all the same, and what is due is there for the next call."""
    pages = make("64MiB")
    blocks = [pages.alloc_pages(9) for _ in range(2)]

    def free_and_take(reported):
        blocks.append(pages.alloc_pages(9))
        pages.free_pages(blocks.pop(0), 9)

    few_host.answer = free_and_take
    with pages.hinting(few_host.callbacks, workqueue="manual", threshold=1):
        assert pages.run_pending() == 64
        few_host.answer = None
        few_host.take()
        pages.free_pages(blocks.pop(), 9)
        assert pages.run_pending() >= 1
        assert few_host.take()
        assert pages.run_pending() == 0
    pages.verify()
