from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.allocators import Buddy, LinkedList, PageHint

ROUNDS = 5
SIZES = (1, 16, 128)


class Measure(Protocol):
    """Time rounds of `work`, of `ops` operations on `pages` pages each, and note the median cost of one.

    `calls_ns` is what an operation spends outside what is measured, and is taken off.
    """

    def __call__(
        self,
        work: Callable[[], Any],
        *,
        row: str,
        who: str,
        gib: int,
        ops: int,
        pages: int,
        setup: Callable[[], None] | None = None,
        rounds: int = ROUNDS,
        calls_ns: float = 0.0,
        **extra: object,
    ) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="models of 1 GiB only: a smoke test of some seconds")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "gib" in metafunc.fixturenames:
        sizes = SIZES[:1] if metafunc.config.getoption("quick") else SIZES
        metafunc.parametrize("gib", sizes, ids="{}GiB".format)


@pytest.fixture(scope="session")
def yardstick(tmp_path_factory: pytest.TempPathFactory) -> type[LinkedList]:
    LinkedList.build(tmp_path_factory.mktemp("yardstick"))
    return LinkedList


@pytest.fixture(params=[PageHint, LinkedList], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest, yardstick: type[LinkedList]) -> type[Buddy]:
    chosen: type[Buddy] = request.param
    return chosen


@pytest.fixture
def buddy(kind: type[Buddy], gib: int) -> Buddy:
    return kind(gib)


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Measure:
    def run(
        work: Callable[[], Any],
        *,
        row: str,
        who: str,
        gib: int,
        ops: int,
        pages: int,
        setup: Callable[[], None] | None = None,
        rounds: int = ROUNDS,
        calls_ns: float = 0.0,
        **extra: object,
    ) -> None:
        timed: Any = benchmark  # without annotations
        timed.group = f"{row}, {gib} GiB"
        timed.pedantic(work, setup=setup, rounds=rounds, warmup_rounds=1)
        timed.extra_info.update(row=row, who=who, gib=gib, ops=ops, pages=pages, **extra)
        if timed.enabled:
            ns = timed.stats.stats.median * 1e9 - calls_ns * ops
            timed.extra_info.update(ns_per_op=ns / ops, ns_per_page=ns / pages)

    return run
