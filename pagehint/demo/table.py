"""The demo in a terminal: bars while it runs, a table at the end. Needs the extra "demo" (rich).

The text is ASCII, which every terminal and file can take; rich draws its lines with what the encoding has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from pagehint.demo.outcome import Measured, Outcome
from pagehint.demo.processes import Tell
from pagehint.sizes import format_size


@contextmanager
def live_progress() -> Iterator[Tell]:
    """Show a bar and the RSS for each run; yields the function to tell how far a run is."""
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("RSS {task.fields[rss]:>10}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks = {name: bars.add_task(f"hinting {name}", total=1.0, start=False, rss="") for name in ("off", "on")}

        def tell(name: str, done: float, rss: int) -> None:
            bars.start_task(tasks[name])
            bars.update(tasks[name], completed=done, rss=format_size(rss))

        yield tell


def print_outcome(outcome: Outcome, where: str) -> None:
    """Print the table of both runs, and what it means."""
    console = Console()
    console.print(f"A bursty workload in {where}", highlight=False)
    table = Table()
    table.add_column("")
    table.add_column("hinting off", justify="right")
    table.add_column("hinting on", justify="right")

    def row(name: str, show: Callable[[Measured], str]) -> None:
        table.add_row(name, show(outcome.off), show(outcome.on))

    row("RSS before", lambda run: format_size(run.rss_start))
    row("RSS peak", lambda run: format_size(run.rss_peak))
    row("RSS mean over time", lambda run: format_size(run.rss_mean))
    row("RSS at the end", lambda run: format_size(run.rss_end))
    if outcome.on.host_peak:
        row("host resident, peak", lambda run: format_size(run.host_peak))
        row("host resident, mean", lambda run: format_size(run.host_mean))
        row("host resident at the end", lambda run: format_size(run.host_end))
        row("  in use at the end", lambda run: format_size(run.in_use_end))
        row("  for each byte in use", lambda run: f"{run.host_end / run.in_use_end:.3f}")
        row("QEMU discarded", lambda run: format_size(run.bytes_discarded))
    row("given back", lambda run: format_size(run.bytes_reported))
    row("blocks, in calls", lambda run: f"{run.blocks_reported:,} in {run.reports:,}" if run.reports else "none")
    row("seconds of work", lambda run: f"{run.work_seconds:.2f}")
    row("  of which a round", lambda run: f"{min(run.round_seconds):.2f} to {max(run.round_seconds):.2f}")
    table.add_row("work against off", "1.00", f"{outcome.overhead:.2f}, noise {outcome.noise:.2f}")
    console.print(table)
    both = (outcome.off, outcome.on)
    if outcome.on.host_peak:
        kept = [format_size(max(run.host_end - run.in_use_end, 0)) for run in both]
        what = "Kept by the host beyond what is in use"
    else:
        kept = [format_size(max(run.rss_end - run.rss_start, 0)) for run in both]
        what = "Memory kept after the work"
    console.print(f"{what}: {kept[0]} without hinting, {kept[1]} with it.", highlight=False)
    console.print("Noise: how much rounds of the same work differ within one run.", highlight=False)
