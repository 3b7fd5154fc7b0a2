"""Many recordings times many policies, in processes, on this machine or on others; what is done stays done."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any

from pagehint.errors import PageHintError
from pagehint.extras import require
from pagehint.policies.comparison import recording_of
from pagehint.policies.names import rule_of
from pagehint.policies.policy import Rule
from pagehint.policies.recording import ARRAYS, Recording
from pagehint.policies.scores import evaluate
from pagehint.traces.folder import read_recording
from pagehint.traces.views.view import operations_of

SAVED_EVERY = 1.0
"""Seconds between two writings of the table while a sweep runs."""


@dataclass(frozen=True)
class Task:
    """One recording and one policy: `key` says which, by their names and the recording's content."""

    folder: str
    content: str
    policy: Rule
    key: str
    options: dict[str, Any]

    def run(self) -> dict[str, Any]:
        """Return the row of the result."""
        [score] = evaluate(_loaded(self.folder, self.content), [self.policy], **self.options)
        return {"key": self.key, **score.to_row()}


_last: dict[tuple[str, str], Recording] = {}  # of this process: the recording of the task before, if there was one


def _loaded(folder: str, content: str) -> Recording:
    """Return a recording, for the next policy with its intervals derived; `content` tells it from what was there."""
    recording = _last.get((folder, content))
    if recording is None:
        recording = Recording.load(folder)
        _last.clear()
        _last[folder, content] = recording
    return recording


def run_task(task: Task) -> dict[str, Any]:
    """Run a task, in whatever process."""
    return task.run()


def needed(module: str) -> Any:
    """Import what a sweep needs, or say how to install it."""
    require(module, "a sweep", "policies")
    return import_module(module)


def sweep(
    traces: Iterable[Recording | str | Path],
    policies: Iterable[str | Rule],
    output: str | Path,
    *,
    jobs: int = -1,
    client: Any = None,
    progress: bool = True,
    **options: Any,
) -> Path:
    """Run each policy on each recording, and write one table of the scores.

    Parameters
    ----------
    traces : iterable of Recording, or of paths
        What `Recording.save` has written is mapped by each process, so its memory is shared. Anything else is read
        once, and written to a temporary folder first: a recording in memory, or one as `read_recording` reads it, all
        that happened in it, from the loading of the balloon on. With `client` the folders, and where this machine has
        its temporary ones, must be where its workers find them.
    policies : iterable of str, or of policies
        By name, as `policy_of` has it, or objects that can be pickled. No two may have one name.
    output : str or Path
        The Parquet file. What it holds already, of the same recordings and policies, is not run again.
    jobs : int, default -1
        Processes of joblib; -1: as many as processors.
    client : dask.distributed.Client, optional
        Run there instead.
    progress : bool, default True
        Show a progress bar on standard error, if that is a terminal.
    **options
        As `score` has them.

    Returns
    -------
    Path
        `output`: a row for each recording and policy, with the columns of `Score.to_row`, and ``key``.

    Raises
    ------
    PageHintError
        If the extra ``policies`` is not installed, or `output` is no table of a sweep.
    KeyboardInterrupt
        With Ctrl-C; what was done by then is in `output`, and the next call goes on from there. So it does if the
        process is killed, but for what was done in the last second.
    """
    output = Path(output)
    needed("pyarrow.parquet")
    rules = [rule_of(each) for each in policies]
    names = [rule.name for rule in rules]
    if len(set(names)) < len(names):
        raise ValueError(f"policies need names of their own, not {', '.join(sorted(names))}")
    with ExitStack() as stack:
        tasks = list(_tasks(traces, rules, options, stack))
        wanted = [task.key for task in tasks]
        if len(set(wanted)) < len(wanted):
            raise ValueError("a recording is given twice")
        rows = read_rows(output)
        left = [task for task in tasks if task.key not in rows]
        due = 0.0
        try:
            with _bar(len(tasks), len(tasks) - len(left), progress) as done:
                for row in _on_client(client, left) if client is not None else _in_processes(jobs, left):
                    rows[row["key"]] = row
                    done()
                    if monotonic() >= due:  # who is killed loses no more than the rows of this time
                        _write(output, [rows[key] for key in wanted if key in rows])
                        due = monotonic() + SAVED_EVERY
        finally:
            if rows:
                _write(output, [rows[key] for key in wanted if key in rows])
    return output


def _tasks(
    traces: Iterable[Recording | str | Path], rules: list[Rule], options: dict[str, Any], stack: ExitStack
) -> Iterator[Task]:
    """Yield the tasks; recordings that are in no folder get one for as long as the stack lasts."""
    for trace in traces:
        folder = None if isinstance(trace, Recording) else Path(trace).absolute()
        if folder is None or (folder.exists() and not (folder / "recording.json").exists()):
            recording = trace if isinstance(trace, Recording) else _read(Path(trace))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pagehint-sweep-")))
            recording.save(folder)
        content = _digest(folder)
        for rule in rules:
            key = json.dumps([content, rule.name, repr(sorted(options.items()))])
            yield Task(str(folder), content, rule, key, options)


def _read(path: Path) -> Recording:
    """Read a kernel's recording: the folder of one, or a trace alone."""
    trace, before, after = read_recording(path)
    resident = {} if before is None else {"resident": None}
    return recording_of(operations_of(trace, "all", before, after), before, name=path.resolve().name, **resident)


def _digest(folder: Path) -> str:
    """Return what tells a recording from any other."""
    found = hashlib.sha256((folder / "recording.json").read_bytes() if Recording.load(folder) else b"")
    for name in ARRAYS:
        path = folder / f"{name}.npy"
        if path.exists():
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def _in_processes(jobs: int, tasks: list[Task]) -> Iterator[dict[str, Any]]:
    joblib = needed("joblib")
    yield from joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")(
        joblib.delayed(run_task)(task) for task in tasks
    )


def _on_client(client: Any, tasks: list[Task]) -> Iterator[dict[str, Any]]:
    distributed = needed("distributed")
    futures = client.map(run_task, tasks, pure=False)
    try:
        for future in distributed.as_completed(futures):
            yield future.result()
    finally:
        client.cancel(futures)


@contextmanager
def _bar(total: int, before: int, progress: bool) -> Iterator[Any]:
    """Show how many tasks are done; yields what to call after each."""
    if not progress:
        yield lambda: None
        return
    rich = needed("rich.progress")
    console = needed("rich.console").Console(stderr=True)
    with rich.Progress(*rich.Progress.get_default_columns(), rich.MofNCompleteColumn(), console=console,
                       disable=not console.is_terminal) as shown:  # fmt: skip
        task = shown.add_task("policies", total=total, completed=before)
        yield lambda: shown.advance(task)


def read_rows(output: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of an earlier sweep by their keys; none if there is no file."""
    if not output.exists():
        return {}
    parquet = needed("pyarrow.parquet")
    try:
        rows = parquet.read_table(output).to_pylist()
        return {row["key"]: row for row in rows}
    except (OSError, ValueError, KeyError) as error:
        raise PageHintError(f"{output} is there, but is no table of a sweep: {error}") from error


def _write(output: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table in one step: a reader, and whoever is interrupted, has the old one or the new."""
    table = needed("pyarrow").Table.from_pylist(rows)
    beside = output.with_name(output.name + ".new")
    needed("pyarrow.parquet").write_table(table, beside, compression="zstd")
    beside.replace(output)
