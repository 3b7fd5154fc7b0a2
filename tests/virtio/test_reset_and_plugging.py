"""A machine that is reset, a device that is unplugged and plugged in again: the driver goes on, and loses no page."""

from __future__ import annotations

from contextlib import suppress

import pytest
from balloon_model import BalloonModel, driven

import pagehint as ph
from pagehint.virtio import VirtioPci
from pagehint.virtio.queue_numbers import REPORTING, STATS_VQ

SPAN = 4096


@pytest.fixture(params=[0, -1], ids=["zeros", "ones"])
def model(request):
    made = BalloonModel()
    made.unmapped = request.param
    return made


@pytest.fixture
def pages():
    return ph.PageAllocator([ph.ZoneSpec("Normal", 0, SPAN)], pcp=False)


def plugged_in_elsewhere(model):
    model.unplug()
    model.plug(slot=7)


def plugged_in_again(model):
    model.unplug()
    model.plug()


LOSSES = (BalloonModel.system_reset, BalloonModel.device_reset, plugged_in_again, plugged_in_elsewhere)


@pytest.mark.parametrize("lose", LOSSES)
def test_a_target_was_0_or_all_ones_after_a_reset(model, pages, lose):
    balloon = driven(model, pages=pages)
    balloon.inflate(1000)
    model.target = 1000
    lose(model)
    assert balloon.target == 1000
    assert balloon.follow() == 0
    assert (balloon.actual, pages.stats().allocated_pages) == (1000, 1000)
    assert model.actual == 1000, "the device was told again"
    assert model.fenced == 0


@pytest.mark.parametrize("lose", LOSSES)
def test_a_reset_between_requests_was_a_time_out_and_the_end_of_the_host(model, pages, lose):
    balloon = driven(model, pages=pages)
    balloon.inflate(10)
    for request in (
        lambda: balloon.report([0], [4096]),
        lambda: balloon.inflate(10),
        lambda: balloon.deflate(5),
        balloon.send_statistics,
    ):
        lose(model)
        request()
        assert model.status == 0xF
    assert (balloon.actual, model.fenced) == (15, 0)
    assert model.actual == 15
    pages.verify()


@pytest.mark.parametrize("lose", LOSSES)
def test_a_reset_within_a_request_fails_it_and_the_next_one_works(model, pages, lose):
    balloon = driven(model, pages=pages)
    balloon.inflate(10)

    def lost(number):
        del model.notified
        lose(model)

    for request in (
        lambda: balloon.report([0], [4096]),
        lambda: balloon.inflate(10),
        lambda: balloon.deflate(5),
    ):
        model.notified = lost
        with pytest.raises(ph.HostError, match=r"the device has been reset") as caught:
            request()
        assert not isinstance(caught.value, ph.HostTimeoutError)
        assert (balloon.actual, pages.stats().allocated_pages) == (10, 10)
        balloon.report([0], [4096])
    assert model.actual == 10
    assert model.fenced == 0


def test_an_unplugged_device_keeps_its_pages_out_until_there_is_one_again(model, pages):
    balloon = driven(model, pages=pages)
    balloon.inflate(10)
    model.unplug()
    for request in (
        lambda: balloon.target,
        balloon.follow,
        lambda: balloon.report([0], [4096]),
        lambda: balloon.inflate(10),
        lambda: balloon.deflate(5),
        balloon.send_statistics,
    ):
        with pytest.raises(ph.HostError, match="no virtio device 5"):
            request()
        assert (balloon.actual, pages.stats().allocated_pages) == (10, 10)
    model.plug(slot=9)
    assert balloon.follow() == -10
    assert (balloon.actual, pages.stats().allocated_pages, model.fenced) == (0, 0, 0)
    pages.verify()


class Struck:
    """The wire of a model whose machine is reset before one of the driver's accesses, counted from now on."""

    def __init__(self, model):
        self.model = model
        self.left = -1

    def __getattr__(self, name):
        def access(*arguments):
            self.left -= 1
            if not self.left:
                self.model.system_reset()
            return getattr(self.model, name)(*arguments)

        return access


def test_a_reset_at_any_access_of_the_next_start_is_no_start(model, pages):
    """Writes to a BAR that is not mapped are lost, and it reads as zero: so does a device that has just been reset."""
    balloon = driven(model, pages=pages)
    balloon.inflate(10)
    model.target = 20
    wire = balloon._transport._wire = Struck(model)
    done = 0
    while True:
        model.system_reset()
        wire.left = done + 1
        with suppress(ph.HostError):
            assert balloon.target == 20
        if wire.left > 0:
            break
        done += 1
        assert model.fenced == 0
        assert (balloon.target, balloon.actual) == (20, 10)
        assert model.status == 0xF
        assert model.actual == 10
    assert done > 50


