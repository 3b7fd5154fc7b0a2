"""Reports to a real QEMU by batch size, against the limit: holes punched into the same kind of file, without QEMU.

`python -m benchmarks.qemu_batches [--blocks N] [--rounds N] [--batches N...] [--pages 4KiB 2MiB thp]
[--count-discards] [--least] [--adjacent]`. Every second granule of a guest's RAM is touched and then reported through
the whole engine, or with `--adjacent` granules side by side; in the same round the same granules of a file of ours are
punched with fallocate, one a call. Both files are in ordinary pages, and then in huge ones, where the machine has
enough of them. A batch of 128 takes a guest of 2 GiB, and as much
of the pool.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import pagehint as ph

GRANULE = 2 << 20
BATCHES = (1, 8, 32, 128)
SMALL_ZONE = 8  # a batch is at most such a part of a zone
KEEP_SIZE_PUNCH_HOLE = 3
MAP_NORESERVE = 0x4000

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Spent:
    """Adds up the time in a function."""

    def __init__(self, function):
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments):
        begin = time.perf_counter()
        try:
            return self.function(*arguments)
        finally:
            self.seconds += time.perf_counter() - begin


def limit(nr_blocks: int, kind: str, step: int) -> float:
    """Seconds to punch every `step`-th granule out of a memfd, one call each."""
    fd = os.memfd_create("limit", os.MFD_HUGETLB | os.MFD_HUGE_2MB if kind == "2MiB" else 0)
    os.ftruncate(fd, step * nr_blocks * GRANULE)
    with mmap.mmap(fd, step * nr_blocks * GRANULE, mmap.MAP_SHARED | MAP_NORESERVE) as memory:
        if kind == "thp":
            memory.madvise(mmap.MADV_HUGEPAGE)
        where = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        offsets = [step * i * GRANULE for i in range(nr_blocks)]
        for offset in offsets:
            ctypes.memset(where + offset, 1, GRANULE)
        begin = time.perf_counter()
        for offset in offsets:
            if libc.fallocate(fd, KEEP_SIZE_PUNCH_HOLE, offset, GRANULE):
                raise OSError(ctypes.get_errno(), "fallocate")
        seconds = time.perf_counter() - begin
    os.close(fd)
    return seconds


def way_over_the_wire(host: ph.qemu.Host) -> float:
    """Seconds to notify QEMU of a queue in which nothing is; on another thread than the main one, as reports are."""
    times = []
    number, _ = host.balloon._queues["reporting"]

    def notify() -> None:
        for _ in range(30):
            begin = time.perf_counter()
            host.balloon._transport.notify(number)
            times.append(time.perf_counter() - begin)

    thread = threading.Thread(target=notify)
    thread.start()
    thread.join()
    return statistics.median(times)


def reported(host: ph.qemu.Host, nr_blocks: int, batch: int, step: int) -> dict[str, float]:
    """Report every `step`-th granule in such batches; seconds in all, and of it in each part."""
    arena = host.arena()
    pages = arena.pages
    blocks = sorted(pages.alloc_pages(9) for _ in range(step * nr_blocks))
    gone = blocks[::step]
    for pfn in gone:
        ctypes.memset(arena.address(pfn), 1, GRANULE)
    before = pages.stats()
    transport = host.balloon._transport
    places = {
        "kick": (transport, "notify"),
        "wait": (transport, "interrupt_status"),
        "dropped?": (host.ram, "are_blocks_dropped"),
        "report": (host.balloon, "report"),
    }
    way = way_over_the_wire(host)
    spent = {part: Spent(getattr(owner, name)) for part, (owner, name) in places.items()}
    for part, (owner, name) in places.items():
        setattr(owner, name, spent[part])
    with pages.hinting(host.callbacks(batch), threshold=1 << 20, delay=None, mark_free=False):
        for pfn in gone:
            pages.free_pages(pfn, 9)
        cpu, begin = cpu_seconds(host.process.pid), time.perf_counter()
        pages.flush_hinting()
        seconds = time.perf_counter() - begin
        after = pages.stats()
        assert (after.pages_reported - before.pages_reported) * mmap.PAGESIZE == nr_blocks * GRANULE, after
    for pfn in set(blocks) - set(gone):
        pages.free_pages(pfn, 9)
    for part, (owner, name) in places.items():
        setattr(owner, name, spent[part].function)
    figures = {name: spy.seconds for name, spy in spent.items()}
    return figures | {
        "all": seconds,
        "reports": (reports := after.reports - before.reports),
        "wire": reports * way,
        "qemu": cpu_seconds(host.process.pid) - cpu,
    }


def measured(
    kind: str, nr_blocks: int, rounds: int, batches: list[int], count_discards: bool, step: int
) -> tuple[dict[int, list[dict[str, float]]], list[float]]:
    """Return the rounds of each batch with such pages, and those of the limit."""
    limits: list[float] = []
    runs: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
    # What is touched and what is between it; and as much that is free as the gate wants for the largest batch.
    memory = max(step * nr_blocks + batches[-1] + 16, SMALL_ZONE * batches[-1] + 1) * GRANULE
    with ph.qemu.Host(memory, hugepages=kind if kind != "4KiB" else False, count_discards=count_discards) as host:
        for number in range(rounds + 1):
            for batch in batches:
                run, bare = reported(host, nr_blocks, batch, step), limit(nr_blocks, kind, step)
                if number:  # the first touches memory that the machine has not given before
                    runs[batch].append(run)
                    limits.append(bare)
    return runs, limits


def median_round(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in rounds) for name in rounds[0]}


def least_round(rounds: list[dict[str, float]]) -> dict[str, float]:
    return min(rounds, key=lambda run: run["all"])


def table_of(
    kind: str, nr_blocks: int, where: str, runs: dict[int, list[dict[str, float]]], limits: list[float], least: bool
) -> Table:
    rounds = len(next(iter(runs.values())))
    what = "the quickest" if least else "medians"
    table = Table(title=f"{nr_blocks} blocks of 2 MiB, {where}, in pages of {kind}; {what} of {rounds} rounds")
    bare = min(limits) if least else statistics.median(limits)
    for column in ("batch", "reports/s", "blocks/s", "GiB/s", "of the limit"):
        table.add_column(column, justify="right")
    for column in ("the wire", "QEMU", "is it dropped?", "rest of the driver", "engine, waking", "QEMU's CPU"):
        table.add_column(f"us a block: {column}", justify="right")
    size = nr_blocks * GRANULE / (1 << 30)
    for batch, done in runs.items():
        middle = least_round(done) if least else median_round(done)
        seconds, answered = middle["all"], middle["kick"] + middle["wait"]
        parts = (
            middle["wire"],
            answered - middle["wire"],
            middle["dropped?"],
            middle["report"] - answered,
            seconds - middle["report"] - middle["dropped?"],
            middle["qemu"],
        )
        table.add_row(
            str(batch), f"{middle['reports'] / seconds:,.0f}", f"{nr_blocks / seconds:,.0f}", f"{size / seconds:.2f}",
            f"{bare / seconds:.0%}", *(f"{part / nr_blocks * 1e6:.1f}" for part in parts),
        )  # fmt: skip
    alone = parts[1] / nr_blocks  # of the largest batch: nothing to wait for, and nothing to do on our side
    table.add_row(
        "QEMU alone", "", f"{1 / alone:,.0f}", f"{GRANULE / alone / (1 << 30):.2f}", f"{bare / nr_blocks / alone:.0%}"
    )
    table.add_row(
        "limit", "", f"{nr_blocks / bare:,.0f}", f"{size / bare:.2f}", "100%", "", f"{bare / nr_blocks * 1e6:.1f}"
    )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=256, help="blocks of 2 MiB in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="blocks a report")
    parser.add_argument("--pages", nargs="+", choices=("4KiB", "2MiB", "thp"), default=("4KiB", "2MiB"))
    parser.add_argument("--count-discards", action="store_true", help="with QEMU's trace of them")
    parser.add_argument(
        "--least", action="store_true", help="the quickest round: for a machine that does something else"
    )
    parser.add_argument("--adjacent", action="store_true", help="granules side by side, instead of every second")
    arguments = parser.parse_args()
    step, where = (1, "side by side") if arguments.adjacent else (2, "scattered")
    console = Console(width=150)
    for kind in arguments.pages:
        try:
            runs, limits = measured(
                kind, arguments.blocks, arguments.rounds, sorted(arguments.batches), arguments.count_discards, step
            )
        except ph.HostError as error:
            console.print(f"pages of {kind}: {error}")
            continue
        console.print(table_of(kind, arguments.blocks, where, runs, limits, arguments.least))


if __name__ == "__main__":
    main()
