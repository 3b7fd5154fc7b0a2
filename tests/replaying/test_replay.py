"""`PageAllocator.replay`, `run_until` and `next_due`: parts of blocks, time, what is refused, and what stops it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from allocators import free_set, real
from hosts import RecordingHost
from processes import in_child, run_code

import pagehint as ph
from pagehint.traces import OPERATION_DTYPE, Operation, Operations

TAKE, GIVE, SET_TYPE, ISOLATE, PUTBACK, MARK, LOST = Operation
SECOND = 10**9


def table(*rows):
    """Operations as (time in seconds, op, pfn, order), and perhaps a migratetype."""
    made = np.zeros(len(rows), OPERATION_DTYPE)
    for row, (time, op, pfn, order, *migratetype) in zip(made, rows, strict=True):
        row["time"], row["op"], row["pfn"], row["order"] = round(time * SECOND), op, pfn, order
        row["migratetype"] = migratetype[0] if migratetype else 1
    made["row"] = np.arange(len(rows)) + 1000
    return made


def hinted(size="64MiB", host=None, clock=0.0, **options):
    """An allocator without page sets whose hinting goes by a clock that is set by hand."""
    pages = real(size)
    host = host or RecordingHost()
    pages.enable_hinting(host.callbacks, workqueue="manual", clock=clock, **options)
    return pages, host


# ---- in parts


def test_a_huge_block_is_given_back_page_by_page_and_in_parts_of_any_size():
    pages = real("64MiB")
    pfn, rows = 512, [(0, TAKE, 512, 9)]
    for order in (8, 7, 6, 5, 4, 3, 2, 1, 0, 0):
        rows.append((1, GIVE, pfn, order))
        pfn += 1 << order
    rows += [(1, TAKE, 1024, 10), *[(2, GIVE, 1024 + page, 0) for page in np.random.default_rng(1).permutation(1024)]]
    result = pages.replay(table(*rows), strict=True)
    assert result.counts["give"] == 10 + 1024
    assert pages.zones[0].free_pages == pages.zones[0].managed_pages
    pages.verify()


def test_several_blocks_are_given_back_as_one():
    pages = real("64MiB")
    rows = [(0, TAKE, page, 0) for page in range(64, 192)] + [(0, TAKE, 192, 6), (0, TAKE, 256, 8), (1, GIVE, 0, 9)]
    with pytest.raises(ph.BadPageError, match=r"operation 130, row 1130, 1\.0+ s, order 9.*already free"):
        pages.replay(table(*rows), strict=True)
    assert pages.stats().allocated_pages == 448
    pages.replay(table((0, TAKE, 0, 5), (0, TAKE, 32, 5), (1, GIVE, 0, 9)), strict=True)
    assert pages.stats().allocated_pages == 0
    pages.verify()


def test_what_is_left_of_a_block_can_be_freed_by_hand():
    pages = real("64MiB")
    pages.alloc_pages_at(0, 3)
    pages.replay(table((0, GIVE, 2, 1)), strict=True)
    for pfn in (0, 4, 6):
        pages.free_pages(pfn, 1)
    pages.alloc_pages_at(512, 9)
    pages.replay(table((0, GIVE, 512 + 64, 6)), strict=True)
    for pfn, order in ((512, 6), (640, 7), (768, 8)):
        pages.free_pages(pfn, order)
    assert pages.stats().allocated_pages == 0
    pages.verify()


def test_a_part_that_is_given_makes_no_hint_flicker():
    pages, host = hinted(threshold=1, delay=None)
    pages.flush_hinting()
    host.take()
    before = pages.stats()
    rows = [(1, TAKE, 512, 9), *[(2, GIVE, page, 0) for page in range(512, 1023)]]
    pages.replay(table(*rows), strict=True)
    after = pages.stats()
    assert (host.blocks, after.hints_set, after.hints_pending) == ([], before.hints_set, 0)
    pages.replay(table((3, GIVE, 1023, 0)), strict=True)
    assert host.blocks == [(512, 9)]


def test_a_part_of_a_run_is_refused_and_left_alone():
    pages = real("64MiB")
    pfn = pages.alloc_pages_exact(200)
    result = pages.replay(table(*[(0, GIVE, pfn + at, 6) for at in (0, 64, 128)], (0, GIVE, pfn + 192, 3)))
    assert result.contradictions == {"give of a part of a run": 4}
    pages.free_pages_exact(pfn, 200)
    pages.verify()


def test_every_page_of_a_zone_is_taken_and_given_by_every_order():
    for top in (10, 5, 0):
        pages = ph.PageAllocator([ph.ZoneSpec("Normal", 5, 3000, holes=[(100, 7)])], pcp=False, max_page_order=top)
        free = pages.zones[0].free_blocks().tolist()
        for order in range(top + 1):
            taken = [(0, TAKE, pfn, o) for pfn, o in free]
            given = [(1, GIVE, at, order) for at in range(0, 3008, 1 << order)]
            rest = [(2, GIVE, at, 0) for at in range(5, 3005)]
            pages.replay(table(*taken, *given, *rest))
            assert pages.zones[0].free_blocks().tolist() == free
            pages.verify()


# ---- what is refused


def test_contradictions_are_counted_by_cause_with_their_first_examples():
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 64, 4000, holes=[(1000, 30)])], pcp=False)
    pages.alloc_pages_at(64, 0)
    pages.set_migratetype(2048, 512, "isolate")
    before = free_set(pages)
    rows = [
        *[(1, TAKE, 64, order) for order in (0, 0, 0, 1, 5)],
        (1, TAKE, 65, 1),
        (1, TAKE, 7, 0),
        (1, TAKE, 1000, 1),
        (1, TAKE, 2048, 0),
        (1, TAKE, 128, 11),
        (1, TAKE, 128, -1),
        (1, GIVE, 128, 0),
        (1, GIVE, 1000, 3),
        (1, GIVE, 1 << 60, 3),
        (1, ISOLATE, 64, 2),
        (1, 9, 64, 2),
        (1, 0, 64, 2),
        (1, MARK, 0, -1),
        (1, LOST, 77, -1),
        (1, SET_TYPE, 64, 0, 4),
        (0.5, TAKE, 64, 0),
    ]
    result = pages.replay(table(*rows))
    assert result.contradictions == {
        "take of what is in use": 7,
        "take not aligned to the order": 1,
        "take outside every zone": 1,
        "take in a pageblock of type isolate": 1,
        "take of an order out of range": 2,
        "give of what is free": 1,
        "give of pages without memory": 1,
        "give outside every zone": 1,
        "isolate of what is in use": 1,
        "unknown operation": 2,
        "time falls": 1,
    }
    assert [(each.row, each.pfn, each.order) for each in result.examples["take of what is in use"]] == [
        (1000, 64, 0),
        (1001, 64, 0),
        (1002, 64, 0),
    ]
    assert (result.wrong_pages_at_reports, result.unmodelled_types) == (1, 1)
    assert result.counts == {
        "take": 0, "give": 0, "set_type": 1, "isolate": 0, "putback": 0, "mark": 1, "lost": 1
    }  # fmt: skip
    assert free_set(pages) == before
    for row, cause in (
        (0, "not all free"),
        (6, "outside every zone"),
        (7, "in a hole"),
        (9, "order out of range"),
        (11, "already free"),
        (14, "isolate of what is in use"),
        (15, "unknown operation"),
    ):
        said = f"operation 0, row {1000 + row}.*{cause}.*nothing was changed"
        with pytest.raises(ph.BadPageError, match=said) as refused:
            pages.replay(table(*rows)[row:], strict=True)
        assert refused.value.index == 0
    assert free_set(pages) == before
    pages.verify()


def test_pageblocks_get_the_kernel_s_migratetypes():
    pages = real("64MiB")
    pages.alloc_pages_at(600, 0)
    pages.replay(table((0, SET_TYPE, 600, 0, 0), (0, SET_TYPE, 1024, 10, 2)), strict=True)
    counts = pages.pagetypeinfo().splitlines()[-1].split()[4:]
    assert counts == ["1", "29", "2", "0"]
    pages.set_migratetype(512, 512, "isolate")
    pages.replay(table((0, SET_TYPE, 512, 9, 1), (0, GIVE, 600, 0)), strict=True)
    assert pages.pagetypeinfo().splitlines()[-1].split()[4:] == ["0", "30", "2", "0"]
    pages.verify()


def test_what_cannot_be_replayed_on_is_refused():
    rows = table((0, TAKE, 512, 9))
    with pytest.raises(ph.PageHintError, match=r"PageAllocator\(pcp=False\)"):
        ph.PageAllocator("64MiB").replay(rows)
    with ph.Arena("4MiB") as arena, pytest.raises(ph.PageHintError, match=r"arena|page sets"):
        arena.pages.replay(rows)
    for options, why in (
        ({}, "workqueue='manual'"),
        ({"workqueue": "manual"}, "there is no clock="),
        ({"workqueue": "manual", "clock": lambda: 0.0}, "clock=<seconds>"),
    ):
        pages = real("64MiB")
        pages.enable_hinting(RecordingHost().callbacks, **options)
        with pytest.raises(ph.PageHintError, match=why):
            pages.replay(rows)
        assert pages.stats().allocated_pages == 0
        pages.disable_hinting()
    pages, _ = hinted(clock=10.0)
    with pytest.raises(ValueError, match=r"begin at 0\.0 s, and it is 10\.0 s already"):
        pages.replay(rows)
    for wrong in ([1, 2], np.zeros(3), np.zeros((2, 2), OPERATION_DTYPE), np.zeros(1, ph.OP_DTYPE), None):
        with pytest.raises(TypeError, match="OPERATION_DTYPE"):
            pages.replay(wrong)
    for options in ({"host_latency": -1.0}, {"host_latency": float("nan")}, {"host_rate": "fast"}, {"host_rate": 0}):
        with pytest.raises(ValueError, match=r"host_latency|size"):
            pages.replay(rows, **options)
    assert pages.stats().allocated_pages == 0


def test_operations_of_every_form_are_taken():
    rows = table((0, TAKE, 0, 0), (0, TAKE, 1, 0), (0, TAKE, 2, 0), (0, TAKE, 3, 0))
    pages = real("64MiB")
    rows.flags.writeable = False
    pages.replay(rows[::2], strict=True)
    pages.replay(Operations(rows[1::2], "all"), strict=True)
    pages.replay(rows[:0], strict=True)
    assert pages.stats().allocated_pages == 4
    pages = real("64MiB")
    pages.replay(np.frombuffer(b"x" + rows.tobytes(), np.uint8)[1:].view(OPERATION_DTYPE), strict=True)
    assert pages.stats().allocated_pages == 4


def test_a_time_that_no_clock_shows_does_not_run_over():
    pages, host = hinted(mark_free=False, delay=1e9, min_age=1e9)
    rows = table((1, TAKE, 0, 10), (2, GIVE, 0, 10), (3, MARK, 0, -1))
    rows["time"][1:] = np.iinfo(np.int64).max
    pages.replay(rows)
    assert host.blocks == []
    assert pages.next_due == 5e9


# ---- time


def test_passes_are_run_when_they_are_due_by_the_operations_times():
    pages, host = hinted(mark_free=False, delay=2.0, clock=5.0)
    told = []
    host.answer = lambda blocks: told.append(pages.now)
    rows = [(5, TAKE, 0, 10), (6, GIVE, 0, 10), (7.5, TAKE, 2048, 0), (8.5, GIVE, 2048, 0), (9, MARK, 0, -1)]
    result = pages.replay(table(*rows), strict=True)
    assert (told, host.blocks) == ([8.0], [(0, 10)])  # not that of 8.5 s, which would be due at 10.5 s
    assert (result.passes, result.reports, result.blocks_reported, result.bytes_reported) == (1, 1, 1, 4 << 20)
    assert pages.next_due == 10.5
    assert pages.run_until(10.4) == 0
    assert pages.now == 10.4
    assert pages.run_until(100) == 1
    assert (told, pages.now, pages.next_due) == ([8.0, 10.5], 100.0, None)


def test_time_goes_on_from_one_replay_to_the_next_and_not_back():
    pages, _ = hinted(mark_free=False, min_age=1.0)
    pages.replay(table((1, TAKE, 0, 10), (3, GIVE, 0, 10)))
    pages.replay(table((3, TAKE, 1024, 10)))
    with pytest.raises(ValueError, match="already"):
        pages.replay(table((2, TAKE, 2048, 10)))
    with pytest.raises(ValueError, match="time does not go back"):
        pages.run_until(2)


def test_next_due_is_reached_by_run_until_whatever_the_fraction():
    pages, host = hinted(mark_free=False, delay=1 / 3, clock=1e6 / 7)
    for n in range(200):
        pages.free_pages(pages.alloc_pages(10), 10)
        due = pages.next_due
        assert due is not None
        assert pages.run_until(due) == 1, n
    assert len(host.blocks) == 200


def test_run_until_goes_by_an_injected_clock_without_calling_it(clock, host):
    pages = real("64MiB")
    pages.enable_hinting(host.callbacks, workqueue="manual", clock=clock, mark_free=False)
    pages.free_pages(pages.alloc_pages(10), 10)
    assert pages.next_due == clock.now + 2
    seen = []
    host.answer = lambda blocks: seen.append(pages.now)
    assert pages.run_until(clock.now + 5) == 1
    assert seen == [clock.now + 2]


def test_run_until_is_refused_where_time_is_another_s():
    pages = real("64MiB")
    with pytest.raises(ph.HintingInactiveError):
        pages.run_until(1)
    with pytest.raises(ph.HintingInactiveError):
        _ = pages.next_due
    pages.enable_hinting(RecordingHost().callbacks)
    with pytest.raises(ph.PageHintError, match="workqueue='manual'"):
        pages.run_until(1)
    pages.disable_hinting()
    pages.enable_hinting(RecordingHost().callbacks, workqueue="manual")
    with pytest.raises(ph.PageHintError, match="no clock="):
        pages.run_until(1)
    pages.disable_hinting()


def test_a_callback_that_frees_each_time_does_not_stop_the_replay():
    pages, host = hinted(mark_free=False, threshold=1, delay=None)
    host.answer = lambda blocks: pages.free_pages(pages.alloc_pages(10), 10)
    result = pages.replay(table((1, TAKE, 0, 10), (2, GIVE, 0, 10), (3, MARK, 0, -1)))
    assert 64 <= result.passes <= 3 * 64


# ---- reports that take time


def test_a_take_of_what_is_out_waits_for_the_end_of_the_report():
    pages, host = hinted(mark_free=False, threshold=1, delay=None)
    rows = [
        (0, TAKE, 0, 10),
        (1, GIVE, 0, 10),  # out from 1 s to 1.5 s
        (1.1, TAKE, 1024, 3),  # not of the batch
        (1.2, TAKE, 7, 0),
        (1.3, TAKE, 6, 0),  # the block is back since then
        (1.4, GIVE, 1024, 3),
        (2, GIVE, 7, 0),
    ]
    result = pages.replay(table(*rows), strict=True, host_latency=0.5)
    assert (result.waits, result.wait_seconds, result.longest_wait_seconds) == (1, 0.3, 0.3)
    assert host.blocks == [(0, 10), (1024, 9)]
    assert pages.stats().allocated_pages == 1
    pages.verify()


def test_a_host_of_a_rate_has_one_batch_at_a_time():
    pages, host = hinted("64MiB", RecordingHost(max_pages=1), mark_free=False, threshold=4, delay=None)
    told = []
    host.answer = lambda blocks: told.append(pages.now)
    rows = [(0, TAKE, at, 10) for at in range(0, 4096, 1024)] + [(1, GIVE, at, 10) for at in range(0, 4096, 1024)]
    pages.replay(table(*rows, (10, MARK, 0, -1)), host_latency=0.25, host_rate="8MiB")
    assert told == [1.0, 1.75, 2.5, 3.25]


def test_pages_that_are_out_are_free_for_the_kernel_s_reports_and_for_what_frees_them_again():
    pages, _ = hinted(mark_free=False, threshold=1, delay=None)
    rows = [(0, TAKE, 0, 10), (1, GIVE, 0, 10), (1.1, ISOLATE, 0, 10), (1.2, GIVE, 5, 0), (1.3, TAKE, 1024, 0)]
    result = pages.replay(table(*rows), host_latency=0.5)
    assert result.contradictions == {"give of what is free": 1}
    assert (result.wrong_pages_at_reports, result.waits) == (0, 0)


def test_a_refused_take_leaves_what_is_out_where_it_is():
    pages, host = hinted(mark_free=False, threshold=1, delay=None)
    rows = [(0, TAKE, 0, 8), (0, TAKE, 512, 9), (1, GIVE, 512, 9), (1.1, TAKE, 0, 10), (1.2, TAKE, 512, 0)]
    result = pages.replay(table(*rows), host_latency=0.5)
    assert result.contradictions == {"take of what is in use": 1}
    assert (host.blocks, result.waits) == ([(512, 9)], 1)
    pages.verify()


def test_at_the_end_nothing_is_out():
    pages, _ = hinted(threshold=1)
    result = pages.replay(table((1, MARK, 0, -1)), host_latency=1000.0)
    assert (result.bytes_reported, pages.stats().reporting_pages, pages.now) == (64 << 20, 0, 1.0)
    pages.disable_hinting()
    pages.verify()


# ---- what stops it, and who looks on


MANY = np.zeros(400_000, OPERATION_DTYPE)
MANY["op"] = np.tile([TAKE, GIVE], 200_000)
MANY["time"] = np.arange(400_000) * 1000


def test_progress_is_told_and_stops_it():
    pages, told = real("64MiB"), []
    pages.replay(MANY, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (400_000, 400_000)
    assert len(told) >= 3
    assert told == sorted(told)

    def stop(done, total):
        raise LookupError("enough")

    with pytest.raises(LookupError, match="enough") as stopped:
        pages.replay(MANY, progress=stop)
    assert 0 < stopped.value.index < 400_000
    assert f"{stopped.value.index} of 400000 operations" in stopped.value.__notes__[0]
    pages.verify()


def test_progress_stops_it_while_a_report_is_out():
    pages, _ = hinted(threshold=1)

    def stop(done, total):
        assert pages.stats().reporting_pages > 0
        with pytest.raises(ph.HintingActiveError):
            pages.flush_hinting()
        raise LookupError("enough")

    with pytest.raises(LookupError):
        pages.replay(MANY, progress=stop, host_latency=1000.0)
    assert pages.stats().reporting_pages == 0
    pages.verify()
    pages.replay(table((1, MARK, 0, -1)))
    pages.disable_hinting()


def test_a_bar_is_shown(capfd):
    real("64MiB").replay(MANY, progress=True)
    assert "million operations/s" in capfd.readouterr().err


def test_ctrl_c_ends_a_long_replay_and_says_how_far_it_came():
    """The signal comes by processor time: surely while operations are carried out, however busy the machine is."""
    code = """
        import signal
        import numpy as np
        import pagehint as ph
        from pagehint.traces import OPERATION_DTYPE
        pages = ph.PageAllocator("64MiB", pcp=False)
        pages.enable_hinting(ph.PageHintingCallbacks(lambda blocks: None), workqueue="manual", clock=0.0)
        table = np.zeros(1 << 22, OPERATION_DTYPE)
        table["op"] = 1 + np.arange(1 << 22) % 2
        signal.signal(signal.SIGVTALRM, signal.default_int_handler)
        seen = []
        def begun(done, total):
            seen or signal.setitimer(signal.ITIMER_VIRTUAL, 1e-3)
            seen.append(done)
        try:
            pages.replay(table, host_latency=1e-6, progress=begun)
        except KeyboardInterrupt as error:
            print("interrupted", seen[0] <= error.index < 1 << 22)
        pages.disable_hinting()
        pages.verify()
    """
    assert run_code(code) == (0, "interrupted True\n", "")


def test_what_a_callback_raises_ends_the_replay():
    pages, host = hinted(threshold=1)
    host.answer = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as stopped:
        pages.replay(table((0, TAKE, 0, 0), (1, TAKE, 1, 0)))
    assert stopped.value.index == 0
    pages.disable_hinting()
    pages.verify()


def test_a_replay_from_inside_a_callback_is_refused():
    pages, host = hinted(threshold=1)
    caught = []

    def hint_pages(blocks):
        for call in (lambda: pages.replay(table((0, TAKE, 0, 0))), lambda: pages.run_until(5)):
            with pytest.raises(ph.HintingActiveError, match="inside a hinting callback"):
                call()
            caught.append(call)

    host.answer = hint_pages
    pages.replay(table((1, MARK, 0, -1)))
    assert caught


def test_another_thread_may_flush_and_disable_meanwhile_but_not_drive_the_clock():
    pages, _ = hinted(threshold=1)
    said, begun = [], threading.Event()

    def other():
        begun.wait()
        for call in (lambda: pages.run_until(10**6), lambda: pages.replay(MANY)):
            try:
                call()
            except ph.PageHintError as error:
                said.append(str(error))
        pages.disable_hinting()

    thread = threading.Thread(target=other)
    thread.start()

    def look(done, total):
        begun.set()
        thread.join(0.05)

    with pytest.raises(ph.HintingInactiveError, match="hinting was disabled"):
        pages.replay(MANY, progress=look)
    thread.join()
    assert len(said) == 2
    assert all("another thread drives the clock" in each for each in said)
    pages.verify()


def test_other_threads_allocate_and_free_meanwhile():
    # They prefer the other zone, which has room: what they have allocated is not to be given by the replay.
    pages, _ = hinted([ph.ZoneSpec("DMA", 0, 1 << 15), ph.ZoneSpec("Normal", 1 << 15, 1 << 15)], threshold=4)
    stop, rounds = threading.Event(), []

    def use():
        while not stop.is_set():
            for pfn in pages.alloc_pages_bulk(100, 3):
                pages.free_pages(pfn, 3)
            rounds.append(1)

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    rng = np.random.default_rng(2)
    rows = MANY.copy()
    rows["pfn"] = np.repeat(rng.integers(0, 1 << 15, len(rows) // 2), 2)
    try:
        result = pages.replay(rows, host_latency=1e-4)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert rounds
    assert (result.contradictions, result.counts["take"]) == ({}, len(rows) // 2)
    pages.verify()
    assert pages.stats().allocated_pages == 0


def test_ctrl_c_ends_run_until():
    code = """
        import signal
        import pagehint as ph
        pages = ph.PageAllocator("64MiB", pcp=False)
        signal.signal(signal.SIGVTALRM, signal.default_int_handler)
        seen = []
        def refuse(blocks):
            seen or signal.setitimer(signal.ITIMER_VIRTUAL, 1e-3)
            seen.append(pages.now)
            return False
        pages.enable_hinting(ph.PageHintingCallbacks(refuse), workqueue="manual", clock=0.0)
        try:
            pages.run_until(4e9)
        except KeyboardInterrupt:
            print("interrupted", pages.now >= seen[-1] > seen[0])
        pages.disable_hinting()
        pages.verify()
    """
    status, out, _ = run_code(code)
    assert (status, out) == (0, "interrupted True\n")


def test_a_forked_child_does_not_go_on():
    pages, _ = hinted(threshold=1)

    def child():
        with pytest.raises(ph.HintingInactiveError):
            pages.run_until(10)
        pages.verify()
        pages.enable_hinting(RecordingHost().callbacks, workqueue="manual", clock=0.0)
        pages.replay(table((1, MARK, 0, -1)))

    seen = []

    def fork(done, total):
        if not seen:
            seen.append(done)
            in_child(child)

    pages.replay(MANY, progress=fork, host_latency=1e-4)
    assert seen


def test_the_result_reads_well():
    pages, _ = hinted(threshold=1)
    result = pages.replay(table((1, TAKE, 0, 0), (2, TAKE, 0, 0), (3, ISOLATE, 0, 1)), host_latency=0.1)
    text = repr(result)
    assert "take of what is in use" in text
    assert "first at 2.000000 s, PFN 0x0, order 0, row 1001" in text
    assert "(in 1 of the kernel's)" in text
    assert "64 MiB" in text
    assert all(len(line) <= 120 for line in text.splitlines())
    assert "<table>" in result._repr_html_()
    assert result.to_dict()["contradictions"] == {"take of what is in use": 1, "isolate of what is in use": 1}
