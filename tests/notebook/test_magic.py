"""``%load_ext pagehint``, in an IPython of our own; and what it shows."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

import pagehint as ph
from pagehint.arena.status import used_by_granule

MIB = 1 << 20


@pytest.fixture
def shell():
    made = InteractiveShell.instance()
    made.run_line_magic("load_ext", "pagehint")
    yield made
    ph.numpy.uninstall()
    made.history_manager.end_session()
    InteractiveShell.clear_instance()


def test_on_status_trim_off(shell, capsys):
    with pytest.raises(UsageError, match="NumPy is not on an arena: %pagehint on"):
        shell.run_line_magic("pagehint", "status")
    arena = shell.run_line_magic("pagehint", "on")
    assert arena is shell.run_line_magic("pagehint", "on")
    assert arena.size == ph.Arena().size  # as much as this process can come to have
    assert arena.pages.hinting_enabled
    assert arena.pages.min_age == ph.numpy.MIN_AGE
    with pytest.raises(UsageError, match="min_age"):
        shell.run_line_magic("pagehint", "on -1")
    assert arena is shell.run_line_magic("pagehint", "on 3600")
    assert arena.pages.min_age == 3600.0
    array = np.ones(10 * MIB // 8)
    warm = np.ones(20 * MIB // 8)
    del warm
    status = shell.run_line_magic("pagehint", "")
    assert status.used_bytes == 10 * MIB
    assert status.warm_bytes == 20 * MIB
    assert status.resident_bytes == 30 * MIB
    assert "10 MiB in 1 arrays" in repr(status)
    capsys.readouterr()
    shell.run_line_magic("pagehint", "trim")
    assert capsys.readouterr().out == "20 MiB given back\n"
    assert arena.status().resident_bytes == 10 * MIB
    shell.run_line_magic("pagehint", "off")
    assert ph.numpy.installed() is None
    assert arena.live_arrays == 1
    assert (array == 1).all()


def test_a_picture_of_what_is_used_warm_and_given_back():
    arena = ph.Arena("16MiB")
    arrays = [arena.empty(4 * MIB, np.uint8) for _ in range(4)]
    for array in arrays[:3]:
        array[:] = 1
    del arrays[1], array
    status = arena.status()
    assert repr(status).splitlines()[-2] == "██▒▒████"
    drawn = status._repr_html_()
    assert drawn.count("<rect") == 8
    assert drawn.count("#2b6cb0") == 6 + 1  # and once in the legend
    assert drawn.count("#ed8936") == 2 + 1
    arena.trim()
    assert repr(arena.status()).splitlines()[-2] == "██··████"


def test_a_picture_of_much_is_small():
    arena = ph.Arena("64GiB")
    low = arena.empty(MIB, np.uint8)
    assert len(repr(arena.status()).splitlines()) == 6 + 1 + 1
    pfn = arena.pages.alloc_pages_at(arena.size // 4096 - 512, 9)
    status = arena.status()
    assert status._repr_html_().count("<rect") <= 512
    assert status.used_bytes == 3 * MIB
    arena.pages.free_pages(pfn, 9)
    del low


def test_a_guests_arena_has_a_picture():
    pytest.importorskip("qemu.qmp")
    from guests import without_qemu

    if without_qemu.args[0]:
        pytest.skip("no QEMU")
    with ph.qemu.Host("64MiB") as host:
        array = host.arena().empty(4 * MIB, np.uint8)
        array[:] = 1
        status = host.arena().status()
        assert (status.used_bytes, status.resident_bytes) == (4 * MIB, 4 * MIB)


def test_used_pages_by_granule():
    pages = ph.PageAllocator([ph.ZoneSpec("Normal", 1024, 4096 + 300)], pcp=False)
    taken = [pages.alloc_pages_exact(n) for n in (1, 700, 33)]
    granules, counts = used_by_granule(pages.zones[0].free_blocks(), 1024, 4396, 512)
    used = np.zeros(4396, bool)
    for at, n in zip(taken, (1, 700, 33), strict=True):
        used[at - 1024 : at - 1024 + n] = True
    by_granule = [int(used[i : i + 512].sum()) for i in range(0, 4396, 512)]
    assert list(zip(granules, counts, strict=True)) == [(i, n) for i, n in enumerate(by_granule) if n]


def test_a_chart_of_a_cell(shell):
    with capture_output() as seen:
        shell.run_cell("%%pagehint chart\nimport time, numpy\nkept = numpy.ones(1 << 20); time.sleep(1.5)")
    assert shell.user_ns["kept"].sum() == 1 << 20
    pictures = [output.data["image/png"] for output in seen.outputs]
    assert len(pictures) >= 2
    assert pictures[0] != pictures[-1]


def test_an_error_in_a_charted_cell_is_the_cells(shell):
    with capture_output():
        done = shell.run_cell("%%pagehint chart\n1 / 0")
    assert isinstance(done.error_in_exec, ZeroDivisionError)


@pytest.mark.parametrize(
    ("line", "cell"),
    [("potato", None), ("on", "x = 1"), ("on potato", None), ("on 1 2", None), ("on -1", None), ("chart", None)],
)
def test_what_it_does_not_know_is_refused(shell, line, cell):
    with pytest.raises(UsageError, match="pagehint"):
        shell.run_cell_magic("pagehint", line, cell) if cell else shell.run_line_magic("pagehint", line)


def test_memory_comes_back_by_itself_after_a_while():
    code = """
        import time
        import numpy as np
        import pagehint as ph
        arena = ph.numpy.install()
        for _ in range(50):
            np.ones(8 << 17)
        warm = arena.resident_bytes
        end = time.monotonic() + 60
        while arena.resident_bytes and time.monotonic() < end:
            time.sleep(0.1)
        print(warm >> 20, arena.resident_bytes)
    """
    lines = "\n".join(line[8:] for line in code.splitlines())
    done = subprocess.run([sys.executable, "-P", "-c", lines], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stderr, done.stdout) == ("", "8 0\n")


def test_a_loops_temporaries_stay_warm():
    arena = ph.Arena("64MiB")
    with arena.hinting(min_age=3600.0, delay=0.0, threshold=1):
        begin = arena.pages.stats().pages_reported
        for _ in range(20):
            arena.empty(8 * MIB, np.uint8)[:] = 1
            time.sleep(0.005)
        assert arena.pages.stats().pages_reported == begin
        assert arena.resident_bytes == 8 * MIB
