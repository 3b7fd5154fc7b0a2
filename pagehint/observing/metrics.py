"""What processes hold, as metrics: a collector for `prometheus_client` (the extra "metrics"), and one's own exporter.

::

    from prometheus_client import REGISTRY
    from pagehint.observing import Collector

    REGISTRY.register(Collector())

Every metric has the label `pid`; sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from pagehint.extras import require
from pagehint.observing.answering import figures
from pagehint.observing.holdings import Holdings

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_GAUGES: Final = {  # figures of `Holding`, in bytes
    "used": "In use in arenas.",
    "warm": "In memory and free, in arenas; given back next, or used again at no cost.",
    "fragmented": "In memory and free, beside others in use, so that it is not given back.",
}
_COUNTERS: Final = {
    "given_back": "Given back by arenas that was in memory until then.",
    "again": "Given back and handed out again within the break-even age, in whole granules.",
}


def this_process() -> list[Holdings]:
    """Return what this process holds."""
    return [Holdings.from_answer(figures())]


class Collector:
    """What arenas hold, for a registry of `prometheus_client`.

    Parameters
    ----------
    look : callable, optional
        Returns the processes at each scrape, as `Holdings`. Default: this one.

    Raises
    ------
    PageHintError
        If `prometheus_client` is not installed.
    """

    def __init__(self, look: Callable[[], Iterable[Holdings]] | None = None) -> None:
        require("prometheus_client", "a collector of metrics", "metrics")
        self._look = this_process if look is None else look

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values, so that a registry need not collect to know their names."""
        return self._metrics([])

    def collect(self) -> Iterator[Metric]:
        """Look, and yield the metrics."""
        return self._metrics(list(self._look()))

    def _metrics(self, processes: list[Holdings]) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        resident = GaugeMetricFamily("pagehint_resident_bytes", "Resident memory of the process.", labels=["pid"])
        for each in processes:
            resident.add_metric([str(each.pid)], each.resident)
        yield resident
        for name, text in _GAUGES.items():
            yield _totals(GaugeMetricFamily(f"pagehint_{name}_bytes", text, labels=["pid"]), name, processes)
        for name, text in _COUNTERS.items():
            yield _totals(CounterMetricFamily(f"pagehint_{name}_bytes", text, labels=["pid"]), name, processes)
        free = GaugeMetricFamily(
            "pagehint_free_bytes", "Free memory of arenas, by why it is not given back.", labels=["pid", "state"]
        )
        for each in processes:
            for state, size in _by_state(each).items():
                free.add_metric([str(each.pid), state], size)
        yield free


def _totals(
    metric: GaugeMetricFamily | CounterMetricFamily, name: str, processes: list[Holdings]
) -> GaugeMetricFamily | CounterMetricFamily:
    """Add each process's total of a figure to a metric, as far as it is known."""
    for each in processes:
        total = each.total(name)
        if total is not None:
            metric.add_metric([str(each.pid)], total)
    return metric


def _by_state(holdings: Holdings) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for arena in holdings.arenas:
        for reason in arena.free:
            sizes[reason.name] = sizes.get(reason.name, 0) + reason.bytes
    return sizes
