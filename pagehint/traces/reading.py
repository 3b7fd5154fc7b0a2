"""What a reader met that is no row of the table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reading:
    """What the reader met that is no row of the table.

    Attributes
    ----------
    lines : int
        How many lines, or records of a binary form, there were.
    other_events : dict of str to int
        Events by name that say nothing of pages, and how often they came.
    not_understood : int
        How many lines were neither an event nor a comment.
    examples : tuple of str
        The first of these, each with its number, cut to a readable length.
    backwards : int
        How many rows have an earlier time than the row before them. Tracers write rows in the order of their times: if
        there are any, files were joined, or clocks differed.
    damage : str or None
        Where and why the file ends before its time, if it does. All rows before that place are in the table.
    """

    lines: int = 0
    other_events: Mapping[str, int] = field(default_factory=dict)
    not_understood: int = 0
    examples: tuple[str, ...] = ()
    backwards: int = 0
    damage: str | None = None
