"""How the balloon's driver cuts ranges into chains of descriptors."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from pagehint.virtio.encoding import chains


@given(
    st.lists(
        st.tuples(st.integers(0, 1 << 52), st.integers(1, 20 << 18)).map(lambda r: (r[0] * 4096, r[1] * 4096)),
        max_size=20,
    ),
    st.sampled_from([1, 2, 32]),
)
def test_chains_are_what_was_asked_for_and_none_is_too_long(ranges, most):
    cut = list(chains(ranges, most))
    for chain in cut:
        assert 0 < len(chain) <= most
        assert sum(nr_bytes for _, nr_bytes in chain) < 1 << 32
        assert all(address % 4096 == nr_bytes % 4096 == 0 for address, nr_bytes in chain)
    pieces = [piece for chain in cut for piece in chain]
    for address, nr_bytes in ranges:
        while nr_bytes:
            at, length = pieces.pop(0)
            assert at == address
            address, nr_bytes = address + length, nr_bytes - length
    assert not pieces
