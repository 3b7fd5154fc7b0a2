"""How a row is measured: all that it compares take turns, round by round, so that what drifts cancels in the ratios."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median, quantiles
from time import perf_counter
from typing import Any, Protocol

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.buddies import LeafBuddy, LinkedList, PageHint
from benchmarks.build import build_consumer

SIZES = "1,16,256"
LEAST_ROUNDS, MOST_ROUNDS = 5, 101
BUDGET = 2.0  # seconds a row, if LEAST_ROUNDS are done by then

Round = Callable[[], float]  # does one round, and returns the nanoseconds of what is measured in it
Figure = Callable[[Mapping[str, float]], float]  # of the nanoseconds an operation of everybody in one round


class Measure(Protocol):
    """Measure a row.

    Parameters
    ----------
    row, size : str
        What the table calls it.
    works : dict
        Who does what. The first is pagehint, whose rounds are what pytest-benchmark reports.
    ops : float
        Operations in a round.
    unit, figure
        What is compared with the target, if it is not pagehint's nanoseconds an operation.
    target : float, optional
        Of the issue.
    at_least : bool
        The figure is to be above the target.
    gib : int, optional
        Where to plot it.
    rounds : int, optional
        As many, and not what fits into the budget.
    """

    def __call__(
        self,
        row: str,
        size: str,
        works: Mapping[str, Round],
        *,
        ops: float,
        unit: str = "ns",
        figure: Figure = ...,
        target: float | None = None,
        at_least: bool = False,
        gib: int | None = None,
        rounds: int | None = None,
    ) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--quick", action="store_true", help="models of 1 GiB only, few rounds: a smoke test of some seconds"
    )
    parser.addoption("--sizes", default=SIZES, help=f"sizes of the models in GiB (default {SIZES})")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "gib" in metafunc.fixturenames:
        sizes = "1" if metafunc.config.getoption("quick") else metafunc.config.getoption("sizes")
        metafunc.parametrize("gib", [int(size) for size in sizes.split(",")], ids="{}GiB".format)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=measured_seconds))


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("quick"))


@pytest.fixture(scope="session", autouse=True)
def consumer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The compiled consumer. With it is built whatever else must be compiled."""
    directory = tmp_path_factory.mktemp("compiled")
    LinkedList.build(directory)
    LeafBuddy.build(directory)
    PageHint.consumer = build_consumer(directory)
    return PageHint.consumer


_measured = 0.0


def measured_seconds() -> float:
    """The clock of pytest-benchmark: it runs only in what a round measures, not in what it does before and after."""
    return _measured


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4)
    return {"median": median(values), "low": low, "high": high, "min": min(values)}


@pytest.fixture
def measure(benchmark: BenchmarkFixture, quick: bool) -> Measure:
    def run(
        row: str,
        size: str,
        works: Mapping[str, Round],
        *,
        ops: float,
        unit: str = "ns",
        figure: Figure = lambda ns: ns["pagehint"],
        target: float | None = None,
        at_least: bool = False,
        gib: int | None = None,
        rounds: int | None = None,
    ) -> None:
        global _measured
        done: list[dict[str, float]] = []
        turn: dict[str, float] = {}

        def others() -> None:
            turn.clear()
            turn.update({who: work() / ops for who, work in works.items() if who != "pagehint"})

        def ours() -> None:
            global _measured
            ns = works["pagehint"]()
            _measured += ns / 1e9
            done.append({"pagehint": ns / ops, **turn})

        began = perf_counter()
        others()
        ours()
        took = perf_counter() - began
        done.clear()  # it was for warming up, and to see how long it takes
        if rounds is None:
            rounds = LEAST_ROUNDS if quick else min(max(int(BUDGET / took), LEAST_ROUNDS), MOST_ROUNDS)
        timed: Any = benchmark  # without annotations
        timed.group = f"{row}, {size}"
        timed.pedantic(ours, setup=others, rounds=rounds)
        if timed.disabled:
            return
        timed.extra_info.update(
            row=row,
            size=size,
            unit=unit,
            target=target,
            at_least=at_least,
            gib=gib,
            rounds=len(done),
            figure=spread([figure(ns) for ns in done]),
            # The ratios are those of a round, so that a disturbance of some rounds hits both or is left out.
            who={
                who: {
                    **spread([ns[who] for ns in done]),
                    "ratio": median([ns["pagehint"] / ns[who] for ns in done]),
                }
                for who in works
            },
        )

    return run


@pytest.fixture
def note(benchmark: BenchmarkFixture) -> Callable[..., None]:
    """Give the table another row, of something that is counted and not timed."""

    def add(row: str, size: str, value: float, unit: str, target: float | None = None, gib: int | None = None) -> None:
        figure = dict.fromkeys(("median", "low", "high", "min"), value)
        entry = {"row": row, "size": size, "unit": unit, "target": target, "at_least": False, "gib": gib}
        benchmark.extra_info.setdefault("also", []).append({**entry, "rounds": 1, "figure": figure, "who": {}})

    return add
