"""How a host begins and ends, at any moment and by any cause: QEMU ends with it, and no file stays open."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from guests import MIB, ended, filled, is_whole, open_files, small_host, without_qemu
from waiting import wait_for

import pagehint as ph
from pagehint.qemu.ram import FREE

pytestmark = without_qemu
host = pytest.fixture(small_host)


def test_arrays_outlive_the_host_and_a_closed_host_says_so():
    with ph.qemu.Host("64MiB") as host:
        arena = host.arena()
        array = filled(arena, 20 * MIB)
        pid = host.process.pid
        arena.enable_hinting()
    assert ended(pid)
    assert is_whole(array)
    assert not arena.pages.hinting_enabled
    host.close()
    assert repr(host) == "<Host, closed>"
    for call in (host.restart, host.events, lambda: host.resident_bytes, lambda: host.qmp("query-status")):
        with pytest.raises(ValueError, match="the host is closed"):
            call()


def test_qemu_ends_with_a_host_that_is_forgotten_and_leaves_no_file_open():
    before = open_files()
    host = ph.qemu.Host("64MiB")
    pid = host.process.pid
    host.close()
    del host
    assert open_files() == before
    host = ph.qemu.Host("64MiB")
    pid = host.process.pid
    del host
    gc.collect()
    wait_for(lambda: ended(pid), "its end")


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "raise SystemExit", "os._exit(0)"])
def test_qemu_ends_with_the_process_that_started_it(how):
    code = f"""
        import os, signal, sys
        import pagehint as ph
        host = ph.qemu.Host("64MiB")
        host.arena().enable_hinting()
        print(host.process.pid, flush=True)
        {how}
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    wait_for(lambda: ended(int(done.stdout)), "its end")


def test_without_qemu_the_package_is_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ph.HostError, match="apt install qemu-system-x86"):
        ph.qemu.Host("64MiB")
    with pytest.raises(ph.HostError, match="qemu-of-mine is not here"):
        ph.qemu.Host("64MiB", qemu="qemu-of-mine")


def test_what_is_not_qemu_is_an_error_that_says_what_it_said(tmp_path):
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\necho I am no QEMU >&2\nexit 1\n")
    fake.chmod(0o755)
    before = open_files()
    with pytest.raises(ph.HostError, match="QEMU did not start: I am no QEMU"):
        ph.qemu.Host("64MiB", qemu=fake)
    assert open_files() == before


@pytest.mark.parametrize(
    ("memory", "words"),
    [("5MiB", "multiple of 2 MiB"), ("2MiB", "at least 8 MiB"), (0, "positive"), ("x", "not a memory")],
)
def test_sizes_that_no_guest_has(memory, words):
    with pytest.raises(ValueError, match=words):
        ph.qemu.Host(memory)


def test_without_the_extra_a_host_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    with pytest.raises(ImportError, match=r"pip install 'pagehint\[qemu\]'"):
        ph.qemu.Host("64MiB")


def test_a_host_that_cannot_be_leaves_no_file_open():
    before = open_files()
    with pytest.raises((ValueError, MemoryError, OSError, ph.HostError)):
        ph.qemu.Host("128TiB")
    for timeout in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="timeout must be a positive number of seconds"):
            ph.qemu.Host("64MiB", timeout=timeout)
    assert open_files() == before


def test_a_host_can_be_restarted_by_what_close_waits_for(host):
    arena = host.arena()
    begun, go_on = threading.Event(), threading.Event()

    def prepare():
        begun.set()
        assert go_on.wait(60)
        host.restart()

    callbacks = ph.PageHintingCallbacks(host._report, prepare=prepare)
    arena.pages.enable_hinting(callbacks, threshold=1, delay=0.0)
    assert begun.wait(60)
    closing = threading.Thread(target=host.close, daemon=True)
    closing.start()
    closing.join(0.2)  # it waits for the worker by then
    go_on.set()
    closing.join(60)
    assert not closing.is_alive()
    assert not host.running


def test_a_host_is_not_closed_from_inside_a_callback(host):
    arena = host.arena()
    refused = []

    def report(blocks):
        try:
            host.close()
        except ph.HintingActiveError as error:
            refused.append(error)
        return host._report(blocks)

    with arena.pages.hinting(ph.PageHintingCallbacks(report), workqueue="manual", delay=None):
        arena.pages.flush_hinting()
        assert arena.pages.last_error is None
    assert refused
    assert host.running


def test_a_closed_host_takes_no_reports_and_claims_nothing():
    with ph.qemu.Host("64MiB") as host:
        arena = host.arena()
        callbacks = host.callbacks(4)
        monitor = host._monitor
    for call in (host.callbacks, arena.hinting):
        with pytest.raises(ValueError, match="the host is closed"):
            call()
    with pytest.raises(OSError, match="Bad file descriptor"):
        host.ram.is_dropped(FREE, FREE)
    with pytest.raises(ph.HostError, match="monitor is closed"):
        monitor.execute("query-status", {})
    with arena.pages.hinting(callbacks, workqueue="manual", delay=None):
        arena.pages.flush_hinting()
        assert "the host is closed" in str(arena.pages.last_error)
        assert arena.pages.stats().pages_reported == 0
    assert "arrays" in repr(arena)


def test_a_host_is_collected_with_hinting_on_and_leaves_nothing():
    before = open_files()
    host = ph.qemu.Host("64MiB")
    arena, pid = host.arena(), host.process.pid
    pages = arena.pages
    arena.enable_hinting(workqueue="manual", delay=None)
    del host
    gc.collect()
    wait_for(lambda: ended(pid), "its end")
    pages.flush_hinting()
    assert "it has been collected" in str(pages.last_error)
    pages.verify()
    pages.disable_hinting()
    del arena, pages
    wait_for(lambda: open_files() == before, "the end of every connection")


