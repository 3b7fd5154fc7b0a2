"""Whole programs with the arena, and every Python that they start: what `pagehint run` does.

Begin with `settings.py`, what the environment variable says, and `start.py`, which a Python does that finds it;
`interpreter.py` starts the program, and `supervise.py` watches it for a table of its processes. Uses `numpy` and the
rooms below it. What each Python imports at its start is `pagehint_hook.py`, beside the package.
"""