def test_a_device_that_is_plugged_in_with_fewer_features_says_what_it_cannot(model, pages):
    balloon = driven(model, pages=pages)
    balloon.inflate(10)
    model.unplug()
    model.offered &= ~(REPORTING | STATS_VQ)
    model.plug()
    with pytest.raises(ph.HostError, match="plugged in does not offer free page reporting; the device has been reset"):
        balloon.report([0], [4096])
    with pytest.raises(ph.HostError, match="does not offer statistics"):
        balloon.send_statistics()
    assert balloon.follow() == -10
    model.unplug()
    model.offered |= REPORTING | STATS_VQ
    model.plug()
    assert balloon.target == 0
    balloon.report([0], [4096])
    balloon.inflate(10)
    model.unplug()
    balloon.forget()
    assert (pages.stats().allocated_pages, model.fenced) == (0, 0)


def test_resets_that_come_faster_than_a_start_were_the_end_of_the_host(model, pages):
    balloon = driven(model, pages=pages)
    balloon.inflate(10)
    real = model.write_port

    def write_port(port, nr_bytes, value):
        real(port, nr_bytes, value)
        if port == 0xCFC and model.selected & 0xFC == 0x10:
            model.system_reset()

    model.system_reset()
    model.write_port = write_port
    with pytest.raises(ph.HostError, match="was reset or unplugged while its BARs were placed"):
        balloon.report([0], [4096])
    del model.write_port
    assert (model.fenced, balloon.actual) == (0, 10)
    balloon.report([0], [4096])


@pytest.mark.parametrize("status", [0xFF, 0x7F, 0x8F, 0x0B, 0x1F, 0x00])
def test_a_status_that_cannot_be_is_an_error(model, status):
    transport = VirtioPci(model, 5)
    transport.negotiate(transport.features())
    transport.start()
    assert transport.status == 0xF
    model.status = 0x4F
    assert transport.status == 0x4F, "the device needs a reset"
    model.status = status
    with pytest.raises(ph.HostError, match=rf"its status is {status:#x}, and 0xf was set"):
        _ = transport.status
    model.unplug()
    with pytest.raises(ph.HostError, match="the device has been unplugged"):
        _ = transport.status


def test_a_reset_is_confirmed_by_the_device_and_not_by_a_bar_that_is_not_mapped(model):
    """A device that was moved off its address, and that nobody has reset, still has the memory."""
    transport = VirtioPci(model, 5, timeout=0.2)
    transport.negotiate(transport.features())
    transport.start()
    model.configuration[4] = 0  # nothing is decoded
    transport.reset()
    assert model.status == 0
    transport.negotiate(transport.features())
    model.set_register = lambda offset, value: None
    with pytest.raises(ph.HostTimeoutError, match="was not reset in"):
        transport.reset()


class Counted:
    """The wire of a model, on which each access waits for the other end once."""

    def __init__(self, model):
        self.model = model
        self.waits = 0

    def __getattr__(self, name):
        def access(*arguments):
            self.waits += 1
            return getattr(self.model, name)(*arguments)

        return access


def test_a_report_waited_for_the_device_twice(model):
    """To look first whether it was still in operation took as long as the report of some huge pages."""
    balloon = driven(model)
    wire = balloon._transport._wire = Counted(model)
    for _ in range(3):
        wire.waits = 0
        balloon.report([0, 8192], [4096, 4096])
        assert wire.waits == 1


@pytest.mark.parametrize("lose", LOSSES)
def test_a_reset_before_a_report_of_which_the_device_wants_no_word(model, pages, lose):
    balloon = driven(model, pages=pages)
    balloon.inflate(10)
    model.forbid_notifications("reporting")
    lose(model)
    balloon.report([0], [4096])
    assert model.names()[-1] == "reporting"
    assert (model.status, model.actual, model.fenced) == (0xF, 10, 0)


@pytest.mark.parametrize("lose", LOSSES)
def test_a_device_that_is_lost_before_each_notification_is_an_error_and_not_tried_for_ever(model, pages, lose):
    balloon = driven(model, pages=pages)
    balloon.inflate(10)
    real = model.read_then_write

    def lost(*arguments):
        lose(model)
        return real(*arguments)

    model.read_then_write = lost
    with pytest.raises(ph.HostError, match="reset or unplugged before it was notified; the device has been reset"):
        balloon.report([0], [4096])
    del model.read_then_write
    balloon.report([0], [4096])
    assert (balloon.actual, model.actual, model.fenced) == (10, 10, 0)


@pytest.mark.parametrize("lose", LOSSES)
def test_a_reset_between_the_look_and_the_notification_fails_a_report_and_the_next_one_works(model, lose):
    balloon = driven(model)
    real = model.write

    def lost(*arguments):
        del model.write
        lose(model)
        real(*arguments)

    model.write = lost
    with pytest.raises(ph.HostError, match="the device has been reset"):
        balloon.report([0], [4096])
    balloon.report([0], [4096])
    assert model.fenced == 0
