"""Free page hinting: the host asks for one pass over what is free, and gets it as long as it wants it."""

from __future__ import annotations

import pytest
from balloon_model import ADDRESS, BalloonModel, driven

import pagehint as ph
from pagehint.virtio.pci import VERSION_1
from pagehint.virtio.queue_numbers import FREE_PAGE_HINT, REPORTING, STATS_VQ

FIRST = 0x8000_0000
MIB = 1 << 20
BLOCKS = [(16 * MIB + i * 4 * MIB, 2 * MIB) for i in range(10)]


@pytest.fixture(params=[False, True], ids=["as specified", "as QEMU"])
def model(request):
    made = BalloonModel(VERSION_1 | STATS_VQ | FREE_PAGE_HINT | REPORTING, queue_size=4)
    made.hides_command = request.param
    return made


def hint(balloon, blocks=BLOCKS):
    return balloon.hint(*zip(*blocks, strict=True))


def said(model):
    """Return what the hinting queue has got: the numbers of commands, and blocks."""
    got = []
    for name, buffers, data in model.sent:
        if name == "free page hint":
            got += [int.from_bytes(data, "little")] if data else buffers
    model.sent.clear()
    return got


def test_a_pass_is_an_id_blocks_and_a_stop(model):
    balloon = driven(model)
    model.ask_for_hints(FIRST)
    assert balloon.begin_hints()
    assert hint(balloon)
    balloon.end_hints()
    assert {len(buffers) for _, buffers, _ in model.sent} == {1}, "of a longer chain QEMU takes the first buffer alone"
    assert said(model) == [FIRST, *BLOCKS, 0]
    balloon.end_hints()
    assert not hint(balloon)
    assert said(model) == [], "there is no pass any more"


@pytest.mark.parametrize("forbidden", [False, True])
def test_a_device_that_missed_a_buffer_as_it_ended_a_pass_was_waited_for_in_vain(model, forbidden):
    balloon = driven(model)
    model.ask_for_hints(FIRST)
    assert balloon.begin_hints()
    if forbidden:
        model.forbid_notifications("free page hint")
    else:
        model.misses = 1
    balloon.end_hints()
    assert said(model) == [FIRST, 0]


@pytest.mark.parametrize("command", [0, 1])
@pytest.mark.parametrize("what", ["begin", "hint", "end"])
def test_a_machine_that_stopped_within_a_pass_was_waited_for_until_the_time_out(model, what, command, monkeypatch):
    balloon = driven(model)
    steps = {"begin": balloon.begin_hints, "hint": lambda: hint(balloon), "end": balloon.end_hints}
    model.ask_for_hints(FIRST)
    assert what == "begin" or balloon.begin_hints()
    with monkeypatch.context() as stopped:
        stopped.setattr(model, "notified", lambda number: model.ask_for_hints(command))
        assert not steps[what]()
    assert not hint(balloon)
    model.sent.clear()
    model.ask_for_hints(FIRST + 1)
    assert balloon.begin_hints()
    assert hint(balloon)
    balloon.end_hints()
    assert said(model) == [FIRST + 1, *BLOCKS, 0], "nothing is left of the pass before"


@pytest.mark.parametrize("command", [0, 1])
def test_a_host_that_does_not_ask_gets_nothing(model, command):
    balloon = driven(model)
    model.ask_for_hints(command)
    assert not balloon.begin_hints()
    assert not hint(balloon)
    balloon.end_hints()
    assert said(model) == []


@pytest.mark.parametrize("command", [0, 1, FIRST + 1])
def test_a_host_that_wants_no_more_or_another_pass_gets_no_more_of_this_one(model, command):
    balloon = driven(model)
    model.ask_for_hints(FIRST)
    assert balloon.begin_hints()
    assert hint(balloon, BLOCKS[:3])
    model.ask_for_hints(command)
    assert not hint(balloon, BLOCKS[3:])
    balloon.end_hints()
    assert said(model) == [FIRST, *BLOCKS[:3]]
    assert balloon.begin_hints() == (command > 1)
    assert said(model) == ([command] if command > 1 else [])


