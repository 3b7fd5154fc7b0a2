"""Which number each queue of a balloon has. There are three ways to count, and the device does not say which is its.

VIRTIO 1.2 (section 5.5.2) gives each queue a number for good. QEMU numbers those that it has one after the other, and
Linux did so for years with those that it used, so that each was right with the other, and wrong with a device that
follows the specification. As in Linux's own mending of 2024, the specification's numbers are tried first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from pagehint.errors import HostError

STATS_VQ: Final = 1 << 1  # feature bits (section 5.5.3)
FREE_PAGE_HINT: Final = 1 << 3
REPORTING: Final = 1 << 5

# In the order of their numbers, and the feature that each belongs to; 0 is none.
_QUEUES: Final = {
    "inflate": 0,
    "deflate": 0,
    "statistics": STATS_VQ,
    "free page hint": FREE_PAGE_HINT,
    "reporting": REPORTING,
}


def _with(features: int) -> list[str]:
    """Return the queues that a device with these features has."""
    return [name for name, feature in _QUEUES.items() if not feature or features & feature]


def numberings(offered: int, accepted: int) -> Iterator[dict[str, int]]:
    """Yield the ways to number the queues that the accepted features have: the specification's, then the others."""
    used = _with(accepted)
    for order in (list(_QUEUES), _with(offered), used):
        yield {name: order.index(name) for name in used}


def queue_numbers(offered: int, accepted: int, size: Callable[[int], int]) -> dict[str, int]:
    """Return the numbers of the queues that the accepted features have, by name.

    The last queue has the largest number when it is counted as the specification does. So of a device that counts
    otherwise some number of the specification's is not there, unless all ways to count agree.

    Parameters
    ----------
    offered, accepted : int
        The feature bits of the device, and those of the negotiation.
    size : callable
        Returns how many descriptors the queue of a number can have, 0 if it is not there.

    Raises
    ------
    HostError
        If not all of them are there, however they are counted.
    """
    for numbers in numberings(offered, accepted):
        if all(size(number) for number in numbers.values()):
            return numbers
    raise HostError(
        f"the device lacks a queue, of {', '.join(_with(accepted))}: it has none of number {_missing(size)}"
    )


def _missing(size: Callable[[int], int]) -> int:
    """Return the first number that a device has no queue of."""
    return next((number for number in range(len(_QUEUES)) if not size(number)), len(_QUEUES))
