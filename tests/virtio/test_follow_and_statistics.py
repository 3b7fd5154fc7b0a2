"""What a balloon does at its host's wish: following a target, as far as that can be done, and figures."""

from __future__ import annotations

import numpy as np
import pytest
from balloon_model import BalloonModel, driven

import pagehint as ph
from pagehint.virtio.pci import VERSION_1
from pagehint.virtio.queue_numbers import REPORTING

SPAN = 4096


def made(**options):
    model = BalloonModel()
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 0, SPAN)], **options)
    return model, pages, driven(model, pages=pages)


@pytest.mark.parametrize("pcp", [False, True])
@pytest.mark.parametrize("target", [SPAN + 1, 1 << 20, (1 << 32) - 1])
def test_a_target_over_what_is_free_inflated_nothing(target, pcp):
    model, pages, balloon = made(pcp=pcp)
    kept = pages.alloc_pages_bulk(1000)
    single = pages.alloc_pages()
    model.target = target
    assert balloon.follow() == balloon.actual == model.actual == SPAN - 1001
    assert pages.stats().allocated_pages == SPAN
    assert balloon.follow() == 0, "there is no more"
    pages.free_pages(single)
    assert balloon.follow() == 1, "what has become free since"
    pages.free_pages_bulk(kept)
    assert balloon.follow() == 1000
    model.target = 10
    assert balloon.follow() == 10 - SPAN
    assert pages.stats().allocated_pages == model.actual == 10
    pages.verify()


def test_a_target_is_followed_down_to_the_watermark_and_no_further():
    model, pages, balloon = made(pcp=False, watermarks=(700, 800, 900))
    model.target = SPAN
    grown = balloon.follow()
    assert grown == balloon.actual > SPAN - 800
    with pytest.raises(ph.OutOfMemoryError):
        pages.alloc_pages()
    assert balloon.follow() == 0


def test_a_target_is_not_followed_beyond_what_came_of_another():
    model, _, balloon = made(pcp=False)
    balloon.inflate(100)
    model.target = 200
    assert balloon.follow() == 100
    assert [len(data) // 4 for name, _, data in model.sent if name == "inflate"] == [100, 100]


def statistics(model):
    """Return the figures that the device has, by tag."""
    last = [data for name, _, data in model.sent if name == "statistics"][-1]
    return {int(tag): int(value) for tag, value in np.frombuffer(last, [("tag", "<u2"), ("value", "<u8")])}


def test_a_host_that_polls_from_the_beginning_got_no_statistics():
    model, pages, balloon = made(pcp=False)
    assert statistics(model) == {4: SPAN * 4096, 5: SPAN * 4096, 6: SPAN * 4096}
    assert not balloon.send_statistics(), "it has not asked anew"
    kept = pages.alloc_pages_bulk(96)
    assert model.ask_for_statistics()
    assert balloon.send_statistics()
    assert statistics(model) == {4: 4000 * 4096, 5: SPAN * 4096, 6: 4000 * 4096}
    pages.free_pages_bulk(kept)
    model.system_reset()
    assert balloon.target == 0
    assert statistics(model)[4] == SPAN * 4096, "the device that is started again has them, too"


def test_every_request_answers_a_host_that_polls():
    model, _, balloon = made(pcp=False)
    for request in (
        lambda: balloon.target,
        lambda: balloon.inflate(1),
        lambda: balloon.deflate(1),
        lambda: balloon.report([0], [4096]),
    ):
        model.sent.clear()
        assert model.ask_for_statistics()
        request()
        assert model.names()[0] == "statistics"
        model.sent.clear()
        request()
        assert "statistics" not in model.names()


def test_a_balloon_without_an_allocator_has_no_statistics():
    model = BalloonModel()
    balloon = driven(model)
    assert model.accepted == VERSION_1 | REPORTING
    with pytest.raises(ValueError, match="without an allocator"):
        balloon.send_statistics()
