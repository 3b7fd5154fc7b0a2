"""The numbers of a balloon's queues, of devices that count them in each way, with each combination of features."""

from __future__ import annotations

from itertools import product

import pytest
from balloon_model import BalloonModel, driven

import pagehint as ph
from pagehint.virtio.pci import VERSION_1
from pagehint.virtio.queue_numbers import FREE_PAGE_HINT, REPORTING, STATS_VQ, queue_numbers

COMBINATIONS = [sum(bits) for bits in product((0, STATS_VQ), (0, FREE_PAGE_HINT), (0, REPORTING))]


@pytest.mark.parametrize("numbering", ["fixed", "all", "offered", "negotiated"])
@pytest.mark.parametrize("features", COMBINATIONS, ids=hex)
def test_reports_went_to_the_statistics_queue_of_a_device_with_fixed_numbers(features, numbering):
    model = BalloonModel(VERSION_1 | features, numbering)
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 0, 4096)], pcp=False)
    balloon = driven(model, pages=pages)
    model.sent.clear()
    expected = ["inflate", "deflate"]
    balloon.inflate(1)
    balloon.deflate(1)
    if features & REPORTING:
        balloon.report([0], [4096])
        expected.append("reporting")
    else:
        with pytest.raises(ph.HostError, match="does not offer free page reporting"):
            balloon.report([0], [4096])
    assert [name for name in model.names() if name != "statistics"] == expected
    if features & STATS_VQ:
        model.sent.clear()
        model.ask_for_statistics()
        assert balloon.send_statistics()
        assert model.names() == ["statistics"]
    else:
        with pytest.raises(ph.HostError, match="does not offer statistics"):
            balloon.send_statistics()


@pytest.mark.parametrize(
    ("offered", "accepted", "there", "reporting"),
    [
        (STATS_VQ | REPORTING, STATS_VQ | REPORTING, 5, 4),
        (STATS_VQ | REPORTING, STATS_VQ | REPORTING, 4, 3),  # QEMU's
        (STATS_VQ | FREE_PAGE_HINT | REPORTING, STATS_VQ | REPORTING, 5, 4),
        (STATS_VQ | FREE_PAGE_HINT | REPORTING, STATS_VQ | REPORTING, 4, 3),
        (STATS_VQ | REPORTING, REPORTING, 4, 3),
        (STATS_VQ | REPORTING, REPORTING, 3, 2),
        (REPORTING, REPORTING, 3, 2),
    ],
)
def test_which_queues_are_there_decides(offered, accepted, there, reporting):
    numbers = queue_numbers(offered, accepted, lambda number: 32 * (number < there))
    assert numbers["reporting"] == reporting
    assert (numbers["inflate"], numbers["deflate"]) == (0, 1)


def test_a_device_without_a_queue_that_it_offers_is_named():
    with pytest.raises(ph.HostError, match="lacks a queue, of inflate, deflate, reporting: it has none of number 2"):
        queue_numbers(REPORTING, REPORTING, lambda number: 32 * (number < 2))
