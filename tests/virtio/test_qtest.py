"""QEMU's qtest protocol, against a socket."""

from __future__ import annotations

import socket

import pytest

import pagehint as ph
from pagehint.virtio import Qtest


def test_a_command_that_timed_out_does_not_answer_for_the_next():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Qtest(ours, 0.05)
        with pytest.raises(ph.HostTimeoutError):
            wire.read(0, 4)
        theirs.sendall(b"OK 0x1\nOK 0x2\nOK nonsense\nOK \xff\n")
        assert wire.read(0, 4) == 2
        with pytest.raises(ph.HostError, match="'nonsense', which is no number"):
            wire.read(0, 4)
        with pytest.raises(ph.HostError, match="which is no number"):
            wire.read(0, 4)


def test_a_number_is_read_and_another_one_written_in_one_go():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Qtest(ours, 1.0)
        theirs.sendall(b"OK 0xf\nOK\n")
        assert wire.read_then_write((0x14, 1), (0x1000, 2), 4) == 15
        assert theirs.recv(100) == b"readb 0x14\nwritew 0x1000 0x4\n"
        for answers, words in (
            (b"OK 0xf\nFAIL no\n", "refused 'writew 0x1000 0x4': FAIL no"),
            (b"FAIL no\nOK\n", "refused 'readb 0x14': FAIL no"),
            (b"OK 0x100\nOK\n", "no number of 1 bytes"),
        ):
            theirs.sendall(answers)
            with pytest.raises(ph.HostError, match=words):
                wire.read_then_write((0x14, 1), (0x1000, 2), 4)
        for place in ((-1, 1), (1 << 64, 1)):
            with pytest.raises(ValueError, match="there are no"):
                wire.read_then_write(place, (0, 1), 0)
            with pytest.raises(ValueError, match="there are no"):
                wire.read_then_write((0, 1), place, 0)
        with pytest.raises(ValueError, match="0x100 does not fit"):
            wire.read_then_write((0, 1), (0, 1), 256)


def test_answers_to_two_commands_that_timed_out_are_not_those_of_the_next():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        wire = Qtest(ours, 0.05)
        theirs.sendall(b"OK 0x1\n")
        with pytest.raises(ph.HostTimeoutError, match=r"did not answer 'readb 0x0; writew 0x0 0x0'"):
            wire.read_then_write((0, 1), (0, 2), 0)
        theirs.sendall(b"OK\nOK 0x7\n")
        assert wire.read(0, 4) == 7
