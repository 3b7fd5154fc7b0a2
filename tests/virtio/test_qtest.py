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
