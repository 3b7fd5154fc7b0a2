"""The virtqueue's numbers are little-endian, as the machine's must be."""

from __future__ import annotations

import sys

import pytest

from pagehint.virtio import SplitQueue


def test_a_virtqueue_on_a_machine_whose_numbers_are_not_little_endian(monkeypatch):
    monkeypatch.setattr(sys, "byteorder", "big")
    with pytest.raises(NotImplementedError, match="little-endian"):
        SplitQueue(bytearray(4096), 0, 8)
