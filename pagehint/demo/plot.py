"""The demo as a picture. Needs the extra "demo" (matplotlib)."""

from __future__ import annotations

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pagehint.demo.outcome import Outcome


def plot_outcome(outcome: Outcome, path: Path) -> None:
    """Write RSS over time, for both runs, to a file in the format of its ending."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, run, colour in (("off", outcome.off, "tab:red"), ("on", outcome.on, "tab:blue")):
        times, rss, resident = ([*column] for column in zip(*run.samples, strict=True))
        sizes = [nr_bytes / (1 << 20) for nr_bytes in rss]
        if run.host_peak:
            host = [nr_bytes / (1 << 20) for nr_bytes in resident]
            axes.plot(times, host, color=colour, linewidth=1, linestyle="--", label=f"the host, hinting {name}")
        axes.plot(times, sizes, color=colour, linewidth=1.5, label=f"hinting {name}")
        axes.fill_between(times, sizes, color=colour, alpha=0.08)
        axes.axhline(run.rss_mean / (1 << 20), color=colour, linewidth=0.8, linestyle=":")
    axes.set_xlabel("seconds")
    axes.set_ylabel("resident memory, MiB")
    dashed = "; dashed: the guest's RAM in the host" if outcome.on.host_peak else ""
    axes.set_title(f"What a bursty process is charged for (dotted: mean{dashed})", loc="left")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=150)