def test_a_host_that_ends_a_pass_between_two_buffers_gets_no_more(model):
    balloon = driven(model)
    model.ask_for_hints(FIRST)
    assert balloon.begin_hints()
    real, model.give_back = model.give_back, None

    def give_back(*arguments):
        real(*arguments)
        if model.sent[-1][1] == [BLOCKS[2]]:
            model.ask_for_hints(1)

    model.give_back = give_back
    assert not hint(balloon)
    assert said(model) == [FIRST, *BLOCKS[:4]], "four are in a queue"


def test_another_change_of_the_configuration_ends_no_pass():
    model = BalloonModel(VERSION_1 | FREE_PAGE_HINT)
    balloon = driven(model)
    model.ask_for_hints(FIRST)
    assert balloon.begin_hints()
    model.target, model.generation = 1000, model.generation + 1
    assert hint(balloon)
    assert said(model) == [FIRST, *BLOCKS]


def test_a_reset_ends_a_pass(model):
    balloon = driven(model)
    model.ask_for_hints(FIRST)
    assert balloon.begin_hints()
    model.system_reset()
    assert not hint(balloon)
    balloon.end_hints()
    assert said(model) == [FIRST]
    assert model.status == 0xF
    assert balloon.begin_hints()
    model.notified = lambda number: model.system_reset()
    with pytest.raises(ph.HostError, match=r"hinting failed: .* has been reset"):
        hint(balloon)
    del model.notified
    assert not hint(balloon)
    assert balloon.begin_hints()
    assert hint(balloon)


def test_what_cannot_be_hinted_is_refused(model):
    balloon = driven(model)
    model.ask_for_hints(FIRST)
    assert balloon.begin_hints()
    for address, nr_bytes, words in (
        (ADDRESS + 4096, 4096, "the driver's own memory"),
        (0, 0, "no range of guest-physical addresses"),
        (-4096, 4096, "no range of guest-physical addresses"),
        (64 * MIB, 5000, "whole 4096 bytes"),
    ):
        with pytest.raises(ValueError, match=words):
            balloon.hint([64 * MIB, address], [4096, nr_bytes])
    assert said(model) == [FIRST]
    with pytest.raises(ph.HostError, match="does not offer free page hinting"):
        driven(BalloonModel()).begin_hints()
    poisoned = BalloonModel(VERSION_1 | FREE_PAGE_HINT | 1 << 4)
    with pytest.raises(ph.HostError, match="hold the poison value"):
        hint(driven(poisoned, poison=0xAA))
    assert said(poisoned) == []


def test_a_pass_of_the_engine_names_all_that_is_free_and_nothing_in_use(model):
    balloon = driven(model)
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 4096, 65536)], pcp=False)
    kept = [pages.alloc_pages(9) for _ in range(64)]
    for pfn in kept[::2]:
        pages.free_pages(pfn, 9)
    model.ask_for_hints(FIRST)
    assert balloon.begin_hints()
    callbacks = ph.PageHintingCallbacks(
        lambda blocks: balloon.hint(blocks["pfn"] << 12, 4096 << blocks["order"].astype("u8")) and None, 8
    )
    with pages.hinting(callbacks, workqueue="manual", delay=None):
        pages.flush_hinting()
        assert pages.last_error is None
    balloon.end_hints()
    first, *blocks, last = said(model)
    assert (first, last) == (FIRST, 0)
    named = [address + at for address, nr_bytes in blocks for at in range(0, nr_bytes, 2 * MIB)]
    free = set(range(4096, 4096 + 65536, 512)) - set(kept[1::2])
    assert sorted(named) == [pfn << 12 for pfn in sorted(free)]
    pages.verify()
