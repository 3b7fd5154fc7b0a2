"""A comparison of policies as pictures, and as a page. Needs the extra "demo" (matplotlib).

The curves are of granules that were entirely free, which is what a policy can return; what is free in broken granules
stays charged whatever the policy.
"""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pagehint.policies.policy import SECOND
from pagehint.policies.recording import Recording
from pagehint.policies.reports import first_reports
from pagehint.policies.scores import WINDOWS
from pagehint.policies.table import as_html
from pagehint.traces.intervals.table import OPEN

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from pagehint.policies.comparison import Comparison

AGES = np.geomspace(0.01, 30, 60)
WINDOW = WINDOWS[-1]
HEAT_BINS = 200  # of time, and of addresses


def plot_comparison(comparison: Comparison, path: Path) -> None:
    """Write the pictures to a file in the format of its ending."""
    draw(comparison).savefig(path, dpi=130)


def write_page(comparison: Comparison, path: Path) -> None:
    """Write a page with the table and the pictures, which needs no other file."""
    picture = io.BytesIO()
    draw(comparison).savefig(picture, format="png", dpi=110)
    encoded = base64.b64encode(picture.getvalue()).decode()
    name = escape(comparison.recording.name)
    path.write_text(
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}: hinting policies</title>"
        "<style>body{font:15px/1.5 sans-serif;max-width:72em;margin:2em auto;padding:0 1em}"
        "td,th{padding:.15em .7em;border-bottom:1px solid #ddd}img{max-width:100%}</style>"
        f"<h1>{name}</h1>{as_html(comparison.facts(), comparison.scores)}"
        f"<img alt='What each policy leaves charged over time, and at what cost' src='data:image/png;base64,{encoded}'>"
        "</html>\n"
    )


def draw(comparison: Comparison) -> Figure:
    """Return the pictures: memory over time, granules by address, reuse against what stays charged, and latency."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    (over_time, pareto), (by_address, latency) = figure.subplots(2, 2)
    recording = comparison.recording
    firsts = {name: first_reports(recording.intervals, made.reports) for name, made in comparison.decisions.items()}
    _draw_over_time(over_time, recording, firsts)
    _draw_pareto(pareto, comparison)
    _draw_by_address(figure, by_address, recording)
    _draw_latency(latency, recording, firsts)
    for axes in (over_time, pareto, by_address, latency):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{recording.name}: hinting policies on {(recording.end - recording.begin) / SECOND:.1f} s")
    return figure


def _steps(starts: NDArray[np.int64], ends: NDArray[np.int64], begin: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """How many of some stretches of time there are at a time: as times in seconds, and counts from then on."""
    times = np.concatenate([starts, ends])
    order = np.argsort(times, kind="stable")
    change = np.concatenate([np.ones(len(starts), np.int64), np.full(len(ends), -1)])[order]
    return (times[order] - begin) / SECOND, np.cumsum(change)


def _draw_over_time(axes: Axes, recording: Recording, firsts: dict[str, NDArray[np.int64]]) -> None:
    table = recording.intervals.table
    gib = (recording.page_size << recording.granule_order) / 2**30
    times, counts = _steps(table["start"], table["end"], recording.begin)
    axes.fill_between(times, counts * gib, step="post", color="0.9", label="free, in whole granules")
    charged = recording.charged_intervals
    for name, first in firsts.items():
        ends = np.where(first < 0, table["end"], first)
        times, counts = _steps(table["start"][charged], ends[charged], recording.begin)
        axes.step(times, counts * gib, where="post", linewidth=1.2, label=name)
    axes.set_xlabel("seconds")
    axes.set_ylabel("GiB, free but charged")
    axes.set_title("What stays charged", loc="left")
    axes.set_ylim(bottom=0)
    axes.margins(x=0)
    axes.legend(frameon=False, fontsize="small", ncols=2)


def _draw_pareto(axes: Axes, comparison: Comparison) -> None:
    recording = comparison.recording
    granule = recording.page_size << recording.granule_order
    mib, gib = granule / 2**20, granule / 2**30
    charged, table = recording.charged_intervals, recording.intervals.table
    lengths = recording.intervals.lengths[charged] / SECOND
    ends = table["end_position"][charged] != OPEN
    by_age = [float(np.minimum(lengths, age).sum()) * gib for age in AGES]
    by_age_soon = [float((ends & (lengths > age) & (lengths - age < WINDOW)).sum()) * mib for age in AGES]
    axes.plot(by_age_soon, by_age, color="0.6", linewidth=1, label="by age")
    best = [float(lengths[lengths <= age].sum()) * gib for age in AGES]
    best_soon = [float((ends & (lengths > age) & (lengths < WINDOW)).sum()) * mib for age in AGES]
    axes.plot(best_soon, best, color="0.6", linewidth=1, linestyle="--", label="who knows the future")
    for score in comparison.scores:
        place = score.reused[WINDOW] / 2**20, score.free_charged_whole
        (point,) = axes.plot(*place, "o")
        axes.annotate(score.policy, place, xytext=(5, 4), textcoords="offset points", fontsize="small",
                      color=point.get_color())  # fmt: skip
    axes.set_xlabel(f"MiB used within {WINDOW:g} s of their report")
    axes.set_ylabel("GiB·s free but charged")
    axes.set_title(f"Too late or too soon (curves: {AGES[0]:g} to {AGES[-1]:g} s)", loc="left")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize="small")


def _draw_by_address(figure: Figure, axes: Axes, recording: Recording) -> None:
    table, seconds = recording.intervals.table, max(recording.end - recording.begin, 1) / SECOND
    granules = max(len(recording.free) >> recording.granule_order, 1)
    per_row = -(-granules // HEAT_BINS)
    rows = (table["pfn"] >> np.uint64(recording.granule_order)).astype(np.int64) // per_row
    free = np.zeros((-(-granules // per_row), HEAT_BINS + 1))
    width = max(recording.end - recording.begin, 1) / HEAT_BINS
    for column, sign in (("start", 1.0), ("end", -1.0)):
        place = np.clip((table[column] - recording.begin) / width, 0, HEAT_BINS)
        whole = place.astype(np.int64)
        # A stretch fills the rest of the bin that it begins in, and all bins after it.
        np.add.at(free, (rows, whole), sign * (whole + 1 - place))
        np.add.at(free, (rows, np.minimum(whole + 1, HEAT_BINS)), sign * (place - whole))
    share = np.clip(np.cumsum(free, axis=1)[:, :HEAT_BINS] / per_row, 0, 1)
    gib = granules * (recording.page_size << recording.granule_order) / 2**30
    image = axes.imshow(share, aspect="auto", origin="lower", extent=(0, seconds, 0, gib), cmap="viridis",
                        interpolation="nearest", vmin=0, vmax=1)  # fmt: skip
    figure.colorbar(image, ax=axes, label="share of whole free granules")
    axes.set_xlabel("seconds")
    axes.set_ylabel("address, GiB")
    axes.set_title("Where memory is free", loc="left")


def _draw_latency(axes: Axes, recording: Recording, firsts: dict[str, NDArray[np.int64]]) -> None:
    table = recording.intervals.table
    for name, first in firsts.items():
        waits = np.sort((first - table["start"])[first >= 0]) / SECOND
        axes.step(np.maximum(waits, 1e-6), np.arange(1, len(waits) + 1) / max(len(table), 1), where="post", label=name)
    axes.set_xscale("log")
    axes.set_xlabel("seconds from whole to reported")
    axes.set_ylabel("share of all free intervals")
    axes.set_title("How soon it is reported", loc="left")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize="small")
