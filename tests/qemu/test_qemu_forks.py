"""Forks, against a real QEMU: a child has nothing dropped that is its parent's."""

from __future__ import annotations

import subprocess

import pytest
from guests import MIB, filled, is_whole, small_host, without_qemu
from processes import in_child

import pagehint as ph
from pagehint.qemu.ram import FREE

pytestmark = without_qemu
host = pytest.fixture(small_host)


def test_a_forked_child_reads_and_does_not_allocate_and_leaves_qemu_alone(host):
    arena = host.arena()
    array = filled(arena, 4 * MIB)

    def child():
        assert is_whole(array)
        with pytest.raises(ph.PageHintError, match="belong to the process that this one was forked from"):
            arena.empty(10)
        with pytest.raises(ph.PageHintError, match="belong to the process that this one was forked from"):
            host.qmp("query-status")
        host.close()

    with arena.hinting():
        in_child(child)
        assert host.running
        assert is_whole(array)
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None


def test_a_forked_child_cannot_have_its_parents_memory_dropped(host):
    arena = host.arena()
    array = filled(arena, 40 * MIB)
    callbacks = host.callbacks()
    balloon = host.balloon
    balloon.inflate(10)

    def child():
        assert "resident" in repr(host)
        for call in (
            arena.hinting,
            host.callbacks,
            host.restart,
            lambda: balloon.report([FREE], [252 * MIB]),
            lambda: balloon.inflate(1),
            lambda: balloon.deflate(1),
            lambda: balloon.follow(),
            lambda: balloon.target,
            balloon.send_statistics,
        ):
            with pytest.raises(ph.PageHintError, match="forked"):
                call()
        with arena.pages.hinting(callbacks, workqueue="manual", delay=None):
            arena.pages.flush_hinting()
            assert "forked" in str(arena.pages.last_error)

    in_child(child)
    assert is_whole(array)
    balloon.deflate(10)
    assert host.running


def test_a_forked_child_can_close_a_host_whose_lock_a_thread_had(host):
    with host._lock:
        in_child(host.close)
    assert host.running


def test_a_forked_child_gets_at_no_pages_of_the_guest(host):
    arena = host.arena()

    def child():
        assert "of another process" in repr(host)
        assert host.running
        assert host.discards.calls == 0
        for call in (lambda: arena.address(FREE // 4096), host.balloon.forget):
            with pytest.raises(ph.PageHintError, match="forked"):
                call()

    with host.balloon._lock:
        in_child(child)


def test_a_child_forked_as_qemu_starts_does_not_hold_up_its_end(host):
    """It may have a copy of the pipe that QEMU's last words come through."""
    with subprocess.Popen(["sleep", "60"], stderr=host.process._process.stderr.fileno()) as child:
        host.close()
        assert child.poll() is None, "it was waited for"
        child.kill()
