"""What the kernel says of the file with a guest's RAM: holes, wherever they are, and errors that are none."""

from __future__ import annotations

import os

import numpy as np
import pytest
from guests import MIB

from pagehint.qemu.guest_file import Holes

PAGE = 4096


@pytest.fixture
def file():
    fd = os.memfd_create("test")
    os.ftruncate(fd, 8 * MIB)
    yield fd
    os.close(fd)


def test_a_range_is_a_hole_if_no_page_of_it_is_there(file):
    holes = Holes(file, 8 * MIB)
    for page in (10, 11, 100):
        os.pwrite(file, b"x", page * PAGE)
    ranges = np.array([(0, 10), (0, 11), (10, 1), (11, 1), (12, 88), (12, 89), (100, 1), (101, 1947), (2047, 1)])
    found = holes.are(file, ranges[:, 0] * PAGE, ranges[:, 1] * PAGE)
    assert found.dtype == bool
    assert found.tolist() == [True, False, False, False, True, False, False, True, True]
    assert holes.are(file, [], []).tolist() == []


def test_what_is_not_in_the_file_or_no_file_is_an_error(file):
    holes = Holes(file, 8 * MIB)
    for start, size in ((8 * MIB, PAGE), (0, 9 * MIB), (2**64 - PAGE, PAGE), (PAGE, 2**64 - PAGE)):
        with pytest.raises(ValueError, match="of a file of 8388608"):
            holes.are(file, [0, start], [PAGE, size])
    with pytest.raises(OSError, match="Bad file descriptor"):
        holes.are(-1, [0], [PAGE])
    read, write = os.pipe()
    with pytest.raises(OSError, match="whether a guest's RAM is in memory: Illegal seek"):
        holes.are(read, [0], [PAGE])
    os.close(read)
    os.close(write)
