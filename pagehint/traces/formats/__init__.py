"""The forms in which recordings come: text of several tracers, trace-cmd's and LLFree's files, Parquet, CSV series.

Begin with `source.py`, which says what a reader is. `text.pyx` and `trace_cmd.pyx` are the hot part; `compression.py`
gives them what they read. Uses `errors`, `extras.py`, `sync` and the tables of `traces/`.
"""
