"""The blocks of up to 1023 bytes that NumPy keeps for its next small arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pagehint.memory.address_space import AddressSpace
from pagehint.memory.part import Part
from pagehint.sizes import format_size

NAME: Final = "NumPy's small blocks"
_MOST: Final = 7 * sum(range(1024))  # seven blocks of each length


def find(space: AddressSpace) -> Iterator[Part]:
    """Say what is known: NumPy does not tell how many it has, and has them from the C heap."""
    yield Part(NAME, note=f"it does not say how many: at most {format_size(_MOST)}, in use in the C heap")
