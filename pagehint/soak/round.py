"""Everything at once, at random, for as long as you like: ``python -m pagehint.soak --minutes 10``.

Threads allocate and free in a model, and write canaries to arrays in an arena, while others plug sections, switch
hinting on and off, change its settings, and fail in its callbacks. About every second all metadata is verified. It goes
in rounds; the first warms up, and what is left after the last is compared with what was left after it. Ctrl-C ends it
early. Needs the extra "demo".
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import logging
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import pagehint as ph
from pagehint.demo.demo import rss_bytes
from pagehint.sizes import format_size

PAGE_SIZE = 64 << 10  # so that a section has 2048 pages
SECTION = (128 << 20) // PAGE_SIZE
ZONES = (
    ph.ZoneSpec("DMA", 1, 2 * SECTION - 1, holes=[(500, 100)]),
    ph.ZoneSpec("Normal", 2 * SECTION, 12 * SECTION),
    ph.ZoneSpec("Normal", 16 * SECTION + 100, 8 * SECTION, node=1),
)
ROOM = 32 * SECTION  # PFNs, also of what comes online
HOST, OFFLINE = -1, -2  # who else may own a page; threads have positive numbers
ROUND_SECONDS = 20.0
PATIENCE_SECONDS = 3.0
RSS_SLACK = 16 << 20  # what malloc and the interpreter may keep in one round and not in another
MAPS_SLACK = 16  # and their mappings

Own = Callable[[int, int], None]


class FindingError(AssertionError):
    """Something that must not happen."""


class HostError(Exception):
    """What the host fails with."""


def require(truth: object, what: str) -> None:
    """Raise a finding unless it is true."""
    if not truth:
        raise FindingError(what)


class Round:
    """A model and an arena, and what the threads do to them until `stop` is set. Each is one function below."""

    def __init__(self, seed: str) -> None:
        self.seed = seed
        self.stop = threading.Event()
        self.findings: list[str] = []
        self.operations = [0] * 16  # by thread
        self.model = ph.PageAllocator(ZONES, page_size=PAGE_SIZE, max_page_order=9, min_order=6)
        self.owner = np.zeros(ROOM, np.int64)
        self.arena = ph.Arena("256MiB")

    # -- who has which page

    def claim(self, pfn: int, nr_pages: int, owner: int) -> None:
        """These pages were nobody's."""
        pages = self.owner[pfn : pfn + nr_pages]
        require(not pages.any(), f"PFN {pfn:#x}, {nr_pages} pages: in two hands, {owner} and {pages.tolist()}")
        pages[:] = owner

    def release(self, pfn: int, nr_pages: int, owner: int) -> None:
        """These pages were the owner's."""
        pages = self.owner[pfn : pfn + nr_pages]
        require((pages == owner).all(), f"PFN {pfn:#x}, {nr_pages} pages: taken from {owner} by {pages.tolist()}")
        pages[:] = 0

    # -- threads that allocate in the model

    def allocate(self, rng: random.Random, me: int) -> Iterator[int]:
        """Blocks one by one and in bulk, runs, traces; and mistakes, which must be refused. Yields operations done."""
        mine: list[tuple[int, int]] = []  # (PFN, pages)

        def took(pfn: int, nr_pages: int) -> None:
            self.claim(pfn, nr_pages, me)
            mine.append((pfn, nr_pages))

        def gave() -> tuple[int, int]:
            pfn, nr_pages = mine.pop(rng.randrange(len(mine)))
            self.release(pfn, nr_pages, me)
            return pfn, nr_pages

        while not self.stop.is_set():
            kind = rng.randrange(8)
            order = rng.choice((0, 0, 0, 1, 2, 3, 5, 6, 9))
            try:
                if len(mine) > 200 or (mine and rng.random() < 0.4):
                    pfn, nr_pages = gave()
                    is_block = nr_pages & (nr_pages - 1) == pfn & (nr_pages - 1) == 0 and nr_pages <= 512
                    if is_block and rng.random() < 0.5:
                        self.model.free_pages(pfn, nr_pages.bit_length() - 1)
                    else:
                        self.model.free_pages_exact(pfn, nr_pages)
                    yield 1
                elif kind < 4:
                    took(self.model.alloc_pages(order, rng.choice(("movable", "unmovable", "reclaimable"))), 1 << order)
                    yield 1
                elif kind == 4:
                    pfns = self.model.alloc_pages_bulk(rng.randrange(200), min(order, 3))
                    for pfn in pfns.tolist():
                        self.claim(pfn, 1 << min(order, 3), me)
                        self.release(pfn, 1 << min(order, 3), me)
                    self.model.free_pages_bulk(rng.sample(pfns.tolist(), len(pfns)), min(order, 3))
                    yield 2 * len(pfns)
                elif kind == 5:
                    nr_pages = rng.randrange(1, 700)
                    took(self.model.alloc_pages_exact(nr_pages), nr_pages)
                    yield 1
                elif kind == 6:
                    yield self.trace(rng, min(order, 6), took)
                elif mine:
                    self.mistake(mine[-1], rng)
                    yield 1
            except ph.OutOfMemoryError:
                yield 1
        while mine:
            self.model.free_pages_exact(*gave())

    def trace(self, rng: random.Random, order: int, took: Own) -> int:
        """Allocate blocks in one call and free most of them in it."""
        count = rng.randrange(1, 60)
        freed = rng.sample(range(count), count * 3 // 4)
        ops = np.array(
            [(slot, order, ph.OP_ALLOC) for slot in range(count)] + [(slot, order, ph.OP_FREE) for slot in freed],
            ph.OP_DTYPE,
        )
        table = np.zeros(count, np.uint64)
        done = len(ops)
        try:
            self.model.run_ops(ops, table)
        except ph.OutOfMemoryError as error:
            done = error.index  # type: ignore[attr-defined]
        left = set(range(min(done, count))) - set(freed[: max(done - count, 0)])
        for slot in left:
            took(int(table[slot]), 1 << order)
        return done

    def mistake(self, block: tuple[int, int], rng: random.Random) -> None:
        """What must be refused, and cannot be right by chance."""
        pfn, nr_pages = block
        wrong: list[Callable[[], Any]] = [
            lambda: self.model.free_pages_exact(pfn, nr_pages + 1),
            lambda: self.model.free_pages(ROOM + pfn),
            lambda: self.model.free_pages_bulk([pfn, pfn, -1]),
            lambda: self.model.alloc_pages(10),
            lambda: self.model.alloc_pages_at(pfn),
            lambda: self.model.offline(pfn // SECTION * SECTION + 1, SECTION),
        ]
        try:
            rng.choice(wrong)()
        except ph.BadPageError:
            return
        raise FindingError(f"a mistake was not refused, PFN {pfn:#x}, {nr_pages} pages")

    # -- threads that have arrays in the arena

    def arrays(self, rng: random.Random, me: int) -> Iterator[int]:
        """Each array is full of its own canary, and still is when it is looked at again."""
        mine: list[tuple[Any, int]] = []

        def look(array: Any, canary: int) -> None:
            wrong = np.flatnonzero(array != canary)
            require(not len(wrong), f"array at {array.ctypes.data:#x}: {len(wrong)} canaries of {len(array)} are dead")

        while not self.stop.is_set():
            if len(mine) > 20 or (mine and rng.random() < 0.4):
                look(*mine.pop(rng.randrange(len(mine))))
            try:
                array = self.arena.empty(rng.choice((100, 4096, 100_000, 1_000_000, 5 << 20)) // 8, np.uint64)
            except ph.OutOfMemoryError:
                mine.clear()
            else:
                canary = rng.getrandbits(63)
                array[:] = canary
                mine.append((array, canary))
            yield 1
        for array, canary in mine:
            look(array, canary)

    # -- threads that change everything under them

    def hotplug(self, rng: random.Random, me: int) -> Iterator[int]:
        """Sections go and come back, zones grow, pageblocks are isolated for a while; page sets are emptied."""
        while not self.stop.is_set():
            section = rng.randrange(2, 32) * SECTION
            try:
                self.model.offline(section, SECTION)
                self.claim(section, SECTION, OFFLINE)
                time.sleep(rng.random() * 0.01)
                self.release(section, SECTION, OFFLINE)
                self.model.online(section, SECTION)
            except ph.BadPageError:
                pass
            block = rng.randrange(2 * SECTION, 14 * SECTION) // 512 * 512
            self.model.set_migratetype(block, 512, "isolate")
            time.sleep(rng.random() * 0.01)
            self.model.set_migratetype(block, 512, "movable")
            if rng.random() < 0.1:
                self.model.drain_pcp()
            if rng.random() < 0.01 and section >= 25 * SECTION:
                with suppress(ph.BadPageError):
                    self.model.online(section, SECTION)
            yield 4

    def host(self, rng: random.Random) -> ph.PageHintingCallbacks:
        """In Python: owns what it is told of, takes its time, and fails in every way."""

        def hint_pages(blocks: Any) -> Any:
            told = [(pfn, 1 << order) for pfn, order, _ in blocks.tolist()]
            try:
                for pfn, nr_pages in told:
                    self.claim(pfn, nr_pages, HOST)
                time.sleep(0.003 if rng.random() < 0.1 else 0)
                for pfn, nr_pages in told:
                    self.release(pfn, nr_pages, HOST)
            except FindingError as finding:
                self.found(finding)
            fail = rng.random()
            if fail < 0.1:
                raise HostError
            return None if fail < 0.7 else [rng.random() < 0.8 for _ in told] if fail < 0.95 else [True] * 99

        def prepare() -> int | None:
            if rng.random() < 0.05:
                raise HostError
            return -1 if rng.random() < 0.05 else None

        def cleanup() -> None:
            if rng.random() < 0.1:
                raise HostError

        return ph.PageHintingCallbacks(hint_pages, rng.choice((1, 4, 16)), prepare, cleanup)

    def switch(self, rng: random.Random, me: int) -> Iterator[int]:
        """Hinting goes on and off; in the arena with a compiled function, in the model with one in Python."""
        while not self.stop.is_set():
            settings: dict[str, Any] = {
                "delay": rng.choice((None, 0.0, 0.001, 0.1)),
                "threshold": rng.choice((None, 1, 2, 50)),
                "mark_free": rng.random() < 0.7,
            }
            in_arena = rng.random() < 0.5
            pages = self.arena.pages if in_arena else self.model
            advice = rng.choice(("dontneed", "free"))
            try:
                with self.arena.hinting(advice, **settings) if in_arena else pages.hinting(self.host(rng), **settings):
                    for _ in range(rng.randrange(20)):
                        if self.stop.is_set():
                            break
                        pages.max_pages = rng.choice((1, 2, 16, 64))
                        pages.delay = rng.choice((None, 0.0, 0.01))
                        pages.threshold = rng.choice((None, 1, 20))
                        time.sleep(rng.random() * 0.02)
                        if rng.random() < 0.2:
                            pages.flush_hinting()
                        yield 3
            except (ph.HintingActiveError, ph.HintingInactiveError):
                yield 1  # another thread does the same

    # -- all of them

    def found(self, finding: BaseException) -> None:
        """Keep a finding, and end the round."""
        self.findings.append("".join(traceback.format_exception(finding)).rstrip())
        self.stop.set()

    def work(self, number: int, task: Callable[[random.Random, int], Iterator[int]]) -> None:
        """What each thread runs."""
        try:
            for done in task(random.Random(f"{self.seed}/{number}"), number + 1):
                self.operations[number] += done
        except BaseException as error:
            self.found(error)

    def verify(self) -> None:
        """What must hold at any moment, while all of them run."""
        try:
            for pages in (self.model, self.arena.pages):
                pages.verify()
        except ph.PageHintError as error:
            self.found(error)

    def run(self, seconds: float, each_second: Callable[[int], None]) -> None:
        """Run all threads for so long, or until the first finding; then check what is left."""
        tasks = [*[self.allocate] * 3, *[self.arrays] * 2, self.hotplug, *[self.switch] * 3]
        threads = [threading.Thread(target=self.work, args=each, daemon=True) for each in enumerate(tasks)]
        end = time.monotonic() + seconds
        try:
            for thread in threads:
                thread.start()
            while not self.stop.wait(min(1.0, max(end - time.monotonic(), 0.01))) and time.monotonic() < end:
                self.verify()
                each_second(sum(self.operations))
        finally:
            self.stop.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join(60)
                    if thread.is_alive():
                        self.findings.append(f"{thread.name} hangs")
        if not self.findings:
            self.check_rest()

    def check_rest(self) -> None:
        """Everything is free, and where it belongs."""
        self.model.drain_pcp()
        self.verify()
        try:
            for pages in (self.model, self.arena.pages):
                stats = pages.stats()
                require(not pages.hinting_enabled, "hinting is still on")
                require(stats.allocated_pages == 0, f"{stats.allocated_pages} pages are still allocated")
                require(stats.isolated_pages == 0, f"{stats.isolated_pages} pages are still isolated")
                require(stats.free_pages == stats.managed_pages, "free pages are missing")
                require(stats.hints_pending == 0, "hints are left")
            require(not self.owner.any(), "pages are still owned")
            require(self.arena.live_arrays == 0, f"{self.arena.live_arrays} arrays are still alive")
            self.arena.close()
        except (FindingError, ph.PageHintError) as error:
            self.found(error)


@dataclass(frozen=True)
class Footprint:
    """What this process has of the system's, at rest."""

    rss: int
    mappings: int
    files: int
    threads: int

    @classmethod
    def now(cls) -> Footprint:
        """Measure, after everything that can be given back was."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        count = [len(list(Path(f"/proc/self/{name}").iterdir())) for name in ("fd", "task")]
        return cls(rss_bytes(), Path("/proc/self/maps").read_text().count("\n"), *count)

    def leaks(self, before: Footprint) -> list[str]:
        """Return what there is more of than before."""
        slack = {"rss": RSS_SLACK, "mappings": MAPS_SLACK, "files": 0, "threads": 0}
        return [
            f"{name} grew from {getattr(before, name):,} to {getattr(self, name):,}"
            for name, most in slack.items()
            if getattr(self, name) > getattr(before, name) + most
        ]


@dataclass
class Outcome:
    """What a soak has come to."""

    seconds: float = 0.0
    operations: int = 0
    rounds: int = 0
    findings: list[str] = field(default_factory=list)
    interrupted: bool = False
    before: Footprint | None = None
    after: Footprint | None = None


def soak(seconds: float, seed: int, tell: Callable[[float, float], None]) -> Outcome:
    """Run rounds for so many seconds, until a finding, or until Ctrl-C.

    Parameters
    ----------
    seconds : float
        For all rounds; the first, a tenth of it or less, warms up.
    seed : int
        Of all that is random. Threads take turns as they like, so that a finding need not come again.
    tell : callable
        Told about every second how far it is (0 to 1), and the operations per second since the last time.
    """
    outcome = Outcome()
    begin = last = time.monotonic()
    told = 0

    def each_second(done: int) -> None:
        nonlocal last, told
        now = time.monotonic()
        tell(min((now - begin) / seconds, 1.0), (outcome.operations + done - told) / max(now - last, 1e-9))
        last, told = now, outcome.operations + done

    try:
        while not outcome.findings and (left := begin + seconds - time.monotonic()) > 0:
            length = min(seconds / 10, ROUND_SECONDS) if outcome.rounds == 0 else min(left, ROUND_SECONDS)
            now = Round(f"{seed}/{outcome.rounds}")
            try:
                now.run(length, each_second)
            finally:
                outcome.operations += sum(now.operations)
                outcome.findings += now.findings
                outcome.rounds += 1
            del now
            outcome.after = Footprint.now()
            outcome.before = outcome.before or outcome.after
    except KeyboardInterrupt:
        outcome.interrupted = True
    outcome.seconds = time.monotonic() - begin
    if outcome.before and outcome.after and not outcome.findings:
        # A thread takes a moment to leave after it was joined, and a worker after its allocator was collected.
        patience = time.monotonic() + PATIENCE_SECONDS
        while outcome.after.leaks(outcome.before) and time.monotonic() < patience:
            time.sleep(0.1)
            outcome.after = Footprint.now()
        outcome.findings += outcome.after.leaks(outcome.before)
    return outcome


@contextmanager
def progress_bar(seed: int) -> Iterator[Callable[[float, float], None]]:
    """Show how far it is, and how fast."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(f"soak, seed {seed}", total=1.0, rate="")
        yield lambda done, rate: bar.update(task, completed=done, rate=f"{rate:>9,.0f} operations/s")


def report(outcome: Outcome, seed: int) -> None:
    """Print what came of it, the seed in every line that begins one."""
    how = "interrupted after" if outcome.interrupted else "ran for"
    rate = outcome.operations / max(outcome.seconds, 1e-9)
    print(
        f"seed {seed}: {how} {outcome.seconds:.0f} s, {outcome.rounds} rounds,"
        f" {outcome.operations:,} operations, {rate:,.0f} a second"
    )
    if outcome.before and outcome.after:
        for name, show in (("rss", format_size), ("mappings", str), ("files", str), ("threads", str)):
            values = (getattr(outcome.before, name), getattr(outcome.after, name))
            print(f"seed {seed}: {name} after the first round {show(values[0])}, after the last {show(values[1])}")
    for finding in outcome.findings:
        print(f"seed {seed}: FOUND {finding}", file=sys.stderr)
    print(f"seed {seed}: {len(outcome.findings) or 'no'} findings")


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= 60 * 24 * 7:
        raise argparse.ArgumentTypeError(f"minutes must be more than 0 and at most a week, not {text}")
    return minutes


def main() -> int:
    """Run the command; returns its exit status: 0, also after Ctrl-C, and 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="python -m pagehint.soak", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--minutes", type=_minutes, default=10.0, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, help="of all that is random (default: another one each time)")
    args = parser.parse_args()
    seed = random.randrange(1 << 31) if args.seed is None else args.seed
    logging.getLogger("pagehint").setLevel(logging.CRITICAL)  # the host fails on purpose
    print(f"seed {seed}: begins; {args.minutes:g} minutes", flush=True)
    try:
        with progress_bar(seed) as tell:
            outcome = soak(args.minutes * 60, seed, tell)
    except ModuleNotFoundError as error:
        parser.exit(1, f"pagehint.soak: error: the progress bar needs {error.name}: pip install 'pagehint[demo]'\n")
    report(outcome, seed)
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