def test_a_host_may_be_collected_on_its_own_threads():
    host = ph.qemu.Host("64MiB")
    pid, thread = host.process.pid, host._monitor._thread
    last = [host]
    loop = host._monitor._loop
    del host
    loop.call_soon_threadsafe(last.clear)
    wait_for(lambda: ended(pid) and not thread.is_alive(), "its end")


def test_hosts_at_exit_do_not_keep_each_other_from_it():
    code = """
        import pagehint as ph
        hosts = [ph.qemu.Host("64MiB") for _ in range(2)]
        for host in hosts:
            print(host.process.pid)
        hosts[0].process.kill()
        hosts[1].arena().enable_hinting(threshold=1, delay=0.0)
    """
    done = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stderr, done.returncode) == ("", 0)
    wait_for(lambda: all(ended(int(pid)) for pid in done.stdout.split()), "their end")


def test_qemu_behind_a_wrapper_ends_with_it(tmp_path):
    wrapper = tmp_path / "qemu"
    wrapper.write_text('#!/bin/sh\nqemu-system-x86_64 "$@" 2>/dev/null\n')
    wrapper.chmod(0o755)
    with ph.qemu.Host("64MiB", qemu=wrapper, timeout=0.3) as host:
        arena = host.arena()
        filled(arena, 40 * MIB)
        shell = host.process.pid
        qemu = int(Path(f"/proc/{shell}/task/{shell}/children").read_text())
        os.kill(qemu, signal.SIGSTOP)
        with pytest.raises(ph.HostError, match="the host is gone"):
            host.balloon.report([FREE], [40 * MIB])
        assert ended(qemu), "it could drop memory when it goes on"


def test_standard_files_that_are_closed_do_not_matter():
    code = """
        import os
        for fd in (0, 1, 2): os.close(fd)
        import pagehint as ph
        try:
            with ph.qemu.Host("64MiB") as host:
                host.balloon.report([4 << 20], [2 << 20])
            os._exit(7)
        except BaseException:
            os._exit(1)
    """
    done = subprocess.run([sys.executable, "-P", "-c", textwrap.dedent(code)], timeout=60, check=False)
    assert done.returncode == 7


@pytest.mark.parametrize(
    "steps",
    [
        "say(); os.closerange(3, 4096); time.sleep(1.3); os._exit(1)",
        "os.closerange(3, 4096); time.sleep(1.3); say(); os._exit(1)",
        "say(); os.closerange(3, 4096); os.abort()",
        "say(); os.closerange(3, 4096); os.fork() or time.sleep(30); os._exit(1)",  # a child has its standard error
    ],
)
def test_why_qemu_did_not_start_was_lost_when_it_took_its_time_to_end(tmp_path, steps):
    """Its connections closed, "Failed to establish session: EOFError", and it had not ended a second later."""
    fake = tmp_path / "qemu"
    fake.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        f"def say(): print('qemu: -nonsense: invalid option', file=sys.stderr, flush=True)\n{steps}\n"
    )
    fake.chmod(0o755)
    with pytest.raises(ph.HostError, match="QEMU did not start: qemu: -nonsense: invalid option"):
        ph.qemu.Host("64MiB", qemu=fake)


def test_qemu_that_ends_without_a_word_says_how(tmp_path):
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\nexit 3\n")
    fake.chmod(0o755)
    with pytest.raises(ph.HostError, match="QEMU did not start: it ended with status 3, and said nothing"):
        ph.qemu.Host("64MiB", qemu=fake)


def test_options_of_ones_own_are_qemus_and_what_it_does_not_like_it_says():
    for _ in range(5):
        with pytest.raises(ph.HostError, match=r"QEMU did not start: .*-device nosuchdevice: .*not a valid device"):
            ph.qemu.Host("64MiB", options=["-device", "nosuchdevice"])
    with ph.qemu.Host("64MiB", options=["-device", "virtio-rng-pci,id=mine", "-name", "two"]) as host:
        for _ in range(2):
            assert host.qmp("qom-list", path="/machine/peripheral/mine")
            host.balloon.report([4 * MIB], [2 * MIB])
            host.restart()


@pytest.mark.parametrize(
    ("options", "error"), [("-S", TypeError), ([1], TypeError), (["a\0b"], ValueError), (["\ud800"], ValueError)]
)
def test_options_that_are_none_are_refused(options, error):
    before = open_files()
    with pytest.raises(error, match="options"):
        ph.qemu.Host("64MiB", options=options)
    assert open_files() == before


def test_what_qemu_said_as_it_went_is_in_the_error(tmp_path):
    wrapper = tmp_path / "qemu"
    wrapper.write_text('#!/bin/sh\nqemu-system-x86_64 "$@"\necho "qemu: assertion failed" >&2\n')
    wrapper.chmod(0o755)
    with ph.qemu.Host("64MiB", qemu=wrapper) as host:
        host.qmp("quit")
        wait_for(lambda: not host.running, "its end")
        with pytest.raises(ph.HostError, match=r"QEMU has gone: .*it said: qemu: assertion failed"):
            host.qmp("query-status")
        with host.arena().hinting(delay=None, workqueue="manual"):
            host.arena().pages.flush_hinting()
            assert "it said: qemu: assertion failed" in str(host.arena().pages.last_error)


def test_what_a_qemu_said_that_does_not_answer_is_in_the_error(tmp_path):
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\necho qemu: waiting for Godot >&2\nexec sleep 30\n")
    fake.chmod(0o755)
    with pytest.raises(ph.HostTimeoutError, match=r"did not answer .*; QEMU said: qemu: waiting for Godot"):
        ph.qemu.Host("64MiB", qemu=fake, timeout=0.5)
