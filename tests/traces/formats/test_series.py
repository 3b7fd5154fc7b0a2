"""Memory over time, as CSV."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

import pagehint as ph
from pagehint.traces import SERIES_DTYPE, TraceError

DATA = Path(__file__).parents[2] / "data"


def test_a_series_of_a_recording():
    series = ph.traces.read_series(DATA / "host_rss.csv")
    assert series.dtype == SERIES_DTYPE
    assert len(series) == 59
    assert series[0].tolist() == (-4_807_000_000, 362_655_744)
    assert np.all(np.diff(series["time"]) > 0)


def test_without_a_header_and_compressed(tmp_path):
    path = tmp_path / "series"
    path.write_bytes(gzip.compress(b"0,0\n0.000000001,5\r\n1e1,18446744073709551615"))
    assert ph.traces.read_series(path).tolist() == [(0, 0), (1, 5), (10**10, 2**64 - 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no line of seconds and bytes"),
        (b"time,bytes\n", "no line of seconds and bytes"),
        (b"time,bytes\ntime,bytes\n", "line 2: not seconds and bytes: 'time,bytes'"),
        (b"1,2\n3\n", "line 2: not seconds"),
        (b"1,2\n3,4,5\n", "line 2: not seconds"),
        (b"1,2\n\n", "line 2: not seconds"),
        (b"1,2\n2,-1\n", "line 2: not seconds"),
        (b"1,2\n2,1.5\n", "line 2: not seconds"),
        (b"1,2\n2,18446744073709551616\n", "line 2: not seconds"),
        (b"1,2\nnan,1\n", "line 2: not seconds"),
        (b"1,2\n1e300,1\n", "line 2: not seconds"),
        (b"1,2\n0.5,1\n", "line 2: earlier than the line before it: '0.5,1'"),
        (gzip.compress(b"1,2\n" * 100, mtime=0)[:-5], "cut"),
    ],
)
def test_what_is_no_series_is_refused(tmp_path, content, message):
    path = tmp_path / "series"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=message) as error:
        ph.traces.read_series(path)
    assert str(path) in str(error.value)
